import { createPrivateKey, X509Certificate } from 'node:crypto'
import type { IncomingMessage, Server as HttpServer, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { createSecureContext, type TLSSocket } from 'node:tls'
import type { Address } from '../core/address.js'
import { systemClock, type Clock, type Timer } from '../core/clock.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { Limits } from '../core/limits.js'
import { silentLogger, type Logger } from '../core/log.js'
import { strictServer } from '../core/strict-server.js'
import { CouchProxy } from '../couch/proxy.js'
import { FileReader } from '../files/reader.js'
import { isRefusal } from '../identity/admission.js'
import { readLeaf, type Leaf } from '../identity/leaf.js'
import { Connections, type Connection } from './connections.js'
import type { ServerCounts } from './counts.js'
import { Dispatch, isFeed } from './dispatch.js'
import { applyUpdate, limitsOf, parseEnv, type ServerEnvInput, type ServerUpdate } from './env.js'
import { Handlers } from './handlers.js'
import { openLane, type LaneOptions } from './lane.js'
import { Listener } from './listener.js'
import { Mail } from './mail.js'
import { Shortage } from './shortage.js'
import { buildState, type ServerState } from './state.js'

// The server room: the one open port, and the order in which everything behind it is asked.
//
// It promises that who is not admitted is cut off before an HTTP byte is parsed (listener.ts), that each request
// passes canonical form, identity, route and decision before a handler runs (dispatch.ts; a Permit comes from
// a decision alone), and that an update decides what runs again before it is acknowledged. It must never open
// a configuration file, start a program, write anything but log lines, or listen after an env it refused.
//
//   stdin   {"version":1,"listen":[…],…}            stdout  {"event":"ready","device":"…","listen":[…]}
//           {"op":"update","seq":1,"revoked":[…]}           {"event":"updated","seq":1,"cut":1}

export interface ServerCollaborators {
  /** Silent unless given. */
  readonly logger?: Logger
  readonly clock?: Clock
}

export interface PatchcordServer {
  readonly device: DeviceId
  /** Where it listens, with the ports that were bound. */
  readonly addresses: readonly Address[]
  /** Replaces the given parts whole, decides everything that runs again, and resolves when the last
   * connection that this cut is closed. Rejects with `bad-env`; the old parts are then still in force. */
  update (part: ServerUpdate): Promise<{ cut: number }>
  counts (): ServerCounts
  /** Accepts nothing more, lets what runs end for at most 5 s, and leaves no handle behind. */
  stop (): Promise<void>
}

/** How long `stop` lets transfers end (ms). */
const DRAIN_MS = 5_000
/** Identities are looked at again at least this often while connections are open (ms): the person's clock
 * may jump, and timers stand still while a machine sleeps. */
const SWEEP_MS = 30_000

/** Starts the server with all it may know. The executable `patchcord-server` runs this very function.
 * Throws `bad-env` naming the field, or `port-in-use`; nothing listens then. */
export async function startServer (env: ServerEnvInput, { logger = silentLogger(), clock = systemClock }: ServerCollaborators = {}): Promise<PatchcordServer> {
  const parsed = parseEnv(env)
  const server = new Server(buildState(parsed), limitsOf(parsed), logger, clock)
  try {
    await server.listen()
  } catch (error) {
    await server.stop()
    throw error
  }
  return server
}

class Server implements PatchcordServer {
  readonly addresses: Address[] = []
  readonly #limits: Limits
  readonly #logger: Logger
  readonly #clock: Clock
  readonly #connections: Connections
  readonly #dispatch: Dispatch
  readonly #listener: Listener
  readonly #http: HttpServer
  readonly #lane: LaneOptions
  readonly #mail: Mail
  readonly #shortage: Shortage
  readonly #files: FileReader | undefined
  /** The HTTP parser hands back the socket alone. */
  readonly #bySocket = new WeakMap<Socket, Connection>()
  #state: ServerState
  #couch: CouchProxy | undefined
  #sweep: { readonly timer: Timer, readonly due: number } | undefined
  #updates: Promise<unknown> = Promise.resolve()
  #stopped: Promise<void> | undefined

  constructor (state: ServerState, limits: Limits, logger: Logger, clock: Clock) {
    this.#state = state
    this.#limits = limits
    this.#logger = logger
    this.#clock = clock
    const { env } = state
    // First what may throw: what is opened after it is closed by `stop` alone.
    const identity = checkIdentity(env.identity)
    this.#couch = this.#openCouch(state)
    this.#files = env.files === undefined ? undefined : new FileReader(env.files.root)
    this.#mail = new Mail(env.mail, limits.mailPollMs, clock)
    this.#connections = new Connections(limits)
    this.#shortage = new Shortage({ clock, logger })
    const onShortage = (what: string): void => { this.#shortage.noticed(what) }
    const handlers = new Handlers({ state: () => this.#state, couch: () => this.#couch, files: this.#files, mail: this.#mail, limits, clock, logger })
    this.#dispatch = new Dispatch({
      state: () => this.#state,
      connections: this.#connections,
      limits,
      clock,
      logger,
      readRecords: async ({ id }) => await this.#files?.records(id) ?? [],
      handle: (permit, request, asked) => handlers.handle(permit, request, asked),
      onShortage,
    })
    const { headBytes, headMs, headers, idleMs } = limits
    this.#http = strictServer({ headBytes, headMs, headers, idleMs })
    // It never listens itself (sockets reach it admitted), but only then does Node watch headersTimeout.
    this.#http.emit('listening')
    this.#http.on('request', (message, response) => { this.#requested(message, response, false) })
    this.#http.on('checkContinue', (message, response) => { this.#requested(message, response, true) })
    this.#http.on('checkExpectation', (message, response) => { this.#requested(message, response, false) })
    this.#http.on('clientError', (error, socket) => { this.#unparseable(error, socket as Socket) })
    this.#lane = {
      limits,
      ask: (connection, asked) => { this.#dispatch.request(connection, asked) },
      handOver: ({ socket }) => { this.#http.emit('connection', socket) },
      late: ({ socket }) => { this.#unparseable(Object.assign(new Error('no request'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' }), socket) },
    }
    this.#listener = new Listener({ ...identity, allowRouted: env.allowRouted, limits, clock, logger, onSecure: (socket, transport) => { this.#admit(socket, transport) }, onShortage })
  }

  get device (): DeviceId { return this.#state.env.identity.device }

  async listen (): Promise<void> {
    for (const { host, port } of this.#state.env.listen) this.addresses.push(await this.#listener.listen(host, port))
  }

  counts (): ServerCounts {
    const { requests, bytes } = this.#dispatch.answered
    return { connections: [...this.#connections].length, requests: { ...requests }, bytes, memory: process.memoryUsage.rss() }
  }

  update (part: ServerUpdate): Promise<{ cut: number }> {
    const updated = this.#updates.then(() => this.#update(part))
    this.#updates = updated.catch(() => undefined)
    return updated
  }

  stop (): Promise<void> {
    this.#stopped ??= this.#stop()
    return this.#stopped
  }

  async #stop (): Promise<void> {
    const closed = this.#listener.close()
    const deadline = this.#clock.monotonic() + DRAIN_MS
    const all = [...this.#connections]
    const busy = all.filter(({ running }) => [...running].some(({ action }) => !isFeed(action)))
    await this.#connections.end(all.filter(connection => !busy.includes(connection)))
    await Promise.all(busy.map(connection => settle(connection, deadline - this.#clock.monotonic(), this.#clock)))
    await this.#connections.end([...this.#connections])
    this.#sweep?.timer.cancel()
    this.#shortage.stop()
    this.#http.close()
    await this.#couch?.close()
    await closed
  }

  async #update (part: ServerUpdate): Promise<{ cut: number }> {
    if (this.#stopped !== undefined) throw new PatchcordError('stopped', 'the server is stopping')
    const before = this.#state
    const state = buildState(applyUpdate(before.env, part))
    if (state.env.identity.device !== this.device) throw new PatchcordError('bad-env', 'update: identity.device must stay the same', { hint: 'start another server for another device' })
    const identity = part.identity === undefined ? undefined : checkIdentity(state.env.identity)
    const couch = state.env.couch?.url === before.env.couch?.url ? this.#couch : this.#openCouch(state)
    // Nothing is refused from here on, and nothing was changed before.
    if (identity !== undefined) this.#listener.renew(identity.key, identity.certificates)
    if (couch !== this.#couch) {
      const old = this.#couch
      this.#couch = couch
      old?.close().catch((error: unknown) => { this.#logger.warn({ err: error }, 'the connections to the old CouchDB did not close') })
    }
    this.#state = state
    this.#mail.replace(state.env.mail)
    const cut = await this.#cutRefused()
    this.#logger.info({ parts: Object.keys(part), cut }, 'updated')
    return { cut }
  }

  #openCouch ({ env }: ServerState): CouchProxy | undefined {
    return env.couch === undefined ? undefined : new CouchProxy({ url: env.couch.url, limits: this.#limits, logger: this.#logger, clock: this.#clock })
  }

  // ---- connections

  #admit (socket: TLSSocket, transport: Socket): void {
    const leaf = this.#leafOf(socket)
    const principal = leaf === undefined ? undefined : this.#dispatch.identify(leaf)
    if (leaf === undefined || principal === undefined || isRefusal(principal) || this.#stopped !== undefined) {
      this.#logger.info({ remote: socket.remoteAddress, device: leaf?.deviceId, rule: principal !== undefined && isRefusal(principal) ? principal.refused : undefined }, 'not admitted')
      socket.destroy()
      return
    }
    const connection = this.#connections.add(socket, transport, leaf, principal, this.#clock.now())
    if (connection === undefined) {
      this.#logger.warn({ device: principal.device, entry: principal.entry }, 'the limit connectionsPerEntry is reached')
      socket.destroy()
      return
    }
    this.#bySocket.set(socket, connection)
    this.#armSweep(connection.endsAt)
    openLane(connection, this.#lane)
  }

  #leafOf (socket: TLSSocket): Leaf | undefined {
    const certificate = socket.getPeerX509Certificate()
    if (certificate === undefined) return undefined
    try {
      return readLeaf(certificate.raw)
    } catch (error) {
      this.#logger.debug({ remote: socket.remoteAddress, reason: messageOf(error) }, 'unreadable certificate')
      return undefined
    }
  }

  async #cutRefused (): Promise<number> {
    const refused = [...this.#connections].filter(connection => !this.#dispatch.mayGoOn(connection))
    for (const { endsAt } of this.#connections) this.#armSweep(endsAt)
    await this.#connections.cut(refused)
    return refused.length
  }

  /** One timer for all: at the next end of a certificate, and at least every SWEEP_MS. Whether there are open files left is
   * looked at then, too. */
  #armSweep (endsAt: number): void {
    const left = endsAt - this.#clock.now()
    const delay = left > 0 ? Math.min(left + 1, SWEEP_MS) : SWEEP_MS
    const due = this.#clock.monotonic() + delay
    if (this.#sweep !== undefined && this.#sweep.due <= due) return
    this.#sweep?.timer.cancel()
    const timer = this.#clock.after(delay, () => {
      this.#sweep = undefined
      void this.#shortage.look()
      this.#cutRefused().catch((error: unknown) => { this.#logger.error({ err: error }, 'the sweep failed') })
    })
    this.#sweep = { timer, due }
  }

  // ---- requests

  #requested (message: IncomingMessage, response: ServerResponse, expectsContinue: boolean): void {
    const connection = this.#bySocket.get(message.socket)
    if (connection === undefined) {
      message.destroy()
      return
    }
    const { method = '', url = '', httpVersion, rawHeaders } = message
    this.#dispatch.request(connection, { method, target: url, httpVersion, rawHeaders, known: undefined, message, response, askForBody: expectsContinue ? () => { response.writeContinue() } : undefined })
  }

  #unparseable (error: Error, socket: Socket): void {
    const connection = this.#bySocket.get(socket)
    const code = systemCode(error)
    this.#logger.debug({ connection: connection?.id, error: code }, 'not HTTP')
    if (connection !== undefined && connection.waiting === 0 && !connection.refused && socket.writable) {
      socket.write(`HTTP/1.1 ${code === 'HPE_HEADER_OVERFLOW' ? '431 Request Header Fields Too Large' : code === 'ERR_HTTP_REQUEST_TIMEOUT' ? '408 Request Timeout' : '400 Bad Request'}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`)
    }
    if (connection !== undefined) connection.refused = true
    socket.destroySoon()
  }
}

/** Throws `bad-env` where key and certificate do not belong together, or TLS does not take them. */
function checkIdentity (identity: { key: string, certificates: string }): { key: string, certificates: string } {
  try {
    const certificate = new X509Certificate(identity.certificates)
    if (!certificate.checkPrivateKey(createPrivateKey(identity.key))) throw new Error('the key is not that of the certificate')
    createSecureContext({ key: identity.key, cert: identity.certificates })
  } catch (error) {
    throw new PatchcordError('bad-env', `env: identity.key and identity.certificates do not belong together: ${messageOf(error)}`)
  }
  return identity
}

/** Resolves when nothing runs on the connection, when it is closed, or after `delay` ms. */
function settle (connection: Connection, delay: number, clock: Clock): Promise<void> {
  return new Promise(resolve => {
    const timer = clock.after(Math.max(0, delay), resolve)
    connection.onRest = () => {
      timer.cancel()
      resolve()
    }
    if (connection.waiting === 0) connection.onRest()
  })
}

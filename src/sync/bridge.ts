import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { systemClock, type Clock } from '../core/clock.js'
import { sendCouchFailure, sendCouchJson } from '../core/couch-answers.js'
import { PatchcordError, systemCode } from '../core/errors.js'
import { isDeviceId, type DeviceId } from '../core/ids.js'
import { DEFAULT_LIMITS, type Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import { localServer } from '../core/strict-server.js'
import { canonicaliseBridge, type CanonicalRequest } from '../policy/canonical.js'
import { requestHeaders } from '../policy/couch-headers.js'
import { decide } from '../policy/decide.js'
import { boundedFeedQuery, isFeed } from '../policy/feed.js'
import type { Principal } from '../policy/principal.js'
import { couchPath, routeCouch, type CouchAction } from '../policy/route.js'
import { BridgeTokens, type BridgeToken } from './bridge-tokens.js'
import { BridgeTransfer, type BridgeOutcome } from './bridge-transfer.js'
import { peerHost, type PeerAgent } from './peer-agent.js'

/*
 * The bridge: on loopback, `/peer/<device>/couch/<db>/…` is a peer's database for any CouchDB client of this
 * user, which so needs to know nothing of TLS, certificates or addresses.
 *
 * It promises: who has no token gets nothing, and learns nothing; a token for one database reads or writes
 * that one alone; what reaches the peer is the canonical request, written anew, without the token; what comes
 * back passes the same allow-lists as an answer of our own CouchDB. Bytes stream both ways at the pace of the
 * slower side, and who leaves takes the other side along.
 *
 * It must never: listen beyond loopback, answer a page (any Origin is refused), tell the peer which program
 * asks, or send a request to anybody but the device in its path, which PeerAgent sees to.
 *
 *   GET /peer/<device>/couch/notes/_changes        GET /couch/notes/_changes HTTP/1.1
 *   Host: 127.0.0.1:5985                      →    host: <device>.patchcord.invalid     (over mutual TLS)
 *   Authorization: Basic cGF0Y2hjb3JkOi…
 */

export interface BridgeOptions {
  /** Kept by who starts it: checkpoints of programs depend on the URL. 0 picks one. */
  readonly port: number
  readonly tokens: readonly BridgeToken[]
  /** The connections to a device that is known now, or undefined. */
  readonly peerAgent: (device: DeviceId) => PeerAgent | undefined
  readonly logger: Logger
  readonly clock?: Clock
  readonly limits?: Partial<Limits>
}

export interface Bridge {
  /** `http://127.0.0.1:<port>`, without a slash at the end. */
  readonly url: string
  /** Replaces all tokens at once; what runs under one that is gone is cut before this returns. */
  setTokens (tokens: readonly BridgeToken[]): void
  /** Cuts what runs to one device, or to one of its databases. */
  cut (device: DeviceId, database?: string): void
  /** Cuts everything and closes the port. */
  stop (): Promise<void>
}

export type { BridgeToken }

/** Starts the bridge. Throws `port-in-use`. */
export async function startBridge (options: BridgeOptions): Promise<Bridge> {
  const bridge = new LoopbackBridge(options)
  await bridge.listen(options.port)
  return bridge
}

interface Running {
  readonly token: BridgeToken
  readonly device: DeviceId
  readonly database: string | undefined
  readonly transfer: BridgeTransfer
}

/** Local programs, all together: a feed per database and peer, and what comes and goes. */
const MOST_CONNECTIONS = 256

class LoopbackBridge implements Bridge {
  readonly #peerAgent: BridgeOptions['peerAgent']
  readonly #logger: Logger
  readonly #clock: Clock
  readonly #limits: Limits
  readonly #http: Server
  readonly #running = new Set<Running>()
  #tokens: BridgeTokens

  constructor ({ tokens, peerAgent, logger, clock = systemClock, limits = {} }: BridgeOptions) {
    this.#tokens = new BridgeTokens(tokens)
    this.#peerAgent = peerAgent
    this.#logger = logger
    this.#clock = clock
    this.#limits = Object.freeze({ ...DEFAULT_LIMITS, ...limits })
    this.#http = localServer({ ...this.#limits, connections: MOST_CONNECTIONS }, (message, response, expectsContinue) => {
      this.#serve(message, response, expectsContinue).catch((error: unknown) => {
        this.#logger.error({ err: error }, 'a request could not even be refused')
        response.destroy()
      })
    })
  }

  get url (): string { return `http://127.0.0.1:${(this.#http.address() as AddressInfo).port}` }

  async listen (port: number): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#http.once('error', reject)
      this.#http.listen({ host: '127.0.0.1', port }, () => {
        this.#http.off('error', reject)
        resolve()
      })
    }).catch((error: unknown) => {
      if (systemCode(error) === 'EADDRINUSE') throw new PatchcordError('port-in-use', `port ${port} of the bridge is taken`, { cause: error, hint: 'end the program that has it; checkpoints depend on this port' })
      throw error
    })
    this.#http.on('error', error => { this.#logger.error({ err: error }, 'the bridge cannot accept') })
  }

  setTokens (tokens: readonly BridgeToken[]): void {
    this.#tokens = new BridgeTokens(tokens)
    for (const { token, transfer } of [...this.#running]) if (!this.#tokens.has(token)) transfer.close()
  }

  cut (device: DeviceId, database?: string): void {
    for (const running of [...this.#running]) {
      if (running.device === device && (database === undefined || running.database === database)) running.transfer.close()
    }
  }

  async stop (): Promise<void> {
    const closed = new Promise<void>(resolve => { this.#http.close(() => { resolve() }) })
    for (const { transfer } of [...this.#running]) transfer.close()
    this.#http.closeAllConnections()
    await closed
  }

  async #serve (message: IncomingMessage, response: ServerResponse, expectsContinue: boolean): Promise<void> {
    const started = this.#clock.monotonic()
    message.on('error', () => undefined)
    response.on('error', () => undefined)
    const line: Record<string, unknown> = { method: message.method }
    try {
      Object.assign(line, await this.#answer(message, response, expectsContinue, line))
    } catch (error) {
      const failure = error instanceof PatchcordError ? error : new PatchcordError('internal', 'the bridge failed', { cause: error })
      if (failure.code === 'internal') this.#logger.error({ ...line, err: error }, 'a request failed')
      // What was sent with a refused request is not read: the connection cannot carry another one.
      if (!message.complete && !response.headersSent) response.setHeader('connection', 'close')
      const bytes = line['token'] === undefined && failure.code === 'not-admitted' ? unauthorised(response) : sendCouchFailure(response, failure)
      Object.assign(line, { status: response.statusCode, bytes, problem: failure.message })
    }
    this.#logger.info({ ...line, ms: Math.round(this.#clock.monotonic() - started) }, 'bridge request')
  }

  async #answer (message: IncomingMessage, response: ServerResponse, expectsContinue: boolean, line: Record<string, unknown>): Promise<BridgeOutcome> {
    if (message.rawHeaders.length > 2 * this.#limits.headers) throw new PatchcordError('not-canonical', 'the request has too many headers')
    const canonical = canonicaliseBridge({ method: message.method ?? '', target: message.url ?? '', httpVersion: message.httpVersion, rawHeaders: message.rawHeaders })
    if ('refusal' in canonical) throw new PatchcordError(canonical.refusal.code, canonical.refusal.reason)
    const { request } = canonical
    const token = this.#tokens.find(request.headers.get('authorization'))
    if (token === undefined) throw new PatchcordError('not-admitted', 'no token of the bridge was given')
    line['token'] = token.program
    const [root, device, couch, ...segments] = request.segments
    if (root !== 'peer' || device === undefined || !isDeviceId(device) || couch !== 'couch') throw new PatchcordError('not-found', 'missing')
    const action = routeCouch(request.method, segments, request.trailingSlash, request.query)
    if (action === undefined) throw new PatchcordError('not-found', 'missing')
    Object.assign(line, { device, action: action.row.id, database: action.target.database })
    const { scope } = token
    if (scope !== 'general' && scope.device !== device) throw new PatchcordError('not-found', 'missing')
    const decision = decide(principalOf(token, device), action, 0)
    if (!decision.allowed) throw new PatchcordError(decision.status === 404 ? 'not-found' : decision.status === 400 ? 'not-canonical' : 'refused', decision.reason)
    if (action.row.path === 'all-dbs' && scope !== 'general') return { status: 200, bytes: sendCouchJson(response, 200, [scope.database]) }
    const agent = this.#peerAgent(device)
    if (agent === undefined) throw new PatchcordError('not-found', 'missing')
    return await this.#forward(token, device, agent, action, request, message, response, expectsContinue)
  }

  async #forward (token: BridgeToken, device: DeviceId, agent: PeerAgent, action: CouchAction, request: CanonicalRequest, message: IncomingMessage, response: ServerResponse, expectsContinue: boolean): Promise<BridgeOutcome> {
    const { row, target } = action
    const feed = isFeed(action)
    const hasBody = row.body !== 'none' && request.body !== undefined
    if ((request.body?.length ?? 0) > this.#limits.bodyBytes) throw new PatchcordError('too-large', `the body is larger than ${this.#limits.bodyBytes} bytes`)
    const query = feed ? boundedFeedQuery(action.query, this.#limits.heartbeatMs) : action.query
    const headers = requestHeaders(request.headers, { host: peerHost(device), bodyForm: hasBody ? row.body : 'none' })
    if (expectsContinue) response.writeContinue()
    const transfer = new BridgeTransfer({
      device, agent, headers, hasBody, isFeed: feed,
      method: request.method,
      path: `/couch${couchPath(action, query, undefined)}`,
      pathForm: row.path,
    }, message, response, this.#limits, this.#clock)
    const running = { token, device, database: target.database, transfer }
    this.#running.add(running)
    try {
      return await transfer.done
    } finally {
      this.#running.delete(running)
    }
  }
}

/** A token as the one who asks, so that the one `decide` decides here too: an own device's program, with a
 * grant for what the token names. The peer decides again by its own grants. */
function principalOf ({ scope, program }: BridgeToken, device: DeviceId): Principal {
  return {
    device, user: undefined, relation: 'own', entry: 'bridge', name: program, grantName: program, checkpoints: '', endsAt: Infinity,
    grant: { databases: scope === 'general' ? { '*': 'write' } : { [scope.database]: scope.mode }, files: 'referenced' },
  }
}

/** Programs ask without a password first and wait for this. */
function unauthorised (response: ServerResponse): number {
  if (response.headersSent || response.destroyed) return 0
  response.setHeader('www-authenticate', 'Basic realm="patchcord bridge"')
  response.setHeader('connection', 'close')
  return sendCouchJson(response, 401, { error: 'unauthorized', reason: 'Name or password is incorrect.' })
}

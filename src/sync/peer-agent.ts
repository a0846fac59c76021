import { Agent, request, type AgentOptions, type ClientRequest, type ClientRequestArgs, type IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { connect, type TLSSocket } from 'node:tls'
import { formatAddress, hostOf, splitZone, type Address } from '../core/address.js'
import type { Clock } from '../core/clock.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import { admitServer, isRefusal, type Refusal } from '../identity/admission.js'
import { readLeaf, type Leaf } from '../identity/leaf.js'
import { SERVER_NAME } from '../policy/canonical.js'
import type { OnRead } from './byte-connection.js'
import { BytePool } from './byte-pool.js'

/** What this device proves itself with, and what it knows of the other. Read anew for each connection. */
export interface PeerCredentials {
  /** PEM of the device key and certificate. */
  readonly key: string
  readonly certificate: string
  /** PEM of the CA pinned for the peer. */
  readonly ca: string
  readonly revoked: ReadonlySet<DeviceId>
}

export interface PeerAgentOptions {
  readonly device: DeviceId
  readonly credentials: () => Promise<PeerCredentials>
  /** Where the peer is now. */
  readonly address: () => Address | undefined
  readonly clock: Clock
  /** Lets a server in that admission refused, for what is believed by its signatures alone
   * (restricted-mail.ts). None is, where this is left out. */
  readonly tolerates?: (refusal: Refusal, leaf: Leaf) => boolean
}

/** Why a server was refused, with its certificate. */
export interface RefusedServer extends Refusal { readonly leaf: Leaf }

/** The refusal that an error of a connection stands for, or undefined. */
export function refusedServer (error: unknown): RefusedServer | undefined {
  const cause: unknown = error instanceof PatchcordError && error.code === 'verification' ? error.cause : undefined
  return typeof cause === 'object' && cause !== null && isRefusal(cause) ? cause as RefusedServer : undefined
}

const CONNECT_MS = 10_000
/** Requests at once to one peer, and so connections. Its open port takes 32 connections of an entry, and 16
 * feeds; PouchDB asks for all the attachments of a batch at the same moment. */
const MOST_AT_ONCE = 24

/** What http.Agent does with a request, which its types leave out. */
type AddRequest = (request: ClientRequest, ...options: unknown[]) => void
/** Connections kept when nothing is asked. */
const MOST_KEPT = 8

/**
 * A pool of mutual-TLS connections to one peer. The server's certificate is checked against the pinned
 * identity before a byte of a request is sent: what it cannot prove, it is not asked.
 */
export class PeerAgent extends Agent {
  readonly #options: PeerAgentOptions
  readonly #open = new Set<TLSSocket>()
  readonly #queue: Array<() => void> = []
  #active = 0
  /** How often everything was cut: what was begun before belongs to an earlier time. */
  #cuts = 0

  constructor (options: PeerAgentOptions, pool: AgentOptions = {}) {
    // Of fewer, small files at once would each begin with a handshake.
    super({ keepAlive: true, maxSockets: MOST_AT_ONCE, maxFreeSockets: MOST_KEPT, timeout: 60_000, ...pool })
    this.#options = options
  }

  /** Node counts a connection towards `maxSockets` when it is there, not when it is begun: where that takes a
   * while, as it does here, a hundred requests at once make a hundred connections. So requests wait here. */
  addRequest (request: ClientRequest, ...options: unknown[]): void {
    const start = (): void => {
      if (request.destroyed) {
        // Aborted before it was sent, or while it waited: it says so only once it is given a socket, or none.
        request.onSocket(undefined as never)
        return this.#next()
      }
      this.#active += 1
      request.once('close', () => {
        this.#active -= 1
        this.#next()
      })
      ;(Agent.prototype as unknown as { addRequest: AddRequest }).addRequest.call(this, request, ...options)
    }
    if (this.#active < this.maxSockets) start()
    else this.#queue.push(start)
  }

  override createConnection (_options: ClientRequestArgs, callback?: (error: Error | null, stream: Duplex) => void): Duplex | null | undefined {
    this.#connect().then(
      socket => { callback?.(null, socket) },
      (error: unknown) => { callback?.(error instanceof Error ? error : new Error(String(error)), undefined as never) })
    return undefined
  }

  /** The addresses of this machine that its connections come from. */
  get localHosts (): string[] { return [...this.#open].flatMap(({ localAddress }) => localAddress === undefined ? [] : [splitZone(localAddress).host]) }

  /** Cuts every connection of the pool, those in use and those being made too. */
  override destroy (): void {
    this.#cuts += 1
    for (const socket of this.#open) socket.destroy()
    super.destroy()
  }

  #next (): void {
    if (this.#active < this.maxSockets) this.#queue.shift()?.()
  }

  async #connect (): Promise<TLSSocket> {
    const cuts = this.#cuts
    return await dialPeer(this.#options, {
      isCut: () => cuts !== this.#cuts,
      onBegun: begun => {
        this.#open.add(begun)
        begun.once('close', () => { this.#open.delete(begun) })
      },
    })
  }
}

/** How one connection is made. */
export interface Dialling {
  /** Whether it is of no use any more. */
  readonly isCut: () => boolean
  /** Told of the socket before the handshake. */
  readonly onBegun: (socket: TLSSocket) => void
  readonly onread?: OnRead
}

/** Makes a connection to a peer. Resolves when the other end proved to be it, before which nothing is sent. Throws `unreachable`,
 * `verification`. */
export async function dialPeer ({ device, credentials, address, clock, tolerates }: PeerAgentOptions, { isCut, onBegun, onread }: Dialling): Promise<TLSSocket> {
  const to = address()
  if (to === undefined) throw new PatchcordError('unreachable', `no address is known for device ${device}`, { hint: `give one: patchcord connect ${device} --at <host>:<port>` })
  const { key, certificate, ca, revoked } = await credentials()
  if (isCut()) throw new PatchcordError('unreachable', `the connection to ${formatAddress(to)} was cut`)
  const socket = await handshake(to, key, certificate, onBegun, onread)
  const shown = socket.getPeerX509Certificate()
  const leaf = shown === undefined ? undefined : readLeaf(shown.raw)
  const admitted = leaf === undefined
    ? { refused: 'unknown', reason: 'the server showed no certificate' } as const
    : admitServer({ device, ca, revoked }, leaf, clock.now())
  if (isRefusal(admitted) && !(leaf !== undefined && tolerates?.(admitted, leaf) === true)) {
    socket.destroy()
    throw new PatchcordError('verification', `who answers at ${formatAddress(to)} is not device ${device}: ${admitted.reason}`, { hint: 'check the address; if the device has a new identity, trust it again', ...leaf === undefined ? {} : { cause: { ...admitted, leaf } satisfies RefusedServer } })
  }
  return socket
}

/** Connections for the bytes of files, apart from all else that is asked of a peer. */
export function bytePool (options: PeerAgentOptions, most: number): BytePool {
  return new BytePool((onread, signal) => dialPeer(options, {
    onread,
    isCut: () => signal.aborted,
    onBegun: socket => {
      const cut = (): void => { socket.destroy() }
      signal.addEventListener('abort', cut)
      socket.once('close', () => { signal.removeEventListener('abort', cut) })
      // Whoever asked may be gone; the connection is then for the next.
      socket.once('secureConnect', () => { signal.removeEventListener('abort', cut) })
    },
  }), { host: peerHost(options.device), who: `device ${options.device}`, most })
}

function handshake (to: Address, key: string, cert: string, onBegun: (socket: TLSSocket) => void, onread?: OnRead): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: hostOf(to), port: to.port, key, cert, ca: [], rejectUnauthorized: false, minVersion: 'TLSv1.3', ALPNProtocols: ['http/1.1'], servername: '', ...onread === undefined ? {} : { onread } })
    onBegun(socket)
    const fail = (error: unknown): void => {
      socket.destroy()
      reject(new PatchcordError('unreachable', `${formatAddress(to)} does not answer: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
    }
    const late = (): void => { fail(new Error('no answer in time')) }
    socket.setTimeout(CONNECT_MS, late)
    socket.once('error', fail)
    const closed = (): void => { fail(new Error('the connection was closed during the handshake')) }
    socket.once('close', closed)
    socket.once('secureConnect', () => {
      // The pool sets a timeout of its own on sockets that were used, for when they are idle: a listener left
      // here would end what is in use, such as a long-poll on which nothing moves.
      socket.setTimeout(0).off('timeout', late)
      socket.off('error', fail)
      socket.off('close', closed)
      socket.setNoDelay(true)
      resolve(socket)
    })
  })
}

/** The name that stands for a peer in URLs and in the Host header. */
export const peerHost = (device: DeviceId): string => `${device}.${SERVER_NAME}`

/** Sends one request to a peer and resolves with the head of its answer. The caller reads or destroys the
 * body. With `silentMs`, an answer on which no byte moved for so long fails. Throws `unreachable`, `verification`, or
 * what the abort signal says. */
export function askPeer (agent: Agent, device: DeviceId, path: string, options: { readonly method?: string, readonly headers?: Readonly<Record<string, string>>, readonly signal?: AbortSignal, readonly silentMs?: number } = {}): Promise<IncomingMessage> {
  const { silentMs, ...others } = options
  return new Promise((resolve, reject) => {
    const sent = request({ ...others, ...silentMs === undefined ? {} : { timeout: silentMs }, agent, host: peerHost(device), path, headers: { ...options.headers, Host: peerHost(device) } })
    sent.once('response', resolve)
    // The pool's own time-out, for idle connections, is announced here too.
    if (silentMs !== undefined) sent.once('timeout', () => { sent.destroy(new PatchcordError('unreachable', `device ${device} said nothing for ${silentMs / 1000} s`)) })
    sent.once('error', error => {
      reject(error instanceof PatchcordError || options.signal?.aborted === true ? error : new PatchcordError('unreachable', `device ${device} went away: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
    })
    sent.end()
  })
}

/** The whole body of an answer, at most `most` bytes. Throws `too-large` past that. */
export async function readBody (answer: IncomingMessage, most: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > most) {
      answer.destroy()
      throw new PatchcordError('too-large', `the peer's answer is longer than ${most} bytes`)
    }
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

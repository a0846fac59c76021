import { once } from 'node:events'
import { createServer, request as httpRequest, type IncomingHttpHeaders, type IncomingMessage, type Server } from 'node:http'
import { connect, createServer as createNetServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { CouchProxy, type CouchCredentials, type CouchProxyOptions } from '../src/couch/proxy.js'
import { sendCouchFailure } from '../src/core/couch-answers.js'
import type { Forwarded } from '../src/couch/transfer.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DeviceId } from '../src/core/ids.js'
import { canonicalise, type CanonicalRequest } from '../src/policy/canonical.js'
import { decide } from '../src/policy/decide.js'
import type { Principal } from '../src/policy/principal.js'
import { route } from '../src/policy/route.js'

export const DEVICE = `${'a'.repeat(51)}q` as DeviceId

export const peer: Principal = {
  device: DEVICE, user: undefined, relation: 'peer', entry: 'device:a', name: 'friend', grantName: 'friend',
  grant: { databases: { db: 'write', shown: 'read' }, files: 'referenced' }, checkpoints: 'hash', endsAt: Infinity,
}
export const own: Principal = { ...peer, relation: 'own', entry: 'own:a', grantName: 'own', grant: { databases: { '*': 'write' }, files: 'all' } }

// ---- upstreams on raw sockets

export interface Recorded {
  readonly socket: Socket
  bytes: Buffer
  closed: boolean
}

export type Answer = (socket: Socket, request: ParsedRequest, index: number) => void | Promise<void>

/** A server that parses nothing but framing, keeps every byte it got, and answers as told. */
export class RawUpstream {
  readonly connections: Recorded[] = []
  readonly #server = createNetServer({ allowHalfOpen: true, noDelay: true })
  #answer: Answer

  private constructor (answer: Answer) {
    this.#answer = answer
    this.#server.on('connection', socket => { this.#record(socket) })
  }

  static async start (answer: Answer | string = JSON_OK): Promise<RawUpstream> {
    const upstream = new RawUpstream(typeof answer === 'string' ? socket => { socket.write(answer, 'latin1') } : answer)
    upstream.#server.listen(0, '127.0.0.1')
    await once(upstream.#server, 'listening')
    return upstream
  }

  get url (): string { return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}` }
  get requests (): ParsedRequest[] { return this.connections.flatMap(({ bytes }) => parseRequests(bytes)) }
  get bytes (): string { return this.connections.map(({ bytes }) => bytes.toString('latin1')).join('') }

  answer (answer: Answer): void { this.#answer = answer }

  async close (): Promise<void> {
    for (const { socket } of this.connections) socket.destroy()
    this.#server.close()
    await once(this.#server, 'close')
  }

  #record (socket: Socket): void {
    const recorded: Recorded = { socket, bytes: Buffer.alloc(0), closed: false }
    this.connections.push(recorded)
    let answered = 0
    socket.on('data', chunk => {
      recorded.bytes = Buffer.concat([recorded.bytes, chunk])
      const complete = parseRequests(recorded.bytes)
      while (answered < complete.length) {
        const request = complete[answered++]!
        void this.#answer(socket, request, answered)
      }
    })
    socket.on('end', () => { recorded.closed = true; socket.end() })
    socket.on('close', () => { recorded.closed = true })
    socket.on('error', () => { recorded.closed = true })
  }
}

export interface ParsedRequest {
  readonly method: string
  readonly target: string
  readonly headers: ReadonlyMap<string, string>
  readonly names: readonly string[]
  readonly body: Buffer
}

/** The complete requests in `bytes`, read as a lenient server would; a body on any method counts. */
export function parseRequests (bytes: Buffer): ParsedRequest[] {
  const requests: ParsedRequest[] = []
  let at = 0
  for (;;) {
    const end = bytes.indexOf('\r\n\r\n', at)
    if (end === -1) return requests
    const [line, ...lines] = bytes.toString('latin1', at, end).split('\r\n')
    const headers = new Map(lines.map(text => [text.slice(0, text.indexOf(':')).toLowerCase(), text.slice(text.indexOf(':') + 1).trim()]))
    const [method, target] = line!.split(' ') as [string, string]
    at = end + 4
    let body: Buffer
    if (headers.get('transfer-encoding') === 'chunked') {
      const parts: Buffer[] = []
      for (;;) {
        const lineEnd = bytes.indexOf('\r\n', at)
        if (lineEnd === -1) return requests
        const size = parseInt(bytes.toString('latin1', at, lineEnd), 16)
        const next = lineEnd + 2 + size + 2
        if (bytes.length < next) return requests
        parts.push(bytes.subarray(lineEnd + 2, next - 2))
        at = next
        if (size === 0) break
      }
      body = Buffer.concat(parts)
    } else {
      const length = Number(headers.get('content-length') ?? 0)
      if (bytes.length < at + length) return requests
      body = bytes.subarray(at, at + length)
      at += length
    }
    requests.push({ method, target, headers, names: lines.map(text => text.slice(0, text.indexOf(':')).toLowerCase()), body })
  }
}

export function answerText (status: string, headers: readonly string[], body = ''): string {
  return `HTTP/1.1 ${status}\r\n${[...headers, `Content-Length: ${Buffer.byteLength(body)}`].join('\r\n')}\r\n\r\n${body}`
}

export const JSON_OK = answerText('200 OK', ['Content-Type: application/json'], '{"ok":true}\n')

// ---- the gate in front: plain HTTP, and the policy

export interface Gate {
  readonly port: number
  readonly proxy: CouchProxy
  readonly outcomes: Array<Forwarded | PatchcordError>
  close (): Promise<void>
}

export interface GateOptions extends Omit<CouchProxyOptions, 'url'> {
  readonly principal?: Principal
  /** What requests are forwarded with. */
  readonly credentials?: CouchCredentials
  /** Hands the proxy what the canonical form refuses: the request with its own headers, as it came. */
  readonly lax?: boolean
}

export async function startGate (url: string, { principal = own, credentials = { username: 'limited', password: 'secret' }, lax = false, ...options }: GateOptions = {}): Promise<Gate> {
  const proxy = new CouchProxy({ url, ...options })
  const outcomes: Gate['outcomes'] = []
  const server: Server = createServer((incoming, response) => {
    const rawHeaders = lax ? ['Host', '127.0.0.1'] : incoming.rawHeaders
    const canonical = canonicalise({ method: incoming.method!, target: incoming.url!, httpVersion: incoming.httpVersion, rawHeaders }, DEVICE)
    const refuse = (error: PatchcordError): void => {
      outcomes.push(error)
      sendCouchFailure(response, error)
    }
    if ('refusal' in canonical) return refuse(new PatchcordError(canonical.refusal.code, canonical.refusal.reason))
    const request: CanonicalRequest = lax ? { ...canonical.request, headers: new Map(Object.entries(incoming.headers as Record<string, string>)), body: { length: undefined } } : canonical.request
    const action = route(request)
    if (action?.kind !== 'couch') return refuse(new PatchcordError('not-found', 'no such thing'))
    const decision = decide(principal, action, 0)
    if (!decision.allowed) return refuse(new PatchcordError(decision.status === 404 ? 'not-found' : decision.status === 403 ? 'refused' : 'not-canonical', decision.reason))
    proxy.forward({ action, request, principal, credentials, body: incoming, response })
      .then(outcome => { outcomes.push(outcome) }, (error: unknown) => {
        if (!(error instanceof PatchcordError)) throw error
        refuse(error)
      })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    proxy,
    outcomes,
    async close () {
      await proxy.close()
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

// ---- clients

export interface Asked {
  readonly status: number
  readonly message: string
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  /** The body ended where its framing says. */
  readonly complete: boolean
}

export interface Ask {
  readonly method?: string
  readonly path: string
  readonly headers?: Record<string, string>
  /** A list goes out chunked, one chunk each. */
  readonly body?: string | Buffer | ReadonlyArray<string | Buffer>
  /** Told how many bytes of the answer's body have come: 0 with its head. */
  readonly onBody?: (bytes: number) => void
}

/** One request on a connection of its own. */
export async function ask (gate: Pick<Gate, 'port'>, { method = 'GET', path, headers = {}, body, onBody = () => {} }: Ask): Promise<Asked> {
  const outgoing = httpRequest({ host: '127.0.0.1', port: gate.port, method, path, agent: false, headers: { ...body === undefined ? {} : { 'content-type': 'application/json' }, ...headers } })
  const answered = new Promise<IncomingMessage>((resolve, reject) => {
    outgoing.once('response', resolve)
    outgoing.on('error', reject)
  })
  // Awaited below; it may fail before, while the body is written.
  answered.catch(() => {})
  if (Array.isArray(body)) {
    for (const part of body as string[]) {
      outgoing.write(part)
      await sleep(2)
    }
    outgoing.end()
  } else if (body === undefined) outgoing.end()
  else {
    outgoing.setHeader('content-length', Buffer.byteLength(body as string))
    outgoing.end(body)
  }
  const answer = await answered
  const chunks: Buffer[] = []
  let bytes = 0
  onBody(bytes)
  try {
    for await (const chunk of answer as AsyncIterable<Buffer>) {
      chunks.push(chunk)
      onBody(bytes += chunk.length)
    }
  } catch { /* told by complete */ }
  outgoing.destroy()
  return { status: answer.statusCode!, message: answer.statusMessage!, headers: answer.headers, body: Buffer.concat(chunks), complete: answer.complete }
}

/** A connection of a client's that writes bytes as they are, and keeps what comes back. */
export interface Dialled {
  readonly text: string
  readonly isClosed: boolean
  end (): void
}

export function dial (gate: Pick<Gate, 'port'>, text: string | Buffer): Dialled {
  const socket = connect(gate.port, '127.0.0.1')
  const dialled = { text: '', isClosed: false, end: () => { socket.destroy() } }
  socket.on('data', chunk => { dialled.text += chunk.toString('latin1') })
  socket.on('error', () => {})
  socket.once('close', () => { dialled.isClosed = true })
  socket.write(text)
  return dialled
}

/** Writes bytes as they are; resolves with what came back once the head of an answer is there, or once the other side has closed. */
export async function askRaw (gate: Pick<Gate, 'port'>, text: string | Buffer, until: 'answered' | 'closed' = 'answered'): Promise<string> {
  const client = dial(gate, text)
  if (!await eventually(() => client.isClosed || (until === 'answered' && /HTTP\/1\.1 [2-5]\d\d [^]*\r\n\r\n/.test(client.text)))) throw new Error(`waited ${HANG_MS / 1000} s for it to be ${until}; received: ${client.text}`)
  client.end()
  return client.text
}

const HANG_MS = 30_000

/** Waits until `condition` holds, as long as nothing takes that does not hang; says whether it did. */
export async function eventually (condition: () => boolean): Promise<boolean> {
  for (const start = performance.now(); performance.now() - start < HANG_MS;) {
    if (condition()) return true
    await sleep(5)
  }
  return condition()
}

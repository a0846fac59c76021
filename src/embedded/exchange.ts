import type { IncomingMessage, ServerResponse } from 'node:http'
import type { CanonicalRequest } from '../policy/canonical.js'
import type { CouchAction } from '../policy/route.js'
import type { Caller } from './accounts.js'
import type { Bodies } from './bodies.js'
import type { EmbeddedLimits } from './limits.js'
import { Problem } from './problem.js'

type Headers = Record<string, string | number>

const ALWAYS: Headers = { 'Cache-Control': 'must-revalidate', 'X-Content-Type-Options': 'nosniff' }

/** One allowed request and its answer. Only a positive decision makes one. */
export class Exchange {
  readonly request: CanonicalRequest
  readonly action: CouchAction
  readonly caller: Caller
  readonly limits: EmbeddedLimits
  readonly #incoming: IncomingMessage
  readonly #response: ServerResponse
  readonly #bodies: Bodies
  readonly #ended = new AbortController()
  #release: () => void = () => undefined

  constructor (head: { request: CanonicalRequest, action: CouchAction, caller: Caller }, wire: { incoming: IncomingMessage, response: ServerResponse, bodies: Bodies, limits: EmbeddedLimits }) {
    this.request = head.request
    this.action = head.action
    this.caller = head.caller
    this.limits = wire.limits
    this.#incoming = wire.incoming
    this.#response = wire.response
    this.#bodies = wire.bodies
    this.#response.once('close', () => { this.#end() })
  }

  /** Aborted when the client has gone, lost the right, or the database stops. */
  get signal (): AbortSignal { return this.#ended.signal }
  get isHead (): boolean { return this.request.method === 'HEAD' }
  /** Whether an answer has begun, so that nothing but cutting it off can say that it failed. */
  get started (): boolean { return this.#response.headersSent }

  parameter (name: string): string | undefined { return this.action.query.get(name) }
  flag (name: string): boolean { return this.parameter(name) === 'true' }

  /** The number a parameter says, or undefined. */
  count (name: string): number | undefined {
    const text = this.parameter(name)
    return text === undefined ? undefined : Number(text)
  }

  /** A parameter that CouchDB reads as JSON. The decision has already parsed it once. */
  jsonParameter (name: string): unknown {
    const text = this.parameter(name)
    return text === undefined ? undefined : JSON.parse(text)
  }

  /** The JSON object of the body. Throws 415, 413 or 400; the room it takes is given back by `releaseBody`. */
  async readObject (most = this.limits.bodyBytes): Promise<Record<string, unknown>> {
    const { value, release } = await this.#bodies.readObject(this.#incoming, this.#response, this.request, this.caller.username, most, this.signal)
    this.#release = release
    return value
  }

  /** The body's bytes. */
  async readBytes (): Promise<Buffer> {
    const { value, release } = await this.#bodies.readBytes(this.#incoming, this.#response, this.request, this.caller.username, this.limits.bodyBytes, this.signal)
    this.#release = release
    return value
  }

  releaseBody (): void {
    this.#release()
    this.#release = () => undefined
  }

  /** Answers with JSON, whole. */
  json (status: number, value: unknown, headers: Headers = {}): void {
    this.bytes(status, Buffer.from(`${JSON.stringify(value)}\n`), { 'Content-Type': 'application/json', ...headers })
  }

  bytes (status: number, body: Buffer, headers: Headers): void {
    this.head(status, { 'Content-Length': body.length, ...headers })
    this.#response.end(this.isHead ? undefined : body)
  }

  /** Begins an answer that `write` and `end` complete. */
  head (status: number, headers: Headers): void {
    this.#response.writeHead(status, { ...ALWAYS, ...headers })
  }

  /** Sends the head now: a feed that has nothing to say yet has begun all the same. */
  flush (): void {
    this.#response.flushHeaders()
  }

  /** 304, where If-None-Match names the tag. */
  isUnchanged (tag: string): boolean {
    const given = this.request.headers.get('if-none-match')
    if (given === undefined || !given.split(',').some(one => one.trim().replace(/^W\//, '') === tag)) return false
    this.head(304, { ETag: tag })
    this.#response.end()
    return true
  }

  /** Sends a part and waits until the client can take more. Rejects when it has gone or takes nothing for
   * the stall limit. */
  async write (text: string | Buffer): Promise<void> {
    if (this.isHead) return
    this.#throwIfEnded()
    if (this.#response.write(text)) return
    await new Promise<void>((resolve, reject) => {
      const stalled = setTimeout(() => { this.cut() }, this.limits.stallMs)
      const done = (settle: () => void) => (): void => {
        clearTimeout(stalled)
        this.#response.off('drain', drained)
        this.signal.removeEventListener('abort', ended)
        settle()
      }
      const drained = done(resolve)
      const ended = done(() => { reject(gone()) })
      this.#response.on('drain', drained)
      this.signal.addEventListener('abort', ended)
    })
  }

  /** Whether the client still has unread bytes before it; a heartbeat would only add to them. */
  get isBehind (): boolean { return this.#response.writableNeedDrain }

  end (text = ''): void {
    if (!this.signal.aborted) this.#response.end(this.isHead ? undefined : text)
  }

  /** Ends the exchange and its connection at once. */
  cut (): void {
    this.#response.destroy()
    this.#end()
  }

  #end (): void {
    this.releaseBody()
    this.#ended.abort()
  }

  #throwIfEnded (): void {
    if (this.signal.aborted) throw gone()
  }
}

const gone = (): Problem => new Problem(503, 'stopped', 'the client has gone, or may no longer ask')

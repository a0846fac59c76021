import { STATUS_CODES } from 'node:http'
import type { TLSSocket } from 'node:tls'
import type { AnswerEvent, Answering } from '../core/answering.js'
import type { LaneOutput } from './lane-output.js'

/** RFC 9110 sections 5.6.2 and 5.5: what may stand in a header line. */
const NAMES = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]*$/
const VALUES = /^[\t\x20-\x7e\x80-\xff]*$/
/** What is larger is not copied once more to be written with the end. */
const LARGE = 16_384

/**
 * One answer on the plain lane, framed as Node's ServerResponse frames it: by a length where one was given, else in chunks. Head and
 * body go out in one write where they come together.
 */
export class LaneAnswer implements Answering {
  statusCode = 200
  shouldKeepAlive = true
  headersSent = false
  writableFinished = false
  readonly req: { readonly method: string }
  readonly socket: TLSSocket
  readonly #output: LaneOutput
  #isEnded = false
  readonly #keepAliveSeconds: number
  #hasNoBody: boolean
  #isChunked = false
  /** A head that was not written yet. */
  #head = ''
  readonly #listeners: Array<{ readonly event: AnswerEvent, readonly listener: () => void, readonly isOnce: boolean }> = []

  constructor (output: LaneOutput, method: string, idleMs: number) {
    this.#output = output
    this.socket = output.socket
    output.begin(this)
    this.req = { method }
    this.#keepAliveSeconds = Math.floor(idleMs / 1000)
    this.#hasNoBody = method === 'HEAD'
  }

  get destroyed (): boolean { return this.socket.destroyed }
  get mayBeFollowed (): boolean { return this.#isEnded && this.shouldKeepAlive && this.#output.mayBeFollowed }

  writeHead (status: number, headers: Readonly<Record<string, string | number>>): void {
    this.statusCode = status
    this.headersSent = true
    let text = `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? 'unknown'}\r\n`
    let hasDate = false
    let hasLength = false
    // Looked at together: twice is enough, and a bad character is one wherever it stands.
    let names = ''
    let values = ''
    for (const name in headers) {
      const value = headers[name]!
      if (name.length === 4 && name.toLowerCase() === 'date') hasDate = true
      else if (name.length === 14 && name.toLowerCase() === 'content-length') hasLength = true
      names += name
      values += value
      text += `${name}: ${value}\r\n`
      if (name === '') throw new TypeError('a header without a name')
    }
    if (!NAMES.test(names) || !VALUES.test(values)) throw new TypeError('a header that is none')
    if (status === 204 || status === 304) this.#hasNoBody = true
    if (!hasDate) text += `Date: ${httpDate()}\r\n`
    text += this.shouldKeepAlive ? `Connection: keep-alive\r\nKeep-Alive: timeout=${this.#keepAliveSeconds}\r\n` : 'Connection: close\r\n'
    this.#isChunked = !hasLength && !this.#hasNoBody
    if (this.#isChunked) text += 'Transfer-Encoding: chunked\r\n'
    this.#head = `${text}\r\n`
  }

  flushHeaders (): void { this.#output.write(this.#takeHead()) }

  write (chunk: Uint8Array | string): boolean {
    if (this.#hasNoBody || chunk.length === 0) return true
    if (typeof chunk === 'string') return this.#output.write(this.#takeHead() + this.#framed(chunk))
    const { socket } = this
    socket.cork()
    this.#output.write(this.#takeHead() + (this.#isChunked ? `${chunk.length.toString(16)}\r\n` : ''))
    const takesMore = this.#output.write(chunk)
    if (this.#isChunked) this.#output.write('\r\n')
    socket.uncork()
    return takesMore
  }

  end (chunk: Uint8Array | string = ''): void {
    if (typeof chunk !== 'string' && chunk.length > LARGE) {
      this.write(chunk)
      chunk = ''
    }
    const text = typeof chunk === 'string' ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length).toString('latin1')
    const last = this.#takeHead() + (this.#hasNoBody || text === '' ? '' : this.#framed(text))
    this.#isEnded = true
    this.#output.end(this, this.#isChunked ? `${last}0\r\n\r\n` : last)
  }

  destroy (): void {
    // Those before it have ended: what became of this one is not theirs to bear.
    this.#output.flush()
    this.socket.destroy()
  }

  once (event: AnswerEvent, listener: () => void): void { this.#listeners.push({ event, listener, isOnce: true }) }
  on (event: AnswerEvent, listener: () => void): void { this.#listeners.push({ event, listener, isOnce: false }) }

  off (event: AnswerEvent, listener: () => void): void {
    const at = this.#listeners.findIndex(each => each.event === event && each.listener === listener)
    if (at !== -1) this.#listeners.splice(at, 1)
  }

  /** Tells its listeners: of `close` and `drain`, which are the connection's, its output knows. */
  tell (event: AnswerEvent): void {
    for (const { event: of, listener, isOnce } of [...this.#listeners]) {
      if (of !== event) continue
      if (isOnce) this.off(event, listener)
      listener()
    }
  }

  /** The system took all of it. */
  finished (): void {
    this.writableFinished = true
    this.tell('finish')
    if (!this.shouldKeepAlive) this.socket.destroySoon()
  }

  #framed (text: string): string {
    return this.#isChunked ? `${text.length.toString(16)}\r\n${text}\r\n` : text
  }

  #takeHead (): string {
    const head = this.#head
    this.#head = ''
    return head
  }
}

let dated = { second: 0, text: '' }

/** Written once a second (RFC 9110 section 6.6.1), by the system's clock as Node's is. */
function httpDate (): string {
  const second = Math.floor(Date.now() / 1000)
  if (second !== dated.second) dated = { second, text: new Date(second * 1000).toUTCString() }
  return dated.text
}

import type { IncomingFields } from '../policy/couch-headers.js'
import type { UpstreamAnswer } from './upstream.js'

/** Where the parts of an answer go. */
export interface AnswerSink {
  answered (answer: UpstreamAnswer): void
  data (bytes: Buffer, from: number, to: number): void
}

/** What is not an answer that can be told from the next one. Nothing that follows on its connection can be trusted. */
export class BadAnswer extends Error {}

/** Bytes of the heads of one answer, interim ones (1xx) included, and of its trailers: Node's own limit. */
const MOST_HEAD = 16_384
const MOST_CHUNK_LINE = 256

/**
 * Reads one answer of HTTP/1.1 (RFC 9112) out of what a connection brings. Strict where two readers might differ on
 * where it ends: one Content-Length of plain digits, or one Transfer-Encoding of exactly `chunked`, never both and never
 * neither; no folded lines, no bare line ends. The reason phrase is not looked at. Trailers are read like headers, and dropped.
 */
export class AnswerParser {
  /** Whether the connection may be used for another request, once the answer is whole. */
  isReusable = true
  /** Whether a byte of it came. */
  hasBegun = false
  readonly #hasNoBody: boolean
  readonly #sink: AnswerSink
  #state: 'head' | 'length' | 'size' | 'chunk' | 'chunk end' | 'trailers' | 'whole' = 'head'
  /** A head or a line whose end has not come yet. */
  #text = ''
  /** Bytes of the body, or of the chunk, that are still to come. */
  #left = 0
  #headBytes = 0
  #at = 0
  #end = 0

  constructor (method: string, sink: AnswerSink) {
    this.#hasNoBody = method === 'HEAD'
    this.#sink = sink
  }

  /** Takes the first `length` bytes of `bytes` and says whether the answer is whole. Throws BadAnswer. What comes after the end is not
   * looked at: nobody asked for it, and the connection is not to be used again. */
  read (bytes: Buffer, length: number): boolean {
    this.hasBegun = true
    this.#at = 0
    this.#end = length
    while (this.#step(bytes));
    if (this.#state !== 'whole') return false
    if (this.#at < length) this.isReusable = false
    return true
  }

  /** Whether there may be more to do with these bytes. */
  #step (bytes: Buffer): boolean {
    switch (this.#state) {
      case 'head': return this.#readHead(bytes)
      case 'length': return this.#readBody(bytes, 'whole')
      case 'chunk': return this.#readBody(bytes, 'chunk end')
      case 'size': return this.#readSize(bytes)
      case 'chunk end': return this.#readChunkEnd(bytes)
      case 'trailers': return this.#readTrailer(bytes)
      case 'whole': return false
    }
  }

  #readHead (bytes: Buffer): boolean {
    const before = this.#text.length
    let text: string
    if (before === 0) {
      text = bytes.toString('latin1', this.#at, Math.min(this.#end, this.#at + MOST_HEAD))
      const end = text.indexOf('\r\n\r\n')
      if (end !== -1) text = text.slice(0, end + 4)
      else if (this.#at + text.length < this.#end) throw new BadAnswer('a head that is too large')
    } else {
      const all = this.#text + bytes.toString('latin1', this.#at, this.#end)
      const end = all.indexOf('\r\n\r\n')
      text = end === -1 ? all : all.slice(0, end + 4)
    }
    if (this.#headBytes + text.length > MOST_HEAD) throw new BadAnswer('a head that is too large')
    if (!text.endsWith('\r\n\r\n')) {
      if (!'HTTP/1.'.startsWith(text.slice(0, 7))) throw new BadAnswer('what is not HTTP')
      this.#text = text
      this.#at = this.#end
      return false
    }
    this.#at += text.length - before
    this.#headBytes += text.length
    this.#text = ''
    this.#begin(text)
    return true
  }

  #begin (text: string): void {
    const { status, isOld, headers } = parseHead(text)
    // RFC 9110 section 15.2: any number of interim answers may come before the answer.
    if (status === 101) throw new BadAnswer('status 101')
    if (status >= 100 && status < 200) {
      // Some readers take it at its word, and what follows for nothing.
      if (mayClose(headers['connection'])) throw new BadAnswer('an interim answer that ends its connection')
      return
    }
    const encoding = headers['transfer-encoding']
    const length = headers['content-length']
    if (isOld || mayClose(headers['connection'])) this.isReusable = false
    if (encoding !== undefined && (encoding !== 'chunked' || length !== undefined || isOld)) throw new BadAnswer('an answer whose end is not clear')
    if (length !== undefined && !/^\d{1,15}$/.test(length)) throw new BadAnswer('a Content-Length that is no number')
    if (this.#hasNoBody || status === 204 || status === 304) this.#state = 'whole'
    else if (encoding !== undefined) this.#state = 'size'
    else if (length === undefined) throw new BadAnswer('an answer without a length')
    else {
      this.#left = Number(length)
      this.#state = this.#left === 0 ? 'whole' : 'length'
    }
    this.#sink.answered({ status, headers })
  }

  #readBody (bytes: Buffer, next: 'whole' | 'chunk end'): boolean {
    const from = this.#at
    const end = Math.min(this.#end, from + this.#left)
    if (end === from) return false
    this.#left -= end - from
    this.#at = end
    if (this.#left === 0) this.#state = next
    this.#sink.data(bytes, from, end)
    return true
  }

  #readSize (bytes: Buffer): boolean {
    const line = this.#readLine(bytes)
    if (line === undefined) return false
    const size = CHUNK_SIZE.exec(line)?.[1]
    if (size === undefined) throw new BadAnswer('a chunk without a size')
    this.#left = Number.parseInt(size, 16)
    this.#state = this.#left === 0 ? 'trailers' : 'chunk'
    return true
  }

  #readChunkEnd (bytes: Buffer): boolean {
    const line = this.#readLine(bytes)
    if (line === undefined) return false
    if (line !== '') throw new BadAnswer('a chunk that is longer than its size')
    this.#state = 'size'
    return true
  }

  #readTrailer (bytes: Buffer): boolean {
    const line = this.#readLine(bytes, MOST_HEAD)
    if (line === undefined) return false
    this.#headBytes += line.length + 2
    if (this.#headBytes > MOST_HEAD) throw new BadAnswer('trailers that are too large')
    if (line === '') this.#state = 'whole'
    // RFC 9110 section 6.5.1: what says where the answer ends cannot come behind it.
    else {
      const name = FIELD_NAME.exec(line)?.[1]
      if (name === undefined) throw new BadAnswer('a header that is none')
      if (ONCE.has(name.toLowerCase())) throw new BadAnswer('an answer whose end is not clear')
    }
    return true
  }

  /** The next line without its end, or undefined while that has not come. */
  #readLine (bytes: Buffer, most = MOST_CHUNK_LINE): string | undefined {
    if (this.#at >= this.#end) return undefined
    const found = bytes.indexOf(0x0a, this.#at)
    // What lies behind the end of what was read is of another answer.
    const isWhole = found !== -1 && found < this.#end
    const next = isWhole ? found + 1 : this.#end
    if (this.#text.length + next - this.#at > most) throw new BadAnswer('a line that is too long')
    const text = this.#text + bytes.toString('latin1', this.#at, next)
    this.#at = next
    this.#text = isWhole ? '' : text
    if (!isWhole) return undefined
    if (!text.endsWith('\r\n')) throw new BadAnswer('a bare line end')
    return text.slice(0, -2)
  }
}

const CHUNK_SIZE = /^([0-9a-f]{1,8})(?:;[\t\x20-\x7e\x80-\xff]*)?$/i
const STATUS_LINE = /^HTTP\/1\.([01]) (\d{3})(?: [^\r\n]*)?$/

interface Head {
  readonly status: number
  /** HTTP/1.0. */
  readonly isOld: boolean
  readonly headers: AnswerFields
}

/** The fields that somebody reads, and no others. All are there from the beginning: objects that grow by whatever names come are each of
 * a kind of their own, and slow to read. */
interface AnswerFields extends IncomingFields {
  'transfer-encoding': string | undefined
  'content-length': string | undefined
  'connection': string | undefined
}

const noFields = (): AnswerFields => ({
  'transfer-encoding': undefined, 'content-length': undefined, 'connection': undefined, 'content-type': undefined, 'content-encoding': undefined,
  'etag': undefined, 'accept-ranges': undefined, 'content-range': undefined, 'content-md5': undefined, 'date': undefined, 'cache-control': undefined,
})

/** The names of those fields, by what an answer calls them: in small letters, and as most servers write them. */
const NAMES: ReadonlyMap<string, string> = new Map(Object.keys(noFields()).flatMap(name =>
  [[name, name], [name.replace(/\b[a-z]/g, letter => letter.toUpperCase()), name], [name.toUpperCase(), name], ...name === 'etag' ? [['ETag', name] as const] : []]))

/** Given twice, nobody knows which one counts. */
const ONCE = new Set(['content-length', 'transfer-encoding'])

/** Field lines (RFC 9112 section 5) and the empty one behind them, to the end. */
const FIELD_LINES = /(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n$/y
const FIELD_NAME = /^([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*$/

/** `text` with its empty line at the end. Of other headers that are given twice the first counts. */
function parseHead (text: string): Head {
  const statusEnd = text.indexOf('\r\n')
  const line = STATUS_LINE.exec(text.slice(0, statusEnd))
  if (line === null) throw new BadAnswer('what is not HTTP')
  FIELD_LINES.lastIndex = statusEnd + 2
  if (!FIELD_LINES.test(text)) throw new BadAnswer('a header that is none')
  const headers = noFields() as Record<string, string | undefined>
  // All lines are of their form: what is left is to find the few that somebody reads.
  for (let at = statusEnd + 2, end = text.indexOf('\r\n', at); end > at; at = end + 2, end = text.indexOf('\r\n', at)) {
    const colon = text.indexOf(':', at)
    const name = nameOf(text.slice(at, colon))
    if (name === undefined) continue
    const value = withoutSpaces(text, colon + 1, end)
    // RFC 9110 lets a tab stand around any value; Node's parser takes `chunked` with one behind it for another encoding.
    if (ONCE.has(name) && text.slice(colon, end).includes('\t')) throw new BadAnswer('an answer whose end is not clear')
    const before = headers[name]
    if (before === undefined) headers[name] = value
    else if (ONCE.has(name)) throw new BadAnswer('an answer whose end is not clear')
    else if (name === 'connection') headers[name] = `${before}, ${value}`
  }
  return { status: Number(line[2]), isOld: line[1] === '0', headers: headers as AnswerFields }
}

const nameOf = (written: string): string | undefined => NAMES.get(written) ?? NAMES.get(written.toLowerCase())

/** RFC 9110 section 5.6.3: only spaces and tabs around a value are none of it. */
function withoutSpaces (text: string, from: number, to: number): string {
  let start = from
  let end = to
  while (start < end && isSpace(text.charCodeAt(start))) start++
  while (end > start && isSpace(text.charCodeAt(end - 1))) end--
  return text.slice(start, end)
}

const isSpace = (code: number): boolean => code === 0x20 || code === 0x09

const mayClose = (connection: string | undefined): boolean => connection !== undefined && /\bclose\b/i.test(connection)

import { BadAnswer, bodyLength, HeadParser, isFraming, isWholeHead, MOST_HEAD_BYTES, readHead } from '../core/answer-head.js'
import type { UpstreamAnswer } from './upstream.js'

/** Where the parts of an answer go. */
export interface AnswerSink {
  answered (answer: UpstreamAnswer): void
  data (bytes: Buffer, from: number, to: number): void
}

const MOST_CHUNK_LINE = 256

/**
 * Reads one answer of HTTP/1.1 (RFC 9112) out of what a connection brings: its head as strictly as core/answer-head.ts says, and never one that
 * does not say where it ends. Its heads, interim ones (1xx) included, and its trailers have MOST_HEAD_BYTES together. Trailers are read like
 * headers, and dropped.
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
    const text = readHead(this.#text, bytes, this.#at, this.#end, MOST_HEAD_BYTES - this.#headBytes)
    if (!isWholeHead(text)) {
      this.#text = text
      this.#at = this.#end
      return false
    }
    this.#at += text.length - this.#text.length
    this.#headBytes += text.length
    this.#text = ''
    this.#begin(text)
    return true
  }

  #begin (text: string): void {
    const head = HEADS.parse(text)
    const { status, isOld, mayClose } = head
    // RFC 9110 section 15.2: any number of interim answers may come before the answer.
    if (status === 101) throw new BadAnswer('status 101')
    if (status >= 100 && status < 200) {
      // Some readers take it at its word, and what follows for nothing.
      if (mayClose) throw new BadAnswer('an interim answer that ends its connection')
      return
    }
    if (isOld || mayClose) this.isReusable = false
    const length = bodyLength(head)
    if (this.#hasNoBody || status === 204 || status === 304) this.#state = 'whole'
    else if (length === 'chunked') this.#state = 'size'
    else if (length === undefined) throw new BadAnswer('an answer without a length')
    else {
      this.#left = length
      this.#state = length === 0 ? 'whole' : 'length'
    }
    this.#sink.answered(head)
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
    const line = this.#readLine(bytes, MOST_HEAD_BYTES)
    if (line === undefined) return false
    this.#headBytes += line.length + 2
    if (this.#headBytes > MOST_HEAD_BYTES) throw new BadAnswer('trailers that are too large')
    if (line === '') this.#state = 'whole'
    // RFC 9110 section 6.5.1: what says where the answer ends cannot come behind it.
    else {
      const name = FIELD_NAME.exec(line)?.[1]
      if (name === undefined) throw new BadAnswer('a header that is none')
      if (isFraming(name)) throw new BadAnswer('an answer whose end is not clear')
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
const FIELD_NAME = /^([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*$/

/** The fields that somebody reads. */
const HEADS = new HeadParser(() => ({
  'transfer-encoding': undefined, 'content-length': undefined, 'connection': undefined, 'content-type': undefined, 'content-encoding': undefined,
  'etag': undefined, 'accept-ranges': undefined, 'content-range': undefined, 'content-md5': undefined, 'date': undefined, 'cache-control': undefined,
}))

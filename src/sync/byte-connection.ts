import type { Socket } from 'node:net'
import { BadAnswer, bodyLength, HeadParser, isWholeHead, readHead } from '../core/answer-head.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import { flushSoon, type Writer } from '../core/writes.js'
import { ACCOUNT_HEADER, FILE_SIZE_HEADER } from '../files/serve.js'

/** Of net.Socket: bytes come into the memory that `buffer` names, which is asked for once before the first and again after each
 * `callback`, and not into a new one each. */
export interface OnRead { readonly buffer: () => Uint8Array, readonly callback: (count: number, buffer: Uint8Array) => boolean }

/** Head of an answer, and of its fields (core/answer-head.ts) those that are asked for here. */
export interface AnswerHead {
  readonly status: number
  readonly headers: Readonly<Record<string, string | undefined>>
  /** Bytes of the body. */
  readonly length: number
}

export interface Exchange {
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly signal: AbortSignal
  /** Told of the head before the body; what it throws is what became of the request. */
  readonly onHead: (head: AnswerHead) => void
  /** Told of the body, piece by piece. The memory is used again when it returns: what is kept is copied. False stops the
   * reading until `resume`; what was deciphered already comes all the same. */
  readonly onBytes: (piece: Buffer) => boolean
  /** Where the next bytes of the body are to lie: TLS puts them there itself. Asked for before each piece; undefined where there is no place now, and
   * `onBytes` is told of what comes. That memory is the connection's until it asks again, and, where it is destroyed, for good. */
  readonly place?: () => Buffer | undefined
  /** Told how many bytes were put there; says what `onBytes` says. */
  readonly onPlaced?: (count: number) => boolean
  /** The answer is short, and `onBytes` takes whatever comes: the next request need not wait for its end. */
  readonly isShort?: boolean
}

/** A request that has not ended. */
interface Asked {
  readonly exchange: Exchange
  readonly resolve: (isAnswered: boolean) => void
  readonly reject: (error: unknown) => void
  /** Whether anything of its answer has come. */
  isAnswered: boolean
  /** Nobody is told of what comes. */
  isOver: boolean
  refusal: unknown
}

const READ_BYTES = 65_536
const [FILE_SIZE, ACCOUNT] = [FILE_SIZE_HEADER.toLowerCase(), ACCOUNT_HEADER.toLowerCase()] as const
const HEADS = new HeadParser<string>(() => ({
  'transfer-encoding': undefined, 'content-length': undefined, 'connection': undefined, 'content-range': undefined, [FILE_SIZE]: undefined, [ACCOUNT]: undefined,
}))
/** Requests on one connection, those that were given up among them: who answers none of so many is not waited for. */
const MOST_ASKED = 32
/** The body of a refusal up to this is read, so that the connection can go on. */
const MOST_REFUSAL_BYTES = 65_536

/**
 * One connection to a peer, on which one GET follows the other (RFC 9112): the way that the bytes of files come in. No stream,
 * no buffer for each record of TLS, nothing to collect: for 1 GiB, half of what `http.request` costs (docs/performance.md). Requests for
 * short answers do not wait for each other (RFC 9112 section 9.3.2): those of one moment go out in one write. It
 * takes what a patchcord server sends and nothing else: HTTP/1.1 with Content-Length.
 */
export class ByteConnection implements Writer {
  readonly #host: string
  readonly #who: string
  #socket!: Socket
  /** Where bytes come to that have no place. */
  readonly #own: Buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  /** Where the next bytes come to, if that is not `#own`. */
  #place: Buffer | undefined
  #head = ''
  #left = 0
  #isBody = false
  #isKept = true
  #failure: Error | undefined
  /** In the order of their answers. */
  readonly #asked: Asked[] = []
  /** Requests that were not written yet. */
  #unsent = ''
  /** Whether a request was answered whole, or it is cut on account of one alone: what it had not begun to answer may be asked again on another. */
  #wasOfUse = false

  private constructor (host: string, who: string) {
    this.#host = host
    this.#who = who
  }

  /** `dial` makes the connection, with what it is told of how to read; `host` goes into the Host header; `who` into errors. */
  static async open (dial: (onread: OnRead) => Promise<Socket>, host: string, who: string): Promise<ByteConnection> {
    const connection = new ByteConnection(host, who)
    const socket = await dial({ buffer: () => connection.#next(), callback: count => connection.#came(count) })
    connection.#socket = socket
    socket.on('error', error => { connection.#failure ??= error })
    socket.on('close', () => { connection.#over() })
    socket.on('timeout', () => { connection.#destroy(new PatchcordError('unreachable', `${who} said nothing for ${socket.timeout! / 1000} s`)) })
    if (socket.destroyed) connection.#destroy(new Error('it was closed'))
    return connection
  }

  /** Whether nothing runs on it and another request may follow. */
  get isUsable (): boolean { return this.isOpen && this.#asked.length === 0 }
  /** Whether requests may follow those that run. */
  get isOpen (): boolean { return this.#isKept && !this.#socket.destroyed }

  /** Asks for `path` and resolves when the whole body has come: true. False where the connection, which had been of use, ended before anything
   * came, as one does that the other side had closed meanwhile: then it may be asked again on another. Fails after `silentMs` on which no byte came. Throws
   * what `onHead` throws, `unreachable`, or the signal's reason. */
  async get (exchange: Exchange, silentMs: number): Promise<boolean> {
    const { signal, path, headers = {} } = exchange
    signal.throwIfAborted()
    let asked: Asked | undefined
    const aborted = (): void => { if (asked !== undefined) this.#abandon(asked) }
    signal.addEventListener('abort', aborted)
    this.#socket.ref()
    this.#socket.resume()
    this.#socket.setTimeout(silentMs)
    try {
      return await new Promise<boolean>((resolve, reject) => {
        asked = { exchange, resolve, reject, isAnswered: false, isOver: false, refusal: undefined }
        this.#asked.push(asked)
        if (this.#socket.destroyed) return this.#over()
        if (this.#unsent === '') flushSoon(this)
        this.#unsent += `GET ${path} HTTP/1.1\r\nHost: ${this.#host}\r\n${Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`
      })
    } finally {
      signal.removeEventListener('abort', aborted)
    }
  }

  flush (): void {
    const unsent = this.#unsent
    this.#unsent = ''
    if (unsent !== '' && !this.#socket.destroyed) this.#socket.write(unsent, 'latin1')
  }

  /** Reads on. */
  resume (): void {
    this.#socket.resume()
  }

  /** Keeps it for a while without a request; it keeps no process alive. */
  rest (ms: number): void {
    this.#socket.setTimeout(ms)
    this.#socket.unref()
  }

  destroy (): void {
    this.#destroy(new Error('it was cut'))
  }

  /** Cut on account of one request: those behind it are not told why. */
  #destroyFor (error: Error): void {
    this.#wasOfUse = true
    this.#destroy(error)
  }

  #destroy (error: Error): void {
    this.#failure ??= error
    this.#socket.destroy()
    this.#over()
  }

  /** Of a short answer what still comes is read and forgotten, so that those behind it come; any other costs the connection. */
  #abandon (asked: Asked): void {
    const reason = asked.exchange.signal.reason as Error
    const isLong = asked === this.#asked[0] && this.#isBody && this.#left > MOST_REFUSAL_BYTES
    if (asked.exchange.isShort !== true || this.#asked.length === 1 || isLong || this.#asked.length > MOST_ASKED) {
      this.#destroyFor(reason)
      return
    }
    asked.isOver = true
    asked.refusal = reason
    asked.reject(reason)
  }

  #over (): void {
    const error = this.#failure
    const reason = error instanceof PatchcordError ? error : new PatchcordError('unreachable', `${this.#who} went away${error === undefined ? '' : `: ${messageOf(error)}`}`, { cause: error })
    this.#unsent = ''
    for (const asked of this.#asked.splice(0)) {
      const { signal } = asked.exchange
      if (signal.aborted) asked.reject(signal.reason)
      else if (this.#wasOfUse && !asked.isAnswered) asked.resolve(false)
      else asked.reject(asked.refusal ?? reason)
    }
  }

  /** Asked for after each piece, whatever became of it: once a request is over nothing more comes to a place of its. */
  #next (): Buffer {
    const asked = this.#asked[0]
    const place = this.#isBody && asked?.refusal === undefined && !this.#socket.destroyed ? asked?.exchange.place?.() : undefined
    this.#place = place !== undefined && place.length > this.#left ? place.subarray(0, this.#left) : place
    return this.#place ?? this.#own
  }

  #came (count: number): boolean {
    if (this.#socket.destroyed) return false
    if (this.#place !== undefined) {
      this.#left -= count
      const goesOn = this.#asked[0]?.exchange.onPlaced?.(count) !== false
      if (this.#left === 0) this.#ended()
      return goesOn
    }
    let goesOn = true
    for (let at = 0; at < count;) {
      const asked = this.#asked[0]
      if (asked === undefined) {
        this.#destroy(new Error('it spoke unasked'))
        return false
      }
      asked.isAnswered = true
      if (!this.#isBody) {
        const before = this.#head.length
        const head = this.#headIn(at, count)
        if (head === undefined) return !this.#socket.destroyed
        at += this.#head.length - before
        this.#head = ''
        if (!this.#answered(asked, head)) return false
      }
      const length = Math.min(this.#left, count - at)
      if (length < count - at && this.#asked.length === 1) {
        this.#destroy(new PatchcordError('verification', `${this.#who} sends more than it said`))
        return false
      }
      this.#left -= length
      if (length > 0 && asked.refusal === undefined) goesOn = asked.exchange.onBytes(this.#own.subarray(at, at + length))
      at += length
      if (this.#socket.destroyed) return false
      if (this.#left === 0) this.#ended()
    }
    return goesOn
  }

  /** The head of the answer, once it is whole; undefined where it is not, and where it is none that is taken: then the connection is destroyed. */
  #headIn (at: number, count: number): AnswerHead | undefined {
    try {
      this.#head = readHead(this.#head, this.#own, at, count)
      if (!isWholeHead(this.#head)) return undefined
      const head = HEADS.parse(this.#head)
      const { status, headers } = head
      const stated = bodyLength(head)
      const length = typeof stated === 'number' ? stated : undefined
      if (head.isOld || status < 200 || (length === undefined && status < 300)) throw new BadAnswer('what no device sends')
      if (head.mayClose) this.#isKept = false
      this.#left = length ?? Infinity
      return { status, headers, length: length ?? 0 }
    } catch (error) {
      this.#destroy(new PatchcordError('verification', `${this.#who} answers in a form that is not taken: ${messageOf(error)}`, { cause: error }))
      return undefined
    }
  }

  /** Whether the body may come. */
  #answered (asked: Asked, head: AnswerHead): boolean {
    this.#isBody = true
    try {
      if (asked.isOver) throw asked.refusal
      asked.exchange.onHead(head)
    } catch (error) {
      asked.refusal = error
      if (this.#left > MOST_REFUSAL_BYTES) {
        this.#destroyFor(error as Error)
        return false
      }
    }
    return true
  }

  /** All of the first answer has come. */
  #ended (): void {
    if (this.#socket.destroyed) return
    const asked = this.#asked.shift()
    this.#isBody = false
    this.#wasOfUse = true
    if (asked?.refusal === undefined) asked?.resolve(true)
    else asked.reject(asked.refusal)
    if (!this.#isKept && this.#asked.length > 0) this.#destroy(new Error('it closes'))
  }
}

import type { Socket } from 'node:net'
import { BadAnswer, bodyLength, HeadParser, isWholeHead, readHead } from '../core/answer-head.js'
import { messageOf, PatchcordError } from '../core/errors.js'
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
}

const READ_BYTES = 65_536
const [FILE_SIZE, ACCOUNT] = [FILE_SIZE_HEADER.toLowerCase(), ACCOUNT_HEADER.toLowerCase()] as const
const HEADS = new HeadParser<string>(() => ({
  'transfer-encoding': undefined, 'content-length': undefined, 'connection': undefined, 'content-range': undefined, [FILE_SIZE]: undefined, [ACCOUNT]: undefined,
}))
/** The body of a refusal up to this is read, so that the connection can go on. */
const MOST_REFUSAL_BYTES = 65_536

/**
 * One connection to a peer, on which one GET follows the other (RFC 9112): the way that the bytes of files come in. No stream,
 * no buffer for each record of TLS, nothing to collect: for 1 GiB, half of what `http.request` costs (docs/performance.md). It
 * takes what a patchcord server sends and nothing else: HTTP/1.1 with Content-Length.
 */
export class ByteConnection {
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
  #refusal: unknown
  #current: { readonly exchange: Exchange, readonly resolve: () => void, readonly reject: (error: unknown) => void } | undefined
  /** Whether anything of the answer to the newest request has come. */
  #isAnswered = false
  #count = 0

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

  /** Whether another request may follow. */
  get isUsable (): boolean { return this.#isKept && !this.#socket.destroyed && this.#current === undefined }
  /** Whether it failed as one that the other side had closed meanwhile does: nothing of the newest request was answered. */
  get wasStale (): boolean { return this.#count > 1 && !this.#isAnswered }

  /** Asks for `path` and resolves when the whole body has come. Fails after `silentMs` on which no byte came. Throws what `onHead` throws,
   * `unreachable`, or the signal's reason; the connection is then of no use, unless it was a short refusal. */
  async get (exchange: Exchange, silentMs: number): Promise<void> {
    const { signal, path, headers = {} } = exchange
    signal.throwIfAborted()
    const aborted = (): void => { this.#destroy(signal.reason as Error) }
    signal.addEventListener('abort', aborted)
    this.#socket.ref()
    this.#socket.resume()
    this.#socket.setTimeout(silentMs)
    try {
      await new Promise<void>((resolve, reject) => {
        this.#current = { exchange, resolve, reject }
        this.#isAnswered = false
        this.#count += 1
        if (this.#socket.destroyed) return this.#over()
        this.#socket.write(`GET ${path} HTTP/1.1\r\nHost: ${this.#host}\r\n${Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`)
      })
    } finally {
      signal.removeEventListener('abort', aborted)
    }
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

  #destroy (error: Error): void {
    this.#failure ??= error
    this.#socket.destroy()
    this.#over()
  }

  #over (): void {
    const error = this.#failure
    const reason = error instanceof PatchcordError || this.#current?.exchange.signal.aborted === true ? error : new PatchcordError('unreachable', `${this.#who} went away${error === undefined ? '' : `: ${messageOf(error)}`}`, { cause: error })
    this.#settle(this.#refusal ?? reason)
  }

  #settle (error?: unknown): void {
    const current = this.#current
    this.#current = undefined
    this.#isBody = false
    this.#refusal = undefined
    if (error === undefined) current?.resolve()
    else current?.reject(error)
  }

  /** Asked for after each piece, whatever became of it: once a request is over nothing more comes to a place of its. */
  #next (): Buffer {
    const place = this.#isBody && this.#refusal === undefined && !this.#socket.destroyed ? this.#current?.exchange.place?.() : undefined
    this.#place = place !== undefined && place.length > this.#left ? place.subarray(0, this.#left) : place
    return this.#place ?? this.#own
  }

  #came (count: number): boolean {
    if (this.#current === undefined || this.#socket.destroyed) {
      // Nothing was asked.
      if (this.#current === undefined) this.#destroy(new Error('it spoke unasked'))
      return false
    }
    this.#isAnswered = true
    if (this.#place !== undefined) {
      this.#left -= count
      return this.#went(this.#current.exchange.onPlaced?.(count) !== false)
    }
    const piece = this.#own.subarray(0, count)
    if (this.#isBody) return this.#body(piece)
    const before = this.#head.length
    const head = this.#headIn(count)
    if (head === undefined) return !this.#socket.destroyed
    const end = this.#head.length - before
    this.#head = ''
    return this.#answered(head) && this.#body(piece.subarray(end))
  }

  /** The head of the answer, once it is whole; undefined where it is not, and where it is none that is taken: then the connection is destroyed. */
  #headIn (count: number): AnswerHead | undefined {
    try {
      this.#head = readHead(this.#head, this.#own, 0, count)
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
  #answered (head: AnswerHead): boolean {
    this.#isBody = true
    try {
      this.#current?.exchange.onHead(head)
    } catch (error) {
      if (this.#left > MOST_REFUSAL_BYTES) {
        this.#destroy(error as Error)
        return false
      }
      this.#refusal = error
    }
    return true
  }

  #body (piece: Buffer): boolean {
    if (piece.length > this.#left) {
      this.#destroy(new PatchcordError('verification', `${this.#who} sends more than it said`))
      return false
    }
    this.#left -= piece.length
    return this.#went(piece.length === 0 || this.#refusal !== undefined || this.#current?.exchange.onBytes(piece) !== false)
  }

  /** Ends the request where that was all of it; passes on whether to go on. */
  #went (goesOn: boolean): boolean {
    if (this.#left === 0 && this.#current !== undefined && !this.#socket.destroyed) this.#settle(this.#refusal)
    return goesOn
  }
}

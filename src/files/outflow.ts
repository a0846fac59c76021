import { ServerResponse } from 'node:http'
import type { Writable } from 'node:stream'
import type { Answering } from '../core/answering.js'
import type { Clock, Timer } from '../core/clock.js'

/** How an answer ended: all of it handed to the system; the client went away; no byte moved for `stallMs`; the file
 * lost bytes, or its disk failed, under the transfer. In all but the first the connection is gone. */
export type Ending = 'whole' | 'gone' | 'stalled' | 'cut'

/** The body of one answer, which is not a small one, on its way out: which buffers are still held by the stack below, how much has
 * left, and whether anything still moves. It destroys the connection where nothing moved for `stallMs`. */
export class Outflow {
  readonly #response: Answering
  readonly #stallMs: number
  readonly #clock: Clock
  readonly #held = new Set<number>()
  /** Where pieces are written to. */
  #way: Pick<Writable, 'write'>
  #bytes = 0
  #ending: Ending | undefined
  #wake: (() => void) | undefined
  #timer: Timer | undefined
  /** What was last seen of the progress, and when. */
  #seen = { bytes: -1, queued: -1, at: 0 }

  constructor (response: Answering, stallMs: number, clock: Clock) {
    this.#response = response
    this.#way = response as unknown as Writable
    this.#stallMs = stallMs
    this.#clock = clock
    // The listeners stay: a response is used once, and an error that comes late must find one.
    response.on('close', () => { this.#finish('gone') })
    response.on('finish', () => { this.#finish('whole') })
    if (response instanceof ServerResponse) response.on('error', () => { this.#finish('gone') })
    if (response.destroyed) {
      this.#finish('gone')
    } else {
      if (response instanceof ServerResponse && response.socket === null) this.#queue(response)
      this.#watch()
    }
  }

  /** Bytes whose write was called back. */
  get bytes (): number { return this.#bytes }

  /** How it ended, or how it would if it ended now. */
  get ending (): Ending { return this.#ending ?? 'gone' }

  isFree (slot: number): boolean { return !this.#held.has(slot) }

  /** Resolves once the buffer of `slot` may be filled again: true; or the answer is over: false. */
  async free (slot: number): Promise<boolean> {
    while (this.#ending === undefined && this.#held.has(slot)) await this.#change()
    return this.#ending === undefined
  }

  /** Sends the head by itself. What is written then goes to the connection directly: its length is in the head, so
   * there is no framing left to do, and each piece passes fewer layers. A response that still waits behind another
   * has no connection yet, and goes the long way. */
  sendHead (): void {
    if (this.#ending !== undefined || this.#response.socket === null) return
    this.#response.flushHeaders()
    this.#way = this.#response.socket as Writable
  }

  /** Hands `chunk` down. Its memory belongs to the stack until `isFree(slot)`. */
  write (slot: number, chunk: Buffer): void {
    if (this.#ending !== undefined) return
    this.#held.add(slot)
    this.#way.write(chunk, error => {
      this.#held.delete(slot)
      if (error === null || error === undefined) this.#bytes += chunk.length
      this.#wake?.()
    })
  }

  /** Ends the body and resolves once all of it was handed to the system, or the connection is gone. */
  async end (): Promise<Ending> {
    if (this.#ending === undefined) this.#response.end()
    while (this.#ending === undefined) await this.#change()
    return this.#ending
  }

  /** Destroys the connection: the body cannot be completed. */
  cut (): Ending {
    this.#finish('cut')
    this.#response.destroy()
    return this.ending
  }

  /** A response that waits behind another on its connection has no socket yet, and Node tells it nothing
   * when the connection ends: it would wait for ever. */
  #queue (response: ServerResponse): void {
    const { socket } = response.req
    const gone = (): void => { this.#finish('gone') }
    // As many as a client may pipeline; the limit of requests in flight is the server's.
    socket.setMaxListeners(0)
    socket.once('close', gone)
    response.once('socket', () => { socket.off('close', gone) })
    if (socket.destroyed) gone()
  }

  #finish (ending: Ending): void {
    if (this.#ending !== undefined) return
    this.#ending = ending
    this.#timer?.cancel()
    this.#wake?.()
  }

  #change (): Promise<void> {
    return new Promise(resolve => { this.#wake = resolve })
  }

  #watch (): void {
    const queued = this.#queued()
    const now = this.#clock.monotonic()
    if (queued === undefined || queued !== this.#seen.queued || this.#bytes !== this.#seen.bytes) {
      this.#seen = { bytes: this.#bytes, queued: queued ?? -1, at: now }
    } else if (now - this.#seen.at >= this.#stallMs) {
      this.#finish('stalled')
      this.#response.destroy()
      return
    }
    this.#timer = this.#clock.after(Math.max(1, this.#stallMs / 4), () => { this.#watch() })
  }

  /** What the system has not taken yet, or undefined while this response waits for its turn behind another on
   * the same connection: nothing of it can move then, and that is not the client's doing. `writeQueueSize`
   * is not public, but it is what Node's own socket time-out reads to tell a slow client from a stalled
   * one; where it is missing, only whole buffers count as progress. */
  #queued (): number | undefined {
    const { socket } = this.#response
    if (socket === null) return undefined
    const handle = (socket as { _handle?: { writeQueueSize?: unknown } | null })._handle
    return typeof handle?.writeQueueSize === 'number' ? handle.writeQueueSize : 0
  }
}

import { ServerResponse } from 'node:http'
import type { Writable } from 'node:stream'
import type { Answering } from '../core/answering.js'
import type { Clock, Timer } from '../core/clock.js'
import { queuedIn, watchForStall } from '../core/stall.js'

/** How an answer ended: all of it handed to the system; the client went away; no byte moved for `stallMs`; the file
 * lost bytes, or its disk failed, under the transfer. In all but the first the connection is gone. */
export type Ending = 'whole' | 'gone' | 'stalled' | 'cut'

/** The body of one answer, which is not a small one, on its way out: which buffers are still held by the stack below, how much has
 * left, and whether anything still moves. It destroys the connection where nothing moved for `stallMs`. */
export class Outflow {
  readonly #response: Answering
  readonly #held = new Set<number>()
  /** Where pieces are written to. */
  #way: Pick<Writable, 'write'>
  #bytes = 0
  #ending: Ending | undefined
  #wake: (() => void) | undefined
  #timer: Timer | undefined
  /** What was last seen of the progress. */
  #seen: { readonly bytes: number, readonly queued: number | undefined } | undefined

  constructor (response: Answering, stallMs: number, clock: Clock) {
    this.#response = response
    this.#way = response as unknown as Writable
    // The listeners stay: a response is used once, and an error that comes late must find one.
    response.on('close', () => { this.#finish('gone') })
    response.on('finish', () => { this.#finish('whole') })
    if (response instanceof ServerResponse) response.on('error', () => { this.#finish('gone') })
    if (response.destroyed) {
      this.#finish('gone')
    } else {
      if (response instanceof ServerResponse && response.socket === null) this.#queue(response)
      this.#timer = watchForStall(clock, stallMs, () => this.#hasMoved(), () => {
        this.#finish('stalled')
        response.destroy()
      })
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

  /** Since it was asked before. While this response waits for its turn behind another on the same connection nothing of it can move, and that is not
   * the client's doing. */
  #hasMoved (): boolean {
    const { socket } = this.#response
    const seen = { bytes: this.#bytes, queued: socket === null ? undefined : queuedIn(socket) }
    const before = this.#seen
    this.#seen = seen
    return seen.queued === undefined || seen.queued !== before?.queued || seen.bytes !== before.bytes
  }
}

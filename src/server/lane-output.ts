import type { TLSSocket } from 'node:tls'
import type { AnswerEvent } from '../core/answering.js'
import { flushSoon, type Writer } from '../core/writes.js'
import type { Connection } from './connections.js'
import type { LaneAnswer } from './lane-answer.js'

/** Answers that have ended are kept back up to so many bytes, and so long (ms), where others wait behind them. */
const MOST_KEPT_BYTES = 65_536
const MOST_KEPT_MS = 2
/** The next answer is not begun while so much waits for the system. */
const MOST_WAITING_BYTES = 262_144

/**
 * What the answers of the lane write to one connection, in their order. Those that have ended go out together: with what else is ready at this
 * moment, and, where a client has asked for more already, with the next ones. A write costs as much as a small answer costs in all.
 */
export class LaneOutput implements Writer {
  readonly socket: TLSSocket
  readonly #connection: Connection
  /** Answers that the system has not taken whole. */
  readonly #answers = new Set<LaneAnswer>()
  /** How many of them have ended. */
  #unfinished = 0
  #kept = ''
  #ended: LaneAnswer[] = []
  #timer: NodeJS.Timeout | undefined
  #keeps = true

  constructor (connection: Connection) {
    this.#connection = connection
    this.socket = connection.socket
    // These stay: an answer of the lane may still run when Node reads on.
    this.socket.on('drain', () => { this.#tell('drain') })
    this.socket.once('close', () => {
      clearTimeout(this.#timer)
      this.#tell('close')
    })
  }

  get mayBeFollowed (): boolean { return this.socket.writableLength < MOST_WAITING_BYTES }

  begin (answer: LaneAnswer): void { this.#answers.add(answer) }

  /** Writes it at once, behind what was kept back. */
  write (chunk: Uint8Array | string): boolean {
    this.flush()
    if (chunk.length === 0) return true
    // What comes after the client has hung up goes nowhere: the end of the connection is told by itself.
    return this.socket.writable && (typeof chunk === 'string' ? this.socket.write(chunk, 'latin1') : this.socket.write(chunk))
  }

  /** Writes the end of an answer in a moment. */
  end (answer: LaneAnswer, text: string): void {
    this.#kept += text
    this.#unfinished += 1
    const isFirst = this.#ended.push(answer) === 1
    if (!this.#keeps || text === '' || this.#kept.length >= MOST_KEPT_BYTES) this.flush()
    else if (this.#connection.waiting <= this.#unfinished) flushSoon(this)
    else if (isFirst) this.#timer = setTimeout(() => { this.flush() }, MOST_KEPT_MS)
  }

  flush (): void {
    if (this.#ended.length === 0) return
    clearTimeout(this.#timer)
    const [text, ended] = [this.#kept, this.#ended]
    this.#kept = ''
    this.#ended = []
    if (!this.socket.writable) return
    this.socket.write(text, 'latin1', error => {
      if (error !== null && error !== undefined) return
      this.#unfinished -= ended.length
      for (const answer of ended) {
        this.#answers.delete(answer)
        answer.finished()
      }
    })
  }

  /** Keeps nothing back from now on. */
  hurry (): void {
    this.#keeps = false
    this.flush()
  }

  #tell (event: AnswerEvent): void {
    for (const answer of this.#answers) answer.tell(event)
  }
}

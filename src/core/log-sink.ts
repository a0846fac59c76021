import { write, writeSync } from 'node:fs'
import { systemCode } from './errors.js'

/** Lines are held back for so long at most (ms), or until there are so many bytes: a write for each of a thousand requests costs as
 * much as answering them. */
const GATHERED_MS = 10
const GATHERED_BYTES = 8_192
/** How long one who reads slowly is left alone (ms), and what is kept for them meanwhile (characters). What comes then is lost, which is
 * told. */
const PAUSE_MS = 100
const MOST_KEPT = 4 * 1024 * 1024

/** Those with lines that nobody writes yet. */
const unwritten = new Set<LogSink>()
process.on('exit', () => { for (const sink of unwritten) sink.end() })

/**
 * Where log lines go: a descriptor, without ever waiting for who reads it, and several lines in one write.
 *
 * Pino's own destination (sonic-boom 4.2) writes what is left when the process ends again and again until it succeeds: where
 * nobody reads any more (EPIPE) the process would never end.
 */
export class LogSink {
  readonly #descriptor: number
  #text = ''
  /** What is on its way, or was written in part. */
  #writing = Buffer.alloc(0)
  #isWriting = false
  #timer: NodeJS.Timeout | undefined
  #isBroken = false
  #lost = 0

  constructor (descriptor: number) {
    this.#descriptor = descriptor
  }

  write (line: string): void {
    if (this.#isBroken) return
    if (this.#text.length > MOST_KEPT) {
      this.#lost += 1
      return
    }
    this.#text += line
    unwritten.add(this)
    if (this.#isWriting) return
    if (this.#text.length >= GATHERED_BYTES) this.#flush()
    else this.#timer ??= setTimeout(() => { this.#flush() }, GATHERED_MS).unref()
  }

  #flush (): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#lost > 0) this.#text += `${JSON.stringify({ level: 40, time: Date.now(), msg: `${this.#lost} lines of this log are lost: they came faster than they were read` })}\n`
    this.#lost = 0
    this.#writing = Buffer.from(this.#take())
    this.#isWriting = true
    this.#write()
  }

  #write (): void {
    write(this.#descriptor, this.#writing, (error, bytes) => {
      if (error === null) this.#writing = this.#writing.subarray(bytes)
      else if (!isBusy(error)) {
        this.#isBroken = true
        this.#take()
        return
      }
      if (error !== null) setTimeout(() => { this.#write() }, PAUSE_MS).unref()
      else if (this.#writing.length > 0) this.#write()
      else {
        this.#isWriting = false
        if (this.#text !== '') this.#flush()
      }
    })
  }

  #take (): string {
    const text = this.#text
    this.#text = ''
    unwritten.delete(this)
    return text
  }

  /** The process ends: writes the last lines, once. What a thread still writes is its own. */
  end (): void {
    try {
      writeSync(this.#descriptor, this.#text)
    } catch {
      // There is nobody left to tell.
    }
  }
}

const isBusy = (error: unknown): boolean => ['EAGAIN', 'EBUSY'].includes(systemCode(error) ?? '')

import type { SmallAnswer, SmallAsked, SmallKind, SmallTask, SmallWork } from './small-work.js'
import { Threads } from './threads.js'

// A small file costs what is asked of the system for it, and a turn of libuv's pool with a promise for each question costs several times
// that (20 to 30 µs). Here what comes up at the same moment is asked for many files in one turn of one thread. Two threads, so
// that one reads while the other waits for the disk.

const THREADS = 2
/** Turns under way: a thread begins one while another of its waits for the disk. */
const TURNS = 2 * THREADS
/** Fewer than so many do not start a thread: that takes as long as they do. */
const WORTH_STARTING = 8
/** Files in a turn: at most, and at least unless no more come within a moment (ms). */
const MOST = 64
const LEAST = 16
const MOMENT_MS = 2
/** Bytes to be written in a turn, in memory that each thread's turns use again: pages that are new to the process cost more than what is
 * done with them. */
const MOST_BYTES = 1_048_576

interface Waiting {
  readonly asked: SmallAsked
  readonly bytes: Uint8Array | undefined
  readonly resolve: (done: never) => void
  readonly reject: (error: unknown) => void
}

/** What is done with many small files at once, on threads of their own. */
export class SmallFiles {
  readonly #threads = new Threads<SmallTask, SmallAnswer>(new URL('small-worker.js', import.meta.url), THREADS)
  readonly #memory: Uint8Array[] = []
  #waiting: Waiting[] = []
  #running = 0
  #isDue = false

  /** Does it, with whatever else is asked for at this moment. Undefined where it could not be done, for whatever reason: nothing has
   * changed then, and who does it the long way learns which. Rejects where the thread ended before it answered. */
  async ask<Kind extends SmallKind> (kind: Kind, asked: SmallWork[Kind]['asked'], bytes?: Uint8Array): Promise<SmallWork[Kind]['done'] | undefined> {
    return await new Promise((resolve, reject) => {
      this.#waiting.push({ asked: { kind, ...asked } as unknown as SmallAsked, bytes, resolve, reject })
      if (this.#isDue) return
      this.#isDue = true
      setImmediate(() => {
        if (!this.#threads.isStarted || this.#waiting.length >= LEAST) this.#due()
        else setTimeout(() => { this.#due() }, MOMENT_MS)
      })
    })
  }

  /** Ends the threads. What is asked next starts them again. */
  async close (): Promise<void> {
    this.#memory.length = 0
    await this.#threads.close()
  }

  #due (): void {
    this.#isDue = false
    this.#start()
  }

  #start (): void {
    if (!this.#threads.isStarted && this.#waiting.length < WORTH_STARTING) {
      for (const { resolve } of this.#waiting.splice(0)) resolve(undefined as never)
      return
    }
    while (this.#waiting.length > 0 && this.#running < TURNS) {
      const most = Math.min(MOST, Math.max(LEAST, Math.ceil(this.#waiting.length / (TURNS - this.#running))))
      let bytes = 0
      let count = 0
      for (; count < most && count < this.#waiting.length; count++) {
        bytes += this.#waiting[count]!.bytes?.length ?? 0
        if (bytes > MOST_BYTES) break
      }
      void this.#run(this.#waiting.splice(0, count))
    }
  }

  async #run (turn: readonly Waiting[]): Promise<void> {
    this.#running += 1
    const bytes = this.#memory.pop() ?? new Uint8Array(new SharedArrayBuffer(MOST_BYTES))
    try {
      let at = 0
      const asked = turn.map(one => {
        if (one.bytes === undefined) return one.asked
        bytes.set(one.bytes, at)
        const placed = { ...one.asked, at }
        at += one.bytes.length
        return placed
      })
      const { done } = await this.#threads.ask({ asked, bytes })
      for (const [index, { resolve }] of turn.entries()) resolve(done[index] as never)
    } catch (error) {
      for (const { reject } of turn) reject(error)
    } finally {
      this.#memory.push(bytes)
      this.#running -= 1
      this.#start()
    }
  }
}

/** Turns, of which `most` run at once; first come, first served. */
export class Turns {
  readonly #most: number
  readonly #waiting: Array<() => void> = []
  #running = 0

  constructor (most: number) {
    this.#most = most
  }

  /** Runs `task` when it is its turn, and does as it does. Rejects with the signal's reason, and does not run it, where that aborts before. */
  async run<Result> (task: () => Promise<Result>, signal?: AbortSignal): Promise<Result> {
    if (this.#running < this.#most) this.#running += 1
    else await this.#wait(signal)
    try {
      return await task()
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#running -= 1
      else next()
    }
  }

  async #wait (signal: AbortSignal | undefined): Promise<void> {
    // A signal says so once.
    signal?.throwIfAborted()
    await new Promise<void>((resolve, reject) => {
      const aborted = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(go), 1)
        reject(signal?.reason as Error)
      }
      const go = (): void => {
        signal?.removeEventListener('abort', aborted)
        resolve()
      }
      signal?.addEventListener('abort', aborted, { once: true })
      this.#waiting.push(go)
    })
  }
}

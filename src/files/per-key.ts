/** Runs tasks of the same key one after another, in order of arrival; tasks of different keys at once. */
export class PerKey<Key> {
  readonly #last = new Map<Key, Promise<unknown>>()

  /** Resolves or rejects as `task` does. A task that fails does not stop those behind it. */
  async run<Result> (key: Key, task: () => Promise<Result>): Promise<Result> {
    const before = this.#last.get(key)
    const running = (async () => {
      await before?.catch(() => {})
      return await task()
    })()
    this.#last.set(key, running)
    try {
      return await running
    } finally {
      if (this.#last.get(key) === running) this.#last.delete(key)
    }
  }
}

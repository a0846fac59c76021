/** What a component opened, in order; `close` ends it in reverse and reports every failure. */
export class Resources {
  readonly #closers: Array<() => unknown> = []

  add (close: () => unknown): void {
    this.#closers.push(close)
  }

  /** Runs every closer, newest first, even when one fails; throws the failures together at the end. */
  async close (): Promise<void> {
    const failures: unknown[] = []
    for (let close = this.#closers.pop(); close !== undefined; close = this.#closers.pop()) {
      try {
        await close()
      } catch (error) {
        failures.push(error)
      }
    }
    if (failures.length === 1) throw failures[0]
    if (failures.length > 1) throw new AggregateError(failures, 'several things failed to close')
  }
}

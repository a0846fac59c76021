/**
 * Many readers or one writer, first come first served. PouchDB's own lock leaves out `_changes` and the
 * bytes of attachments: next to a write that compacts, the first throws inside a LevelDB callback (which
 * ends the process) and the second answers an empty attachment. So every call of PouchDB is made under
 * this one.
 */
export class SharedLock {
  #readers = 0
  #writing = false
  readonly #queue: Array<{ readonly exclusive: boolean, readonly start: () => void }> = []

  /** Runs `task` next to other readers. */
  async read<T> (task: () => Promise<T>): Promise<T> {
    await this.#enter(false)
    try {
      return await task()
    } finally {
      this.#readers--
      this.#next()
    }
  }

  /** Runs `task` alone. */
  async write<T> (task: () => Promise<T>): Promise<T> {
    await this.#enter(true)
    try {
      return await task()
    } finally {
      this.#writing = false
      this.#next()
    }
  }

  #enter (exclusive: boolean): Promise<void> {
    return new Promise(resolve => {
      this.#queue.push({ exclusive, start: resolve })
      this.#next()
    })
  }

  #next (): void {
    for (let first = this.#queue[0]; first !== undefined && !this.#writing; first = this.#queue[0]) {
      if (first.exclusive && this.#readers > 0) return
      this.#queue.shift()
      if (first.exclusive) this.#writing = true
      else this.#readers++
      first.start()
    }
  }
}

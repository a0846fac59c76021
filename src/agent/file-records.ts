import { PatchcordError } from '../core/errors.js'
import type { ContentId, DatabaseName } from '../core/ids.js'
import { PerKey } from '../files/per-key.js'
import type { FileStore } from '../files/store.js'
import type { CouchClient } from './couch-client.js'
import { sizeIn } from './file-feed.js'

/** The records of files, in step with the documents that refer to them: one goes when its document has gone, and `record` makes none without.
 * Whether one may be made at all is decided before (following.ts). */
export class FileRecords {
  readonly #store: FileStore
  readonly #couch: CouchClient
  readonly #signal: AbortSignal
  readonly #perFile = new PerKey<string>()
  /** Records that an `add` is making: their documents come in a moment. */
  readonly #making = new Map<string, number>()

  /** Once `signal` aborts, no sweep goes on. */
  constructor (store: FileStore, couch: CouchClient, signal: AbortSignal) {
    this.#store = store
    this.#couch = couch
    this.#signal = signal
  }

  /** Runs the making of records whose documents are written after them, so that nobody takes them for left over. */
  async making<Result> (database: DatabaseName, ids: readonly ContentId[], task: () => Promise<Result>): Promise<Result> {
    const keys = ids.map(id => `${database} ${id}`)
    for (const key of keys) this.#making.set(key, (this.#making.get(key) ?? 0) + 1)
    try {
      return await task()
    } finally {
      for (const key of keys) {
        const left = (this.#making.get(key) ?? 1) - 1
        if (left === 0) this.#making.delete(key)
        else this.#making.set(key, left)
      }
    }
  }

  /** Records without a document, from before this process: their documents went while nobody looked. */
  async sweep (database: DatabaseName): Promise<void> {
    for await (const id of this.#store.recordsOf(database)) {
      if (this.#signal.aborted) return
      await this.forget(database, id)
    }
  }

  /** Takes a record back, unless a document refers to the file after all. */
  async forget (database: DatabaseName, id: ContentId): Promise<void> {
    const key = `${database} ${id}`
    await this.#perFile.run(key, async () => {
      if (this.#making.has(key) || await this.#refers(database, id) || this.#making.has(key)) return
      await this.#store.unrecord(id, database)
    })
  }

  /** Makes a record, while a document refers to the file. Whoever calls this has seen that it may be made. */
  async record (database: DatabaseName, id: ContentId): Promise<boolean> {
    return await this.#perFile.run(`${database} ${id}`, async () => {
      if (!await this.#refers(database, id)) return false
      await this.#store.record(id, database)
      return true
    })
  }

  async #refers (database: DatabaseName, id: ContentId): Promise<boolean> {
    const { status, value } = await this.#couch.ask('GET', `/${encodeURIComponent(database)}/${id}`)
    if (status !== 200 && status !== 404) throw new PatchcordError('upstream-down', `CouchDB answered ${status} for a document of ${database}`)
    return status === 200 && sizeIn(id, value) !== undefined
  }
}

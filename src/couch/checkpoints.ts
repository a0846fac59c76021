import { createHash } from 'node:crypto'
import { PatchcordError } from '../core/errors.js'

/** Counts the checkpoints that each whitelist entry writes to each database, so that nobody fills a database with
 * documents that no list shows. Those that were written since the server started count: nothing that CouchDB and
 * the embedded database both answer lists `_local` documents. */
export class Checkpoints {
  readonly #most: number
  /** Digests, since an ID may have as many bytes as a head. */
  readonly #known = new Map<string, Set<string>>()

  /** `most` is how many an entry may have in one database. */
  constructor (most: number) {
    this.#most = most
  }

  /** Counts a checkpoint that is about to be written at `path`. What it gives takes a new one off the count again,
   * where it was not written after all. Throws `too-many`. */
  take (entry: string, database: string, path: string): () => void {
    const key = JSON.stringify([entry, database])
    const digest = createHash('sha256').update(path).digest('base64')
    const known = this.#known.get(key) ?? new Set()
    if (known.has(digest)) return () => undefined
    if (known.size >= this.#most) throw new PatchcordError('too-many', `the limit checkpoints is reached: ${this.#most} in one database`)
    known.add(digest)
    this.#known.set(key, known)
    return () => { known.delete(digest) }
  }
}

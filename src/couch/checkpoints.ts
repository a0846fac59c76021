import { createHash } from 'node:crypto'
import { PatchcordError } from '../core/errors.js'

/** Counts the checkpoints that each whitelist entry writes to each database, so that nobody fills a database with
 * documents that no list shows. Those that were written since the server started count: nothing that CouchDB and
 * the embedded database both answer lists `_local` documents. */
export class Checkpoints {
  readonly #most: number
  /** By digests, since an ID may have as many bytes as a head. */
  readonly #known = new Map<string, Map<string, Known>>()

  /** `most` is how many an entry may have in one database. */
  constructor (most: number) {
    this.#most = most
  }

  /** Counts a checkpoint that is about to be written at `path`. What it gives is to be told whether it may have been
   * written after all; one that nobody wrote, nor is about to, is taken off the count again. Throws `too-many`. */
  take (entry: string, database: string, path: string): (mayBeWritten: boolean) => void {
    const key = JSON.stringify([entry, database])
    const digest = createHash('sha256').update(path).digest('base64')
    const all = this.#known.get(key) ?? new Map<string, Known>()
    let known = all.get(digest)
    if (known === undefined) {
      if (all.size >= this.#most) throw new PatchcordError('too-many', `the limit checkpoints is reached: ${this.#most} in one database`)
      known = { running: 0, mayBeWritten: false }
      all.set(digest, known)
      this.#known.set(key, all)
    }
    const one = known
    one.running += 1
    return mayBeWritten => {
      one.running -= 1
      one.mayBeWritten ||= mayBeWritten
      if (one.running === 0 && !one.mayBeWritten) all.delete(digest)
    }
  }
}

interface Known {
  /** Writes that have not ended. */
  running: number
  mayBeWritten: boolean
}

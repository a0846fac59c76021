import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { fileError, PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { checkLeaves, HASH_BYTES, LEAF_BYTES, leafCount, leafHash, leafLength } from './content-id.js'
import { unlinkIfThere } from './folders.js'
import { writeAt } from './staging.js'
import type { FileStore } from './store.js'

/** What a download must be told before anything is allocated for it. `leaves` may come from anybody. */
export interface PartialSpec {
  readonly id: ContentId
  readonly size: number
  readonly leaves: Uint8Array
}

/**
 * A file that comes leaf by leaf, in any order, from any number of sources, none of them believed: a leaf is
 * written only if it hashes to its place in a list that hashes to the ID. It grows, sparse, in
 * `partial/<id>.partial`, where nothing is ever served from, and moves into the store whole.
 */
export class PartialFile {
  readonly id: ContentId
  readonly size: number
  readonly #store: FileStore
  readonly #leaves: Buffer
  readonly #path: string
  readonly #handle: FileHandle
  readonly #have: Uint8Array
  #writing = 0
  #over = false

  private constructor (store: FileStore, spec: PartialSpec, path: string, handle: FileHandle) {
    this.id = spec.id
    this.size = spec.size
    this.#store = store
    this.#leaves = Buffer.from(spec.leaves)
    this.#path = path
    this.#handle = handle
    this.#have = new Uint8Array(leafCount(spec.size))
    // The list has proven that the file is empty: there is nothing to fetch.
    if (spec.size === 0) this.#have[0] = 1
  }

  /** Begins anew (what an earlier attempt left under this ID is dropped). Throws `verification` before anything is
   * created where the list is not this file's, `already-exists` where this process is fetching it already,
   * `disk-full`, `unreadable`. */
  static async create (store: FileStore, spec: PartialSpec): Promise<PartialFile> {
    checkLeaves(spec.id, spec.size, spec.leaves)
    const path = store.partialPath(spec.id)
    if (!store.claimPartial(spec.id)) throw new PatchcordError('already-exists', `${spec.id} is being fetched already`, { hint: 'wait for it to end' })
    try {
      await unlinkIfThere(path)
      const handle = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
      try {
        await handle.truncate(spec.size)
      } catch (error) {
        await handle.close()
        await unlinkIfThere(path)
        throw error
      }
      return new PartialFile(store, spec, path, handle)
    } catch (error) {
      store.releasePartial(spec.id)
      throw fileError(error, path)
    }
  }

  /** The leaves that have not been written yet, in order. */
  missing (): number[] {
    const missing: number[] = []
    for (const [index, have] of this.#have.entries()) if (have === 0) missing.push(index)
    return missing
  }

  /** Writes leaf `index` if it is the right one. Throws `verification`, naming the leaf, and writes nothing where it is
   * not; `disk-full` where there is no room, the leaf is then still missing. Writing one again does nothing. */
  async writeLeaf (index: number, bytes: Uint8Array): Promise<void> {
    if (this.#over) throw new PatchcordError('stopped', `the download of ${this.id} is over`)
    const expected = leafLength(this.size, index)
    const hash = this.#leaves.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES)
    if (bytes.length !== expected || !leafHash(bytes).equals(hash)) {
      throw new PatchcordError('verification', `leaf ${index} of ${this.id} is wrong: ${bytes.length === expected ? 'its bytes do not match its hash' : `${bytes.length} bytes instead of ${expected}`}`)
    }
    if (this.#have[index] === 1) return
    this.#writing++
    try {
      await writeAt(this.#handle, bytes, index * LEAF_BYTES)
      this.#have[index] = 1
    } finally {
      this.#writing--
    }
  }

  /** Moves the file into the store, durably; true where it is new there. Throws `verification` where leaves are
   * missing (it can then go on), `disk-full` and the like (it is then over, and nothing is left). */
  async complete (): Promise<boolean> {
    if (this.#over) throw new PatchcordError('stopped', `the download of ${this.id} is over`)
    const missing = this.missing().length
    if (missing > 0 || this.#writing > 0) throw new PatchcordError('verification', `${missing} of ${this.#have.length} leaves of ${this.id} are missing`, { hint: 'fetch them first' })
    this.#over = true
    try {
      return await this.#store.place({ id: this.id, size: this.size, leaves: this.#leaves, temporary: this.#path, handle: this.#handle })
    } finally {
      this.#store.releasePartial(this.id)
    }
  }

  /** Gives up: nothing is left of it. Does nothing where it is over. */
  async discard (): Promise<void> {
    if (this.#over) return
    this.#over = true
    try {
      await this.#handle.close()
      await unlinkIfThere(this.#path)
    } finally {
      this.#store.releasePartial(this.id)
    }
  }
}

import { constants } from 'node:fs'
import { open, statfs, type FileHandle } from 'node:fs/promises'
import { fileError, PatchcordError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { checkLeaves, HASH_BYTES, LEAF_BYTES, leafCount, leafLength } from './content-id.js'
import { unlinkIfThere } from './folders.js'
import { leafBuffer } from './leaf-hashes.js'
import type { Giver } from './giver.js'
import { LEAF_STATE, PartialState, type Remembered } from './partial-state.js'
import { writeAt } from './staging.js'
import type { FileStore } from './store.js'

/** What a download must be told before anything is allocated for it. `leaves` may come from anybody. */
export interface PartialSpec {
  readonly id: ContentId
  readonly size: number
  readonly leaves: Uint8Array
}

/** Leaves that are made durable together, fewer of them towards the end, so that whoever completes does not wait for a whole batch; and how long the
 * first of them waits for the others (ms). */
const BATCH = 64
const LAST_BATCH = 16
const BATCH_MS = 500
/** Leaves that are read and compared at once when an earlier download is gone on with. */
const LANES = 3

/**
 * A file that comes leaf by leaf, in any order, from any number of sources, none of them believed: a leaf is
 * written only if it hashes to its place in a list that hashes to the ID. It grows, sparse, in
 * `partial/<id>.partial`, where nothing is ever served from, and moves into the store whole. What is there already
 * is remembered beside it (partial-state.ts), so that it can be gone on with after a crash.
 */
export class PartialFile {
  readonly id: ContentId
  readonly size: number
  /** Who gave leaves and on what account, in this process and before; those that nobody named are not in it. */
  readonly givers: Set<Giver>
  /** Leaves that an earlier process had recorded and that the disk no longer has. */
  readonly damaged: number[] = []
  readonly #store: FileStore
  readonly #leaves: Buffer
  readonly #path: string
  readonly #handle: FileHandle
  readonly #state: PartialState
  readonly #have: Uint8Array
  #haveCount = 0
  #writing = 0
  #over = false
  #unrecorded: number[] = []
  #recording: Promise<void> = Promise.resolve()
  #timer: NodeJS.Timeout | undefined
  readonly #naming = new Map<Giver, Promise<void>>()

  private constructor (store: FileStore, spec: PartialSpec, handle: FileHandle, state: PartialState, givers: Set<Giver>) {
    this.id = spec.id
    this.size = spec.size
    this.givers = givers
    this.#store = store
    this.#leaves = Buffer.from(spec.leaves)
    this.#path = store.partialPath(spec.id)
    this.#handle = handle
    this.#state = state
    this.#have = new Uint8Array(leafCount(spec.size))
    // The list has proven that the file is empty: there is nothing to fetch.
    if (spec.size === 0) this.#mark(0)
  }

  /** Begins anew (what an earlier attempt left under this ID is dropped). Throws `verification` before anything is
   * created where the list is not this file's, `already-exists` where this process is fetching it already,
   * `disk-full`, `unreadable`. */
  static async create (store: FileStore, spec: PartialSpec): Promise<PartialFile> {
    checkLeaves(spec.id, spec.size, spec.leaves)
    return await claimed(store, spec.id, async path => {
      await unlinkIfThere(path)
      const state = await PartialState.create(statePathOf(path), spec.size, spec.leaves)
      try {
        const handle = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
        try {
          await handle.truncate(spec.size)
          return new PartialFile(store, spec, handle, state, new Set())
        } catch (error) {
          await handle.close()
          throw error
        }
      } catch (error) {
        await state.close()
        await unlinkIfThere(path)
        await unlinkIfThere(statePathOf(path))
        throw error
      }
    })
  }

  /** Goes on with what an earlier process left under this ID, each leaf of it read and compared; undefined where there
   * is nothing, or nothing that can be believed. Throws as `create` does. */
  static async resume (store: FileStore, id: ContentId): Promise<PartialFile | undefined> {
    return await claimed(store, id, async path => {
      const before = await PartialState.open(statePathOf(path), id)
      if (before === undefined) return undefined
      const { state, remembered } = before
      let handle: FileHandle | undefined
      try {
        handle = await open(path, constants.O_RDWR | constants.O_NOFOLLOW)
        const status = await handle.stat()
        if (!status.isFile() || status.nlink !== 1 || status.size !== remembered.size) throw Object.assign(new Error('not what was left'), { code: 'ENOENT' })
        const partial = new PartialFile(store, { id, size: remembered.size, leaves: remembered.leaves }, handle, state, remembered.givers)
        await partial.#compare(remembered)
        return partial
      } catch (error) {
        await handle?.close()
        await state.close()
        if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ELOOP') return undefined
        throw error
      }
    })
  }

  /** The leaves that have not been written yet, in order. */
  missing (): number[] {
    const missing: number[] = []
    for (const [index, have] of this.#have.entries()) if (have === 0) missing.push(index)
    return missing
  }

  /** Whether the size is proven: the last leaf is here, and it has the length that the size gives it. */
  get isSizeProven (): boolean { return this.#have.at(-1) === 1 }

  get #missingCount (): number { return this.#have.length - this.#haveCount }

  /** Bytes that have been written and verified. */
  get bytes (): number {
    const last = this.#have.length - 1
    return this.#haveCount * LEAF_BYTES - (this.#have[last] === 1 ? LEAF_BYTES - leafLength(this.size, last) : 0)
  }

  /** Whether the disk has room for what is missing. */
  async hasRoom (): Promise<boolean> {
    const { bavail, bsize } = await statfs(this.#path)
    return bavail * bsize >= this.size - this.bytes + this.#leaves.length
  }

  /** Writes leaf `index` if it is the right one; `bytes` must not change meanwhile. Throws `verification`, naming the
   * leaf, and writes nothing where it is not; `disk-full` where there is no room, the leaf is then still missing.
   * Writing one again does nothing. `from` is remembered as a giver, durably, before the leaf is written. */
  async writeLeaf (index: number, bytes: Uint8Array, from?: Giver): Promise<void> {
    if (this.#over) throw new PatchcordError('stopped', `the download of ${this.id} is over`)
    const expected = leafLength(this.size, index)
    this.#writing++
    try {
      const hash = this.#leaves.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES)
      const at = index * LEAF_BYTES
      const wrong = (): PatchcordError => new PatchcordError('verification', `leaf ${index} of ${this.id} is wrong: ${bytes.length === expected ? 'its bytes do not match its hash' : `${bytes.length} bytes instead of ${expected}`}`)
      if (bytes.length !== expected) throw wrong()
      const isShared = this.#have[index] === 0 && bytes.buffer instanceof SharedArrayBuffer
      const isNew = from !== undefined && !this.givers.has(from)
      // Only a right leaf names who gave it; hashing the first ones twice costs less than writing them from here.
      if (!isShared || isNew) {
        if (!(await this.#store.hashes.hash(bytes)).equals(hash)) throw wrong()
        if (this.#have[index] === 1) return
        if (from !== undefined) await this.#name(from)
      }
      if (isShared) {
        // One turn of another thread.
        if (!await this.#store.hashes.write(bytes, hash, this.#handle.fd, at, this.#state.markOf(index))) throw wrong()
      } else {
        await writeAt(this.#handle, bytes, at)
        await this.#state.written(index)
      }
      if (this.#have[index] === 1) return
      this.#mark(index)
      this.#unrecorded.push(index)
      if (this.#unrecorded.length >= Math.min(BATCH, Math.max(LAST_BATCH, this.#missingCount))) this.#record()
      else this.#timer ??= setTimeout(() => { this.#record() }, BATCH_MS).unref()
    } finally {
      this.#writing--
    }
  }

  /** Moves the file into the store, durably, or with `isAside` to its asides; true where it is new there. Throws `verification`
   * where leaves are missing (it can then go on), `disk-full` and the like (it is then over, and nothing is left). */
  async complete (isAside = false): Promise<boolean> {
    if (this.#over) throw new PatchcordError('stopped', `the download of ${this.id} is over`)
    const missing = this.#missingCount
    if (missing > 0 || this.#writing > 0) throw new PatchcordError('verification', `${missing} of ${this.#have.length} leaves of ${this.id} are missing`, { hint: 'fetch them first' })
    await this.#end()
    try {
      const staged = { id: this.id, size: this.size, leaves: this.#leaves, temporary: this.#path, handle: this.#handle }
      if (!isAside) return await this.#store.place(staged)
      await this.#store.asides.take(staged)
      return true
    } finally {
      await unlinkIfThere(statePathOf(this.#path))
      this.#store.releasePartial(this.id)
    }
  }

  /** Stops here and keeps what is there, durably, for `resume`. Does nothing where it is over. */
  async suspend (): Promise<void> {
    if (this.#over) return
    try {
      this.#record()
      await this.#end()
      await this.#handle.close()
    } finally {
      this.#store.releasePartial(this.id)
    }
  }

  /** Gives up: nothing is left of it. Does nothing where it is over. */
  async discard (): Promise<void> {
    if (this.#over) return
    try {
      await this.#end()
      await this.#handle.close()
      await unlinkIfThere(this.#path)
      await unlinkIfThere(statePathOf(this.#path))
    } finally {
      this.#store.releasePartial(this.id)
    }
  }

  async #end (): Promise<void> {
    this.#over = true
    clearTimeout(this.#timer)
    await this.#recording
    await this.#state.close()
  }

  #mark (index: number): void {
    this.#have[index] = 1
    this.#haveCount += 1
  }

  async #name (giver: Giver): Promise<void> {
    if (this.givers.has(giver)) return
    let naming = this.#naming.get(giver)
    if (naming === undefined) {
      naming = this.#recording.then(() => this.#state.addGiver(giver))
      // One after the other: each is appended.
      this.#recording = naming.catch(() => undefined)
      this.#naming.set(giver, naming)
    }
    try {
      await naming
      this.givers.add(giver)
    } finally {
      this.#naming.delete(giver)
    }
  }

  /** Makes durable what was written, then that it was. A disk that refuses costs nothing but that those leaves may be
   * asked for again: whoever writes the next one, or completes, is told. */
  #record (): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const batch = this.#unrecorded
    this.#unrecorded = []
    if (batch.length === 0) return
    this.#recording = this.#recording.then(async () => {
      await this.#handle.datasync()
      await this.#state.record(batch)
    }).catch(() => undefined)
  }

  async #compare ({ states }: Remembered): Promise<void> {
    const claimed = [...states.keys()].filter(index => states[index] !== LEAF_STATE.missing && this.#have[index] === 0)
    const lane = async (): Promise<void> => {
      const buffer = leafBuffer()
      for (let index = claimed.pop(); index !== undefined; index = claimed.pop()) {
        const bytes = buffer.subarray(0, leafLength(this.size, index))
        const { bytesRead } = await this.#handle.read(bytes, 0, bytes.length, index * LEAF_BYTES)
        const isRight = bytesRead === bytes.length && (await this.#store.hashes.hash(bytes)).equals(this.#leaves.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES))
        if (isRight) this.#mark(index)
        else if (states[index] === LEAF_STATE.recorded) this.damaged.push(index)
      }
    }
    await Promise.all(Array.from({ length: Math.min(LANES, claimed.length) }, lane))
  }
}

/** The path of what is remembered of the partial at `path`. */
function statePathOf (path: string): string {
  return path.replace(/\.partial$/, '.bitmap')
}

async function claimed<Result extends PartialFile | undefined> (store: FileStore, id: ContentId, start: (path: string) => Promise<Result>): Promise<Result> {
  const path = store.partialPath(id)
  if (!await store.claimPartial(id)) throw new PatchcordError('already-exists', `${id} is being fetched already`, { hint: 'wait for it to end' })
  let started: Result | undefined
  try {
    started = await start(path)
    return started
  } catch (error) {
    throw fileError(error, path)
  } finally {
    if (started === undefined) store.releasePartial(id)
  }
}

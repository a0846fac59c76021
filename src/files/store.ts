import { open, rename, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Readable } from 'node:stream'
import { syncFolder, writeDurably } from '../core/durable-file.js'
import { fileError, PatchcordError } from '../core/errors.js'
import { isContentId, type ContentId, type DatabaseName } from '../core/ids.js'
import { makeFolders } from '../core/make-folders.js'
import { Turns } from '../core/turns.js'
import { eachWithin } from '../core/within.js'
import { addAll, type AddAllOptions, type Added, type AddOptions } from './add-all.js'
import { checkLeaves, HASH_BYTES, LEAF_BYTES, leafCount, leafHash } from './content-id.js'
import { examineFile, type Damaged } from './examine.js'
import { filesIn, nameOf, namesIn, partialOf, plainSize, removeLeftovers, shardsIn, unlinkIfThere } from './folders.js'
import { Asides } from './asides.js'
import { LargeFiles } from './large-files.js'
import { checkRoot, pathOf, shardOf } from './layout.js'
import { PerKey } from './per-key.js'
import { COMPLETE_MODE, Placement } from './placement.js'
import { LeafHashes } from './leaf-hashes.js'
import { FileReader, type FileReaderOptions } from './reader.js'
import { RECORDS_AT_ONCE, RecordBook } from './record-book.js'
import { SmallFiles } from './small-files.js'
import { SMALL_MOST } from './small-work.js'
import { removeTemporary, stage, temporaryIn, writeAt, type Known, type Staged, type StagedSmall } from './staging.js'
import { Unsettled } from './unsettled.js'
import { verifiedLeaves } from './verified-leaves.js'

/**
 * The room of files: a store whose names are what is in it.
 *
 * For: keeping files under their content IDs (content-id.ts), taking them in from a path (staging.ts) or leaf by
 * leaf from other devices (partial.ts), and answering requests for them (reader.ts, range.ts, serve.ts).
 * The agent writes through `FileStore`; the confined server only ever reads, through `FileReader`.
 *
 *     files/4o/ymiquy7q…           the bytes, mode 0444
 *     files/4o/ymiquy7q….leaves    its leaf hashes, 32 bytes each; a file of at most 1 MiB has none, because
 *                                  the list of one leaf is the ID itself
 *     files/4o/ymiquy7q….refs      the databases it is recorded for, one name a line
 *     partial/                     what is not whole yet, or not known to be, or not for the store (asides.ts): never served
 *
 * Promises: a file under `files/` is whole, hashes to its name, is on the disk, and has its leaf list beside it;
 * after a crash there is such a file or none. Of a file that `addAll` took in for later that it is on the disk holds only once
 * `flush` resolved; until then `partial/unsettled` names it (beyond 2 GiB it is synced, and has its name for good when the loop ends), and whoever opens the store after a crash reads it and drops it
 * where it is not right, before anything is served. No file is recorded but by `record`: nothing that another
 * device says makes one. A damaged record grants nothing.
 *
 * Must never: hard-link a source (somebody else could change its bytes), follow a symlink, write in place
 * under `files/`, or take a size or a leaf list from outside before `checkLeaves` agreed.
 *
 * One `FileStore` at a time has a root: the agent's lock on its home sees to that.
 */
export class FileStore {
  /** The absolute path of `files/`. */
  readonly root: string
  /** The read-only view of the same files. */
  readonly reader: FileReader
  /** What hashes the leaves of this store, off the main thread. */
  readonly hashes = new LeafHashes()
  readonly #small = new SmallFiles()
  /** Files that were fetched for somebody, and not for the store. */
  readonly asides: Asides
  /** Files that were not on the disk yet when an earlier process ended, and are gone. */
  lost: readonly ContentId[] = []
  readonly #large: LargeFiles
  readonly #records: RecordBook
  readonly #unsettled: Unsettled
  readonly #partial: string
  readonly #placement: Placement
  readonly #perFile = new PerKey<ContentId>()
  readonly #known: Known
  readonly #importing = new Turns(LARGE_AT_ONCE)
  readonly #fetching = new Set<ContentId>()
  readonly #perPartial = new PerKey<ContentId>()

  private constructor (root: string, options: FileReaderOptions) {
    this.root = root
    this.reader = new FileReader(root, options)
    this.#partial = partialOf(root)
    this.#records = new RecordBook(root, this.reader)
    this.#large = new LargeFiles(root, this.reader)
    this.asides = new Asides(this.#partial, this.#small)
    const isThere = (id: ContentId, size: number): Promise<boolean> => this.#isWhole(id, size)
    this.#unsettled = new Unsettled(join(this.#partial, 'unsettled'))
    this.#placement = new Placement(root, this.#partial, isThere, this.#small, this.#unsettled)
    this.#known = {
      isThere,
      mayHave: (size, first) => this.#large.mayHave(size, first),
      hashes: this.hashes,
      inTurn: task => this.#importing.run(task),
    }
  }

  /** Opens the store at the absolute path `root` (`…/files`; `…/partial` lies beside), making its folders where
   * they are missing, removes temporaries that an earlier process left, and reads again what it had not made durable. Throws `usage`, `unreadable`. */
  static async open (root: string, options: FileReaderOptions = {}): Promise<FileStore> {
    const store = new FileStore(checkRoot(root), options)
    for (const folder of [store.root, store.#partial]) await makeFolders(folder, 0o700)
    await removeLeftovers(store.#partial, name => !PARTIAL.test(name))
    const shards = await shardsIn(store.root)
    for (const shard of shards) await removeLeftovers(join(store.root, shard), name => name.startsWith('.') && name.endsWith('.tmp'))
    // An earlier process may have made some, and not come to that.
    await syncFolder(store.root).catch((error: unknown) => { throw fileError(error, store.root) })
    store.#placement.named(shards.map(shard => join(store.root, shard)))
    await store.#recover()
    return store
  }

  /** Keeps of what an earlier process left unsettled what is right, durably, and drops the rest. */
  async #recover (): Promise<void> {
    const lost: ContentId[] = []
    await eachWithin(await this.#unsettled.left(), READ_AGAIN_AT_ONCE, () => 1, async id => {
      // A disk that cannot read it does not have it.
      const found = await examineFile(this.reader, this.hashes, id, { lanes: 2 }).catch(() => undefined)
      if (found?.state === 'right') {
        if (found.leaves !== undefined) await this.#writeList(id, found.size, found.leaves)
        this.#unsettled.adopt(id, found.size)
      } else {
        await this.remove(id)
        lost.push(id)
      }
    })
    await this.#placement.flush()
    await this.#unsettled.settled(new Map())
    this.lost = lost
  }

  /** Makes durable what was taken in for later; the note of it ends. Throws what the disk says. */
  async flush (): Promise<void> {
    await this.#placement.settle()
    await this.#placement.flush()
  }

  /** Takes in the regular file at `path`; resolves once it is durable. `isNew` is false where it was there
   * already (one pass of hashing, nothing written). Throws `unreadable`, `changed-while-read`, `disk-full` or
   * the signal's reason; the store is then as it was. */
  async add (path: string, options: AddOptions = {}): Promise<{ id: ContentId, size: number, isNew: boolean }> {
    const staged = await stage(path, this.#partial, this.#known, options)
    if (!('temporary' in staged)) {
      if (options.isLater !== true) await this.#durable(staged.id)
      return { ...staged, isNew: false }
    }
    const { id, size } = staged
    return { id, size, isNew: await this.place(staged, options.isLater) }
  }

  /** Takes in many files, `concurrency` at once (64 unless told), and yields what became of each, in order. An
   * error is of that file alone. `onBytes` is told of bytes as they are read. Leaving the loop waits for what is under way and
   * starts no more. With `isLater` a crash may lose what was yielded until `flush` was called, each file as a whole: for who can do without them
   * after a crash, and then learns which by `lost`. */
  addAll (paths: Iterable<string> | AsyncIterable<string>, options: AddAllOptions = {}): AsyncIterable<Added> {
    return addAll(paths, options, {
      addSmall: (path, isLater, signal) => this.#addSmall(path, isLater, signal),
      add: (path, addOptions) => this.add(path, addOptions),
      settle: () => this.#placement.settle(),
    })
  }

  /** Takes in a small file together with others. Undefined where it is not small, or did not go: `add` says why. */
  async #addSmall (path: string, isLater: boolean, signal: AbortSignal | undefined): Promise<{ id: ContentId, size: number, isNew: boolean } | undefined> {
    signal?.throwIfAborted()
    // What is read before another is counted goes a little over the limit: as much as is under way.
    const isSynced = !(isLater && this.#unsettled.hasRoom(SMALL_MOST))
    const taken = await this.#small.ask('take', { path, root: this.root, folder: this.#partial, isSynced })
    if (taken === undefined) return undefined
    const { id, size, temporary } = taken
    if (temporary !== undefined) return { id, size, isNew: await this.place({ id, size, temporary, isSynced }, isLater) }
    if (!isLater) await this.#durable(id)
    return { id, size, isNew: false }
  }

  /** Puts a hashed temporary in place; for `partial.ts`. True where it is new. */
  async place (staged: Staged | StagedSmall, isLater = false): Promise<boolean> {
    const isNew = await this.#placement.place(staged, isLater)
    if (isNew && staged.size > LEAF_BYTES) await this.#large.note(staged.size, staged.id)
    return isNew
  }

  /** Takes in the bytes of a file of at most one leaf; true where it is new, durable when it resolves. Throws
   * `verification` where they are not the file called `id`, and writes nothing then; `disk-full` and the like. */
  async put (id: ContentId, bytes: Uint8Array): Promise<boolean> {
    const leaves = leafHash(bytes)
    checkLeaves(id, bytes.length, leaves)
    if (await this.#isWhole(id, bytes.length)) {
      await this.#durable(id)
      return false
    }
    return await this.place(await this.#write(id, bytes, leaves))
  }

  /** The same, for somebody and not for the store. */
  async putAside (id: ContentId, bytes: Uint8Array): Promise<void> {
    const leaves = leafHash(bytes)
    checkLeaves(id, bytes.length, leaves)
    if (bytes.length <= SMALL_MOST && await this.asides.write(id, bytes)) return
    await this.asides.take(await this.#write(id, bytes, leaves))
  }

  /** For a file that was there already, perhaps for later. */
  async #durable (id: ContentId): Promise<void> {
    await this.#placement.settle(id)
    await this.#placement.flush(id)
  }

  async #write (id: ContentId, bytes: Uint8Array, leaves: Buffer): Promise<Staged> {
    const temporary = temporaryIn(this.#partial)
    const handle = await open(temporary, 'wx', 0o600).catch((error: unknown) => { throw fileError(error, temporary) })
    try {
      await writeAt(handle, bytes, 0)
    } catch (error) {
      await handle.close()
      await removeTemporary(temporary)
      throw error
    }
    return { id, size: bytes.length, leaves, temporary, handle }
  }

  /** Makes durable what was taken in for later, and ends the threads that hash; the store can still be used, and starts them again. */
  async close (): Promise<void> {
    try {
      await this.flush()
    } finally {
      await Promise.all([this.hashes.close(), this.#small.close()])
    }
  }

  /** The IDs of downloads that were not ended, are not running, and can be gone on with. */
  async partials (): Promise<ContentId[]> {
    return (await namesIn(this.#partial)).flatMap(name => {
      const id = name.replace(/\.partial$/, '')
      return name.endsWith('.partial') && isContentId(id) && !this.#fetching.has(id) ? [id] : []
    })
  }

  /** Removes what is left of a download that nobody goes on with; whether there was anything. Not while it runs. */
  async dropPartial (id: ContentId): Promise<boolean> {
    // A download that begins meanwhile would lose what it makes: it waits.
    return await this.#perPartial.run(id, async () => {
      if (this.#fetching.has(id)) return false
      await unlinkIfThere(join(this.#partial, `${id}.bitmap`))
      return await unlinkIfThere(this.partialPath(id))
    })
  }

  /** Bytes that are free on its disk. */
  async room (): Promise<number> {
    const { bavail, bsize } = await statfs(this.#partial)
    return bavail * bsize
  }

  /** Where a download of `id` is written until it is whole. */
  partialPath (id: ContentId): string {
    return join(this.#partial, `${id}.partial`)
  }

  /** Makes this process's download of `id` the only one; whether it is. Waits while what is left of an earlier one is dropped. */
  async claimPartial (id: ContentId): Promise<boolean> {
    return await this.#perPartial.run(id, async () => {
      if (this.#fetching.has(id)) return false
      this.#fetching.add(id)
      return true
    })
  }

  releasePartial (id: ContentId): void {
    this.#fetching.delete(id)
  }

  /** Every file of the store, in no particular order. */
  async * list (): AsyncIterable<{ id: ContentId, size: number }> {
    for await (const id of filesIn(this.root)) {
      const size = await plainSize(pathOf(this.root, id))
      if (size !== undefined) yield { id, size }
    }
  }

  /** Whether the file is here. */
  async has (id: ContentId): Promise<boolean> {
    return await plainSize(pathOf(this.root, id)) !== undefined
  }

  /** Which of the files are here. */
  async having (files: Iterable<{ readonly id: ContentId, readonly size: number }>): Promise<Set<ContentId>> {
    const here = new Set<ContentId>()
    await Promise.all(Array.from(files, async ({ id, size }) => {
      // One of another size is none that was meant; `has` says the same of those that no thread looked for.
      const path = pathOf(this.root, id)
      if (await this.#small.ask('has', { path, size }) ?? await plainSize(path) === size) here.add(id)
    }))
    return here
  }

  /** The path where the file is, or would be. */
  path (id: ContentId): string {
    return pathOf(this.root, id)
  }

  /** The file's bytes, each leaf checked before it is passed on. The stream fails with `not-found`, or with
   * `verification` where the disk no longer has what was put there. */
  read (id: ContentId): Readable {
    return Readable.from(verifiedLeaves(this.reader, id), { objectMode: false, highWaterMark: LEAF_BYTES })
  }

  /** The databases the file is recorded for, sorted. See `FileReader.records`. */
  async records (id: ContentId): Promise<DatabaseName[]> {
    return await this.reader.records(id)
  }

  /** Records the file for `database`, durably: peers who may read that database may then read the file. Throws
   * `not-found` where the file is not here, so that no grant waits for a file that comes another way. */
  async record (id: ContentId, database: DatabaseName): Promise<void> {
    await this.#perFile.run(id, async () => {
      if (!await this.has(id)) throw new PatchcordError('not-found', `there is no file ${id} here`)
      await this.#durable(id)
      await this.#records.add(id, database)
    })
  }

  /** Takes back what `record` did, durably. No error where it was not recorded. */
  async unrecord (id: ContentId, database: DatabaseName): Promise<void> {
    await this.#perFile.run(id, () => this.#records.remove(id, database))
  }

  /** Every file recorded for `database`. It reads every `.refs` there is. */
  recordsOf (database: DatabaseName): AsyncIterable<ContentId> {
    return this.#records.of(database)
  }

  /** Removes the file and what lies beside it, durably; whether it was here. Transfers under way go on to
   * their end. The records go first: none may outlive the file and grant it when it comes back. */
  async remove (id: ContentId): Promise<boolean> {
    const was = await this.#perFile.run(id, () => this.#unlink(id))
    if (was) await syncFolder(shardOf(this.root, id))
    return was
  }

  /** Removes those of many files that are recorded for no database, but not what `isKept` says is to stay, which is asked just before each
   * goes; which were removed. Each folder is written to the disk once, at the end. Not durable where it throws. */
  async removeUnrecorded (ids: readonly ContentId[], isKept: (id: ContentId) => boolean): Promise<Set<ContentId>> {
    const removed = new Set<ContentId>()
    const remove = async (id: ContentId): Promise<boolean> => (await this.records(id)).length === 0 && await this.#unlink(id, isKept)
    for (let at = 0; at < ids.length; at += RECORDS_AT_ONCE) {
      await Promise.all(ids.slice(at, at + RECORDS_AT_ONCE).map(async id => { if (await this.#perFile.run(id, () => remove(id))) removed.add(id) }))
    }
    for (const shard of new Set([...removed].map(id => shardOf(this.root, id)))) await syncFolder(shard)
    return removed
  }

  async #unlink (id: ContentId, isKept: (id: ContentId) => boolean = () => false): Promise<boolean> {
    await this.#records.forget(id)
    // From here to the call of the system nothing else runs.
    if (isKept(id)) return false
    this.#unsettled.delete(id)
    const was = await unlinkIfThere(pathOf(this.root, id))
    return await unlinkIfThere(pathOf(this.root, id, '.leaves')) || was
  }

  /** Reads a file as it lies on the disk. `right`; `mended`: its bytes are, and its leaf list, which was not, was made of them again, durably; `damaged`: its
   * bytes are not those of its ID; `absent`. `onBytes` is told how many bytes more were read, and waited for. Throws what it throws, `unreadable`,
   * `disk-full`. */
  async examine (id: ContentId, onBytes?: (bytes: number) => Promise<void>): Promise<{ state: 'right' | 'mended' | 'absent' } | Damaged> {
    const found = await examineFile(this.reader, this.hashes, id, onBytes === undefined ? {} : { onBytes })
    if (found.state !== 'right') return found
    const { size, leaves } = found
    if (leaves === undefined) return { state: 'right' }
    return await this.#perFile.run(id, async () => {
      // Removed meanwhile: a list alone would say nothing to anybody.
      if (!await this.has(id)) return { state: 'absent' }
      await this.#writeList(id, size, leaves)
      return { state: 'mended' }
    })
  }

  async #writeList (id: ContentId, size: number, leaves: Uint8Array): Promise<void> {
    await writeDurably(pathOf(this.root, id, '.leaves'), leaves, COMPLETE_MODE)
    await this.#large.note(size, id)
  }

  /** Takes a file that is damaged out of the store and puts it aside, with its list, in `quarantine/` beside `files/`;
   * where. What it is recorded for is forgotten, as by `remove`. Undefined where that file is gone, and perhaps another in its place. */
  async quarantine (id: ContentId, { file }: Damaged): Promise<string | undefined> {
    return await this.#perFile.run(id, async () => {
      if (await nameOf(pathOf(this.root, id)) !== file) return undefined
      const folder = join(dirname(this.root), 'quarantine')
      await makeFolders(folder, 0o700)
      const to = join(folder, id)
      this.#unsettled.delete(id)
      await this.#records.forget(id)
      await rename(pathOf(this.root, id), to).catch((error: unknown) => { throw fileError(error, to) })
      await unlinkIfThere(pathOf(this.root, id, '.leaves'))
      await syncFolder(shardOf(this.root, id))
      return to
    })
  }

  /** A file is there if it has the size it must have, and its list the length: what is damaged so that this
   * shows is replaced by the next import. */
  async #isWhole (id: ContentId, size: number): Promise<boolean> {
    if (await plainSize(pathOf(this.root, id)) !== size) return false
    if (size <= LEAF_BYTES) return true
    return await plainSize(pathOf(this.root, id, '.leaves')) === leafCount(size) * HASH_BYTES
  }
}

/** Files that a crash left unsettled, read at once: they may be thousands of small ones, and the service waits for them. */
const READ_AGAIN_AT_ONCE = 8
/** Imports of more than one leaf at once: each has 3 MiB of buffers, and keeps a disk busy on its own. */
const LARGE_AT_ONCE = 2
/** A download that an earlier process did not end, and what belongs to it: kept, because it may be gone on with; and the note of what is
 * not on the disk yet. */
const PARTIAL = /^[a-z2-7]{52}\.(?:partial|bitmap|whole)$|^unsettled$/

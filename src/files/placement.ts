import { mkdir, open, rename } from 'node:fs/promises'
import { syncFile, syncFolder } from '../core/durable-file.js'
import { fileError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { eachWithin } from '../core/within.js'
import { HASH_BYTES, LEAF_BYTES } from './content-id.js'
import { unlinkIfThere } from './folders.js'
import { pathOf, shardOf } from './layout.js'
import type { SmallFiles } from './small-files.js'
import { removeTemporary, temporaryIn, writeAt, type Staged, type StagedSmall } from './staging.js'
import type { Unsettled } from './unsettled.js'

// Puts staged files into place, durably: the file and its leaf list are fsynced, the list is renamed beside
// and its folder fsynced, then the file is renamed and the folder fsynced again. A file that is in place so
// always has its list, and after a crash there is a whole file or none.
//
// A file that is only lent is not waited for: a durable note says first that it may not be whole (unsettled.ts), then it
// gets its name, and `flush` makes it durable when nobody waits. After a crash it is there or not, whole or not; whoever
// opens the store reads it again, and drops it where it is not right.
//
// What waits while a group is on its way to the disk becomes the next group, whose fsyncs run at once and whose
// folders are fsynced once each: adding many small files costs the disk a fraction of its waits.

/** More than this many files at once gain nothing, and each holds a descriptor. */
const GROUP = 128
/** So that others get their turn meanwhile: nobody waits for a flush. */
const FLUSHED_AT_ONCE = 32
/** Of a file that is in place, and of its list. */
export const COMPLETE_MODE = 0o444

interface Waiting {
  readonly staged: Staged | StagedSmall
  readonly isLater: boolean
  /** Whether it is noted, and not waited for. */
  isNoted?: boolean
  /** The temporary of the leaf list, until it is beside the file. */
  list?: string
  readonly resolve: (isNew: boolean) => void
  readonly reject: (error: unknown) => void
}

export class Placement {
  readonly #root: string
  readonly #partial: string
  readonly #isThere: (id: ContentId, size: number) => Promise<boolean>
  readonly #small: Pick<SmallFiles, 'ask'>
  readonly #unsettled: Unsettled
  /** Shards whose names in the root no crash can lose, and those that are in use and may lose theirs. */
  readonly #shards = new Set<string>()
  readonly #unnamed = new Set<string>()
  /** Folders with names that a crash may still lose. */
  readonly #unsynced = new Set<string>()
  /** Those of them that are being synced. */
  readonly #syncing = new Map<string, Promise<void>>()
  #waiting: Waiting[] = []
  #isRunning = false

  constructor (root: string, partial: string, isThere: (id: ContentId, size: number) => Promise<boolean>, small: Pick<SmallFiles, 'ask'>, unsettled: Unsettled) {
    this.#root = root
    this.#partial = partial
    this.#isThere = isThere
    this.#small = small
    this.#unsettled = unsettled
  }

  /** Resolves once the file is in place and durable: true, or false where it was there already. With `isLater` a crash may
   * lose it, or a part of it that is then read and dropped, until `settle` and `flush` resolved. Takes over `staged`: its handle is closed and its
   * temporary gone in every case. Throws `disk-full` and the like. */
  async place (staged: Staged | StagedSmall, isLater = false): Promise<boolean> {
    return await new Promise((resolve, reject) => {
      this.#waiting.push({ staged, isLater, resolve, reject })
      if (!this.#isRunning) void this.#run()
    })
  }

  /** Makes the names durable that were given for later and are not noted, or that one file's. Of many small files nearly each has a folder of its own:
   * synced with its file, a folder costs the disk as much as the file; at the end, when the journal has it all, next to nothing. */
  async settle (id?: ContentId): Promise<void> {
    await this.#settleThose(folder => id === undefined || folder === this.#root || folder === shardOf(this.#root, id))
  }

  /** These shards are on the disk by name. */
  named (shards: readonly string[]): void {
    for (const shard of shards) {
      this.#shards.add(shard)
      this.#unnamed.delete(shard)
    }
  }

  /** This shard is in use: whoever settles waits until it is on the disk by name, whoever made it. */
  #use (shard: string): void {
    if (this.#shards.has(shard)) return
    this.#unnamed.add(shard)
    this.#unsynced.add(this.#root)
  }

  async #settleThose (isMeant: (folder: string) => boolean): Promise<void> {
    for (const folder of [...this.#unsynced].filter(isMeant)) this.#syncNow(folder)
    // What another settles had its name before that began.
    const ended = await Promise.allSettled([...this.#syncing].filter(([folder]) => isMeant(folder)).map(([, syncing]) => syncing))
    for (const one of ended) if (one.status === 'rejected') throw one.reason
  }

  #syncNow (folder: string): void {
    const before = this.#syncing.get(folder)
    const syncing = (async () => {
      await before?.catch(() => undefined)
      if (!this.#unsynced.delete(folder)) return
      const shards = folder === this.#root ? [...this.#unnamed] : []
      try {
        await this.#sync(folder)
        this.named(shards)
      } catch (error) {
        this.#unsynced.add(folder)
        throw fileError(error, folder)
      }
    })().finally(() => { if (this.#syncing.get(folder) === syncing) this.#syncing.delete(folder) })
    syncing.catch(() => { /* whoever settles is told */ })
    this.#syncing.set(folder, syncing)
  }

  /** Makes durable what is noted, or that one file. Throws what the disk says; it is then noted still. */
  async flush (id?: ContentId): Promise<void> {
    const synced = new Map<ContentId, { readonly size: number }>()
    await eachWithin([...this.#unsettled.noted(id)], FLUSHED_AT_ONCE, () => 1, async ([one, file]) => {
      // What is not there has its name still to come, and stays noted; or it was removed, and is noted no more.
      const isThere = (file.size <= LEAF_BYTES || await this.#sync(pathOf(this.#root, one, '.leaves'))) && await this.#sync(pathOf(this.#root, one))
      if (isThere) synced.set(one, file)
    })
    if (synced.size === 0) return
    const shards = new Set([...synced.keys()].map(one => shardOf(this.#root, one)))
    for (const shard of shards) this.#use(shard)
    await eachWithin([...shards], FLUSHED_AT_ONCE, () => 1, async shard => { await this.#sync(shard) })
    await this.#settleThose(folder => folder === this.#root)
    await this.#unsettled.settled(synced)
  }

  /** Whether it is there, and then on the disk. */
  async #sync (path: string): Promise<boolean> {
    if (await this.#small.ask('sync', { path }) === true) return true
    try {
      await syncFile(path)
      return true
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return false
      throw fileError(error, path)
    }
  }

  async #run (): Promise<void> {
    this.#isRunning = true
    while (this.#waiting.length > 0) await this.#commit(this.#nextGroup())
    this.#isRunning = false
  }

  /** Of several of one ID, one: the others' turn comes when it is there, or has failed. */
  #nextGroup (): Waiting[] {
    const group = new Map<ContentId, Waiting>()
    const rest: Waiting[] = []
    for (const waiting of this.#waiting) {
      if (group.size < GROUP && !group.has(waiting.staged.id)) group.set(waiting.staged.id, waiting)
      else rest.push(waiting)
    }
    this.#waiting = rest
    return [...group.values()]
  }

  async #commit (group: Waiting[]): Promise<void> {
    for (const waiting of group) {
      const { staged, isLater } = waiting
      waiting.isNoted = 'handle' in staged ? isLater && this.#unsettled.hasRoom(staged.size) : !staged.isSynced
    }
    const large = group.filter(({ staged }) => 'handle' in staged)
    const small = group.filter(({ staged }) => !('handle' in staged))
    const note = this.#note(small)
    await Promise.all([...large.length > 0 ? [this.#commitEach(large)] : [], ...small.map(waiting => this.#commitSmall(waiting, note))])
  }

  /** Notes those of them that are to be noted, durably; a failure is for who waits for it. */
  #note (group: readonly Waiting[]): Promise<void> {
    const noted = group.filter(({ isNoted }) => isNoted)
    const note = noted.length === 0 ? Promise.resolve() : this.#unsettled.add(noted.map(({ staged }) => staged))
    note.catch(() => { /* whoever waits for it is told */ })
    return note
  }

  /** A small file is on the disk already or noted, and its name is given by a thread that does so for many. */
  async #commitSmall (waiting: Waiting, note: Promise<void>): Promise<void> {
    const { staged: { id, size, temporary }, isLater, isNoted, resolve, reject } = waiting
    try {
      if (isNoted === true) await note
      const done = await this.#small.ask('place', { temporary, to: pathOf(this.#root, id), size })
      if (done === undefined) return await this.#commitEach([waiting])
      // It was taken away, and is another.
      if (done === 'in a new folder') this.#shards.delete(this.#shard(waiting))
      this.#use(this.#shard(waiting))
      if (done !== 'there' && isNoted !== true) this.#unsynced.add(this.#shard(waiting))
      if (!isLater) await this.settle(id)
      if (!isLater && done === 'there') await this.flush(id)
      resolve(done !== 'there')
    } catch (error) {
      await this.#discard(waiting).catch(() => { /* the first error is the one to tell */ })
      reject(fileError(error, pathOf(this.#root, id)))
    }
  }

  async #commitEach (group: Waiting[]): Promise<void> {
    let live = group
    // One that fails is out, and does not hold up the others.
    const each = async (step: (waiting: Waiting) => Promise<void>): Promise<void> => {
      const kept = await Promise.all(live.map(async waiting => {
        try {
          await step(waiting)
          return [waiting]
        } catch (error) {
          await this.#discard(waiting).catch(() => { /* the first error is the one to tell */ })
          waiting.reject(fileError(error, pathOf(this.#root, waiting.staged.id)))
          return []
        }
      }))
      live = kept.flat()
    }
    const old = new Set<Waiting>()
    await each(async waiting => {
      if (!await this.#isThere(waiting.staged.id, waiting.staged.size)) return
      await this.#discard(waiting)
      old.add(waiting)
    })
    for (const { isLater, staged: { id }, reject } of old) if (!isLater) await this.settle(id).then(() => this.flush(id)).catch(reject)
    for (const { resolve } of old) resolve(false)
    live = live.filter(waiting => !old.has(waiting))
    await each(async waiting => { await this.#settle(waiting) })
    const shards = this.#makeShards(live)
    await each(async () => { await shards })
    const note = this.#note(live.filter(({ staged }) => 'handle' in staged))
    await each(async ({ isNoted }) => { if (isNoted === true) await note })

    const withList = live.filter(({ list }) => list !== undefined)
    await each(async waiting => {
      if (waiting.list === undefined) return
      await rename(waiting.list, pathOf(this.#root, waiting.staged.id, '.leaves'))
    })
    const lists = this.#syncShards(withList.filter(({ isNoted }) => isNoted !== true))
    await each(async waiting => { await lists.get(this.#shard(waiting)) })
    await each(async ({ staged }) => { await rename(staged.temporary, pathOf(this.#root, staged.id)) })
    for (const waiting of live) if (waiting.isLater && waiting.isNoted !== true) this.#unsynced.add(this.#shard(waiting))
    const files = this.#syncShards(live.filter(({ isLater }) => !isLater))
    await each(async waiting => { await files.get(this.#shard(waiting)) })
    for (const { resolve } of live) resolve(true)
  }

  /** The bytes on the disk, and the list's too, where that is waited for. */
  async #settle (waiting: Waiting): Promise<void> {
    if (!('handle' in waiting.staged)) return
    const { handle, leaves } = waiting.staged
    if (leaves.length > HASH_BYTES) {
      waiting.list = temporaryIn(this.#partial)
      const list = await open(waiting.list, 'wx', 0o600)
      try {
        await writeAt(list, leaves, 0)
        await list.chmod(COMPLETE_MODE)
        if (waiting.isNoted !== true) await list.sync()
      } finally {
        await list.close()
      }
    }
    await handle.chmod(COMPLETE_MODE)
    if (waiting.isNoted !== true) await handle.sync()
    await handle.close()
  }

  async #makeShards (group: Waiting[]): Promise<void> {
    const missing = [...new Set(group.map(waiting => this.#shard(waiting)))].filter(shard => !this.#shards.has(shard))
    if (missing.length === 0) return
    await Promise.all(missing.map(async shard => {
      await mkdir(shard, { mode: 0o700 }).catch((error: unknown) => { if (systemCode(error) !== 'EEXIST') throw error })
    }))
    await syncFolder(this.#root)
    this.named(missing)
  }

  /** Each folder once; a failure is for the files in it. */
  #syncShards (group: Waiting[]): Map<string, Promise<void>> {
    const syncs = new Map<string, Promise<void>>()
    for (const waiting of group) {
      const shard = this.#shard(waiting)
      if (syncs.has(shard)) continue
      const sync = syncFolder(shard)
      sync.catch(() => { /* whoever waits for it is told; a group that has failed before does not wait */ })
      syncs.set(shard, sync)
    }
    return syncs
  }

  #shard ({ staged }: Waiting): string {
    return shardOf(this.#root, staged.id)
  }

  async #discard ({ staged, list }: Waiting): Promise<void> {
    if ('handle' in staged) await staged.handle.close()
    await removeTemporary(staged.temporary)
    if (list !== undefined) await removeTemporary(list)
    if (await this.#isThere(staged.id, staged.size)) return
    this.#unsettled.delete(staged.id)
    // Its list may be in place already; without the file it would say nothing to anybody.
    if (list !== undefined) await unlinkIfThere(pathOf(this.#root, staged.id, '.leaves'))
  }
}

import { lstat, mkdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { syncFolder } from '../core/durable-file.js'
import { fileError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { numbered } from '../core/safe-name.js'
import { eachWithin } from '../core/within.js'
import { contentAt } from '../files/content-at.js'
import { nameOf, removeLeftovers } from '../files/folders.js'
import type { FileStore } from '../files/store.js'
import { copySynced, isCopyOf, makeFolder, prepareFolder, underFreeName, type OnBytes } from './copy-out.js'
import { HeldFolders } from './held-folders.js'
import type { OfferedFile, OfferedList, OfferedPath } from './offer-list.js'

// How what an inbox accepted becomes the person's files. Nothing that is there is ever replaced: a top name that is taken gets a number, and
// what is below it is so always in a folder that was just made.
//
// A landing may be cut at any moment. Which folders it made is noted before they are there, so that the next one goes on in them: what lies there,
// right and whole, has landed; everything else there is the person's, and what is missing lands beside it. A file has its name only once it is
// whole (copy-out.ts, asides.ts), so that nothing is ever mended.

/** A folder that lies in the folder of the person's choice itself: what the list calls it, and what it is called there. */
export interface Top { readonly name: string, readonly as: string }

/** What is kept of a landing for the one that goes on with it. */
export interface LandingNote {
  /** What an earlier landing of the same list in the same folder kept; undefined where there was none. */
  readonly tops: readonly Top[] | undefined
  /** Letters and digits that are its own: what is left of its copies is known by them. */
  readonly mark: string
  /** Keeps it, durably. */
  keep (tops: readonly Top[]): Promise<void>
  /** Runs what chooses names while no other landing does: a name that was noted is then never another's. */
  alone<Result> (task: () => Promise<Result>): Promise<Result>
}

export interface LandingOptions {
  /** What was fetched for this offer alone: it becomes the person's file, while what the store keeps is copied. */
  readonly asides?: ReadonlySet<ContentId>
  readonly onBytes?: OnBytes
  readonly note?: LandingNote
  /** Ends it between two files, with the signal's reason. */
  readonly signal?: AbortSignal
}

const NO_NOTE: LandingNote = { tops: undefined, mark: 'landing', keep: () => Promise.resolve(), alone: task => task() }
/** Files that are given their names, or copied out, or looked for, at once. */
const AT_ONCE = 64

/** Writes files, of the store or of what was fetched aside, and the empty folders below `to` (made where it is missing) in the shape of the
 * list. All of it is on the disk when it resolves. Where each top name landed, in the order of the list. Throws what the disk says. */
export async function land (store: FileStore, list: OfferedList, to: string, options: LandingOptions = {}): Promise<string[]> {
  return await new Landing(store, to, options).land(list)
}

class Landing {
  readonly #store: FileStore
  readonly #to: string
  readonly #options: LandingOptions
  readonly #note: LandingNote
  readonly #folders = new Map<string, string>()
  readonly #held = new HeldFolders()
  /** What an earlier landing left, as the system calls it, and what of it is taken: two names of a list may be one on a disk to which
   * capital letters are small ones. */
  readonly #taken = new Set<string>()

  constructor (store: FileStore, to: string, options: LandingOptions) {
    this.#store = store
    this.#to = to
    this.#options = options
    this.#note = options.note ?? NO_NOTE
  }

  async land ({ files, folders = [] }: OfferedList): Promise<string[]> {
    try {
      return await this.#landAll(files, folders)
    } finally {
      await this.#held.close()
    }
  }

  async #landAll (files: readonly OfferedFile[], folders: readonly OfferedPath[]): Promise<string[]> {
    await prepareFolder(this.#to)
    await this.#held.begin(this.#to)
    const paths = [...files.map(({ path }) => path.slice(0, -1)), ...folders].filter(path => path.length > 0)
    await this.#note.alone(() => this.#makeTops(new Set(paths.map(([top]) => top!))))
    for (const path of paths) await this.#folder(path)
    const isAgain = this.#note.tops !== undefined
    if (isAgain) for (const folder of [this.#to, ...this.#folders.values()]) await removeLeftovers(folder, name => isCopyOf(this.#note.mark, name))
    const landed = new Map<OfferedFile, string>()
    // A list may give one name to all of its files.
    const named = [...groupsOf(files, ({ path }) => path.join('/')).values()]
    // Before anything new is there that could be taken for it.
    const free = new Map<readonly OfferedFile[], number>()
    if (isAgain) {
      const asides = await this.#asides(files)
      await this.#each(named, async alike => { free.set(alike, await this.#find(alike, asides, landed)) })
    }
    await this.#each(named, async alike => { await this.#put(alike.filter(file => !landed.has(file)), free.get(alike) ?? 1, landed) })
    await eachWithin([this.#to, ...this.#folders.values()], AT_ONCE, () => 1, async path => { await this.#held.in(path, at => syncFolder(at)).catch((error: unknown) => { throw fileError(error, path) }) })
    const tops = [...files.map(file => file.path.length === 1 ? landed.get(file)! : this.#folders.get(file.path[0]!)!), ...folders.map(([top]) => this.#folders.get(top!)!)]
    return [...new Set(tops)]
  }

  async #each<Item> (items: readonly Item[], work: (item: Item) => Promise<void>): Promise<void> {
    const left = items.values()
    const lanes = await Promise.allSettled(Array.from({ length: AT_ONCE }, async () => { for (const item of left) await work(item) }))
    for (const ended of lanes) if (ended.status === 'rejected') throw ended.reason
  }

  /** The folders that lie in the chosen one itself: noted, then made; or those that were noted. */
  async #makeTops (names: ReadonlySet<string>): Promise<void> {
    const noted = new Map(this.#note.tops?.map(({ name, as }) => [name, as]))
    const tops = new Map(noted)
    const given = new Set(tops.values())
    let left = [...names]
    do {
      for (const name of left) {
        const as = noted.get(name)
        if (as !== undefined && (await kindOf(join(this.#to, as)) ?? 'folder') === 'folder') continue
        noted.delete(name)
        const free = await this.#freeName(name, given)
        tops.set(name, free)
        given.add(free)
      }
      await this.#note.keep([...tops].map(([name, as]) => ({ name, as })))
      const lost: string[] = []
      for (const name of left) {
        const as = tops.get(name)!
        const path = join(this.#to, as)
        await this.#held.in(this.#to, async to => {
          const at = join(to, as)
          const isMade = await mkdir(at).then(() => true, (error: unknown) => {
            if (systemCode(error) !== 'EEXIST') throw fileError(error, path)
            return false
          })
          // Somebody else was faster.
          if (!isMade && !noted.has(name)) lost.push(name)
          else await this.#take(name, path, at)
        })
      }
      left = lost
    } while (left.length > 0)
  }

  async #freeName (name: string, given: ReadonlySet<string>): Promise<string> {
    for (let attempt = 1; ; attempt++) {
      const as = numbered(name, attempt)
      if (!given.has(as) && await kindOf(join(this.#to, as)) === undefined) return as
    }
  }

  /** The folder with these parts; made, with those above it, where that was not yet. */
  async #folder (parts: OfferedPath): Promise<string> {
    const key = parts.join('/')
    const known = this.#folders.get(key)
    if (known !== undefined) return known
    const above = await this.#folder(parts.slice(0, -1))
    const { path } = await underFreeName(above, parts.at(-1)!, async path => {
      await this.#held.in(above, async folder => {
        const at = join(folder, basename(path))
        await makeFolder(at).catch(async (error: unknown) => {
          if (systemCode(error) !== 'EEXIST' || this.#note.tops === undefined || await kindOf(at) !== 'folder' || this.#taken.has(await nameOf(at) ?? '')) throw error
        })
        await this.#take(key, path, at)
      })
    })
    return path
  }

  async #take (key: string, path: string, at: string): Promise<void> {
    const own = await this.#held.add(path, at)
    this.#folders.set(key, path)
    if (this.#note.tops !== undefined) this.#taken.add(own)
  }

  /** Where the file lands. */
  #placeOf ({ path }: OfferedFile): { at: string, name: string } {
    return { at: path.length === 1 ? this.#to : this.#folders.get(path.slice(0, -1).join('/'))!, name: path.at(-1)! }
  }

  /** Puts files that have one name where they belong, with their numbers, from the `first` on, in the order of the list. */
  async #put (alike: readonly OfferedFile[], first: number, landed: Map<OfferedFile, string>): Promise<void> {
    const { asides, onBytes, signal } = this.#options
    let next = first
    for (const file of alike) {
      signal?.throwIfAborted()
      const { id, size } = file
      const { at, name } = this.#placeOf(file)
      const { path, attempt } = await underFreeName(at, name, async target => {
        await this.#held.in(at, async folder => {
          const to = join(folder, basename(target))
          const isAside = asides?.has(id) === true
          if (isAside && await this.#store.asides.giveTo(id, to)) onBytes?.(size)
          else await copySynced(isAside ? this.#store.asides.path(id) : this.#store.path(id), to, { mark: this.#note.mark, name: target, onBytes })
        })
      }, next)
      landed.set(file, path)
      next = attempt + 1
    }
  }

  /** Looks which of the files that have one name an earlier landing put where they belong, under the name or one with a number. What is there is
   * read once, however many they are. The number from which on the name is free, or might be. */
  async #find (alike: readonly OfferedFile[], asides: ReadonlyMap<string, ContentId>, landed: Map<OfferedFile, string>): Promise<number> {
    const missing = groupsOf(alike.toReversed(), ({ id }) => id)
    const sizes = new Set(alike.map(({ size }) => size))
    const { at, name } = this.#placeOf(alike[0]!)
    let attempt = 1
    for (; missing.size > 0; attempt++) {
      this.#options.signal?.throwIfAborted()
      const path = join(at, numbered(name, attempt))
      const kind = await kindOf(path)
      if (kind === undefined) break
      if (kind !== 'file') continue
      const own = await nameOf(path)
      // It went meanwhile, or was taken for another.
      if (own === undefined || this.#taken.has(own)) continue
      const id = asides.get(own) ?? await contentAt(path, { sizes, ids: missing, hashes: this.#store.hashes })
      const left = id === undefined ? undefined : missing.get(id)
      if (left === undefined || this.#taken.has(own)) continue
      const file = left.pop()!
      if (left.length === 0) missing.delete(file.id)
      this.#taken.add(own)
      landed.set(file, path)
      this.#options.onBytes?.(file.size)
    }
    return attempt
  }

  /** What was fetched, which was read already, as the system calls it: what landed of it may be a second name. */
  async #asides (files: readonly OfferedFile[]): Promise<Map<string, ContentId>> {
    const asides = new Map<string, ContentId>()
    const ids = [...new Set(files.map(({ id }) => id))].filter(id => this.#options.asides?.has(id) === true)
    await this.#each(ids, async id => { asides.set(await nameOf(this.#store.asides.path(id)) ?? '', id) })
    return asides
  }
}

function groupsOf<Item, Key> (items: readonly Item[], keyOf: (item: Item) => Key): Map<Key, Item[]> {
  const groups = new Map<Key, Item[]>()
  for (const item of items) {
    const key = keyOf(item)
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [item])
    else group.push(item)
  }
  return groups
}

async function kindOf (path: string): Promise<'folder' | 'file' | 'other' | undefined> {
  try {
    const status = await lstat(path)
    return status.isDirectory() ? 'folder' : status.isFile() ? 'file' : 'other'
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw fileError(error, path)
  }
}

import { lstat, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { syncFolder } from '../core/durable-file.js'
import { fileError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { numbered } from '../core/safe-name.js'
import { eachWithin } from '../core/within.js'
import { contentAt } from '../files/content-at.js'
import { nameIn, removeLeftovers } from '../files/folders.js'
import type { FileStore } from '../files/store.js'
import { copySynced, isCopyOf, makeFolder, prepareFolder, underFreeName, type OnBytes } from './copy-out.js'
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
    await prepareFolder(this.#to)
    const paths = [...files.map(({ path }) => path.slice(0, -1)), ...folders].filter(path => path.length > 0)
    await this.#note.alone(() => this.#makeTops(new Set(paths.map(([top]) => top!))))
    for (const path of paths) await this.#folder(path)
    const isAgain = this.#note.tops !== undefined
    if (isAgain) for (const folder of [this.#to, ...this.#folders.values()]) await removeLeftovers(folder, name => isCopyOf(this.#note.mark, name))
    const landed = new Map<OfferedFile, string>()
    // A list may give one name to all of its files.
    const named = [...groupsOf(files, ({ path }) => path.join('/')).values()]
    // Before anything new is there that could be taken for it.
    if (isAgain) {
      const asides = await this.#asides(files)
      await this.#each(named, async alike => { await this.#find(alike, asides, landed) })
    }
    await this.#each(named, async alike => { await this.#put(alike.filter(file => !landed.has(file)), landed) })
    await eachWithin([this.#to, ...this.#folders.values()], AT_ONCE, () => 1, async path => { await syncFolder(path).catch((error: unknown) => { throw fileError(error, path) }) })
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
        const path = join(this.#to, tops.get(name)!)
        try {
          await mkdir(path)
        } catch (error) {
          if (systemCode(error) !== 'EEXIST') throw fileError(error, path)
          // Somebody else was faster.
          if (!noted.has(name)) {
            lost.push(name)
            continue
          }
        }
        await this.#take(name, path)
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
      await makeFolder(path).catch(async (error: unknown) => {
        if (systemCode(error) !== 'EEXIST' || this.#note.tops === undefined || await kindOf(path) !== 'folder' || this.#taken.has(await nameOf(path))) throw error
      })
    })
    await this.#take(key, path)
    return path
  }

  async #take (key: string, path: string): Promise<void> {
    this.#folders.set(key, path)
    if (this.#note.tops !== undefined) this.#taken.add(await nameOf(path))
  }

  /** Where the file lands. */
  #placeOf ({ path }: OfferedFile): { at: string, name: string } {
    return { at: path.length === 1 ? this.#to : this.#folders.get(path.slice(0, -1).join('/'))!, name: path.at(-1)! }
  }

  /** Puts files that have one name where they belong, with their numbers in the order of the list. */
  async #put (alike: readonly OfferedFile[], landed: Map<OfferedFile, string>): Promise<void> {
    const { asides, onBytes, signal } = this.#options
    let first = 1
    for (const file of alike) {
      signal?.throwIfAborted()
      const { id, size } = file
      const { at, name } = this.#placeOf(file)
      const { path, attempt } = await underFreeName(at, name, async target => {
        const isAside = asides?.has(id) === true
        if (isAside && await this.#store.asides.giveTo(id, target)) onBytes?.(size)
        else await copySynced(isAside ? this.#store.asides.path(id) : this.#store.path(id), target, this.#note.mark, onBytes)
      }, first)
      landed.set(file, path)
      first = attempt + 1
    }
  }

  /** Looks which of the files that have one name an earlier landing put where they belong, under the name or one with a number. What is there is
   * read once, however many they are. */
  async #find (alike: readonly OfferedFile[], asides: ReadonlyMap<string, ContentId>, landed: Map<OfferedFile, string>): Promise<void> {
    const missing = groupsOf(alike.toReversed(), ({ id }) => id)
    const sizes = new Set(alike.map(({ size }) => size))
    const { at, name } = this.#placeOf(alike[0]!)
    for (let attempt = 1; missing.size > 0; attempt++) {
      this.#options.signal?.throwIfAborted()
      const path = join(at, numbered(name, attempt))
      const kind = await kindOf(path)
      if (kind === undefined) return
      if (kind !== 'file') continue
      const own = await nameOf(path)
      if (this.#taken.has(own)) continue
      const id = asides.get(own) ?? await contentAt(path, { sizes, ids: missing, hashes: this.#store.hashes })
      const left = id === undefined ? undefined : missing.get(id)
      if (left === undefined || this.#taken.has(own)) continue
      const file = left.pop()!
      if (left.length === 0) missing.delete(file.id)
      this.#taken.add(own)
      landed.set(file, path)
      this.#options.onBytes?.(file.size)
    }
  }

  /** What was fetched, which was read already, as the system calls it: what landed of it may be a second name. */
  async #asides (files: readonly OfferedFile[]): Promise<Map<string, ContentId>> {
    const asides = new Map<string, ContentId>()
    const ids = [...new Set(files.map(({ id }) => id))].filter(id => this.#options.asides?.has(id) === true)
    await this.#each(ids, async id => { asides.set(await nameOf(this.#store.asides.path(id)), id) })
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

/** What the system itself calls it. */
async function nameOf (path: string): Promise<string> {
  return nameIn(await lstat(path, { bigint: true }))
}

import { randomBytes } from 'node:crypto'
import { chmod, readdir, rename, rm } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { syncFolder } from '../core/durable-file.js'
import { PatchcordError } from '../core/errors.js'
import { isDatabaseName, type DatabaseName } from '../core/ids.js'
import { makeFolders } from '../core/make-folders.js'
import { Store } from './store.js'

// One LevelDB folder per database, named as the database with "/" written as ".": both are one byte, so
// that the longest name still fits, and no database name holds a dot. A folder is complete when it has
// that name: it is made as `.new-…` and renamed, and `.old-…` on its way out. So the folder's listing is
// the list of databases, and there is no second record that could differ from it.

const folderOf = (name: DatabaseName): string => name.replaceAll('/', '.')

/** How long a database that could not be opened is not tried again. */
const RETRY_MS = 5000

/** The databases of one folder. */
export class Databases {
  readonly #dir: string
  readonly #open = new Map<DatabaseName, Promise<Store>>()
  readonly #changing = new Map<DatabaseName, Promise<void>>()
  #names: ReadonlySet<DatabaseName>
  /** Called after the list changed. */
  onList: (names: DatabaseName[]) => void = () => undefined

  private constructor (dir: string, names: ReadonlySet<DatabaseName>) {
    this.#dir = dir
    this.#names = names
  }

  /** Takes the folder, making it (0700) where there is none, and clears away what a crash left half made. */
  static async take (dir: string): Promise<Databases> {
    const path = resolve(dir)
    await makeFolders(path, 0o700)
    await chmod(path, 0o700)
    const names = new Set<DatabaseName>()
    for (const entry of await readdir(path, { withFileTypes: true })) {
      const name = entry.name.replaceAll('.', '/')
      if (/^\.(?:new|old)-[0-9a-f]{12}$/.test(entry.name)) await rm(join(path, entry.name), { recursive: true, force: true })
      else if (entry.isDirectory() && isDatabaseName(name)) names.add(name)
    }
    return new Databases(path, names)
  }

  /** In the order of their names. */
  names (): DatabaseName[] {
    return [...this.#names].sort()
  }

  has (name: DatabaseName): boolean {
    return this.#names.has(name)
  }

  /** The database, opened once; undefined where there is none. Throws a Problem where it cannot be used. */
  async store (name: DatabaseName): Promise<Store | undefined> {
    await this.#changing.get(name)
    if (!this.#names.has(name)) return undefined
    let store = this.#open.get(name)
    if (store === undefined) {
      store = Store.open(name, join(this.#dir, folderOf(name)))
      this.#open.set(name, store)
      store.catch(() => { setTimeout(() => { this.#open.delete(name) }, RETRY_MS).unref() })
    }
    return store
  }

  /** Makes an empty database, durably. Throws `already-exists`. */
  async create (name: DatabaseName): Promise<void> {
    await this.#alone(name, async () => {
      if (this.#names.has(name)) throw new PatchcordError('already-exists', `the database ${name} already exists`)
      const made = join(this.#dir, `.new-${randomBytes(6).toString('hex')}`)
      await Store.create(made)
      await rename(made, join(this.#dir, folderOf(name)))
      await syncFolder(this.#dir)
      this.#list(names => names.add(name))
    })
  }

  /** Deletes a database and ends its feeds. Throws `not-found`. */
  async remove (name: DatabaseName): Promise<void> {
    await this.#alone(name, async () => {
      if (!this.#names.has(name)) throw new PatchcordError('not-found', `there is no database ${name}`)
      this.#list(names => names.delete(name))
      const store = await this.#open.get(name)?.catch(() => undefined)
      this.#open.delete(name)
      await store?.close()
      const gone = join(this.#dir, `.old-${randomBytes(6).toString('hex')}`)
      await rename(join(this.#dir, folderOf(name)), gone)
      await syncFolder(this.#dir)
      await rm(gone, { recursive: true, force: true })
    })
  }

  async close (): Promise<void> {
    await Promise.allSettled(this.#changing.values())
    const stores = await Promise.allSettled(this.#open.values())
    await Promise.all(stores.map(async store => { if (store.status === 'fulfilled') await store.value.close() }))
  }

  #list (change: (names: Set<DatabaseName>) => void): void {
    const names = new Set(this.#names)
    change(names)
    this.#names = names
    this.onList(this.names())
  }

  async #alone (name: DatabaseName, task: () => Promise<void>): Promise<void> {
    const before = this.#changing.get(name)
    const run = (async () => {
      await before?.catch(() => undefined)
      await task()
    })()
    const settled = run.then(() => undefined, () => undefined)
    this.#changing.set(name, settled)
    try {
      await run
    } finally {
      if (this.#changing.get(name) === settled) this.#changing.delete(name)
    }
  }
}

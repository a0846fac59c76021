import { AsyncLocalStorage } from 'node:async_hooks'
import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { messageOf, systemCode } from '../core/errors.js'
import { syncFolder } from '../core/durable-file.js'
import type { DatabaseName } from '../core/ids.js'
import { Turns } from '../core/turns.js'
import { SharedLock } from './lock.js'
import { openPouch, type Change, type Pouch } from './pouch.js'
import { Problem } from './problem.js'
import { holdable } from './weight.js'

/** How many reads of several documents run at a time: what they are together is known only when they are there. */
const READS_OF_MANY = 2

const running = new AsyncLocalStorage<Store>()

/** The database whose work threw, in an `uncaughtException` handler: PouchDB throws inside LevelDB's
 * callbacks where a folder is damaged, and only the context says which one. */
export const storeAtFault = (): Store | undefined => running.getStore()

export interface ChangesPage {
  readonly results: readonly Change[]
  readonly last_seq: number
  /** More was read, and is too large to be held with these. */
  readonly isCut?: boolean
}

export interface PageOptions {
  readonly since: number
  readonly limit: number
  readonly style: string
  readonly include_docs: boolean
  readonly conflicts: boolean
}

/** One open database. Every use of PouchDB goes through `read` and `write`. */
export class Store {
  readonly name: DatabaseName
  readonly #folder: string
  readonly #pouch: Pouch
  readonly #lock = new SharedLock()
  readonly #readsOfMany = new Turns(READS_OF_MANY)
  readonly #watchers = new Set<() => void>()
  readonly #pending = new Set<(error: Problem) => void>()
  readonly #pages = new Map<string, Promise<ChangesPage>>()
  #failure: Problem | undefined
  #closed = false

  private constructor (name: DatabaseName, folder: string, pouch: Pouch) {
    this.name = name
    this.#folder = folder
    this.#pouch = pouch
  }

  /** Opens what is there. Throws a Problem that names the database where LevelDB refuses it. */
  static async open (name: DatabaseName, folder: string): Promise<Store> {
    try {
      return new Store(name, folder, await openPouch(folder, false))
    } catch (error) {
      throw damaged(name, error)
    }
  }

  /** Makes an empty database in `folder` and leaves it closed. */
  static async create (folder: string): Promise<void> {
    const pouch = await openPouch(folder, true)
    await pouch.close()
    await syncFolder(folder)
  }

  get failed (): boolean { return this.#failure !== undefined }
  get closed (): boolean { return this.#closed }

  read<T> (task: (pouch: Pouch) => Promise<T>): Promise<T> {
    return this.#lock.read(() => this.#guard(task))
  }

  /** For a task that reads several documents; who asks holds on to no more than `holdable` says (weight.ts). */
  readMany<T> (task: (pouch: Pouch) => Promise<T>): Promise<T> {
    return this.#readsOfMany.run(() => this.read(task))
  }

  /** Runs `task` alone, wakes the feeds, and returns when what it wrote is on the disk. */
  async write<T> (task: (pouch: Pouch) => Promise<T>): Promise<T> {
    const result = await this.#lock.write(async () => {
      try {
        return await this.#guard(task)
      } finally {
        this.#pages.clear()
      }
    })
    for (const wake of [...this.#watchers]) wake()
    await this.sync()
    return result
  }

  /** Changes after `since`, in their order. Feeds that stand at the same place share one reading. */
  changesAfter (options: PageOptions): Promise<ChangesPage> {
    const key = JSON.stringify(options)
    let page = this.failed || this.#closed ? undefined : this.#pages.get(key)
    if (page === undefined) {
      const read = (pouch: Pouch): Promise<ChangesPage> => pouch.changes({ ...options, return_docs: true })
      page = options.include_docs ? this.readMany(async pouch => whatIsHeld(await read(pouch))) : this.read(read)
      this.#pages.set(key, page)
      const forget = (): void => { if (this.#pages.get(key) === page) this.#pages.delete(key) }
      page.then(({ results }) => { if (results.length > 0) setImmediate(forget) }, forget)
    }
    return page
  }

  /** Calls `wake` after every write, and when the database closes, until the returned function is called. */
  watch (wake: () => void): () => void {
    this.#watchers.add(wake)
    return () => { this.#watchers.delete(wake) }
  }

  /** Gives up on the database: what runs and what comes is answered with an error that names it. */
  fail (error: unknown): void {
    this.#failure ??= damaged(this.name, error)
    for (const reject of [...this.#pending]) reject(this.#failure)
    for (const wake of [...this.#watchers]) wake()
  }

  /** Waits for what runs, then closes. Does nothing twice. */
  async close (): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    for (const wake of [...this.#watchers]) wake()
    // A failed database may hold a callback that never comes.
    if (this.failed) return void this.#pouch.close().catch(() => undefined)
    await this.#lock.write(() => this.#pouch.close())
  }

  /** Bytes of all files. */
  async size (): Promise<number> {
    const sizes = await Promise.all((await readdir(this.#folder)).map(async file => {
      // LevelDB deletes files at any time.
      return await stat(join(this.#folder, file)).then(({ size }) => size, () => 0)
    }))
    return sizes.reduce((sum, size) => sum + size, 0)
  }

  #syncing: Promise<void> = Promise.resolve()
  #nextSync: Promise<void> | undefined

  /** Returns once everything written before the call survives a power cut. Calls share one fsync. */
  sync (): Promise<void> {
    this.#nextSync ??= this.#syncing.catch(() => undefined).then(() => {
      this.#nextSync = undefined
      this.#syncing = this.#syncLogs()
      return this.#syncing
    })
    return this.#nextSync
  }

  #logs = ''

  /** LevelDB hands each write to the system before it answers, but PouchDB never asks it to fsync. Tables
   * and the manifest it syncs itself; the logs are left to us. */
  async #syncLogs (): Promise<void> {
    const logs = (await readdir(this.#folder)).filter(file => file.endsWith('.log'))
    await Promise.all(logs.map(async log => {
      try {
        const file = await open(join(this.#folder, log), 'r')
        try {
          await file.datasync()
        } finally {
          await file.close()
        }
      } catch (error) {
        // Gone: its content is in a table, which was synced before the log was deleted.
        if (systemCode(error) !== 'ENOENT') throw error
      }
    }))
    const names = logs.join()
    if (names !== this.#logs) await syncFolder(this.#folder)
    this.#logs = names
  }

  #guard<T> (task: (pouch: Pouch) => Promise<T>): Promise<T> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    if (this.#closed) return Promise.reject(new Problem(503, 'stopped', 'the database is closing'))
    return new Promise<T>((resolve, reject) => {
      this.#pending.add(reject)
      running.run(this, () => task(this.#pouch)).then(resolve, reject).finally(() => { this.#pending.delete(reject) })
    })
  }
}

function whatIsHeld (page: ChangesPage): ChangesPage {
  const results = page.results.slice(0, holdable(page.results.map(({ doc }) => doc)))
  return results.length === page.results.length ? page : { results, last_seq: results.at(-1)!.seq, isCut: true }
}

function damaged (name: DatabaseName, error: unknown): Problem {
  const cause = messageOf(error)
  const reason = /\block\b/i.test(cause) ? 'another process has it open' : 'its files are damaged or not readable'
  return new Problem(500, 'database_unusable', `the database ${name} cannot be used: ${reason}`, { cause: error })
}

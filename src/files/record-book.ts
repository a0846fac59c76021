import { dirname } from 'node:path'
import { syncFolder, writeDurably } from '../core/durable-file.js'
import type { ContentId, DatabaseName } from '../core/ids.js'
import { filesIn, unlinkIfThere } from './folders.js'
import { pathOf, shardOf } from './layout.js'
import type { FileReader } from './reader.js'
import { formatRecords } from './records.js'

/** `.refs` files that are read at once: each takes four turns of the thread pool. */
export const RECORDS_AT_ONCE = 32

/** Which databases each file is recorded for, as the `.refs` beside it say (records.ts). Every change is on the disk when it resolves. It looks at
 * no file: that one is here, and that changes of one file come one after the other, is the caller's to see to. */
export class RecordBook {
  readonly #root: string
  readonly #reader: FileReader

  constructor (root: string, reader: FileReader) {
    this.#root = root
    this.#reader = reader
  }

  async add (id: ContentId, database: DatabaseName): Promise<void> {
    const databases = await this.#reader.records(id)
    if (!databases.includes(database)) await this.#write(id, [...databases, database])
  }

  /** No error where it was not recorded. */
  async remove (id: ContentId, database: DatabaseName): Promise<void> {
    const databases = await this.#reader.records(id)
    if (databases.includes(database)) await this.#write(id, databases.filter(name => name !== database))
  }

  /** Every file recorded for `database`. It reads every `.refs` there is. */
  async * of (database: DatabaseName): AsyncIterable<ContentId> {
    const recorded = async (ids: ContentId[]): Promise<ContentId[]> => {
      const records = await Promise.all(ids.map(id => this.#reader.records(id)))
      return ids.filter((_, at) => records[at]?.includes(database))
    }
    let ids: ContentId[] = []
    for await (const id of filesIn(this.#root, '.refs')) {
      ids.push(id)
      if (ids.length < RECORDS_AT_ONCE) continue
      yield * await recorded(ids)
      ids = []
    }
    yield * await recorded(ids)
  }

  /** Takes all records of a file away, for good: a disk keeps what is not synced in no order, so that a file could be gone before them. */
  async forget (id: ContentId): Promise<void> {
    if (await unlinkIfThere(pathOf(this.#root, id, '.refs'))) await syncFolder(shardOf(this.#root, id))
  }

  async #write (id: ContentId, databases: DatabaseName[]): Promise<void> {
    const path = pathOf(this.#root, id, '.refs')
    if (databases.length > 0) {
      await writeDurably(path, formatRecords(databases))
    } else if (await unlinkIfThere(path)) {
      await syncFolder(dirname(path))
    }
  }
}

import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName } from '../core/ids.js'
import type { CouchClient } from './couch-client.js'

/** Documents remembered for each database. A peer with write access can make as many conflicts as it likes. */
export const MOST_CONFLICTS = 10_000

/** One document with more than one version that nobody has chosen between. */
export interface Conflict {
  readonly id: string
  /** The revision that every reader gets, and the same on every device. */
  readonly winner: string
  /** The revisions beside it. */
  readonly others: readonly string[]
}

const Document = v.object({ _rev: v.string(), _conflicts: v.optional(v.array(v.string()), []) })

/** Which documents are in conflict, as the feeds of the local databases tell: two devices changed them while they
 * were apart. Only a program that knows what they mean can join them. */
export class Conflicts {
  readonly #ids = new Map<DatabaseName, Set<string>>()
  readonly #onChange: (database: DatabaseName, count: number) => void

  /** `onChange` is called whenever the count of a database changed. */
  constructor (onChange: (database: DatabaseName, count: number) => void) {
    this.#onChange = onChange
  }

  /** How many documents of a database are in conflict, at most `MOST_CONFLICTS`. */
  count (database: DatabaseName): number { return this.#ids.get(database)?.size ?? 0 }

  /** Documents changed, and have so many revisions beside their winning one now. */
  changed (database: DatabaseName, losers: ReadonlyMap<string, number>): void {
    const ids = this.#ids.get(database) ?? new Set()
    const before = ids.size
    for (const [id, count] of losers) {
      if (count === 0) ids.delete(id)
      else if (ids.size < MOST_CONFLICTS) ids.add(id)
    }
    if (ids.size === before) return
    this.#ids.set(database, ids)
    this.#onChange(database, ids.size)
  }

  forget (database: DatabaseName): void { this.#ids.delete(database) }

  /** Each document in conflict, read anew. Throws `upstream-down`. */
  async * list (couch: CouchClient, database: DatabaseName): AsyncGenerator<Conflict> {
    for (const id of [...this.#ids.get(database) ?? []].toSorted()) {
      const { status, value } = await couch.ask('GET', `/${encodeURIComponent(database)}/${encodeURIComponent(id)}?conflicts=true`)
      // Deleted in the meantime: then every one of its revisions is.
      if (status === 404) continue
      const parsed = v.safeParse(Document, value)
      if (status !== 200 || !parsed.success) throw new PatchcordError('upstream-down', `CouchDB answered ${status} for a document of ${database}`)
      const { _rev: winner, _conflicts: others } = parsed.output
      if (others.length > 0) yield { id, winner, others }
    }
  }
}

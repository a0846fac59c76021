import type { DocumentRow } from './pouch.js'
import type { Store } from './store.js'

export interface DocumentRange {
  readonly descending: boolean
  readonly inclusive_end: boolean
  readonly startkey?: string
  readonly endkey?: string
  /** What each row holds besides its revision. */
  readonly include_docs: boolean
  readonly conflicts: boolean
  readonly attachments: boolean
}

/** Rows read at a time: what a list costs in memory does not grow with the database. */
export const PAGE = 500

/** The documents in a range, page by page; writes may come between two pages. */
export async function * documentPages (store: Store, range: DocumentRange, skip: number, limit: number): AsyncGenerator<DocumentRow[]> {
  let left = limit
  let last: string | undefined
  while (left > 0) {
    const wanted = Math.min(PAGE, left)
    // A page begins with the last row of the one before, which is compared and not counted: it may be gone.
    const from = last === undefined ? { limit: wanted, skip } : { limit: wanted + 1, startkey: last }
    const { rows } = await store.read(pouch => pouch.allDocs({ ...range, ...from }))
    const fresh = (rows[0]?.id === last && last !== undefined ? rows.slice(1) : rows).slice(0, wanted)
    yield fresh
    if (rows.length < from.limit) return
    left -= fresh.length
    last = fresh.at(-1)!.id
  }
}

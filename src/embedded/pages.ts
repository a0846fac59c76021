import type { DocumentRow, Pouch } from './pouch.js'
import type { Store } from './store.js'
import { holdable, Portion } from './weight.js'

export interface DocumentRange {
  readonly descending: boolean
  readonly inclusive_end: boolean
  readonly startkey?: string
  readonly endkey?: string
  /** What each row holds besides its revision. */
  readonly include_docs: boolean
  readonly conflicts: boolean
}

/** Rows read at a time, without and with documents: what a list costs in memory does not grow with the
 * database, and a document has at most `documentBytes` (limits.ts). */
export const PAGE = 500
export const DOCUMENTS_PAGE = 25

/** The documents in a range, page by page; writes may come between two pages. */
export async function * documentPages (store: Store, range: DocumentRange, skip: number, limit: number): AsyncGenerator<DocumentRow[]> {
  let skipping = skip
  let left = limit
  for (const part of range.descending ? [{ startkey: range.startkey ?? LAST }] : ascendingParts(range.startkey)) {
    for await (const page of partPages(store, range, part)) {
      const inside = page.filter(({ id }) => !isPast(id!, range))
      const rows = inside.slice(skipping, skipping + left)
      skipping = Math.max(0, skipping - inside.length)
      left -= rows.length
      yield rows
      if (left <= 0 || inside.length < page.length) return
    }
  }
}

interface Part { readonly startkey?: string, readonly endkey?: string }

// PouchDB has two wrong ideas of the order of IDs. Without an end it stops at U+00FF, so that a document
// called `Документ` is in no list. With one it answers nothing where the start is the greater in UTF-16,
// though LevelDB keeps UTF-8: U+FFFF comes before U+10000 there. So the end is ours to find, and a list runs
// in two parts, in each of which both orders agree about the first character.
const LAST_OF_PLANE_0 = '\uffff'.repeat(8)
const FIRST_BEYOND = '\u{10000}'
const LAST = '\u{10ffff}'.repeat(8)

function ascendingParts (startkey: string | undefined): Part[] {
  if (startkey === undefined) return [{ endkey: LAST_OF_PLANE_0 }, { startkey: FIRST_BEYOND, endkey: LAST }]
  if (startkey.codePointAt(0)! > 0xffff) return [{ startkey, endkey: LAST }]
  return [{ startkey, endkey: LAST_OF_PLANE_0 }, { startkey: FIRST_BEYOND, endkey: LAST }]
}

function isPast (id: string, { descending, endkey, inclusive_end: inclusive }: DocumentRange): boolean {
  if (endkey === undefined) return false
  const order = Buffer.compare(Buffer.from(id), Buffer.from(endkey)) * (descending ? -1 : 1)
  return order > 0 || (order === 0 && !inclusive)
}

async function * partPages (store: Store, { descending, include_docs, conflicts }: DocumentRange, part: Part): AsyncGenerator<DocumentRow[]> {
  const portion = new Portion(include_docs ? DOCUMENTS_PAGE : PAGE)
  let last: string | undefined
  for (;;) {
    // A page begins with the last row of the one before, which is compared and not counted: it may be gone.
    const from = last === undefined ? part : { ...part, startkey: last }
    const limit = last === undefined ? portion.size : portion.size + 1
    const before = last
    // Cut where it is read: what this generator knows of is kept while a slow client takes the page.
    const read = async (pouch: Pouch): Promise<{ held: DocumentRow[], count: number, isOver: boolean }> => {
      const { rows } = await pouch.allDocs({ descending, include_docs, conflicts, ...from, limit })
      const fresh = before !== undefined && rows[0]?.id === before ? rows.slice(1) : rows
      return { held: include_docs ? fresh.slice(0, holdable(fresh.map(({ doc }) => doc))) : fresh, count: fresh.length, isOver: rows.length < limit }
    }
    const { held, count, isOver } = await (include_docs ? store.readMany(read) : store.read(read))
    portion.had(count, held.length)
    yield held
    if (held.length === count && isOver) return
    last = held.at(-1)?.id ?? last
  }
}

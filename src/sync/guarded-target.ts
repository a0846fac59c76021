import type { PouchDatabase, WrittenDocument } from './pouch.js'

export interface TargetGuard {
  readonly onDropped: (id: string) => void
  /** Runs each write, of so many bytes of JSON, or throws in its place. */
  readonly write: <Result>(bytes: number, run: () => Promise<Result>) => Promise<Result>
}

/**
 * Guards what a pull writes. The peer is not trusted to send what was asked for: a hostile answer to
 * `_bulk_get` may hold design documents and documents that were never announced, in spite of any filter on
 * the asking side. So it is checked where it is written: the ID and the revision were asked for because
 * the target lacked them, and neither `_design` nor `_local` documents come in.
 *
 * Design documents are taken out of what is compared, so that they count as known and are never fetched.
 */
export function guardTarget (target: PouchDatabase, { onDropped, write }: TargetGuard): PouchDatabase {
  // What the batches in flight asked for. PouchDB compares and writes batch by batch; an ID that is never
  // delivered leaves with the next batch but one.
  let asked = new Map<string, ReadonlySet<string>>()
  let before = new Map<string, ReadonlySet<string>>()
  const revsDiff = target.revsDiff.bind(target)
  const bulkDocs = target.bulkDocs.bind(target)

  target.revsDiff = async revisions => {
    const wanted = Object.fromEntries(Object.entries(revisions).filter(([id]) => !id.startsWith('_')))
    const missing = Object.keys(wanted).length === 0 ? {} : await revsDiff(wanted)
    before = asked
    asked = new Map(Object.entries(missing).map(([id, ask]) => [id, new Set(ask.missing)]))
    return missing
  }
  target.bulkDocs = (request, options) => {
    const docs = request.docs.filter(document => {
      const good = wasAsked(document, asked) || wasAsked(document, before)
      if (!good) onDropped(String(document._id))
      return good
    })
    return docs.length === 0 ? Promise.resolve([]) : write(docs.reduce((sum, document) => sum + sizeOf(document), 0), () => bulkDocs({ ...request, docs }, options))
  }
  return target
}

/** About how many bytes a document takes, its attachments included. */
function sizeOf ({ _attachments = {}, ...document }: WrittenDocument): number {
  return Object.values(_attachments).reduce((sum, { data, length }) => sum + (data?.length ?? length ?? 0), JSON.stringify(document).length)
}

function wasAsked ({ _id, _rev, _revisions }: WrittenDocument, asked: ReadonlyMap<string, ReadonlySet<string>>): boolean {
  if (typeof _id !== 'string' || _id.startsWith('_')) return false
  const revisions = asked.get(_id)
  if (revisions === undefined || typeof _rev !== 'string' || !revisions.has(_rev)) return false
  // The history that is stored is `_revisions`; it has to end in the revision that was asked for.
  return _revisions === undefined || `${_revisions.start}-${_revisions.ids[0]}` === _rev
}

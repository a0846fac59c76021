import { PatchcordError } from '../core/errors.js'
import { cut, type ContentId, type DatabaseName } from '../core/ids.js'
import { sizeIn } from './file-feed.js'
import type { CouchClient } from './couch-client.js'

const PAGE = 500

/** Every document of a database that refers to a file, page by page. */
export async function * fileDocuments (couch: CouchClient, database: DatabaseName): AsyncIterable<{ id: ContentId, size: number, names: readonly unknown[] }> {
  let from = ''
  for (;;) {
    const { status, value } = await couch.ask('GET', `/${encodeURIComponent(database)}/_all_docs?include_docs=true&limit=${PAGE + 1}${from === '' ? '' : `&startkey=${encodeURIComponent(JSON.stringify(from))}`}`)
    if (status === 404) return
    if (status !== 200) throw new PatchcordError('upstream-down', `CouchDB answered ${status} when the documents of ${database} were read`)
    const { rows } = value as { rows: Array<{ id: string, doc?: { names?: unknown } | null }> }
    for (const { id, doc } of rows.slice(0, PAGE)) {
      const size = sizeIn(id, doc)
      if (size !== undefined) yield { id: id as ContentId, size, names: Array.isArray(doc?.names) ? doc.names : [] }
    }
    const next = rows[PAGE]
    if (next === undefined) return
    from = next.id
  }
}

/** The file that documents of these databases call `name`. Throws `not-found`, or `usage` where several are called so. */
export async function findByName (couch: CouchClient, databases: readonly DatabaseName[], name: string): Promise<ContentId> {
  const found = new Set<ContentId>()
  for (const database of databases) for await (const { id, names } of fileDocuments(couch, database)) if (names.includes(name)) found.add(id)
  const [first, ...others] = found
  if (first === undefined) throw new PatchcordError('not-found', `"${cut(name)}" is not a content ID, and no document has a file of that name`, { hint: '`patchcord ls` lists the store' })
  if (others.length > 0) throw new PatchcordError('usage', `${found.size} files are called "${cut(name)}"`, { hint: `give one of the IDs: ${[...found].slice(0, 5).join(', ')}` })
  return first
}

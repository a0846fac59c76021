import { basename } from 'node:path'
import { PatchcordError } from '../core/errors.js'
import type { ContentId, DatabaseName } from '../core/ids.js'
import { contentTypeOf } from './content-types.js'
import type { CouchClient } from './couch-client.js'
import { sizeIn } from './file-feed.js'

/** What is known of a file that was added. */
export interface NamedFile {
  readonly id: ContentId
  readonly size: number
  readonly path: string
  /** Milliseconds since 1970. */
  readonly mtime: number
}

interface FileDocument {
  _id: string
  _rev?: string
  type: 'file'
  size: number
  names: string[]
  contentType?: unknown
  mtime: string
  [other: string]: unknown
}

const MOST_NAMES = 100

/** Puts one document per file into a database, its `_id` the content ID, so that those who may read the
 * database learn what there is; a name that is new is added to a document that is there. Throws `conflict`
 * when others keep writing the same document. */
export async function writeFileDocuments (couch: CouchClient, database: DatabaseName, files: readonly NamedFile[]): Promise<void> {
  let left = files
  for (let attempt = 0; attempt < 3 && left.length > 0; attempt++) left = await writeOnce(couch, database, left)
  if (left[0] !== undefined) throw new PatchcordError('conflict', `the document of ${left[0].id} in ${database} keeps changing`, { hint: 'add the file again' })
}

/** The files whose documents somebody else changed in between. */
async function writeOnce (couch: CouchClient, database: DatabaseName, files: readonly NamedFile[]): Promise<readonly NamedFile[]> {
  const path = `/${encodeURIComponent(database)}`
  const found = await couch.ask('POST', `${path}/_all_docs?include_docs=true`, { keys: files.map(({ id }) => id) })
  if (found.status === 404) throw new PatchcordError('not-found', `there is no database ${database}`, { hint: `make it: patchcord db create ${database}` })
  if (found.status !== 200) throw new PatchcordError('upstream-down', `CouchDB answered ${found.status} when the documents of ${database} were read`)
  const rows = new Map((found.value as { rows: Array<{ key: string, doc?: FileDocument | null }> }).rows.map(row => [row.key, row.doc ?? undefined]))
  const byId = new Map<ContentId, FileDocument>()
  for (const { id, size, path, mtime } of files) {
    const before = byId.get(id) ?? rows.get(id)
    const names = new Set(Array.isArray(before?.names) ? before.names : [])
    const name = basename(path)
    // Whatever else was written there: what the file is, this device knows.
    if (names.has(name) && sizeIn(id, before) === size) continue
    byId.set(id, { ...before, _id: id, type: 'file', size, names: [...names.add(name)].slice(-MOST_NAMES), contentType: typeof before?.contentType === 'string' ? before.contentType : contentTypeOf(name), mtime: new Date(mtime).toISOString() })
  }
  if (byId.size === 0) return []
  const written = await couch.ask('POST', `${path}/_bulk_docs`, { docs: [...byId.values()] })
  if (written.status !== 201 && written.status !== 202) throw new PatchcordError('upstream-down', `CouchDB answered ${written.status} when the documents of ${database} were written`)
  const failed = new Set((written.value as Array<{ id: string, error?: string }>).filter(({ error }) => error !== undefined).map(({ id }) => id))
  return files.filter(({ id }) => failed.has(id))
}

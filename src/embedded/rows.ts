import { allDocs, bulkGet, compareRevisions } from './lists.js'
import { changes } from './changes.js'
import type { Exchange } from './exchange.js'
import { find } from './find.js'
import { Problem } from './problem.js'
import { readAttachment, readDocument, readLocal } from './reading.js'
import type { Store } from './store.js'
import { bulkDocs, createDocument, deleteAttachment, deleteDocument, writeAttachment, writeDocument, writeLocal } from './writing.js'

export type Handler = (exchange: Exchange, store: Store) => Promise<void>

/** What answers each row of the surface (policy/surface.ts) that names a database, by the row's ID. A test
 * holds the two against each other. */
export const HANDLERS: Readonly<Record<string, Handler>> = {
  'database information': information,
  'create a document': createDocument,
  'changes': changes,
  'filtered changes': changes,
  'list documents': allDocs,
  'list documents by key': allDocs,
  'read many documents': bulkGet,
  'compare revisions': compareRevisions,
  'missing revisions': compareRevisions,
  'make durable': ensureFullCommit,
  'write many documents': bulkDocs,
  'find': find,
  'read a document': readDocument,
  'write a document': writeDocument,
  'delete a document': deleteDocument,
  'read an attachment': readAttachment,
  'write an attachment': writeAttachment,
  'delete an attachment': deleteAttachment,
  'read a design document': readDocument,
  'read a design document\'s attachment': readAttachment,
  'view': noViews,
  'view by key': noViews,
  'read a checkpoint': readLocal,
  'write a checkpoint': writeLocal,
}

async function information (exchange: Exchange, store: Store): Promise<void> {
  const [{ doc_count, update_seq }, size] = await Promise.all([store.read(pouch => pouch.info()), store.size()])
  exchange.json(200, {
    db_name: store.name,
    doc_count,
    doc_del_count: 0,
    update_seq,
    purge_seq: 0,
    compact_running: false,
    sizes: { file: size, active: size, external: size },
    props: {},
    disk_format_version: 8,
    instance_start_time: '0',
  })
}

async function ensureFullCommit (exchange: Exchange, store: Store): Promise<void> {
  await exchange.readObject(exchange.limits.smallBodyBytes)
  await store.sync()
  exchange.json(201, { ok: true, instance_start_time: '0' })
}

/** A view's map function is a program somebody else wrote, and every sandbox for it has been left. */
async function noViews (): Promise<void> {
  throw new Problem(501, 'not_implemented', 'views are not built here: no design code ever runs')
}

import { boolean, documentId, integer, json, oneOf, revision, revisions, sequence, type QueryRule } from './query.js'

/**
 * The CouchDB surface, as data. What is not a row does not exist: the same 404 answers for it, for a
 * database that is absent and for one that was not granted. The proxy, the embedded database, `explain`
 * and docs/couch-surface.md all read this one table.
 */
export interface SurfaceRow {
  /** Names the row in decisions, logs and documents. */
  readonly id: string
  readonly methods: readonly string[]
  readonly path: PathForm
  /** The part after the database that the path form names, such as `_changes`. */
  readonly endpoint?: string
  readonly query: Readonly<Record<string, QueryRule>>
  /** What the body is and how it is checked while it streams (couch/body-check.ts). */
  readonly body: BodyForm
  /** The database access that the row asks for. */
  readonly needs: 'nothing' | 'read' | 'write'
  /** Rows for own devices alone are refused to every peer, whatever its grant. */
  readonly who: 'all' | 'own'
}

export type PathForm =
  | 'welcome' | 'all-dbs' | 'database' | 'endpoint'
  | 'document' | 'attachment' | 'design' | 'design-attachment' | 'view' | 'local'

export type BodyForm =
  | 'none'
  /** Any bytes; the only form that may carry a Content-Encoding. */
  | 'attachment'
  /** One document to be written: no `_design`, no `_local`. */
  | 'document'
  /** `{"docs": [document…]}` to be written. */
  | 'bulk-docs'
  /** `{"docs": [{"id", "rev"}…]}` to be read: no `_local`. */
  | 'bulk-get'
  /** `{"<id>": ["<rev>"…]}`: no `_local`. */
  | 'revisions'
  /** `{"keys": […]}` or `{"queries": [{"keys"…}…]}`: no `_local`. */
  | 'keys'
  /** `{"doc_ids": […]}` or `{"selector": {…}}`. */
  | 'changes-filter'
  /** A query of `_find`: `{"selector": {…}, …}`. */
  | 'selector'
  /** A checkpoint: any object of a few KiB; the path alone names it. */
  | 'checkpoint'
  /** Ignored by CouchDB: nothing, or an empty object. */
  | 'empty'

const MOST = Number.MAX_SAFE_INTEGER

// How many rows and changes are asked for is nobody's limit: more than there are is none, and feeds, bodies and time are bounded
// elsewhere (core/limits.ts). A heartbeat is written anew (feed.ts).
const PAGE = {
  conflicts: boolean, descending: boolean, endkey: json, end_key: json, endkey_docid: documentId, end_key_doc_id: documentId,
  include_docs: boolean, inclusive_end: boolean, key: json, keys: json, limit: integer(MOST), skip: integer(MOST),
  startkey: json, start_key: json, startkey_docid: documentId, start_key_doc_id: documentId, update_seq: boolean,
  attachments: boolean, att_encoding_info: boolean,
} as const

const READ_DOCUMENT = {
  attachments: boolean, att_encoding_info: boolean, atts_since: revisions, conflicts: boolean, deleted_conflicts: boolean,
  latest: boolean, local_seq: boolean, meta: boolean, open_revs: revisions, rev: revision, revs: boolean, revs_info: boolean,
} as const

const CHANGES = {
  attachments: boolean, att_encoding_info: boolean, conflicts: boolean, descending: boolean,
  feed: oneOf('normal', 'longpoll', 'continuous'), filter: oneOf('_doc_ids', '_selector'), doc_ids: json,
  heartbeat: value => value === 'true' ? undefined : integer(MOST)(value), include_docs: boolean, limit: integer(MOST),
  seq_interval: integer(MOST), since: sequence, style: oneOf('main_only', 'all_docs'), timeout: integer(MOST),
} as const satisfies Record<string, QueryRule>

const VIEW = { ...PAGE, group: boolean, group_level: integer(1000), reduce: boolean, sorted: boolean, stable: boolean, update: oneOf('true', 'false', 'lazy') } as const

const READ = ['GET', 'HEAD'] as const

export const SURFACE: readonly SurfaceRow[] = [
  { id: 'welcome', methods: READ, path: 'welcome', query: {}, body: 'none', needs: 'nothing', who: 'all' },
  { id: 'list databases', methods: READ, path: 'all-dbs', query: {}, body: 'none', needs: 'nothing', who: 'all' },
  { id: 'database information', methods: READ, path: 'database', query: {}, body: 'none', needs: 'read', who: 'all' },
  { id: 'create a document', methods: ['POST'], path: 'database', query: {}, body: 'document', needs: 'write', who: 'all' },

  { id: 'changes', methods: ['GET'], path: 'endpoint', endpoint: '_changes', query: CHANGES, body: 'none', needs: 'read', who: 'all' },
  { id: 'filtered changes', methods: ['POST'], path: 'endpoint', endpoint: '_changes', query: CHANGES, body: 'changes-filter', needs: 'read', who: 'all' },
  { id: 'list documents', methods: READ, path: 'endpoint', endpoint: '_all_docs', query: PAGE, body: 'none', needs: 'read', who: 'all' },
  { id: 'list documents by key', methods: ['POST'], path: 'endpoint', endpoint: '_all_docs', query: PAGE, body: 'keys', needs: 'read', who: 'all' },
  { id: 'read many documents', methods: ['POST'], path: 'endpoint', endpoint: '_bulk_get', query: { attachments: boolean, att_encoding_info: boolean, latest: boolean, revs: boolean }, body: 'bulk-get', needs: 'read', who: 'all' },
  { id: 'compare revisions', methods: ['POST'], path: 'endpoint', endpoint: '_revs_diff', query: {}, body: 'revisions', needs: 'read', who: 'all' },
  { id: 'missing revisions', methods: ['POST'], path: 'endpoint', endpoint: '_missing_revs', query: {}, body: 'revisions', needs: 'read', who: 'all' },
  { id: 'make durable', methods: ['POST'], path: 'endpoint', endpoint: '_ensure_full_commit', query: {}, body: 'empty', needs: 'read', who: 'all' },
  { id: 'write many documents', methods: ['POST'], path: 'endpoint', endpoint: '_bulk_docs', query: {}, body: 'bulk-docs', needs: 'write', who: 'all' },
  { id: 'find', methods: ['POST'], path: 'endpoint', endpoint: '_find', query: {}, body: 'selector', needs: 'read', who: 'own' },

  { id: 'read a document', methods: READ, path: 'document', query: READ_DOCUMENT, body: 'none', needs: 'read', who: 'all' },
  { id: 'write a document', methods: ['PUT'], path: 'document', query: { rev: revision, new_edits: boolean }, body: 'document', needs: 'write', who: 'all' },
  { id: 'delete a document', methods: ['DELETE'], path: 'document', query: { rev: revision }, body: 'none', needs: 'write', who: 'all' },
  { id: 'read an attachment', methods: READ, path: 'attachment', query: { rev: revision }, body: 'none', needs: 'read', who: 'all' },
  { id: 'write an attachment', methods: ['PUT'], path: 'attachment', query: { rev: revision }, body: 'attachment', needs: 'write', who: 'all' },
  { id: 'delete an attachment', methods: ['DELETE'], path: 'attachment', query: { rev: revision }, body: 'none', needs: 'write', who: 'all' },

  { id: 'read a design document', methods: READ, path: 'design', query: READ_DOCUMENT, body: 'none', needs: 'read', who: 'all' },
  { id: 'read a design document\'s attachment', methods: READ, path: 'design-attachment', query: { rev: revision }, body: 'none', needs: 'read', who: 'all' },
  { id: 'view', methods: READ, path: 'view', query: VIEW, body: 'none', needs: 'read', who: 'own' },
  { id: 'view by key', methods: ['POST'], path: 'view', query: VIEW, body: 'keys', needs: 'read', who: 'own' },

  { id: 'read a checkpoint', methods: READ, path: 'local', query: {}, body: 'none', needs: 'read', who: 'all' },
  { id: 'write a checkpoint', methods: ['PUT'], path: 'local', query: {}, body: 'checkpoint', needs: 'read', who: 'all' },
]

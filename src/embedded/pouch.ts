import PouchCore from 'pouchdb-core'
import leveldb from 'pouchdb-adapter-leveldb'

// The part of PouchDB 9 that this room calls, typed by what its LevelDB adapter does rather than by
// @types/pouchdb-core, which knows neither the adapter nor the revision tree.

export interface StoredAttachment {
  content_type?: string
  digest: string
  length: number
  revpos?: number
  stub?: true
  data?: string
}

export interface StoredDocument {
  _id: string
  _rev: string
  _deleted?: true
  _attachments?: Record<string, StoredAttachment>
  [member: string]: unknown
}

export interface Change {
  readonly id: string
  readonly seq: number
  readonly changes: ReadonlyArray<{ readonly rev: string }>
  readonly deleted?: true
  readonly doc?: StoredDocument
}

export interface DocumentRow {
  readonly id?: string
  readonly key: unknown
  readonly value?: { readonly rev: string, readonly deleted?: true }
  readonly doc?: StoredDocument | null
  readonly error?: string
}

export type OpenRevision = { readonly ok: StoredDocument } | { readonly missing: string }

/** A node is the revision's hash, what is known of it, and its children. */
export type RevisionNode = readonly [hash: string, state: { readonly status: 'available' | 'missing', readonly deleted?: boolean }, children: readonly RevisionNode[]]
export type RevisionTree = ReadonlyArray<{ readonly pos: number, readonly ids: RevisionNode }>

export type WriteResult =
  | { readonly ok: true, readonly id: string, readonly rev: string }
  | { readonly error: true, readonly id?: string, readonly status: number, readonly name: string, readonly reason?: string, readonly message: string }

export interface Pouch {
  info (): Promise<{ doc_count: number, update_seq: number }>
  get (id: string, options: { open_revs: 'all' | readonly string[], [option: string]: unknown }): Promise<OpenRevision[]>
  get (id: string, options?: Record<string, unknown>): Promise<StoredDocument>
  getAttachment (id: string, name: string, options: { rev: string }): Promise<Buffer>
  put (document: Record<string, unknown>): Promise<{ ok: true, id: string, rev: string }>
  bulkDocs (documents: unknown[], options: { new_edits: boolean }): Promise<WriteResult[]>
  allDocs (options: Record<string, unknown>): Promise<{ total_rows: number, rows: DocumentRow[] }>
  changes (options: Record<string, unknown>): Promise<{ results: Change[], last_seq: number }>
  _getRevisionTree (id: string, callback: (error: unknown, tree: RevisionTree) => void): void
  close (): Promise<void>
}

const PouchDB = (PouchCore as { plugin (plugin: unknown): new (name: string, options: object) => Pouch }).plugin(leveldb)

/** Opens the LevelDB folder at the absolute path `folder`. Rejects with LevelDB's own error where it is
 * damaged, held by another process, or (unless `create`) not there. */
export async function openPouch (folder: string, create: boolean): Promise<Pouch> {
  const pouch = new PouchDB(folder, {
    adapter: 'leveldb',
    // LevelDB would make a new empty database of a folder that lost its CURRENT file.
    createIfMissing: create,
    // CouchDB keeps old bodies until somebody compacts; here nobody can, so each write does.
    auto_compaction: true,
    revs_limit: REVISIONS_LIMIT,
    // The migration from PouchDB 2 unlinks `<folder>.uuid`, which may be another database's folder.
    migrate: false,
  })
  await pouch.info()
  return pouch
}

/** How many revisions of a document's history are kept, CouchDB's default. */
export const REVISIONS_LIMIT = 1000

/** The revision tree of a document, or undefined where there never was one. */
export function revisionTree (pouch: Pouch, id: string): Promise<RevisionTree | undefined> {
  return new Promise((resolve, reject) => {
    pouch._getRevisionTree(id, (error, tree) => {
      if (error === null || error === undefined) resolve(tree)
      else if ((error as { status?: unknown }).status === 404) resolve(undefined)
      else reject(error as Error)
    })
  })
}

export interface Revision {
  readonly rev: string
  readonly generation: number
  readonly leaf: boolean
  readonly available: boolean
  readonly deleted: boolean
}

/** Every revision that the tree names. */
export function revisionsOf (tree: RevisionTree): Revision[] {
  const revisions: Revision[] = []
  const left: Array<[number, RevisionNode]> = tree.map(({ pos, ids }) => [pos, ids])
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const [generation, [hash, { status, deleted = false }, children]] = next
    revisions.push({ rev: `${generation}-${hash}`, generation, leaf: children.length === 0, available: status === 'available', deleted })
    for (const child of children) left.push([generation + 1, child])
  }
  return revisions
}

/** The newest revision of every branch, deleted ones included. */
export const leavesOf = (tree: RevisionTree): string[] => revisionsOf(tree).filter(({ leaf }) => leaf).map(({ rev }) => rev)

import { randomUUID } from 'node:crypto'
import { revision } from '../policy/query.js'
import { isObject } from './json.js'
import { REVISIONS_LIMIT } from './pouch.js'
import { badRequest, Problem } from './problem.js'

// PouchDB trusts its caller: a `_revisions` that is no list, a `_rev_tree` of the caller's own or a
// malformed base64 throws inside a LevelDB callback, where nobody catches. So every document is built
// anew here, from members that were looked at one by one.

/** A document as PouchDB may have it. */
export interface WritableDocument {
  _id: string
  _rev?: string
  _deleted?: true
  _revisions?: { readonly start: number, readonly ids: readonly string[] }
  _attachments?: Record<string, WritableAttachment>
  [member: string]: unknown
}

/** `data` is canonical base64; a stub names what is stored already. */
export type WritableAttachment =
  | { readonly content_type: string, readonly data: string }
  | { readonly content_type: string, readonly digest: string, readonly length: number, readonly revpos: number, readonly stub: true }
  | NamedStub

/** `{"stub": true}`: the attachment of that name in the stored revision, to be filled in. */
export interface NamedStub { readonly content_type: undefined, readonly stub: true }

/** Throws 403 for `_design` and `_local` documents: nothing that names documents in a body may write
 * them, whoever asks (design: 3-surface). 400 for anything else that is no document's ID. */
export function parseId (id: unknown): string {
  if (typeof id !== 'string') throw badRequest('Document ID must be a string')
  if (id === '') throw badRequest('Document ID must not be empty')
  if (/^_(?:design|local)\//.test(id)) throw new Problem(403, 'forbidden', `${id.slice(0, id.indexOf('/'))} documents are not written here`)
  if (id.startsWith('_')) throw badRequest('Only reserved document ids may start with underscore.')
  // LevelDB would store every lone surrogate as the same replacement character.
  if (LONE_SURROGATE.test(id)) throw badRequest('Document ID is not valid Unicode')
  return id
}

const LONE_SURROGATE = /\p{Surrogate}/u

export const isRevision = (value: unknown): value is string => typeof value === 'string' && revision(value) === undefined

/** What CouchDB puts into documents it answers and ignores in those it is given. */
const IGNORED = new Set(['_revs_info', '_conflicts', '_deleted_conflicts', '_local_seq'])
const KNOWN = new Set(['_id', '_rev', '_deleted', '_revisions', '_attachments'])
/** What `_replicator` documents hold; CouchDB stores these as they are. */
const KEPT = /^_replication_(?:id|state|state_time|state_reason|stats)$/

/** Builds the document to be written from what a body says. `newEdits` false takes the revision as given. */
export function parseDocument (value: unknown, newEdits: boolean): WritableDocument {
  if (!isObject(value)) throw badRequest('Document must be a JSON object')
  const document: WritableDocument = { _id: value['_id'] === undefined ? randomUUID().replaceAll('-', '') : parseId(value['_id']) }
  for (const name of Object.keys(value)) {
    if (!name.startsWith('_') || KEPT.test(name)) document[name] = value[name]
    else if (!KNOWN.has(name) && !IGNORED.has(name)) throw new Problem(400, 'doc_validation', `Bad special document member: ${name.slice(0, 80)}`)
  }
  const { _rev, _deleted, _revisions, _attachments } = value
  if (_rev !== undefined) {
    if (!isRevision(_rev)) throw badRequest('Invalid rev format')
    document._rev = _rev
  }
  if (_deleted !== undefined && typeof _deleted !== 'boolean') throw badRequest('_deleted must be true or false')
  if (_deleted === true) document._deleted = true
  if (_revisions !== undefined && !newEdits) {
    document._revisions = parseRevisions(_revisions)
    const newest = `${document._revisions.start}-${document._revisions.ids[0]}`
    if (_rev !== undefined && _rev !== newest) throw badRequest('_rev and _revisions say different revisions')
    document._rev = newest
  }
  if (!newEdits && document._rev === undefined) throw badRequest('with new_edits false a document needs its _rev')
  if (_attachments !== undefined && _deleted !== true) {
    const attachments = parseAttachments(_attachments)
    if (attachments !== undefined) document._attachments = attachments
  }
  return document
}

const HASH = /^[0-9a-zA-Z]{1,64}$/

function parseRevisions (value: unknown): NonNullable<WritableDocument['_revisions']> {
  if (!isObject(value)) throw badRequest('_revisions must be an object')
  const { start, ids } = value
  if (!Array.isArray(ids) || ids.length === 0 || !ids.every(id => typeof id === 'string' && HASH.test(id))) throw badRequest('_revisions.ids isn\'t an array of revisions.')
  if (typeof start !== 'number' || !Number.isSafeInteger(start) || start < ids.length || start > 1e15) throw badRequest('_revisions.start isn\'t an integer that fits its ids.')
  // PouchDB walks a path in the square of its length before it cuts it to the limit.
  return { start, ids: ids.slice(0, REVISIONS_LIMIT) as string[] }
}

function parseAttachments (value: unknown): Record<string, WritableAttachment> | undefined {
  if (!isObject(value)) throw badRequest('Attachments must be a JSON object')
  const names = Object.keys(value)
  if (names.length === 0) return undefined
  return Object.fromEntries(names.map(name => [parseAttachmentName(name), parseAttachment(value[name])]))
}

export function parseAttachmentName (name: string): string {
  if (name === '' || name.startsWith('_')) throw badRequest(`Attachment name '${name.slice(0, 80)}' must not be empty or start with '_'`)
  if (LONE_SURROGATE.test(name)) throw badRequest('Attachment name is not valid Unicode')
  return name
}

function parseAttachment (value: unknown): WritableAttachment {
  if (!isObject(value)) throw badRequest('An attachment must be a JSON object')
  const { data, stub, follows, content_type: type, digest, length, revpos } = value
  if (type !== undefined && !isContentType(type)) throw badRequest('content_type must be a header value')
  if (follows !== undefined) throw badRequest('Attachments follow only in multipart bodies, which are not taken here')
  if (stub === true) {
    if (typeof digest !== 'string' || !/^md5-[A-Za-z0-9+/]{22}==$/.test(digest)) return { content_type: undefined, stub: true }
    if (!isCount(length) || (revpos !== undefined && !isCount(revpos))) throw badRequest('An attachment stub needs its length')
    return { content_type: type ?? DEFAULT_TYPE, digest, length, revpos: revpos ?? 1, stub: true }
  }
  if (typeof data !== 'string') throw badRequest('Attachment data must be base64')
  return { content_type: type ?? DEFAULT_TYPE, data: canonicalBase64(data) }
}

export const DEFAULT_TYPE = 'application/octet-stream'

/** It leaves again as a header. */
export const isContentType = (value: unknown): value is string => typeof value === 'string' && /^[\x20-\x7e]{1,255}$/.test(value)

const isCount = (value: unknown): value is number => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0

/** PouchDB refuses, from inside a callback, base64 that it would not have written so itself. */
function canonicalBase64 (text: string): string {
  const plain = /\s/.test(text) ? text.replace(/\s+/g, '') : text
  const padding = plain.indexOf('=')
  const digits = padding === -1 ? plain.length : padding
  // Searching for a bad character, not matching the good ones: that would keep a state for each of them.
  if (/[^A-Za-z0-9+/=]/.test(plain) || digits % 4 === 1 || !/^={0,2}$/.test(plain.slice(digits, digits + 3))) throw badRequest('Attachment data is not base64')
  const whole = digits - digits % 4
  return plain.slice(0, whole) + Buffer.from(plain.slice(whole, digits), 'base64').toString('base64')
}

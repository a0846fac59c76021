import { DEFAULT_TYPE, isContentType, isRevision, parseAttachmentName, parseDocument, parseId, type WritableDocument } from './documents.js'
import type { Exchange } from './exchange.js'
import { revisionTree, type Pouch, type StoredDocument, type WriteResult } from './pouch.js'
import { badRequest, conflict, missing, Problem, problemOf } from './problem.js'
import { attachmentOf, givenRevision } from './reading.js'
import type { Store } from './store.js'

interface Written { readonly ok: true, readonly id: string, readonly rev: string }

/** `POST /db`. */
export async function createDocument (exchange: Exchange, store: Store): Promise<void> {
  const document = parseDocument(await exchange.readObject(), true)
  checkSize(exchange, [document])
  const written = await store.write(pouch => writeOne(pouch, document, true))
  exchange.json(201, written, { ETag: `"${written.rev}"` })
}

/** `PUT /db/{doc}`. */
export async function writeDocument (exchange: Exchange, store: Store): Promise<void> {
  const body = await exchange.readObject()
  const id = parseId(exchange.action.target.document)
  if (body['_id'] !== undefined && body['_id'] !== id) throw badRequest('Document ID in the body is not the one in the path')
  const newEdits = exchange.parameter('new_edits') !== 'false'
  const rev = givenRevision(exchange, isRevision(body['_rev']) ? body['_rev'] : undefined)
  const document = parseDocument({ ...body, _id: id, ...(rev !== undefined && { _rev: rev }) }, newEdits)
  checkSize(exchange, [document])
  const written = await store.write(pouch => writeOne(pouch, document, newEdits))
  exchange.json(201, written, { ETag: `"${written.rev}"` })
}

/** `DELETE /db/{doc}`. */
export async function deleteDocument (exchange: Exchange, store: Store): Promise<void> {
  const id = parseId(exchange.action.target.document)
  const rev = givenRevision(exchange)
  const written = await store.write(async pouch => {
    if (await revisionTree(pouch, id) === undefined) throw missing()
    if (rev === undefined) throw conflict()
    return await writeOne(pouch, { _id: id, _rev: rev, _deleted: true }, true)
  })
  exchange.json(200, written, { ETag: `"${written.rev}"` })
}

/** `POST /db/_bulk_docs`: all documents are looked at before any is written. */
export async function bulkDocs (exchange: Exchange, store: Store): Promise<void> {
  const { docs, new_edits: newEdits = true } = await exchange.readObject()
  if (!Array.isArray(docs)) throw badRequest('POST body must include `docs` parameter.')
  if (typeof newEdits !== 'boolean') throw badRequest('`new_edits` parameter must be a boolean.')
  const documents = docs.map(doc => parseDocument(doc, newEdits))
  checkSize(exchange, documents)
  const results = await store.write(pouch => writeAll(pouch, documents, newEdits))
  exchange.json(201, results.map(resultRow))
}

/** Throws 413 for a document that is too large without its attachments: lists hold several at a time. */
function checkSize ({ limits, request }: Exchange, documents: readonly WritableDocument[]): void {
  if (request.body?.length !== undefined && request.body.length <= limits.documentBytes) return
  for (const { _attachments, ...document } of documents) {
    if (JSON.stringify(document).length > limits.documentBytes) throw new Problem(413, 'document_too_large', document._id.slice(0, 80))
  }
}

function resultRow (result: WriteResult): object {
  if (!('error' in result)) return { ok: true, id: result.id, rev: result.rev }
  const { error, reason } = problemOf(result)
  return { id: result.id, error, reason }
}

async function writeOne (pouch: Pouch, document: WritableDocument, newEdits: boolean): Promise<Written> {
  const [result] = await writeAll(pouch, [document], newEdits)
  // With new_edits false PouchDB, like CouchDB, answers failures alone.
  if (result === undefined) return { ok: true, id: document._id, rev: document._rev! }
  if ('error' in result) throw problemOf(result)
  return { ok: true, id: result.id, rev: result.rev }
}

async function writeAll (pouch: Pouch, documents: readonly WritableDocument[], newEdits: boolean): Promise<WriteResult[]> {
  if (documents.length === 0) return []
  for (const document of documents) await fillStubs(pouch, document)
  return await pouch.bulkDocs([...documents], { new_edits: newEdits })
}

/** CouchDB takes `{"stub": true}` for the attachment of that name in the revision that is being replaced;
 * PouchDB wants to be told its digest. */
async function fillStubs (pouch: Pouch, document: WritableDocument): Promise<void> {
  const { _id: id, _rev: rev, _attachments: attachments } = document
  if (attachments === undefined || !Object.values(attachments).some(one => 'stub' in one)) return
  const stored = await pouch.get(id, rev === undefined ? {} : { rev }).catch((error: unknown) => {
    if ((error as { status?: unknown }).status === 404) return undefined
    throw error
  })
  for (const [name, attachment] of Object.entries(attachments)) {
    if (!('stub' in attachment)) continue
    const known = stored === undefined ? undefined : attachmentOf(stored, name)
    if (known !== undefined) {
      attachments[name] = { content_type: known.content_type ?? DEFAULT_TYPE, digest: known.digest, length: known.length, revpos: known.revpos ?? 1, stub: true }
    } else if (attachment.content_type === undefined) {
      throw new Problem(412, 'missing_stub', `Invalid attachment stub in ${id.slice(0, 80)} for ${name.slice(0, 80)}`)
    }
  }
}

/** `PUT /db/{doc}/{attachment}`: makes the document where there is none. */
export async function writeAttachment (exchange: Exchange, store: Store): Promise<void> {
  const [id, name] = attachmentTarget(exchange)
  const type = exchange.request.headers.get('content-type') ?? DEFAULT_TYPE
  if (!isContentType(type)) throw badRequest('Content-Type must be plain ASCII')
  const rev = givenRevision(exchange)
  const data = (await exchange.readBytes()).toString('base64')
  const written = await store.write(async pouch => {
    const before = await currentDocument(pouch, id, rev)
    const document = { ...before ?? { _id: id }, _attachments: { ...before?._attachments, [name]: { content_type: type, data } } }
    return await writeOne(pouch, document as WritableDocument, true)
  })
  exchange.json(201, written, { ETag: `"${written.rev}"` })
}

/** `DELETE /db/{doc}/{attachment}`. */
export async function deleteAttachment (exchange: Exchange, store: Store): Promise<void> {
  const [id, name] = attachmentTarget(exchange)
  const rev = givenRevision(exchange)
  const written = await store.write(async pouch => {
    const before = await currentDocument(pouch, id, rev)
    if (before === undefined) throw missing()
    if (attachmentOf(before, name) === undefined) throw missing('Document is missing attachment')
    const { [name]: _, ...kept } = before._attachments!
    return await writeOne(pouch, { ...before, _attachments: kept } as WritableDocument, true)
  })
  exchange.json(200, written, { ETag: `"${written.rev}"` })
}

function attachmentTarget ({ action: { target } }: Exchange): [string, string] {
  return [parseId(target.document), parseAttachmentName(target.attachment!.join('/'))]
}

/** The revision that is being replaced; undefined where the document is new. Throws 409 for one that is no
 * longer there, and where none is given for a document that is. */
async function currentDocument (pouch: Pouch, id: string, rev: string | undefined): Promise<StoredDocument | undefined> {
  try {
    const document = await pouch.get(id, rev === undefined ? {} : { rev })
    if (rev === undefined) throw conflict()
    return document
  } catch (error) {
    if (rev === undefined && (error as { status?: unknown }).status === 404) return undefined
    if ((error as { status?: unknown }).status === 404) throw conflict()
    throw error
  }
}

/** `PUT /db/_local/{id}`: a checkpoint. When this is answered, what it speaks of is on the disk. */
export async function writeLocal (exchange: Exchange, store: Store): Promise<void> {
  const body = await exchange.readObject(exchange.limits.checkpointBytes)
  const rev = body['_rev']
  if (rev !== undefined && !(typeof rev === 'string' && /^0-\d{1,15}$/.test(rev))) throw badRequest('Invalid rev format')
  const { _id, _rev, _revisions, _attachments, _deleted, ...members } = body
  const document = { ...members, _id: `_local/${exchange.action.target.document}`, ...(rev !== undefined && { _rev: rev }) }
  exchange.json(201, await store.write(pouch => pouch.put(document)))
}

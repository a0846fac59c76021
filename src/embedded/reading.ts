import { randomBytes } from 'node:crypto'
import type { Exchange } from './exchange.js'
import { fillSmall, Inliner, readBytes } from './inline.js'
import { multipartRevisions } from './multipart.js'
import { leavesOf, revisionsOf, revisionTree, type OpenRevision, type Pouch, type StoredAttachment, type StoredDocument } from './pouch.js'
import { badRequest, missing, Problem } from './problem.js'
import type { Store } from './store.js'

/** The ID that a path names. */
export function documentId ({ action: { row, target } }: Exchange): string {
  const isDesign = row.path === 'design' || row.path === 'design-attachment'
  return isDesign ? `_design/${target.document}` : target.document!
}

/** `GET /db/{doc}`. */
export async function readDocument (exchange: Exchange, store: Store): Promise<void> {
  const id = documentId(exchange)
  if (exchange.parameter('open_revs') !== undefined) return await readOpenRevisions(exchange, store, id)
  const withAttachments = asksForAttachments(exchange)
  const document = await store.read(async pouch => {
    const found = await getDocument(pouch, id, exchange)
    return withAttachments ? await fillSmall(pouch, found) : found
  })
  // Only a plain read of the winner has the revision for its tag: other parameters change the body.
  const tag = `"${document._rev}"`
  if (exchange.isUnchanged(tag)) return
  if (!withAttachments) return exchange.json(200, document, { ETag: tag })
  await writeInlined(exchange, store, { ETag: tag }, inliner => inliner.mark(document))
}

const asksForAttachments = (exchange: Exchange): boolean => exchange.flag('attachments') || exchange.parameter('atts_since') !== undefined

async function writeInlined (exchange: Exchange, store: Store, headers: Record<string, string>, value: (inliner: Inliner) => unknown): Promise<void> {
  const inliner = new Inliner(exchange, store)
  const text = JSON.stringify(value(inliner))
  exchange.head(200, { 'Content-Type': 'application/json', ...headers })
  await inliner.write(text)
  exchange.end('\n')
}

async function getDocument (pouch: Pouch, id: string, exchange: Exchange): Promise<StoredDocument> {
  const meta = exchange.flag('meta')
  const rev = exchange.parameter('rev')
  const document = await pouch.get(id, {
    ...(rev !== undefined && { rev, latest: exchange.flag('latest') }),
    revs: exchange.flag('revs'),
    revs_info: meta || exchange.flag('revs_info'),
    conflicts: meta || exchange.flag('conflicts'),
  })
  if (meta || exchange.flag('deleted_conflicts')) {
    const deleted = revisionsOf(await revisionTree(pouch, id) ?? [])
      .filter(({ leaf, deleted, rev }) => leaf && deleted && rev !== document._rev)
    if (deleted.length > 0) document['_deleted_conflicts'] = deleted.map(({ rev }) => rev)
  }
  return document
}

/** One revision after the other: a document may have a thousand, of several megabytes each. */
async function readOpenRevisions (exchange: Exchange, store: Store, id: string): Promise<void> {
  const accept = exchange.request.headers.get('accept') ?? ''
  const isMultipart = accept.includes('multipart/mixed') && !accept.includes('application/json')
  const revisions = openRevisions(exchange, store, id, await askedRevisions(exchange, store, id), isMultipart || asksForAttachments(exchange))
  if (isMultipart) await writeMultipart(exchange, store, revisions)
  else await writeOpenRevisions(exchange, store, revisions)
}

/** Throws 404 where there is no document and every revision of it is asked for. */
async function askedRevisions (exchange: Exchange, store: Store, id: string): Promise<readonly string[]> {
  const given = exchange.parameter('open_revs')!
  if (given !== 'all') return [...new Set(JSON.parse(given) as string[])]
  const tree = await store.read(pouch => revisionTree(pouch, id))
  if (tree === undefined) throw missing()
  return leavesOf(tree)
}

async function * openRevisions (exchange: Exchange, store: Store, id: string, asked: readonly string[], withAttachments: boolean): AsyncGenerator<OpenRevision> {
  const sent = new Set<string>()
  for (const rev of asked) {
    const found = await store.read(async pouch => {
      const [one] = await pouch.get(id, { open_revs: [rev], revs: exchange.flag('revs'), latest: exchange.flag('latest') })
      return one !== undefined && 'ok' in one && withAttachments ? { ok: await fillSmall(pouch, one.ok) } : one
    })
    if (found === undefined) continue
    // Of several that lead to one leaf, `latest` gives that leaf for each.
    const name = 'ok' in found ? found.ok._rev : found.missing
    if (!sent.has(name)) yield found
    sent.add(name)
  }
}

async function writeOpenRevisions (exchange: Exchange, store: Store, revisions: AsyncIterable<OpenRevision>): Promise<void> {
  const inliner = new Inliner(exchange, store)
  exchange.head(200, { 'Content-Type': 'application/json' })
  let before = '['
  for await (const one of revisions) {
    await inliner.write(before + JSON.stringify('ok' in one ? { ok: inliner.mark(one.ok) } : one))
    before = ','
  }
  exchange.end(before === '[' ? '[]\n' : ']\n')
}

async function writeMultipart (exchange: Exchange, store: Store, revisions: AsyncIterable<OpenRevision>): Promise<void> {
  const boundary = randomBytes(16).toString('hex')
  exchange.head(200, { 'Content-Type': `multipart/mixed; boundary="${boundary}"` })
  for await (const part of multipartRevisions(revisions, boundary, store)) await exchange.write(part)
  exchange.end()
}

/** `GET /db/_local/{id}`: a checkpoint. */
export async function readLocal (exchange: Exchange, store: Store): Promise<void> {
  const document = await store.read(pouch => pouch.get(`_local/${exchange.action.target.document}`))
  exchange.json(200, document, { ETag: `"${document._rev}"` })
}

/** `GET /db/{doc}/{attachment}`, with a single range. */
export async function readAttachment (exchange: Exchange, store: Store): Promise<void> {
  const id = documentId(exchange)
  const name = exchange.action.target.attachment!.join('/')
  const rev = exchange.parameter('rev')
  const found = await store.read(async pouch => {
    const document = await pouch.get(id, rev === undefined ? {} : { rev })
    const stub = attachmentOf(document, name)
    if (stub === undefined) throw missing('Document is missing attachment')
    if (exchange.isHead) return { stub, bytes: undefined }
    return { stub, bytes: await readBytes(pouch, document, name, stub) }
  })
  sendAttachment(exchange, found.stub, found.bytes)
}

export function attachmentOf (document: StoredDocument, name: string): StoredAttachment | undefined {
  const attachments = document._attachments
  return attachments !== undefined && Object.hasOwn(attachments, name) ? attachments[name] : undefined
}

function sendAttachment (exchange: Exchange, stub: StoredAttachment, bytes: Buffer | undefined): void {
  const md5 = stub.digest.slice('md5-'.length)
  const tag = `"${md5}"`
  if (exchange.isUnchanged(tag)) return
  const headers = {
    'Content-Type': stub.content_type ?? 'application/octet-stream',
    'ETag': tag,
    'Accept-Ranges': 'bytes',
    // Somebody wrote it to be shown by a browser at this address, perhaps.
    'Content-Security-Policy': 'sandbox',
  }
  if (bytes === undefined) {
    exchange.head(200, { ...headers, 'Content-Length': stub.length, 'Content-MD5': md5 })
    return exchange.end()
  }
  // RFC 9110 section 13.1.5: what is no strong tag of this very revision, a date included, asks for the whole.
  const isSame = [undefined, tag].includes(exchange.request.headers.get('if-range')?.trim())
  const range = isSame ? parseRange(exchange.request.headers.get('range'), bytes.length) : undefined
  if (range === undefined) return exchange.bytes(200, bytes, { ...headers, 'Content-MD5': md5 })
  const [first, last] = range
  exchange.bytes(206, bytes.subarray(first, last + 1), { ...headers, 'Content-Range': `bytes ${first}-${last}/${bytes.length}` })
}

/** The first and last byte of a single range (RFC 9110 section 14.1.2), or undefined for the whole. */
export function parseRange (header: string | undefined, length: number): readonly [number, number] | undefined {
  const parts = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header?.trim() ?? '')
  if (parts === null || (parts[1] === '' && parts[2] === '')) return undefined
  const [, from, to] = parts as unknown as [string, string, string]
  const first = from === '' ? Math.max(0, length - Number(to)) : Number(from)
  const last = from === '' || to === '' ? length - 1 : Math.min(Number(to), length - 1)
  if (from !== '' && to !== '' && Number(to) < Number(from)) return undefined
  if (first >= length || (from === '' && Number(to) === 0)) throw new Problem(416, 'requested_range_not_satisfiable', 'Requested range not satisfiable')
  return [first, last]
}

/** The revision that an If-Match header or a `rev` parameter says; throws 400 where they differ. */
export function givenRevision (exchange: Exchange, inBody?: string): string | undefined {
  const header = exchange.request.headers.get('if-match')?.trim().replace(/^"(.*)"$/, '$1')
  const given = [exchange.parameter('rev'), header, inBody].filter(rev => rev !== undefined)
  if (new Set(given).size > 1) throw badRequest('Document rev from request body, query string and If-Match have different values')
  return given[0]
}

import { randomBytes } from 'node:crypto'
import { readBytes } from './inline.js'
import type { OpenRevision, StoredDocument } from './pouch.js'
import type { Store } from './store.js'

/**
 * Open revisions as `multipart/mixed`, which CouchDB's replicator asks for and nothing else will do: a
 * part is a document as JSON; a document with attachments is a `multipart/related` of its own, the JSON
 * first and the attachments behind it in the order in which it names them; a revision that is not there
 * is JSON with `error="true"`.
 *
 *     --b
 *     Content-Type: application/json
 *
 *     {"_id":"x","_rev":"1-a"}
 *     --b--
 */
export async function * multipartRevisions (revisions: AsyncIterable<OpenRevision>, boundary: string, store: Store): AsyncGenerator<string | Buffer> {
  for await (const revision of revisions) {
    yield `\r\n--${boundary}`
    if ('missing' in revision) yield `\r\nContent-Type: application/json; error="true"\r\n\r\n${JSON.stringify(revision)}`
    else yield * documentPart(revision.ok, store)
  }
  yield `\r\n--${boundary}--`
}

async function * documentPart (document: StoredDocument, store: Store): AsyncGenerator<string | Buffer> {
  const attachments = Object.entries(document._attachments ?? {})
  if (attachments.length === 0) {
    yield `\r\nContent-Type: application/json\r\n\r\n${JSON.stringify(document)}`
    return
  }
  const following = Object.fromEntries(attachments.map(([name, { content_type, digest, revpos, data, length }]) =>
    [name, { content_type, digest, revpos, follows: true, length: data === undefined ? length : Buffer.byteLength(data, 'base64') }]))
  const inner = randomBytes(16).toString('hex')
  yield `\r\nContent-Type: multipart/related; boundary="${inner}"\r\n\r\n`
  yield `--${inner}\r\nContent-Type: application/json\r\n\r\n${JSON.stringify({ ...document, _attachments: following })}`
  for (const [name, attachment] of attachments) {
    const { data, content_type: type } = attachment
    const bytes = data === undefined ? await store.read(pouch => readBytes(pouch, document, name, attachment)) : Buffer.from(data, 'base64')
    yield `\r\n--${inner}\r\nContent-Disposition: attachment; filename="${encodeURIComponent(name)}"\r\nContent-Type: ${type ?? 'application/octet-stream'}\r\nContent-Length: ${bytes.length}\r\n\r\n`
    yield bytes
  }
  yield `\r\n--${inner}--`
}

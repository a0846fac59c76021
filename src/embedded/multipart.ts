import { randomBytes } from 'node:crypto'
import type { OpenRevision, StoredDocument } from './pouch.js'

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
export function * multipartRevisions (revisions: readonly OpenRevision[], boundary: string): Generator<string | Buffer> {
  for (const revision of revisions) {
    yield `\r\n--${boundary}`
    if ('missing' in revision) yield `\r\nContent-Type: application/json; error="true"\r\n\r\n${JSON.stringify(revision)}`
    else yield * documentPart(revision.ok)
  }
  yield `\r\n--${boundary}--`
}

function * documentPart (document: StoredDocument): Generator<string | Buffer> {
  const attachments = Object.entries(document._attachments ?? {})
  if (attachments.length === 0) {
    yield `\r\nContent-Type: application/json\r\n\r\n${JSON.stringify(document)}`
    return
  }
  const bytes = attachments.map(([, { data }]) => Buffer.from(data ?? '', 'base64'))
  const following = Object.fromEntries(attachments.map(([name, { content_type, digest, revpos }], index) =>
    [name, { content_type, digest, revpos, follows: true, length: bytes[index]!.length }]))
  const inner = randomBytes(16).toString('hex')
  yield `\r\nContent-Type: multipart/related; boundary="${inner}"\r\n\r\n`
  yield `--${inner}\r\nContent-Type: application/json\r\n\r\n${JSON.stringify({ ...document, _attachments: following })}`
  for (const [index, [name, { content_type: type }]] of attachments.entries()) {
    yield `\r\n--${inner}\r\nContent-Disposition: attachment; filename="${encodeURIComponent(name)}"\r\nContent-Type: ${type ?? 'application/octet-stream'}\r\nContent-Length: ${bytes[index]!.length}\r\n\r\n`
    yield bytes[index]!
  }
  yield `\r\n--${inner}--`
}

import { PatchcordError } from '../core/errors.js'
import type { BodyForm, PathForm } from './surface.js'

// Both ways by allow-list: what is not named here does not pass. Pure. It is policy, because two gates read
// it: the proxy in front of this device's CouchDB, and the bridge in front of a peer's.

/** Headers as they go out, each once. */
export type OutgoingFields = Record<string, string>
/** Headers as Node read them. */
export type IncomingFields = Readonly<Record<string, string | readonly string[] | undefined>>

/** What goes on as it came, where its value is one a header can have. */
const TO_COUCH = ['accept', 'accept-encoding', 'if-match', 'if-none-match', 'range', 'user-agent', 'x-couch-full-commit'] as const

interface AnswerHead {
  readonly status: number
  readonly headers: { readonly 'transfer-encoding'?: string | undefined, readonly 'content-length'?: string | undefined }
}

export interface RequestHeaderContext {
  /** The upstream's own host and port. */
  readonly host: string
  /** The whole Authorization value of the credentials that the grant forwards with; absent towards a peer,
   * where the connection says who asks. */
  readonly authorization?: string
  readonly bodyForm: BodyForm
}

/** The headers of the upstream request, written anew from the canonical ones. Throws `unsupported-media`
 * for a JSON body of another type, or a Content-Encoding on anything but an attachment: CouchDB gunzips
 * JSON bodies, and the check would read the wrapping. Where there is no body it wraps nothing, and stays here. */
export function requestHeaders (headers: ReadonlyMap<string, string>, { host, authorization, bodyForm }: RequestHeaderContext): OutgoingFields {
  const outgoing: OutgoingFields = { host, ...authorization === undefined ? {} : { authorization } }
  for (const name of TO_COUCH) {
    const value = headers.get(name)
    if (value !== undefined && isHeaderValue(value)) outgoing[name] = value
  }
  // CouchDB knows no If-Range, and would give a part of another revision; without a Range it gives the whole (RFC 9110 section 13.1.5).
  if (headers.has('if-range')) delete outgoing['range']
  return bodyForm === 'none' ? outgoing : { ...outgoing, ...framing(headers), ...media(headers, bodyForm) }
}

function framing (headers: ReadonlyMap<string, string>): OutgoingFields {
  if (headers.get('transfer-encoding') === 'chunked') return { 'transfer-encoding': 'chunked' }
  const length = headers.get('content-length') ?? '0'
  // The canonical form has checked it; a body without its framing would be read as the next request.
  if (!/^\d{1,15}$/.test(length)) throw new PatchcordError('internal', 'a request with a body has no framing')
  return { 'content-length': length }
}

function media (headers: ReadonlyMap<string, string>, form: BodyForm): OutgoingFields {
  const encoding = headers.get('content-encoding')?.toLowerCase() ?? 'identity'
  const type = headers.get('content-type')
  if (form === 'attachment') {
    if (encoding !== 'identity' && encoding !== 'gzip') throw new PatchcordError('unsupported-media', 'attachments are taken plain or in gzip')
    return {
      'content-type': type !== undefined && isHeaderValue(type) ? type : 'application/octet-stream',
      ...encoding === 'gzip' ? { 'content-encoding': encoding } : {},
    }
  }
  if (encoding !== 'identity') throw new PatchcordError('unsupported-media', 'a JSON body is taken without Content-Encoding alone')
  const isEmpty = form === 'empty' && framing(headers)['content-length'] === '0'
  if (!isEmpty && !isPlainJson(type)) throw new PatchcordError('unsupported-media', 'the body must be application/json, in UTF-8')
  return { 'content-type': 'application/json' }
}

const JSON_TYPE = /^application\/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?$/i

function isPlainJson (type: string | undefined): boolean {
  return type !== undefined && JSON_TYPE.test(type)
}

/** What comes back as it came. Cache-Control and Location are not among them: the former is written anew,
 * the latter names the upstream's host, and nothing that replicates reads it. */
const TO_CLIENT = ['content-type', 'content-length', 'content-encoding', 'etag', 'accept-ranges', 'content-range', 'content-md5', 'date'] as const

/** The headers of the answer to the client. A value that no header may have is dropped, not thrown. */
export function responseHeaders (incoming: IncomingFields, path: PathForm): OutgoingFields {
  const outgoing: OutgoingFields = { 'x-content-type-options': 'nosniff' }
  for (const name of TO_CLIENT) {
    const value = incoming[name]
    if (typeof value === 'string' && isHeaderValue(value)) outgoing[name] = value
  }
  const length = outgoing['content-length']
  if (length !== undefined && !/^\d{1,15}$/.test(String(length))) delete outgoing['content-length']
  if (incoming['cache-control'] !== undefined) outgoing['cache-control'] = 'must-revalidate'
  // Whoever may write an attachment chooses its type: a page of theirs must not run as ours.
  if (path === 'attachment' || path === 'design-attachment') outgoing['content-security-policy'] = 'sandbox'
  return outgoing
}

/** RFC 9110 section 5.5, which is also what Node lets into a header. */
function isHeaderValue (value: string): boolean {
  return /^[\t\x20-\x7e\x80-\xff]*$/.test(value)
}

/** Why no gate may pass on an answer to `method`, in words; undefined where it may. 401 and 407 would make a program, or a browser, send its
 * secrets; an answer that ends with its connection may have been cut anywhere. */
export function answerFault ({ status, headers }: AnswerHead, method: string): string | undefined {
  if (status < 200 || status > 599 || status === 401 || status === 407) return `status ${status}`
  if (method === 'HEAD' || status === 204 || status === 304) return undefined
  const encoding = headers['transfer-encoding']
  const isDelimited = encoding === undefined ? headers['content-length'] !== undefined : encoding.toLowerCase() === 'chunked'
  return isDelimited ? undefined : 'an answer without a length'
}

import type { DeviceId } from '../core/ids.js'

/**
 * The canonical form of a request, made once. CouchDB decodes each path segment before it dispatches,
 * collapses slashes and honours X-HTTP-Method-Override, so matching raw text is never safe: what is not
 * canonical is refused, and everything after this reads decoded segments and these headers alone.
 */
export interface CanonicalRequest {
  readonly method: string
  /** Decoded path segments; `/` is the empty list. */
  readonly segments: readonly string[]
  /** Whether the path ended in a slash after its last segment. */
  readonly trailingSlash: boolean
  /** Decoded query parameters, each name once. */
  readonly query: ReadonlyMap<string, string>
  /** Lower-case names; what the Connection header names is not among them. */
  readonly headers: ReadonlyMap<string, string>
  /** `length` is undefined for a chunked body. */
  readonly body: { readonly length: number | undefined } | undefined
}

/** What came over the wire, as the HTTP parser saw it. */
export interface RawHead {
  readonly method: string
  readonly target: string
  readonly httpVersion: string
  /** Names and values by turns, in their order, duplicates kept. */
  readonly rawHeaders: readonly string[]
  /** Given with every head that has the same `rawHeaders`, where somebody knows that they are the same. */
  readonly known?: KnownHeaders | undefined
}

/** Where headers are kept that were found canonical, for heads that come with the very same ones. */
export class KnownHeaders {
  headers: ReadonlyMap<string, string> | undefined
  /** Whose Host it has to be. */
  host: Place['host'] | undefined
}

export interface Refusal {
  readonly code: 'not-canonical' | 'foreign-origin'
  /** The rule that decided, for `explain`, the log and tests. */
  readonly rule: string
  readonly reason: string
}

export type Canonical = { readonly request: CanonicalRequest } | { readonly refusal: Refusal }

/** Parses a request's head, or says what about it is not canonical. `device` gives the names that this
 * server answers to besides literal addresses. Pure; costs at most one pass over the target and headers. */
export function canonicalise (head: RawHead, device: DeviceId): Canonical {
  return canonicaliseFor(head, { host: device, origin: 'https:', couchAt: 1 })
}

/** The same for the embedded database: CouchDB's paths start at the root, and Host is localhost or a
 * literal loopback address (a page whose name was pointed at us has another one). */
export function canonicaliseLoopback (head: RawHead): Canonical {
  return canonicaliseFor(head, { host: 'loopback', origin: 'http:', couchAt: 0 })
}

/** The same for the bridge: CouchDB's paths are below `/peer/<device>/couch`, and no page of any site, not
 * even one that the bridge itself had sent, has business there. */
export function canonicaliseBridge (head: RawHead): Canonical {
  return canonicaliseFor(head, { host: 'loopback', origin: 'none', couchAt: 3 })
}

interface Place {
  /** Whose names Host may have: those of a device, or of this machine. */
  readonly host: DeviceId | 'loopback'
  /** The scheme of an Origin that is this server's own; `none` refuses every Origin. */
  readonly origin: 'http:' | 'https:' | 'none'
  /** How many segments stand before CouchDB's own: 0 is everything, 1 is below `/couch`, 3 below
   * `/peer/<device>/couch`. */
  readonly couchAt: 0 | 1 | 3
}

function canonicaliseFor (head: RawHead, place: Place): Canonical {
  try {
    if (head.httpVersion !== '1.1') refuse('http-version', 'only HTTP/1.1 is spoken here')
    const headers = knownHeaders(head, place)
    const body = readFraming(head.method, headers)
    const { segments, trailingSlash, query } = readTarget(head.target, place.couchAt)
    checkOrigin(headers, place.origin)
    return { request: { method: head.method, segments, trailingSlash, query, headers, body } }
  } catch (error) {
    if (error instanceof NotCanonical) return { refusal: error.refusal }
    throw error
  }
}

function knownHeaders ({ rawHeaders, known }: RawHead, { host }: Place): ReadonlyMap<string, string> {
  if (known?.headers !== undefined && known.host === host) return known.headers
  const headers = readHeaders(rawHeaders)
  if (host === 'loopback') checkLoopbackHost(headers)
  else checkHost(headers, host)
  if (known !== undefined) {
    known.headers = headers
    known.host = host
  }
  return headers
}

class NotCanonical extends Error {
  readonly refusal: Refusal
  constructor (refusal: Refusal) {
    super(refusal.reason)
    this.refusal = refusal
  }
}

function refuse (rule: string, reason: string, code: Refusal['code'] = 'not-canonical'): never {
  throw new NotCanonical({ code, rule, reason })
}

// ---- target

// C0, DEL and C1 controls.
// oxlint-disable-next-line no-control-regex
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/
const BAD_ESCAPE = /%(?![0-9A-Fa-f]{2})/
// oxlint-disable-next-line no-control-regex
const NOT_VISIBLE_ASCII = /[^\u0021-\u007e]/

/** What most targets are: segments of characters that mean themselves everywhere. Nothing of what is refused below can be in one. */
const PLAIN_PATH = /^(?:\/[0-9A-Za-z_$()+:;=@!*',&~-]+)+$/
const NO_QUERY: ReadonlyMap<string, string> = new Map()

function readTarget (target: string, couchAt: Place['couchAt']): Pick<CanonicalRequest, 'segments' | 'trailingSlash' | 'query'> {
  if (PLAIN_PATH.test(target)) return { segments: splitPath(target), trailingSlash: false, query: NO_QUERY }
  if (!target.startsWith('/')) refuse('target-form', 'the target does not start with "/"')
  if (NOT_VISIBLE_ASCII.test(target)) refuse('target-characters', 'the target holds a character that must be escaped')
  if (target.includes('\\') || target.includes('#')) refuse('target-characters', 'the target holds "\\" or "#"')
  if (target.includes('//')) refuse('double-slash', 'the target holds "//"')
  if (BAD_ESCAPE.test(target)) refuse('percent-escape', 'the target holds an invalid percent escape')
  const mark = target.indexOf('?')
  const path = mark === -1 ? target : target.slice(0, mark)
  const query = mark === -1 ? '' : target.slice(mark + 1)
  const raw = path.slice(1).split('/')
  const trailingSlash = path !== '/' && raw.at(-1) === ''
  if (raw.at(-1) === '') raw.pop()
  const segments = raw.map(decode)
  segments.forEach((segment, index) => {
    checkSegment(segment)
    if (segment.includes('/') && !mayHoldSlash(segments, index, couchAt)) refuse('encoded-slash', 'a path segment holds an encoded "/"')
  })
  return { segments, trailingSlash, query: readQuery(query) }
}

/** `split` costs several times as much for so few. */
function splitPath (path: string): string[] {
  const segments: string[] = []
  for (let at = 1, end: number; at <= path.length; at = end + 1) {
    end = path.indexOf('/', at)
    if (end === -1) end = path.length
    segments.push(path.slice(at, end))
  }
  return segments
}

function decode (text: string): string {
  if (!text.includes('%')) return text
  let decoded: string
  try {
    decoded = decodeURIComponent(text)
  } catch {
    return refuse('percent-escape', 'the target holds an overlong or invalid UTF-8 escape')
  }
  if (CONTROL.test(decoded)) refuse('control-character', 'the target holds an escaped control character')
  return decoded
}

/** Dots stay refused however often they are escaped: no upstream may find them by decoding once more. */
function checkSegment (segment: string): void {
  if (!segment.includes('.') && !segment.includes('%')) return
  for (const part of unescapeToTheEnd(segment).split('/')) {
    if (part === '.' || part === '..') refuse('dot-segment', 'the path holds a "." or ".." segment')
  }
}

/** `text` with every escape of an ASCII character undone, and every escape that comes of it. From the right,
 * where each is met once: decoding in rounds takes one round per `25` of `%252525…2e`. */
function unescapeToTheEnd (text: string): string {
  if (!text.includes('%')) return text
  const characters: string[] = []
  for (let at = text.length - 1; at >= 0; at--) {
    let character = text[at]!
    while (character === '%' && characters.length >= 2) {
      const digits = `${characters.at(-1)!}${characters.at(-2)!}`
      if (!/^[0-7][0-9a-f]$/i.test(digits)) break
      characters.length -= 2
      character = String.fromCharCode(Number.parseInt(digits, 16))
    }
    characters.push(character)
  }
  return characters.reverse().join('')
}

/** CouchDB allows %2F in a database name and in a document ID, and nowhere else does this port. */
function mayHoldSlash (segments: readonly string[], index: number, couchAt: Place['couchAt']): boolean {
  if (couchAt > 0 && segments[couchAt - 1] !== 'couch') return false
  if (index === couchAt || index === couchAt + 1) return true
  const kind = segments[couchAt + 1]
  return index === couchAt + 2 && (kind === '_local' || kind === '_design')
}

function readQuery (text: string): ReadonlyMap<string, string> {
  const query = new Map<string, string>()
  if (text === '') return query
  for (const pair of text.split('&')) {
    if (pair === '') continue
    const equals = pair.indexOf('=')
    // In a query CouchDB reads "+" as a space; it leaves here as %20.
    const name = decode((equals === -1 ? pair : pair.slice(0, equals)).replaceAll('+', ' '))
    const value = equals === -1 ? '' : decode(pair.slice(equals + 1).replaceAll('+', ' '))
    if (query.has(name)) refuse('duplicate-parameter', 'a query parameter is given twice')
    query.set(name, value)
  }
  return query
}

// ---- headers

/** Headers that several lines may carry; RFC 9110 section 5.3 joins them. */
const LISTS = new Set(['accept', 'accept-encoding', 'accept-language', 'if-match', 'if-none-match', 'connection', 'cookie', 'via', 'forwarded', 'x-forwarded-for', 'te', 'cache-control', 'pragma'])

function readHeaders (raw: readonly string[]): ReadonlyMap<string, string> {
  const headers = new Map<string, string>()
  for (let at = 0; at + 1 < raw.length; at += 2) {
    const name = raw[at]!.toLowerCase()
    const value = raw[at + 1]!
    const before = headers.get(name)
    if (before === undefined) headers.set(name, value)
    else if (LISTS.has(name)) headers.set(name, `${before}, ${value}`)
    else refuse('duplicate-header', `the ${name} header is given twice`)
  }
  if (headers.has('x-http-method-override')) refuse('method-override', 'X-HTTP-Method-Override is not honoured here')
  if (headers.has('upgrade')) refuse('upgrade', 'nothing here can be upgraded')
  // http-proxy dies of a Trailer header, and nothing here reads trailers.
  if (headers.has('trailer')) refuse('trailer', 'trailers are not read here')
  const expect = headers.get('expect')
  if (expect !== undefined && expect.toLowerCase() !== '100-continue') refuse('expect', 'Expect may be 100-continue alone')
  const connection = headers.get('connection')
  if (connection !== undefined) dropHopByHop(headers, connection)
  return headers
}

/** What decides here whether and how a request is read may not be named away. */
const DECIDING = new Set(['host', 'content-length', 'transfer-encoding', 'expect', 'origin', 'sec-fetch-site'])

function dropHopByHop (headers: Map<string, string>, connection: string): void {
  for (const token of connection.split(',')) {
    const name = token.trim().toLowerCase()
    if (DECIDING.has(name)) refuse('connection-header', `Connection names ${name}`)
    headers.delete(name)
  }
}

const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}$/
const IPV6 = /^\[[0-9a-f:.]{2,45}(?:%(?:25)?[a-z0-9._-]{1,15})?\]$/i
const HOST = /^(\[[^\]]*\]|[^:[\]]+)(?::(\d{1,5}))?$/

function checkHost (headers: ReadonlyMap<string, string>, device: DeviceId): void {
  const parts = HOST.exec(headers.get('host') ?? '')
  const name = parts?.[1]
  if (name === undefined) return refuse('host', 'exactly one Host header is needed')
  const isLiteral = IPV4.test(name) || (IPV6.test(name) && name.split(':').length > 2)
  if (!isLiteral && name !== SERVER_NAME && name !== `${device}.${SERVER_NAME}`) {
    refuse('host', 'Host is neither a literal address nor a name of this device')
  }
}

const LOOPBACK = /^(?:localhost|\[::1\]|127\.\d{1,3}\.\d{1,3}\.\d{1,3})$/

function checkLoopbackHost (headers: ReadonlyMap<string, string>): void {
  const name = HOST.exec(headers.get('host') ?? '')?.[1]
  if (name === undefined || !LOOPBACK.test(name)) refuse('host', 'Host is neither localhost nor a literal loopback address')
}

/** The one DNS name that the certificates of patchcord may carry (RFC 6761 reserves .invalid). */
export const SERVER_NAME = 'patchcord.invalid'

function readFraming (method: string, headers: ReadonlyMap<string, string>): CanonicalRequest['body'] {
  const encoding = headers.get('transfer-encoding')
  const length = headers.get('content-length')
  const mayHaveBody = method === 'POST' || method === 'PUT'
  if (encoding !== undefined) {
    if (encoding !== 'chunked') refuse('transfer-encoding', 'Transfer-Encoding may be chunked alone')
    if (!mayHaveBody) refuse('body', `${method} takes no body here`)
    if (length !== undefined) refuse('framing', 'Content-Length and Transfer-Encoding are both given')
    return { length: undefined }
  }
  if (length === undefined) return mayHaveBody ? { length: 0 } : undefined
  if (!/^\d{1,15}$/.test(length)) refuse('content-length', 'Content-Length is not a plain number')
  if (mayHaveBody) return { length: Number(length) }
  if (Number(length) !== 0) refuse('body', `${method} takes no body here`)
  return undefined
}

/** A browser may hold a certificate of ours while it shows somebody else's page. */
function checkOrigin (headers: ReadonlyMap<string, string>, scheme: Place['origin']): void {
  const origin = headers.get('origin')
  if (origin !== undefined && (scheme === 'none' || origin !== `${scheme}//${headers.get('host')}`)) refuse('origin', 'the Origin is not this server', 'foreign-origin')
  const site = headers.get('sec-fetch-site')
  if (site !== undefined && site !== 'none' && site !== 'same-origin') refuse('sec-fetch-site', 'the request comes from another site', 'foreign-origin')
}

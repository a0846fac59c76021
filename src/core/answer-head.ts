// Heads of answers of HTTP/1.1 (RFC 9112), as both read them that read answers of their own: towards CouchDB (couch/answer-parser.ts) and
// towards peers for the bytes of files (sync/byte-connection.ts). Strict where two readers might differ on where an answer ends: one
// Content-Length of plain digits, or one Transfer-Encoding of exactly `chunked`, never both; no folded lines, no bare line ends. The reason
// phrase is not looked at.

/** What is not an answer that can be told from the next one. Nothing that follows on its connection can be trusted. */
export class BadAnswer extends Error {}

/** Bytes of a head, its empty line included: Node's own limit. */
export const MOST_HEAD_BYTES = 16_384

/** What is known of a head, `before`, and what of it lies in `bytes` from `at` to `end`: up to its empty line, or all of it while that has not
 * come (`isWholeHead`). Throws BadAnswer past `most` bytes, and as soon as it can be no HTTP/1. */
export function readHead (before: string, bytes: Buffer, at: number, end: number, most = MOST_HEAD_BYTES): string {
  // One byte more than it may have: then it is too long.
  const piece = bytes.toString('latin1', at, Math.min(end, at + most + 1 - before.length))
  // Nearly every head comes in one piece.
  const text = before === '' ? piece : before + piece
  const found = before === '' ? text.indexOf(HEAD_END) : text.indexOf(HEAD_END, Math.max(0, before.length - 3))
  const head = found === -1 ? text : text.slice(0, found + HEAD_END.length)
  if (head.length > most) throw new BadAnswer('a head that is too long')
  if (found === -1 && !'HTTP/1.'.startsWith(text.slice(0, 7))) throw new BadAnswer('what is not HTTP')
  return head
}

const HEAD_END = '\r\n\r\n'

export const isWholeHead = (text: string): boolean => text.endsWith(HEAD_END)

/** The fields that somebody reads, and no others, by their names in lower case. Of those that are given twice the first counts; several
 * Connection fields are one. */
export type HeadFields<Name extends string = never> = Record<Name | 'transfer-encoding' | 'content-length' | 'connection', string | undefined>

export interface Head<Name extends string = never> {
  readonly status: number
  /** HTTP/1.0. */
  readonly isOld: boolean
  /** Whether its Connection may be read as the connection's last word. */
  readonly mayClose: boolean
  readonly headers: HeadFields<Name>
}

const STATUS_LINE = /^HTTP\/1\.([01]) (\d{3})(?: [^\r\n]*)?$/

/** Field lines (RFC 9112 section 5) and the empty one behind them, to the end. */
const FIELD_LINES = /(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n$/y

/** Given twice, nobody knows which one counts. */
const ONCE: ReadonlySet<string> = new Set(['content-length', 'transfer-encoding'])

/** Whether a field of this name says where an answer ends. */
export const isFraming = (name: string): boolean => ONCE.has(name.toLowerCase())

/** Parses heads for somebody who reads these fields. */
export class HeadParser<Name extends string> {
  readonly #noFields: () => HeadFields<Name>
  /** The names of those fields, by what an answer calls them: in small letters, and as most servers write them. */
  readonly #names: ReadonlyMap<string, string>

  /** `noFields` makes them, all undefined. All are there from the beginning: objects that grow by whatever names come are each of a kind of their own,
   * and slow to read; a literal is made at once, which a copy is not. */
  constructor (noFields: () => HeadFields<Name>) {
    this.#noFields = noFields
    this.#names = new Map(Object.keys(noFields()).flatMap(name =>
      [[name, name], [name.replace(/\b[a-z]/g, letter => letter.toUpperCase()), name], [name.toUpperCase(), name], ...name === 'etag' ? [['ETag', name] as const] : []]))
  }

  /** `text` is a whole head. Throws BadAnswer. */
  parse (text: string): Head<Name> {
    const statusEnd = text.indexOf('\r\n')
    const line = STATUS_LINE.exec(text.slice(0, statusEnd))
    if (line === null) throw new BadAnswer('what is not HTTP')
    FIELD_LINES.lastIndex = statusEnd + 2
    if (!FIELD_LINES.test(text)) throw new BadAnswer('a header that is none')
    const headers: Record<string, string | undefined> = this.#noFields()
    // All lines are of their form: what is left is to find the few that somebody reads.
    for (let at = statusEnd + 2, end = text.indexOf('\r\n', at); end > at; at = end + 2, end = text.indexOf('\r\n', at)) {
      const colon = text.indexOf(':', at)
      const name = this.#nameOf(text.slice(at, colon))
      if (name === undefined) continue
      const value = withoutSpaces(text, colon + 1, end)
      // RFC 9110 lets a tab stand around any value; Node's parser takes `chunked` with one behind it for another encoding.
      if (ONCE.has(name) && text.slice(colon, end).includes('\t')) throw new BadAnswer('an answer whose end is not clear')
      const before = headers[name]
      if (before === undefined) headers[name] = value
      else if (ONCE.has(name)) throw new BadAnswer('an answer whose end is not clear')
      else if (name === 'connection') headers[name] = `${before}, ${value}`
    }
    const connection = headers['connection']
    return { status: Number(line[2]), isOld: line[1] === '0', mayClose: connection !== undefined && /\bclose\b/i.test(connection), headers: headers as HeadFields<Name> }
  }

  #nameOf (written: string): string | undefined {
    return this.#names.get(written) ?? this.#names.get(written.toLowerCase())
  }
}

/** The bytes of the body that a head announces, `chunked`, or undefined where it does not say. Throws BadAnswer where two readers might differ. */
export function bodyLength ({ isOld, headers }: Head): number | 'chunked' | undefined {
  const encoding = headers['transfer-encoding']
  const length = headers['content-length']
  if (encoding !== undefined && (encoding !== 'chunked' || length !== undefined || isOld)) throw new BadAnswer('an answer whose end is not clear')
  if (length !== undefined && !/^\d{1,15}$/.test(length)) throw new BadAnswer('a Content-Length that is no number')
  return encoding ?? (length === undefined ? undefined : Number(length))
}

/** RFC 9110 section 5.6.3: only spaces and tabs around a value are none of it. */
function withoutSpaces (text: string, from: number, to: number): string {
  let start = from
  let end = to
  while (start < end && isSpace(text.charCodeAt(start))) start++
  while (end > start && isSpace(text.charCodeAt(end - 1))) end--
  return text.slice(start, end)
}

const isSpace = (code: number): boolean => code === 0x20 || code === 0x09

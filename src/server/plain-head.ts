import { KnownHeaders, type RawHead } from '../policy/canonical.js'

// Recognises the plainest head there is, byte for byte:
//
//   (GET | HEAD) SP /visible-ASCII SP HTTP/1.1 CRLF
//   token: visible-ASCII words with one space between them CRLF      any number of times
//   CRLF                                                             and behind it nothing, or another such head
//
// It is no parser of HTTP. What it takes has one reading, which is Node's too (lane.test holds it to that);
// everything else, however valid, it leaves to Node's parser. It takes no head behind which anything may follow as a
// body: each ends at its empty line, and there is nothing to smuggle in between.

/** What TLS gives at once (RFC 8446 section 5.1). */
const MOST_BYTES = 16_384
const HEAD_END = '\r\n\r\n'
const REQUEST_LINE = /^(GET|HEAD) (\/[!-"$-[\]-~]*) HTTP\/1\.1\r\n/
const HEADER_LINE = /([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ([!-~]+(?: [!-~]+)*)\r\n/y
/** A body, another protocol, or another way to go on. `Proxy-Connection` is the same to Node as `Connection`. */
const LEFT_TO_NODE = /^(?:content-length|transfer-encoding|te|trailer|upgrade|expect|proxy-connection)$/i

/** Header lines that were recognised, as text and as Node would tell them. */
interface HeaderLines {
  readonly text: string
  readonly rawHeaders: readonly string[]
  readonly known: KnownHeaders
}

/** Recognises the heads of one connection. */
export class PlainHeads {
  readonly #most: { readonly headBytes: number, readonly headers: number }
  /** The header lines of the head before: most clients send the same ones with every request. */
  #last: HeaderLines | undefined

  constructor (limits: { readonly headBytes: number, readonly headers: number }) {
    this.#most = limits
  }

  /** The heads that `bytes` are, if they are nothing but such of the plainest form, and undefined for everything else. The same
   * header lines as before come with the same `known`. */
  recognise (bytes: Buffer): readonly RawHead[] | undefined {
    if (bytes.length === 0 || bytes.length > MOST_BYTES) return undefined
    const text = bytes.toString('latin1')
    const heads: RawHead[] = []
    for (let at = 0; at < text.length;) {
      const end = text.indexOf(HEAD_END, at) + HEAD_END.length
      const head = end < HEAD_END.length || end - at > this.#most.headBytes ? undefined : this.#one(text.slice(at, end))
      if (head === undefined) return undefined
      heads.push(head)
      at = end
    }
    return heads
  }

  #one (text: string): RawHead | undefined {
    const line = REQUEST_LINE.exec(text)
    if (line === null) return undefined
    const lines = text.slice(line[0].length)
    let last = this.#last
    if (last === undefined || lines !== last.text) {
      const rawHeaders = readLines(lines, this.#most.headers)
      if (rawHeaders === undefined) return undefined
      last = this.#last = { text: lines, rawHeaders, known: new KnownHeaders() }
    }
    return { method: line[1]!, target: line[2]!, httpVersion: '1.1', rawHeaders: last.rawHeaders, known: last.known }
  }
}

/** `text` is header lines and the empty one at the end. */
function readLines (text: string, most: number): readonly string[] | undefined {
  if (!text.endsWith('\r\n')) return undefined
  const end = text.length - 2
  const rawHeaders: string[] = []
  for (let at = 0; at < end; at = HEADER_LINE.lastIndex) {
    HEADER_LINE.lastIndex = at
    const line = HEADER_LINE.exec(text)
    if (line === null || HEADER_LINE.lastIndex > end || rawHeaders.length === 2 * most) return undefined
    const [, name, value] = line as unknown as [string, string, string]
    if (LEFT_TO_NODE.test(name) || (/^connection$/i.test(name) && !/^keep-alive$/i.test(value))) return undefined
    rawHeaders.push(name, value)
  }
  return Object.freeze(rawHeaders)
}

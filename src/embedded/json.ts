import { badRequest, Problem } from './problem.js'

/** The deepest nesting of a body, the same that the open port takes (design: 3-surface). */
const DEEPEST = 64
/** The most values of one body. Each costs some 64 bytes of heap whatever its length on the wire: 64 MiB of
 * `[[],[],…` would be more than the process has. */
const MOST_VALUES = 500_000

const QUOTE = 0x22, BACKSLASH = 0x5c, COMMA = 0x2c, OPEN_LIST = 0x5b, OPEN_OBJECT = 0x7b, CLOSE_LIST = 0x5d, CLOSE_OBJECT = 0x7d

/** Throws 400 or 413 for JSON that nests too deep or holds too many values, before any of it is parsed. */
export function checkWeight (bytes: Buffer): void {
  let depth = 0
  let values = 0
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at]
    if (byte === QUOTE) {
      at = endOfString(bytes, at + 1)
    } else if (byte === OPEN_OBJECT || byte === OPEN_LIST) {
      values++
      if (++depth > DEEPEST) throw badRequest(`the body nests deeper than ${DEEPEST}`)
    } else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) {
      depth--
    } else if (byte === COMMA) {
      values++
    }
    if (values > MOST_VALUES) throw new Problem(413, 'too_large', `the body holds more than ${MOST_VALUES} values`)
  }
}

/** Where the string that began before `at` ends. `indexOf` keeps attachments of many megabytes cheap. */
function endOfString (bytes: Buffer, at: number): number {
  for (let quote = bytes.indexOf(QUOTE, at); quote !== -1; quote = bytes.indexOf(QUOTE, quote + 1)) {
    let slashes = 0
    while (bytes[quote - 1 - slashes] === BACKSLASH && quote - 1 - slashes >= at) slashes++
    if (slashes % 2 === 0) return quote
  }
  return bytes.length
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Parses a body; no body is an empty object. Throws 400 for what is not JSON in UTF-8, and for a member
 * called `__proto__`: JSON.parse keeps it as an ordinary one, but PouchDB's clone makes it the prototype,
 * and a document would then have members (`_id`!) that no check saw. */
export function parseJson (bytes: Buffer): unknown {
  if (bytes.length === 0) return {}
  let value: unknown
  try {
    value = JSON.parse(UTF8.decode(bytes))
  } catch {
    throw badRequest('invalid UTF-8 JSON')
  }
  refusePrototypes(value)
  return value
}

function refusePrototypes (value: unknown): void {
  const left: unknown[] = [value]
  while (left.length > 0) {
    const next = left.pop()
    if (next === null || typeof next !== 'object') continue
    if (!Array.isArray(next) && Object.hasOwn(next, '__proto__')) throw badRequest('no member may be called __proto__')
    for (const inner of Array.isArray(next) ? next : Object.values(next)) {
      if (inner !== null && typeof inner === 'object') left.push(inner)
    }
  }
}

/** Whether the value is an object and no list. */
export const isObject = (value: unknown): value is Record<string, unknown> =>
  value !== null && typeof value === 'object' && !Array.isArray(value)

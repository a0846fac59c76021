// Which bytes of a representation a request asks for, and whether its preconditions hold (RFC 9110
// sections 13 and 14). Pure: headers and a size in, a decision out. A file's entity tag is its content ID,
// always strong, and it never changes, so dates decide nothing here.

/** `none`: answer with the whole. `range`: bytes `start` to `end`, both included. `unsatisfiable`: 416. */
export type RangeDecision =
  | { readonly kind: 'none' }
  | { readonly kind: 'range', readonly start: number, readonly end: number }
  | { readonly kind: 'unsatisfiable' }

const NONE: RangeDecision = Object.freeze({ kind: 'none' })
const UNSATISFIABLE: RangeDecision = Object.freeze({ kind: 'unsatisfiable' })

const RANGES = /^[ \t]*bytes=(.*)$/is
const RANGE = /^(\d*)-(\d*)$/

/** Reads a `Range` header against a representation of `size` bytes. Another unit, several ranges and
 * anything malformed are `none`: RFC 9110 section 14.2 lets a server ignore them, and section 14.1.1 has it
 * ignore an invalid range. A suffix of an empty representation is all of it, which 206 cannot say: `none`. */
export function parseRange (header: string | undefined, size: number): RangeDecision {
  const set = RANGES.exec(header ?? '')?.[1]
  if (set === undefined) return NONE
  // Empty list elements are to be ignored (section 5.6.1.2).
  const ranges = set.split(',').map(trim).filter(element => element !== '')
  const match = RANGE.exec(ranges[0] ?? '')
  if (ranges.length !== 1 || match === null) return NONE
  const [, first = '', last = ''] = match
  // BigInt, because a position may have any number of digits and rounding must not reorder two of them.
  const length = BigInt(size)
  if (first === '') {
    if (last === '') return NONE
    const suffix = BigInt(last)
    if (suffix === 0n) return UNSATISFIABLE
    if (size === 0) return NONE
    return { kind: 'range', start: suffix >= length ? 0 : size - Number(suffix), end: size - 1 }
  }
  const start = BigInt(first)
  if (last !== '' && BigInt(last) < start) return NONE
  if (start >= length) return UNSATISFIABLE
  const end = last === '' || BigInt(last) >= length ? size - 1 : Number(last)
  return { kind: 'range', start: Number(start), end }
}

/** Whether `If-Range` lets the range stand: absent, or exactly our entity tag. A date, a weak tag and
 * anything else mean that the range is ignored (section 13.1.5 wants a strong comparison). */
export function rangeStands (ifRange: string | undefined, etag: string): boolean {
  return ifRange === undefined || trim(ifRange) === etag
}

/** Whether `If-Match` fails, to be answered with 412: no tag of the list is ours by strong comparison, and
 * it is not `*`. Malformed is a failure: the client named a condition, and it was not shown to hold. */
export function matchFails (ifMatch: string | undefined, etag: string): boolean {
  if (ifMatch === undefined) return false
  if (trim(ifMatch) === '*') return false
  return !(entityTags(ifMatch)?.includes(etag) ?? false)
}

/** Whether `If-None-Match` names what we have, to be answered with 304: `*`, or a tag of the list that is
 * ours by weak comparison. Malformed names nothing. */
export function noneMatchHits (ifNoneMatch: string | undefined, etag: string): boolean {
  if (ifNoneMatch === undefined) return false
  if (trim(ifNoneMatch) === '*') return true
  return entityTags(ifNoneMatch)?.some(tag => tag === etag || tag === `W/${etag}`) ?? false
}

// An entity tag may hold a comma, so the list is not split but read. Each step is anchored and consumes
// at least one character: linear in the header's length.
const ENTITY_TAG = /[ \t]*(?:((?:W\/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)|,)/y

function entityTags (header: string): string[] | undefined {
  const tags: string[] = []
  const text = trim(header)
  ENTITY_TAG.lastIndex = 0
  while (ENTITY_TAG.lastIndex < text.length) {
    const match = ENTITY_TAG.exec(text)
    if (match === null) return undefined
    if (match[1] !== undefined) tags.push(match[1])
  }
  return tags
}

/** OWS is space and tab alone (section 5.6.3). */
function trim (text: string): string {
  let start = 0
  let end = text.length
  while (start < end && (text[start] === ' ' || text[start] === '\t')) start++
  while (end > start && (text[end - 1] === ' ' || text[end - 1] === '\t')) end--
  return text.slice(start, end)
}

/** What a query parameter's value may be. A rule answers undefined for a good value, or what would be right. */
export type QueryRule = (value: string) => string | undefined

export const boolean: QueryRule = value =>
  value === 'true' || value === 'false' ? undefined : 'must be true or false'

export const integer = (most: number): QueryRule => value =>
  /^\d{1,16}$/.test(value) && Number(value) <= most ? undefined : `must be a whole number up to ${most}`

export const oneOf = (...values: string[]): QueryRule => value =>
  values.includes(value) ? undefined : `must be ${values.join(' or ')}`

/** A revision: `<generation>-<hex>`, as CouchDB and PouchDB write it. */
export const revision: QueryRule = value =>
  /^\d{1,15}-[0-9a-zA-Z]{1,64}$/.test(value) ? undefined : 'must be a revision'

/** An opaque update sequence, `0` or `now`. CouchDB's are base64url with a number in front; some clients
 * send them JSON-encoded. */
export const sequence: QueryRule = value =>
  value.length <= 16_384 && /^[\w."\-[\],= ]*$/.test(value) ? undefined : 'must be an update sequence'

/** JSON of bounded length. Document IDs in it may be design documents, never local ones: CouchDB answers
 * other principals' checkpoints for such keys. */
export const json: QueryRule = value => {
  let parsed: unknown
  try {
    parsed = JSON.parse(value)
  } catch {
    return 'must be JSON'
  }
  return namesLocal(parsed, 0) ? 'may not name _local documents' : undefined
}

/** A list of revisions as JSON, or `all`. */
export const revisions: QueryRule = value => {
  if (value === 'all') return undefined
  try {
    const list: unknown = JSON.parse(value)
    if (Array.isArray(list) && list.every(item => typeof item === 'string' && revision(item) === undefined)) return undefined
  } catch { /* told below */ }
  return 'must be all, or a JSON list of revisions'
}

/** A document ID outside JSON (`startkey_docid`). */
export const documentId: QueryRule = value =>
  value.startsWith('_local') ? 'may not name _local documents' : undefined

const DEEPEST = 64

function namesLocal (value: unknown, depth: number): boolean {
  if (depth > DEEPEST) return true
  if (typeof value === 'string') return value.startsWith('_local')
  if (Array.isArray(value)) return value.some(item => namesLocal(item, depth + 1))
  if (value !== null && typeof value === 'object') return Object.values(value).some(item => namesLocal(item, depth + 1))
  return false
}

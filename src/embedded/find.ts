import type { Exchange } from './exchange.js'
import { isObject } from './json.js'
import { documentPages } from './pages.js'
import type { StoredDocument } from './pouch.js'
import { badRequest, Problem } from './problem.js'
import { fieldPath, member, parseSelector } from './selector.js'
import type { Store } from './store.js'
import { Pauses } from './waiting.js'

// `_find` without pouchdb-find: that one reads the stored `_design` documents for indexes, builds views
// from them, and keeps its own as `_design` documents, which would replicate. Here is one index, the IDs.

const TAKEN = new Set(['selector', 'limit', 'skip', 'sort', 'fields', 'bookmark', 'use_index', 'r', 'conflicts', 'update', 'stable', 'execution_stats'])

/** `POST /db/_find`: the documents in the order of their IDs that match. Throws 400 for a sort by anything
 * else, 408 after the limit's time. */
export async function find (exchange: Exchange, store: Store): Promise<void> {
  const query = parseQuery(await exchange.readObject())
  const until = performance.now() + exchange.limits.findMs
  exchange.releaseBody()
  const found: unknown[] = []
  const pauses = new Pauses()
  let { skip } = query
  let bookmark = 'nil'
  search: for await (const page of documentPages(store, query.range, query.after === undefined ? 0 : 1, query.limit === 0 ? 0 : Infinity)) {
    if (exchange.signal.aborted) return
    if (performance.now() > until) throw new Problem(408, 'timeout', 'the search takes too long: there is no index')
    for (const { doc } of page) {
      await pauses.next()
      if (doc === undefined || doc === null || doc._id.startsWith('_design/') || !query.matches(doc) || skip-- > 0) continue
      found.push(query.project(doc))
      bookmark = Buffer.from(JSON.stringify(doc._id)).toString('base64url')
      if (found.length === query.limit) break search
    }
  }
  exchange.json(200, { docs: found, bookmark, ...(query.isFullScan && { warning: 'No matching index found, create an index to optimize query time.' }) })
}

function parseQuery (body: Record<string, unknown>) {
  for (const name of Object.keys(body)) {
    if (!TAKEN.has(name)) throw badRequest(`_find takes no ${name.slice(0, 40)}`)
  }
  const { selector, limit = 25, skip = 0, sort = [], fields, bookmark, conflicts = false } = body
  if (selector === undefined) throw new Problem(400, 'missing_required_key', 'Missing required key: selector')
  if (!isCount(limit) || !isCount(skip)) throw badRequest('limit and skip must be whole numbers')
  if (typeof conflicts !== 'boolean') throw badRequest('conflicts must be true or false')
  const after = parseBookmark(bookmark)
  return {
    matches: parseSelector(selector),
    limit, skip, after,
    range: { descending: isDescending(sort), inclusive_end: true, include_docs: true, conflicts, ...(after !== undefined && { startkey: after }) },
    project: projection(fields),
    isFullScan: !isObject(selector) || !Object.hasOwn(selector, '_id'),
  }
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

function isDescending (sort: unknown): boolean {
  const orders = Array.isArray(sort) ? sort.map(one => isObject(one) ? Object.entries(one) : [[one, 'asc']]) : [[['', '']]]
  const [order, ...rest] = orders.flat()
  if (order === undefined) return false
  if (rest.length > 0 || order[0] !== '_id' || (order[1] !== 'asc' && order[1] !== 'desc')) {
    throw new Problem(400, 'no_usable_index', 'No index exists for this sort: results are in the order of _id.')
  }
  return order[1] === 'desc'
}

function parseBookmark (bookmark: unknown): string | undefined {
  if (bookmark === undefined || bookmark === 'nil' || bookmark === '') return undefined
  try {
    const id: unknown = JSON.parse(Buffer.from(bookmark as string, 'base64url').toString())
    if (typeof id === 'string') return id
  } catch { /* told below */ }
  throw new Problem(400, 'invalid_bookmark', 'Invalid bookmark value')
}

function projection (fields: unknown): (document: StoredDocument) => unknown {
  if (fields === undefined || (Array.isArray(fields) && fields.length === 0)) return document => document
  if (!Array.isArray(fields) || !fields.every(field => typeof field === 'string')) throw badRequest('fields must be a list of names')
  const paths = fields.map(fieldPath)
  return document => {
    const chosen = Object.create(null) as Record<string, unknown>
    for (const path of paths) {
      const value = member(document, path)
      if (value === undefined) continue
      let at = chosen
      for (const name of path.slice(0, -1)) at = (isObject(at[name]) ? at[name] : at[name] = Object.create(null)) as Record<string, unknown>
      at[path.at(-1)!] = value
    }
    return chosen
  }
}

import type { Exchange } from './exchange.js'
import { isObject } from './json.js'
import { Heartbeat, Pauses, Waiter } from './waiting.js'
import { fillSmall, Inliner } from './inline.js'
import { DOCUMENTS_PAGE } from './pages.js'
import { badRequest, Problem, problemOf } from './problem.js'
import { parseSelector } from './selector.js'
import type { Change } from './pouch.js'
import type { ChangesPage, Store } from './store.js'
import { holdable, Portion } from './weight.js'

/** Changes read at a time, without and with their documents. */
const PAGE = 250

interface Feed {
  readonly kind: 'normal' | 'longpoll' | 'continuous'
  readonly descending: boolean
  readonly limit: number
  readonly style: string
  readonly docs: { readonly include: boolean, readonly conflicts: boolean, readonly attachments: boolean }
  readonly filter: Filter | undefined
}

interface Filter {
  readonly matches: (change: Change) => boolean
  readonly readsDocuments: boolean
}

/** `GET` and `POST /db/_changes`. Rows go out page by page, as fast as the client takes them. A feed ends
 * when its client goes, when its account loses the database, when the database goes, and on stop. */
export async function changes (exchange: Exchange, store: Store): Promise<void> {
  const body = exchange.request.method === 'POST' ? await exchange.readObject() : {}
  const feed = readFeed(exchange, body)
  const since = await readSince(exchange, store)
  exchange.releaseBody()
  // It watches before it reads: a write between the two must not be slept through.
  const waiter = new Waiter(store, exchange.signal)
  try {
    exchange.head(200, { 'Content-Type': 'application/json' })
    exchange.flush()
    if (feed.kind !== 'continuous') await exchange.write('{"results":[\n')
    await run(exchange, store, feed, since, waiter)
  } finally {
    waiter.stop()
  }
}

async function run (exchange: Exchange, store: Store, feed: Feed, start: number, waiter: Waiter): Promise<void> {
  const heartbeat = new Heartbeat(exchange)
  const rows = new RowWriter(exchange, store, feed)
  let since: number
  try {
    since = feed.descending ? await runBackwards(store, feed, rows) : await runForwards(store, feed, start, rows, waiter, heartbeat)
  } finally {
    heartbeat.stop()
  }
  const pending = await pendingAfter(store, feed, since)
  exchange.end(feed.kind === 'continuous' ? `{"last_seq":${since},"pending":${pending}}\n` : `${rows.count > 0 ? '\n' : ''}],\n"last_seq":${since},"pending":${pending}}\n`)
}

/** Sends what there is and what comes, and returns where it ended. */
async function runForwards (store: Store, feed: Feed, start: number, rows: RowWriter, waiter: Waiter, heartbeat: Heartbeat): Promise<number> {
  const portion = new Portion(pageSize(feed))
  let since = start
  let left = feed.limit
  for (;;) {
    waiter.reset()
    const { size } = portion
    const page = await readPage(store, feed, since, left, size)
    portion.had(page.results.length + (page.isCut === true ? 1 : 0), page.results.length)
    const chosen = await chosenBy(feed.filter, page.results)
    const sent = chosen.slice(0, left)
    await rows.write(sent)
    left -= sent.length
    since = sent.length < chosen.length || left === 0 ? sent.at(-1)?.seq ?? since : page.last_seq
    if (left === 0) return since
    if (page.isCut === true || page.results.length >= size) continue
    if (feed.kind === 'normal' || (feed.kind === 'longpoll' && rows.count > 0)) return since
    if (await waiter.wait(heartbeat.active ? undefined : heartbeat.timeoutMs) === 'timeout') return since
  }
}

/** Sends the newest first, and returns where it ended. */
async function runBackwards (store: Store, feed: Feed, rows: RowWriter): Promise<number> {
  const page = await readBackwards(store, feed)
  let left = feed.limit
  for (let at = 0; at < page.results.length;) {
    const part = page.results.slice(at, at + pageSize(feed))
    const { changes, count } = feed.filter?.readsDocuments === true ? await withDocuments(store, feed, part) : { changes: part, count: part.length }
    at += count
    const chosen = await chosenBy(feed.filter, changes)
    const sent = chosen.slice(0, left)
    await rows.write(sent)
    left -= sent.length
    if (left === 0) return sent.at(-1)!.seq
  }
  return page.last_seq
}

/** As many of the first ones as may be held, `count` of them, without those that a newer change has replaced meanwhile. */
async function withDocuments (store: Store, { docs }: Feed, changes: readonly Change[]): Promise<{ changes: Change[], count: number }> {
  return await store.readMany(async pouch => {
    const read = await Promise.all(changes.map(async change => {
      const doc = await pouch.get(change.id, { rev: change.changes[0]!.rev, conflicts: docs.conflicts }).catch(noneWhereGone)
      return doc && { ...change, doc }
    }))
    const count = holdable(read.map(one => one?.doc))
    return { changes: read.slice(0, count).filter(change => change !== undefined), count }
  })
}

function noneWhereGone (error: unknown): undefined {
  if (problemOf(error).status !== 404) throw error
}

async function chosenBy (filter: Filter | undefined, changes: readonly Change[]): Promise<readonly Change[]> {
  if (filter === undefined) return changes
  const pauses = new Pauses()
  const chosen: Change[] = []
  for (const change of changes) {
    await pauses.next()
    if (filter.matches(change)) chosen.push(change)
  }
  return chosen
}

function readFeed (exchange: Exchange, body: Record<string, unknown>): Feed {
  return {
    kind: (exchange.parameter('feed') ?? 'normal') as Feed['kind'],
    descending: exchange.flag('descending'),
    // CouchDB: 0 has the same effect as 1.
    limit: Math.max(1, exchange.count('limit') ?? Infinity),
    style: exchange.parameter('style') ?? 'main_only',
    docs: { include: exchange.flag('include_docs'), conflicts: exchange.flag('conflicts'), attachments: exchange.flag('attachments') },
    filter: readFilter(exchange, body),
  }
}

function readFilter (exchange: Exchange, body: Record<string, unknown>): Filter | undefined {
  switch (exchange.parameter('filter')) {
    case '_doc_ids': {
      const given = body['doc_ids'] ?? exchange.jsonParameter('doc_ids')
      if (!Array.isArray(given)) throw badRequest('`doc_ids` filter parameter is not a list.')
      const wanted = new Set(given)
      return { matches: ({ id }) => wanted.has(id), readsDocuments: false }
    }
    case '_selector': {
      if (!isObject(body['selector'])) throw badRequest('Selector must be specified in POST payload')
      const matches = parseSelector(body['selector'])
      return { matches: ({ doc }) => matches(doc), readsDocuments: true }
    }
    default:
      return undefined
  }
}

async function readSince (exchange: Exchange, store: Store): Promise<number> {
  const text = (exchange.parameter('since') ?? '0').replace(/^"(.*)"$/, '$1')
  if (/^\d{1,15}$/.test(text)) return Number(text)
  if (text === 'now') return (await store.read(pouch => pouch.info())).update_seq
  throw badRequest('Malformed sequence supplied in \'since\' parameter.')
}

function readPage (store: Store, feed: Feed, since: number, left: number, size: number): Promise<ChangesPage> {
  return store.changesAfter({
    since,
    limit: feed.filter === undefined ? Math.min(size, left) : size,
    style: feed.style,
    include_docs: readsDocuments(feed),
    conflicts: readsDocuments(feed) && feed.docs.conflicts,
  })
}

const readsDocuments = ({ docs, filter }: Feed): boolean => docs.include || filter?.readsDocuments === true
const pageSize = (feed: Feed): number => readsDocuments(feed) ? DOCUMENTS_PAGE : PAGE

/** All of them, since PouchDB cannot go on backwards from a place; their documents are read later, a few at a time. */
async function readBackwards (store: Store, feed: Feed): Promise<ChangesPage> {
  return await store.read(pouch => pouch.changes({
    descending: true, style: feed.style, return_docs: true, include_docs: false,
    ...(feed.filter === undefined && feed.limit !== Infinity && { limit: feed.limit }),
  }))
}

/** How many sequence numbers are left; CouchDB counts only those that are some document's newest, so this
 * may say more, and 0 exactly when there are none. */
async function pendingAfter (store: Store, feed: Feed, since: number): Promise<number> {
  if (feed.descending) return 0
  const { results } = await store.changesAfter({ since, limit: 1, style: 'main_only', include_docs: false, conflicts: false })
  if (results.length === 0) return 0
  return (await store.read(pouch => pouch.info())).update_seq - since
}

/** Writes changes as rows, and their documents with them. */
class RowWriter {
  count = 0
  readonly #exchange: Exchange
  readonly #store: Store
  readonly #feed: Feed
  readonly #inliner: Inliner

  constructor (exchange: Exchange, store: Store, feed: Feed) {
    this.#exchange = exchange
    this.#store = store
    this.#feed = feed
    this.#inliner = new Inliner(exchange, store)
  }

  async write (changes: readonly Change[]): Promise<void> {
    if (this.#exchange.signal.aborted) throw new Problem(503, 'stopped', 'the feed has ended')
    let text = ''
    for (const change of changes) {
      const row = await this.#row(change)
      if (row === undefined) continue
      text += this.#feed.kind === 'continuous' ? `${row}\n` : `${this.count > 0 ? ',\n' : ''}${row}`
      this.count++
      if (text.length > FLUSH) {
        await this.#inliner.write(text)
        text = ''
      }
    }
    if (text !== '') await this.#inliner.write(text)
  }

  /** Undefined for a change that a newer one has replaced meanwhile: that one is still to come. */
  async #row ({ seq, id, changes, deleted, doc }: Change): Promise<string | undefined> {
    const row = { seq, id, changes, ...(deleted === true && { deleted }) }
    const { include, conflicts, attachments } = this.#feed.docs
    if (!include) return JSON.stringify(row)
    const needsReading = this.#feed.descending || (attachments && doc?._attachments !== undefined)
    if (!needsReading) return JSON.stringify({ ...row, doc })
    const document = await this.#store.read(async pouch => {
      const found = await pouch.get(id, { rev: changes[0]!.rev, conflicts })
      return attachments ? await fillSmall(pouch, found) : found
    }).catch(noneWhereGone)
    return document && JSON.stringify({ ...row, doc: attachments ? this.#inliner.mark(document) : document })
  }
}

/** Text is sent when there is more of it than this. */
const FLUSH = 65_536

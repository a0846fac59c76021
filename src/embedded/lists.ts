import type { Exchange } from './exchange.js'
import { isObject } from './json.js'
import { isRevision } from './documents.js'
import { fillSmall, Inliner } from './inline.js'
import { documentPages, DOCUMENTS_PAGE, PAGE, type DocumentRange } from './pages.js'
import { leavesOf, revisionsOf, revisionTree, type DocumentRow, type OpenRevision, type Pouch, type StoredDocument } from './pouch.js'
import { badRequest, Problem, problemOf } from './problem.js'
import type { Store } from './store.js'
import { holdable, Portion } from './weight.js'

/** `GET` and `POST /db/_all_docs`. */
export async function allDocs (exchange: Exchange, store: Store): Promise<void> {
  const body = exchange.request.method === 'POST' ? await exchange.readObject() : {}
  if (body['queries'] !== undefined) throw new Problem(501, 'not_implemented', '_all_docs takes no queries here')
  const keys = body['keys'] ?? exchange.jsonParameter('keys')
  if (keys !== undefined && !Array.isArray(keys)) throw badRequest('`keys` body member must be an array.')
  if (Array.isArray(keys) && keys.some(key => typeof key === 'string' && key.startsWith('_local/'))) throw new Problem(403, 'forbidden', '_local documents are not listed here')
  const { doc_count: total, update_seq: sequence } = await store.read(pouch => pouch.info())
  const skip = exchange.count('skip') ?? 0
  exchange.head(200, { 'Content-Type': 'application/json' })
  const sequencePart = exchange.flag('update_seq') ? `"update_seq":${sequence},` : ''
  await exchange.write(`{"total_rows":${total},"offset":${keys === undefined ? Math.min(skip, total) : null},${sequencePart}"rows":[`)
  const inliner = new Inliner(exchange, store)
  const withAttachments = exchange.flag('include_docs') && exchange.flag('attachments')
  let separator = '\n'
  for await (const page of keys === undefined ? rowsInRange(exchange, store, skip) : rowsOfKeys(exchange, store, keys, skip)) {
    let text = ''
    for (const row of page) {
      const whole = withAttachments && row.doc?._attachments !== undefined ? await withInlined(store, inliner, row) : row
      if (whole === undefined) continue
      text += separator + JSON.stringify(whole)
      separator = ',\n'
      if (text.length > FLUSH) {
        await inliner.write(text)
        text = ''
      }
    }
    if (text !== '') await inliner.write(text)
  }
  exchange.end('\n]}\n')
}

/** Text is sent when there is more of it than this. */
const FLUSH = 65_536

/** The row as it is now, with its attachments; undefined where the document was deleted after it was read. */
async function withInlined (store: Store, inliner: Inliner, row: DocumentRow): Promise<DocumentRow | undefined> {
  const document = await store.read(async pouch => {
    try {
      return await fillSmall(pouch, row.doc!)
    } catch (error) {
      if (problemOf(error).status !== 404) throw error
      return await pouch.get(row.id!).then(newer => fillSmall(pouch, newer), () => undefined)
    }
  })
  return document && { ...row, value: { rev: document._rev }, doc: inliner.mark(document) }
}

async function * rowsOfKeys (exchange: Exchange, store: Store, keys: readonly unknown[], skip: number): AsyncGenerator<DocumentRow[]> {
  const wanted = exchange.flag('descending') ? keys.toReversed() : keys
  const chosen = wanted.slice(skip, skip + (exchange.count('limit') ?? wanted.length))
  const options = rowOptions(exchange)
  const portion = new Portion(options.include_docs ? DOCUMENTS_PAGE : PAGE)
  for (let at = 0; at < chosen.length;) {
    const part = chosen.slice(at, at + portion.size)
    // For a key that is empty or no string PouchDB answers the first document of all.
    const known = part.filter(key => typeof key === 'string' && key !== '')
    // Cut where it is read: what this generator knows of is kept while a slow client takes the page.
    const held = await store.readMany(async pouch => {
      const { rows } = await pouch.allDocs({ ...options, keys: known })
      let next = 0
      const page = part.map((key): DocumentRow => typeof key === 'string' && key !== '' ? rows[next++]! : { key, error: 'not_found' })
      return page.slice(0, holdable(page.map(({ doc }) => doc)))
    })
    portion.had(part.length, held.length)
    at += held.length
    yield held
  }
}

function rowsInRange (exchange: Exchange, store: Store, skip: number): AsyncIterable<DocumentRow[]> | readonly [] {
  const range = readRange(exchange)
  return range === undefined ? [] : documentPages(store, { ...rowOptions(exchange), ...range }, skip, exchange.count('limit') ?? Infinity)
}

function rowOptions (exchange: Exchange): Pick<DocumentRange, 'include_docs' | 'conflicts'> {
  return { include_docs: exchange.flag('include_docs'), conflicts: exchange.flag('conflicts') }
}

/** The range that the parameters say, or undefined where no ID can be in it. IDs are strings; in CouchDB's
 * order numbers come before every string, lists and objects after. */
function readRange (exchange: Exchange): Omit<DocumentRange, 'include_docs' | 'conflicts'> | undefined {
  const key = exchange.jsonParameter('key')
  const from = key ?? exchange.jsonParameter('startkey') ?? exchange.jsonParameter('start_key')
  const to = key ?? exchange.jsonParameter('endkey') ?? exchange.jsonParameter('end_key')
  const descending = exchange.flag('descending')
  if (key !== undefined && (typeof key !== 'string' || key === '')) return undefined
  if (from !== undefined && from !== null && isBeyond(from, descending)) return undefined
  if (to !== undefined && to !== null && isBeyond(to, !descending)) return undefined
  return {
    descending,
    inclusive_end: exchange.parameter('inclusive_end') !== 'false',
    ...(typeof from === 'string' && { startkey: from }),
    ...(typeof to === 'string' && { endkey: to }),
  }
}

/** Whether no ID comes after (`below` false) or before (`below` true) the key. */
function isBeyond (key: unknown, below: boolean): boolean {
  return below ? typeof key !== 'object' && (typeof key !== 'string' || key === '') : typeof key === 'object'
}

/** `POST /db/_bulk_get`, written out as it is read: the documents need not fit into memory together. */
export async function bulkGet (exchange: Exchange, store: Store): Promise<void> {
  const { docs } = await exchange.readObject()
  if (!Array.isArray(docs)) throw badRequest('Missing JSON list of \'docs\'.')
  const wanted = docs.map(parseWanted)
  exchange.head(200, { 'Content-Type': 'application/json' })
  await exchange.write('{"results":[')
  let separator = '\n'
  const inliner = new Inliner(exchange, store)
  const withAttachments = exchange.flag('attachments')
  // Some at once for speed; with attachments one by one.
  const portion = new Portion(withAttachments ? 1 : DOCUMENTS_PAGE)
  const reads = readsOf(wanted, store)
  let part: Read[] = []
  for (;;) {
    while (part.length < portion.size) {
      const { value } = await reads.next()
      if (value === undefined) break
      part.push(value)
    }
    if (part.length === 0) break
    const asked = part.slice(0, portion.size)
    const found = await readPart(exchange, store, asked)
    const held = found.length
    portion.had(asked.length, held)
    let text = ''
    for (const [index, { id, isFirst, isLast }] of part.slice(0, held).entries()) {
      const docs = found[index]!.map(one => JSON.stringify('ok' in one && withAttachments ? { ok: inliner.mark(one.ok) } : one)).join()
      text += `${isFirst ? `${separator}{"id":${JSON.stringify(id)},"docs":[` : ','}${docs}${isLast ? ']}' : ''}`
      separator = ',\n'
    }
    await inliner.write(text)
    part = part.slice(held)
  }
  exchange.end('\n]}\n')
}

/** What is asked for several times is read once. As many of the first ones as may be held: what was read besides is let go here. */
async function readPart (exchange: Exchange, store: Store, part: readonly Read[]): Promise<Found[][]> {
  const reading = new Map<string, Promise<Found[]>>()
  return await store.readMany(async pouch => {
    const found = await Promise.all(part.map(one => {
      const key = JSON.stringify([one.id, one.rev])
      const read = reading.get(key) ?? readRevision(pouch, one, exchange)
      reading.set(key, read)
      return read
    }))
    return found.slice(0, holdable(found.map(([one]) => one !== undefined && 'ok' in one ? one.ok : undefined)))
  })
}

interface Wanted { readonly id: string, readonly rev: string | undefined }
/** One revision to be read. A row is `{"id", "docs": […]}`. */
interface Read extends Wanted { readonly isFirst: boolean, readonly isLast: boolean }
type Found = { readonly ok: StoredDocument } | { readonly error: object }

function parseWanted (value: unknown): Wanted {
  if (!isObject(value)) throw badRequest('`docs` must be a list of objects')
  const { id, rev } = value
  if (typeof id !== 'string' || id === '') throw badRequest('document id missed')
  if (id.startsWith('_local/')) throw new Problem(403, 'forbidden', '_local documents are not read here')
  if (rev !== undefined && !isRevision(rev)) throw badRequest('Invalid rev format')
  return { id, rev }
}

/** Where no revision is named all leaves are meant, of which a document may have a thousand. */
async function * readsOf (wanted: readonly Wanted[], store: Store): AsyncGenerator<Read, undefined> {
  for (const { id, rev } of wanted) {
    const tree = rev === undefined ? await store.read(pouch => revisionTree(pouch, id)) : undefined
    const revs = tree === undefined ? [rev] : leavesOf(tree)
    for (const [index, rev] of revs.entries()) yield { id, rev, isFirst: index === 0, isLast: index === revs.length - 1 }
  }
  return undefined
}

async function readRevision (pouch: Pouch, { id, rev }: Wanted, exchange: Exchange): Promise<Found[]> {
  const failed = (error: string, reason: string): Found => ({ error: { id, rev: rev ?? 'undefined', error, reason } })
  try {
    const found: OpenRevision[] = await pouch.get(id, {
      open_revs: rev === undefined ? 'all' : [rev],
      revs: exchange.flag('revs'),
      latest: exchange.flag('latest'),
    })
    return await Promise.all(found.map(async one => {
      if (!('ok' in one)) return failed('not_found', 'missing')
      return exchange.flag('attachments') ? { ok: await fillSmall(pouch, one.ok) } : one
    }))
  } catch (error) {
    const { status, error: name, reason } = problemOf(error)
    if (status === 500) throw error
    return [failed(name, reason)]
  }
}

/** `POST /db/_revs_diff` and `_missing_revs`: which of the given revisions are not here. */
export async function compareRevisions (exchange: Exchange, store: Store): Promise<void> {
  const asked = Object.entries(await exchange.readObject()).map(([id, revs]): [string, string[]] => {
    if (!Array.isArray(revs) || !revs.every(isRevision)) throw badRequest('each member must be a list of revisions')
    if (id.startsWith('_local/')) throw new Problem(403, 'forbidden', '_local documents are not compared here')
    return [id, revs]
  })
  const isDiff = exchange.action.target.endpoint === '_revs_diff'
  // Without a prototype: `__proto__` cannot come this far, but `constructor` is an ordinary ID.
  const answer = Object.create(null) as Record<string, unknown>
  for (const [id, revs] of asked) {
    const known = revisionsOf(await store.read(pouch => revisionTree(pouch, id)) ?? [])
    const here = new Set(known.map(({ rev }) => rev))
    const absent = [...new Set(revs)].filter(rev => !here.has(rev))
    if (absent.length === 0) continue
    const newest = Math.max(...absent.map(generationOf))
    const ancestors = known.filter(({ leaf, available, generation }) => leaf && available && generation < newest).map(({ rev }) => rev)
    answer[id] = isDiff ? { missing: absent, ...(ancestors.length > 0 && { possible_ancestors: ancestors }) } : absent
  }
  exchange.json(200, isDiff ? answer : { missing_revs: answer })
}

const generationOf = (rev: string): number => Number(rev.slice(0, rev.indexOf('-')))

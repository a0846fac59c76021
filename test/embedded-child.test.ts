import { Agent } from 'node:http'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { startEmbedded } from '../src/embedded/front.js'
import { startEmbeddedChild, type EmbeddedChild, type EmbeddedEvent } from '../src/embedded/supervise.js'
import { ACCOUNTS, ask, authorization, openFeed, seeded, temporary } from './embedded/harness.js'

async function startChild (t: Test, dir?: string): Promise<{ child: EmbeddedChild, events: EmbeddedEvent[], dir: string, restarted: () => Promise<void> }> {
  const home = dir ?? join(await temporary(t), 'couch')
  const events: EmbeddedEvent[] = []
  let again: () => void = () => undefined
  const child = await startEmbeddedChild({
    dir: home, accounts: ACCOUNTS, listen: { host: '::1', port: 0 },
    onEvent: event => {
      events.push(event)
      if (event.kind === 'restarted') again()
    },
  })
  t.teardown(() => child.stop())
  return { child, events, dir: home, restarted: () => new Promise(resolve => { again = resolve }) }
}

void t.test('a child that is killed is mended at the same address', async t => {
  const { child, events, restarted } = await startChild(t)
  const { url } = child
  const lists: string[][] = []
  child.onDatabases(names => { lists.push(names) })
  await child.createDatabase('notes')
  await t.rejects(child.createDatabase('notes'), { code: 'already-exists' })
  await t.rejects(child.createDatabase('No'), { code: 'usage' })
  t.equal((await ask(url, 'PUT', '/made')).status, 201)
  t.equal((await ask(url, 'PUT', '/notes/doc', { body: { n: 1 } })).status, 201)
  t.same(await child.databases(), ['made', 'notes'])
  t.same(lists, [['notes'], ['made', 'notes']])
  const first = child.pid!
  const feed = await openFeed(url, '/notes/_changes?feed=continuous')
  const mended = restarted()
  process.kill(first, 'SIGKILL')
  t.equal(await feed.ended, false)
  // Asked while there is no process: the socket is the agent's, so it waits instead of being refused.
  const waiting = ask(url, 'GET', '/notes/doc')
  await t.rejects(startEmbedded({ dir: await temporary(t), accounts: [], listen: { host: '::1', port: Number(new URL(url).port) } }), { code: 'port-in-use' }, 'nobody else gets the port in between')
  t.match((await waiting).json, { n: 1 })
  await mended
  t.equal(child.url, url)
  t.not(child.pid, first)
  t.match(events, [{ kind: 'exit', signal: 'SIGKILL' }, { kind: 'restarted', pid: child.pid! }])
  t.same(await child.databases(), ['made', 'notes'])
  await child.deleteDatabase('made')
  t.equal((await ask(url, 'GET', '/made')).status, 404)
})

void t.test('accounts reach the child, and the one that comes after it', async t => {
  const { child, restarted } = await startChild(t)
  await child.createDatabase('notes')
  const feed = await openFeed(child.url, '/notes/_changes?feed=continuous', 'reader')
  await child.setAccounts(ACCOUNTS.filter(({ username }) => username !== 'reader'))
  t.equal(await feed.ended, false)
  t.equal((await ask(child.url, 'GET', '/notes', { as: 'reader' })).status, 401)
  // One that does not answer is killed: what was taken away must not linger in it.
  const mended = restarted()
  process.kill(child.pid!, 'SIGSTOP')
  await child.setAccounts(ACCOUNTS.filter(({ username }) => username !== 'writer'))
  await mended
  t.equal((await ask(child.url, 'GET', '/notes', { as: 'writer' })).status, 401)
  t.equal((await ask(child.url, 'GET', '/notes', { as: 'reader' })).status, 200)
})

void t.test('signals, the end of the agent, and what is left', async t => {
  const { child, events, restarted } = await startChild(t)
  const pid = child.pid!
  process.kill(pid, 'SIGINT')
  t.equal((await ask(child.url, 'GET', '/')).status, 200, 'SIGINT is the agent\'s')
  const mended = restarted()
  process.kill(pid, 'SIGTERM')
  await mended
  t.match(events[0], { kind: 'exit', code: 0, signal: null }, 'SIGTERM is a clean stop')
  const environment = await readFile(`/proc/${child.pid}/environ`, 'utf8')
  t.notMatch(environment, /(?:^|\0)(?:HOME|USER|PATH)=/, 'nothing of our environment is in it')
  const last = child.pid!
  await child.stop()
  t.throws(() => process.kill(last, 0), { code: 'ESRCH' })
  await t.rejects(ask(child.url, 'GET', '/'), { code: 'ECONNREFUSED' })
  await delay(50)
  t.notOk(process.getActiveResourcesInfo().some(name => name.startsWith('TCP') || name === 'ProcessWrap'), 'no listener and no process')
  const path = join(await temporary(t), 'file')
  await writeFile(path, '')
  await t.rejects(startEmbeddedChild({ dir: path, accounts: [], listen: { host: '::1', port: 0 } }), 'a folder that is none is told')
})

void t.test('damage that shows only while reading ends one database, not the process', async t => {
  const { child, events, dir } = await startChild(t)
  for (const name of ['fine', 'torn']) {
    await child.createDatabase(name)
    const docs = Array.from({ length: 300 }, (_, index) => ({ _id: `d${index}`, text: `${index}`.repeat(2000) }))
    for (let round = 0; round < 3; round++) await ask(child.url, 'POST', `/${name}/_bulk_docs`, { body: { docs: docs.map(doc => ({ ...doc, _id: `${round}${doc._id}` })) } })
  }
  const { url } = child
  await child.stop()
  const folder = join(dir, 'torn')
  for (const file of (await readdir(folder)).filter(name => name.endsWith('.ldb') || name.endsWith('.log'))) {
    const bytes = await readFile(join(folder, file))
    await writeFile(join(folder, file), Uint8Array.from(bytes.fill(0x5a, Math.floor(bytes.length / 4), Math.floor(bytes.length / 2))))
  }
  const again = await startChild(t, dir)
  const reads = ['', '/_changes?include_docs=true', '/_all_docs?include_docs=true', '/0d7', '/1d250', '/_changes?since=200&include_docs=true']
  for (const path of reads) {
    const answer = await ask(again.child.url, 'GET', `/torn${path}`).catch((error: unknown) => String(error))
    t.ok(typeof answer === 'string' || [200, 404, 500].includes(answer.status), `/torn${path} is answered or cut: ${typeof answer === 'string' ? answer : answer.status}`)
  }
  t.equal((await ask(again.child.url, 'GET', '/fine/2d299')).status, 200)
  t.same(again.events.concat(events), [], 'no process ended')
  t.not(url, '')
})

// ---- fuzz

const SEED = 20_260_101
const FOR_MS = 6000

const STRANGE: unknown[] = [null, true, 0, -1, 1e308, 7.5, '', 'x', '_design/x', '_local/x', '1-abc', '9'.repeat(400), [], {}, [[]], [null], { length: 3 }, { constructor: 1 }, { toString: null }, { $where: '1' }, { $regex: 'x' }, '\u0000', '\ud800', 'ÿ', '\uffff', '../x']
const BASES: ReadonlyArray<readonly [method: string, path: string, body?: unknown]> = [
  ['GET', '/'], ['GET', '/_all_dbs'], ['GET', '/notes'], ['PUT', '/made'], ['GET', '/notes/doc?revs=true&conflicts=true'], ['HEAD', '/notes/doc'],
  ['GET', '/notes/doc?open_revs=["1-a","2-b"]&latest=true'], ['GET', '/notes/doc?open_revs=all&attachments=true'],
  ['PUT', '/notes/doc?rev=1-a', { a: 1 }], ['PUT', '/notes/doc?new_edits=false', { _rev: '3-c', _revisions: { start: 3, ids: ['c', 'b', 'a'] }, _attachments: { a: { data: 'eA==', content_type: 'text/plain' } } }],
  ['POST', '/notes', { _id: 'p', a: [1, 2] }], ['DELETE', '/notes/doc?rev=1-a'],
  ['POST', '/notes/_bulk_docs', { docs: [{ _id: 'q', _rev: '2-b', _revisions: { start: 2, ids: ['b', 'a'] }, _attachments: { f: { stub: true, digest: 'md5-AAAAAAAAAAAAAAAAAAAAAA==', length: 3, revpos: 1 } } }, { _id: 'r', _deleted: true, _rev: '1-z' }], new_edits: false }],
  ['POST', '/notes/_bulk_docs', { docs: [{ _id: 's', n: 1 }, { _id: 'doc', n: 2 }] }],
  ['POST', '/notes/_bulk_get?revs=true&latest=true&attachments=true', { docs: [{ id: 'doc', rev: '1-a' }, { id: 'q' }] }],
  ['POST', '/notes/_revs_diff', { doc: ['1-a', '2-b'], x: ['1-a'] }], ['POST', '/notes/_missing_revs', { doc: ['1-a'] }],
  ['GET', '/notes/_all_docs?startkey="a"&endkey="z"&limit=3&skip=1&include_docs=true&descending=false'], ['POST', '/notes/_all_docs?include_docs=true&attachments=true', { keys: ['doc', 'q', 'x'] }],
  ['GET', '/notes/_changes?since=0&limit=5&style=all_docs&include_docs=true&attachments=true'], ['GET', '/notes/_changes?descending=true&include_docs=true'],
  ['POST', '/notes/_changes?filter=_doc_ids', { doc_ids: ['doc'] }], ['POST', '/notes/_changes?filter=_selector', { selector: { a: { $gt: 1 }, $or: [{ b: 1 }] } }],
  ['GET', '/notes/_changes?feed=longpoll&timeout=10&since=now'], ['GET', '/notes/_changes?feed=continuous&timeout=10&heartbeat=false'],
  ['POST', '/notes/_find', { selector: { a: { $in: [1, 2] } }, fields: ['a', 'b.c'], sort: [{ _id: 'desc' }], limit: 3, skip: 1 }],
  ['PUT', '/notes/_local/c', { seq: 1 }], ['GET', '/notes/_local/c'], ['GET', '/notes/att/file'], ['PUT', '/notes/att/file', 'x'], ['DELETE', '/notes/att/file?rev=1-a'],
  ['GET', '/notes/_design/d'], ['GET', '/notes/_design/d/_view/v?key=1'], ['POST', '/notes/_ensure_full_commit', {}],
]

void t.test('fuzz: nothing that is asked ends the process', async t => {
  const { child, events } = await startChild(t)
  const { url } = child
  for (const name of ['notes', 'honest']) await child.createDatabase(name)
  await ask(url, 'PUT', '/honest/doc', { body: { kept: true } })
  await ask(url, 'PUT', '/notes/att/file', { raw: 'bytes' })
  const below = seeded(SEED)
  const pick = <T>(list: readonly T[]): T => list[below(list.length)]!

  function mutateJson (value: unknown): unknown {
    if (below(4) === 0 || value === null || typeof value !== 'object') return pick(STRANGE)
    if (Array.isArray(value)) return value.length > 0 && below(3) > 0 ? value.with(below(value.length), mutateJson(value.at(below(value.length)))) : [...value as unknown[], pick(STRANGE)]
    const entries = Object.entries(value)
    const [name, inner] = entries.length > 0 ? pick(entries) : ['x', 1]
    const key = below(5) === 0 ? pick(['_id', '_rev', '_attachments', '_revisions', '_deleted', 'docs', 'constructor', '$and', '_rev_tree', '_x']) : name
    return { ...value, [key]: mutateJson(inner) }
  }

  function mutateText (text: string): string {
    const at = below(text.length + 1)
    const put = pick(['%', '%00', '%2F', '%5F', '%ff', '"', '[', '&limit=0', '&rev=1-a', '/', '_', '=', '9', '&since=now', '%F0%9F%98%80', '-', 'é', '?'])
    return below(2) === 0 ? text.slice(0, at) + put + text.slice(at) : text.slice(0, at) + text.slice(at + 1 + below(3))
  }

  const agent = new Agent({ keepAlive: true, maxSockets: 16 })
  t.teardown(() => { agent.destroy() })
  const statuses = new Map<number, number>()
  const strange: string[] = []
  let asked = 0
  const until = performance.now() + FOR_MS
  async function client (): Promise<void> {
    while (performance.now() < until) {
      asked++
      const [method, path, body] = pick(BASES)
      let changed = body
      for (let round = below(3); round > 0 && changed !== undefined; round--) changed = mutateJson(changed)
      const json = changed === undefined ? undefined : JSON.stringify(changed)
      const raw = json !== undefined && below(6) === 0 ? mutateText(json) : json
      let target = path
      for (let round = below(4); round > 1; round--) target = mutateText(target)
      const printable = encodeURI(target).replaceAll('%25', '%')
      const sent = { as: pick(['me', 'me', 'writer', 'laptop', 'reader']), headers: below(8) === 0 ? { accept: 'multipart/mixed' } : {}, ...(raw !== undefined && { raw: Buffer.from(raw) }) }
      try {
        const { status } = await ask(url, below(20) === 0 ? pick(['GET', 'PUT', 'POST', 'DELETE', 'HEAD', 'COPY', 'OPTIONS']) : method, printable, sent, agent)
        statuses.set(status, (statuses.get(status) ?? 0) + 1)
        if (status < 200 || status > 599 || status === 500) strange.push(`${status} ${method} ${printable} ${raw ?? ''}`)
      } catch (error) {
        strange.push(`${String(error)} ${method} ${printable} ${raw ?? ''}`)
      }
      if (asked % 200 === 0) {
        const honest = await ask(url, 'GET', '/honest/doc')
        if (honest.json['kept'] !== true) strange.push(`the honest client got ${honest.text}`)
      }
    }
  }
  await Promise.all(Array.from({ length: 8 }, client))
  t.comment(`${asked} requests: ${[...statuses].toSorted(([a], [b]) => a - b).map(([status, count]) => `${count}×${status}`).join(' ')}`)
  t.same(strange.slice(0, 10), [], 'every answer is one that was meant')
  t.ok(statuses.has(200) && statuses.has(201) && statuses.has(400) && statuses.has(409), 'the mutations reach the handlers')
  t.same(events, [], 'the process never ended')
  t.match((await ask(url, 'GET', '/honest/doc')).json, { kept: true })
  t.equal((await ask(url, 'PUT', '/notes/after', { body: {} })).status, 201, 'and still writes')
})

void t.test('fuzz: bytes that are not HTTP', async t => {
  const { child, events } = await startChild(t)
  const below = seeded(SEED + 1)
  const head = `PUT /notes/doc HTTP/1.1\r\nHost: [::1]\r\nAuthorization: ${authorization('me')}\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}`
  await Promise.all(Array.from({ length: 150 }, async () => {
    const bytes = Buffer.from(head)
    for (let round = 1 + below(4); round > 0; round--) bytes[below(bytes.length)] = below(256)
    const socket = connect({ host: '::1', port: Number(new URL(child.url).port) })
    socket.on('error', () => undefined)
    socket.end(Uint8Array.from(bytes.subarray(0, below(3) === 0 ? below(bytes.length) : bytes.length)))
    socket.resume()
    await Promise.race([new Promise(resolve => socket.once('close', resolve)), delay(1000).then(() => socket.destroy())])
  }))
  t.equal((await ask(child.url, 'GET', '/')).status, 200)
  t.same(events, [])
})

import { once } from 'node:events'
import { readdir, stat, truncate, writeFile } from 'node:fs/promises'
import { IncomingMessage, ServerResponse } from 'node:http'
import { connect, Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t, { type Test } from 'tap'
import { Accounts } from '../src/embedded/accounts.js'
import { Bodies } from '../src/embedded/bodies.js'
import { bindSocket } from '../src/embedded/bound-socket.js'
import type { Exchange } from '../src/embedded/exchange.js'
import { startEmbedded, type Embedded, type EmbeddedOptions } from '../src/embedded/front.js'
import { readBytes } from '../src/embedded/inline.js'
import { EMBEDDED_LIMITS } from '../src/embedded/limits.js'
import { SharedLock } from '../src/embedded/lock.js'
import type { Pouch, StoredDocument } from '../src/embedded/pouch.js'
import { parseRange } from '../src/embedded/reading.js'
import { HANDLERS } from '../src/embedded/rows.js'
import { parseSelector } from '../src/embedded/selector.js'
import type { Store } from '../src/embedded/store.js'
import { holdable } from '../src/embedded/weight.js'
import { SURFACE } from '../src/policy/surface.js'
import { ACCOUNTS, ask, authorization, localPouch, openFeed, remotePouch, temporary, type Answer, type Ask } from './embedded/harness.js'

async function start (t: Test, options: Partial<EmbeddedOptions> = {}): Promise<Embedded & { dir: string }> {
  const dir = join(await temporary(t), 'couch')
  const embedded = await startEmbedded({ dir, accounts: ACCOUNTS, listen: { host: '::1', port: 0 }, ...options })
  t.teardown(() => embedded.stop())
  for (const name of ['notes', 'team-a', 'private-x', 'secret']) await embedded.createDatabase(name)
  return { ...embedded, dir }
}

function thrown (task: () => unknown): unknown {
  try {
    return task()
  } catch (error) {
    return error
  }
}

/** Milliseconds of CPU that this process has used since. */
function cpuMs (since: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(since)
  return (user + system) / 1000
}

/** What keeps a process alive; reading a source map does so for a moment too. */
const handles = (): string[] => process.getActiveResourcesInfo().filter(name => !name.startsWith('FSReq')).toSorted()

const rows = (answer: Answer): Array<Record<string, unknown>> => answer.json.rows as Array<Record<string, unknown>>
const ids = (answer: Answer): unknown[] => (answer.json.rows ?? answer.json.results ?? answer.json['docs'] as unknown[]).map(row => (row as Record<string, unknown>)['id'] ?? (row as Record<string, unknown>)['_id'])

void t.test('refusals', async t => {
  const { url } = await start(t)
  await ask(url, 'PUT', '/notes/doc', { body: { a: 1 } })
  await ask(url, 'PUT', '/secret/doc', { body: { a: 1 } })
  const any = ['me', 'laptop', 'reader', 'writer']
  const table: Array<[as: string[], method: string, path: string, status: number, ask?: Ask]> = [
    // What is not granted is not there.
    [['laptop', 'reader', 'writer'], 'GET', '/secret', 404],
    [['laptop', 'reader', 'writer'], 'GET', '/secret/doc', 404],
    [['laptop', 'reader', 'writer'], 'GET', '/absent', 404],
    [['me'], 'GET', '/absent', 404],
    [['laptop', 'reader', 'writer'], 'GET', '/secret/_changes', 404],
    [['laptop', 'reader', 'writer'], 'POST', '/secret/_bulk_get', 404, { body: { docs: [{ id: 'doc' }] } }],
    [['laptop', 'reader', 'writer'], 'POST', '/secret/_bulk_docs', 404, { body: { docs: [] } }],
    // A pattern is for own devices alone.
    [['writer'], 'GET', '/private-x', 404],
    [['laptop'], 'GET', '/team-a', 200],
    [['laptop'], 'PUT', '/team-a/doc', 403, { body: {} }],
    // Reading is not writing.
    [['reader'], 'POST', '/notes', 403, { body: {} }],
    [['reader'], 'PUT', '/notes/new', 403, { body: {} }],
    [['reader'], 'DELETE', '/notes/doc?rev=1-abc', 403],
    [['reader'], 'PUT', '/notes/doc/file?rev=1-abc', 403, { raw: 'x' }],
    [['reader'], 'DELETE', '/notes/doc/file?rev=1-abc', 403],
    [['reader'], 'POST', '/notes/_bulk_docs', 403, { body: { docs: [] } }],
    [['reader', 'writer'], 'POST', '/notes/_find', 403, { body: { selector: {} } }],
    [['reader', 'writer'], 'GET', '/notes/_design/d/_view/v', 403],
    [['laptop'], 'GET', '/notes/_design/d/_view/v', 501],
    [['me'], 'POST', '/notes/_design/d/_view/v', 501, { body: { keys: [] } }],
    // What the table does not have, nobody has; making a database is for owners.
    [['laptop', 'reader', 'writer'], 'PUT', '/mine', 404],
    [['laptop', 'reader', 'writer'], 'PUT', '/notes', 404],
    [any, 'DELETE', '/notes', 404],
    [any, 'GET', '/notes/_security', 404],
    [any, 'PUT', '/notes/_security', 404, { body: {} }],
    [any, 'POST', '/notes/_purge', 404, { body: {} }],
    [any, 'POST', '/notes/_compact', 404, { body: {} }],
    [any, 'PUT', '/notes/_revs_limit', 404, { raw: '1' }],
    [any, 'PUT', '/notes/_design/d', 404, { body: {} }],
    [any, 'PUT', '/notes/_design%2Fd', 404, { body: {} }],
    [any, 'DELETE', '/notes/_design/d?rev=1-abc', 404],
    [any, 'PUT', '/notes/_design/d/file', 404, { raw: 'x' }],
    [any, 'COPY', '/notes/doc', 404],
    [any, 'GET', '/_session', 404],
    [any, 'GET', '/_users', 404],
    [any, 'POST', '/_replicate', 404, { body: {} }],
    [any, 'GET', '/notes/_design_docs', 404],
    [any, 'GET', '/notes/_local_docs', 404],
    [any, 'GET', '/notes/_changes?filter=_view&view=a/b', 400],
    [any, 'GET', '/notes/_changes?filter=app/mine', 400],
    [any, 'GET', '/notes/_all_docs?keys=[%22_local/x%22]', 400],
    [any, 'GET', '/notes?x=1', 400],
    // Bodies may not name what the path may not.
    [['me', 'laptop', 'writer'], 'POST', '/notes', 403, { body: { _id: '_design/x' } }],
    [['me', 'laptop', 'writer'], 'POST', '/notes', 403, { body: { _id: '_local/x' } }],
    [['me', 'laptop', 'writer'], 'POST', '/notes/_bulk_docs', 403, { body: { docs: [{ _id: 'fine' }, { _id: '_design/x' }] } }],
    [['me', 'laptop', 'writer'], 'POST', '/notes/_bulk_docs', 403, { body: { docs: [{ _id: '_local/x', _rev: '0-1' }], new_edits: false } }],
    [['me', 'laptop', 'writer'], 'PUT', '/notes/doc', 400, { body: { _id: '_design/x' } }],
    [any, 'POST', '/notes/_bulk_get', 403, { body: { docs: [{ id: '_local/x' }] } }],
    [any, 'POST', '/notes/_revs_diff', 403, { body: { '_local/x': ['0-1'] } }],
    [any, 'POST', '/notes/_all_docs', 403, { body: { keys: ['_local/x'] } }],
    // The form of requests.
    [any, 'GET', '/notes//doc', 400],
    [any, 'GET', '/notes/..%2Fsecret', 400],
    [any, 'GET', '/notes/%5Fall_docs/', 404],
    [any, 'GET', 'http://[::1]/notes', 400],
    [any, 'GET', '/', 400, { headers: { host: 'evil.example' } }],
    [any, 'GET', '/', 400, { headers: { host: 'localhost.evil.example' } }],
    [any, 'GET', '/', 400, { headers: { host: '[::2]' } }],
    [any, 'GET', '/', 200, { headers: { host: 'localhost:1' } }],
    [any, 'GET', '/', 403, { headers: { origin: 'http://evil.example' } }],
    [any, 'GET', '/', 403, { headers: { 'sec-fetch-site': 'cross-site' } }],
    [any, 'POST', '/notes/doc', 400, { headers: { 'x-http-method-override': 'DELETE' }, body: {} }],
    [any, 'GET', '/', 400, { headers: { upgrade: 'websocket', connection: 'upgrade' } }],
    [['me', 'writer'], 'PUT', '/notes/enc', 415, { body: {}, headers: { 'content-encoding': 'gzip' } }],
    [['me', 'writer'], 'PUT', '/notes/enc', 415, { body: {}, headers: { 'content-type': 'text/plain' } }],
    [['me', 'writer'], 'PUT', '/notes/enc', 415, { raw: '--x\r\nbroken', headers: { 'content-type': 'multipart/related; boundary=x' } }],
    [['me', 'writer'], 'POST', '/notes', 415, { raw: 'a=b', headers: { 'content-type': 'application/x-www-form-urlencoded' } }],
  ]
  for (const [who, method, path, status, how] of table) {
    for (const as of who) {
      const answer = await ask(url, method, path, { ...how, as })
      t.equal(answer.status, status, `${as}: ${method} ${path} → ${status} (${answer.text.trim().slice(0, 90)})`)
    }
  }
  const absent = await ask(url, 'GET', '/absent/doc', { as: 'reader' })
  const withheld = await ask(url, 'GET', '/secret/doc', { as: 'reader' })
  t.equal(absent.text, withheld.text, 'absent and withheld databases answer alike')
  t.same(ids(await ask(url, 'GET', '/notes/_all_docs')), ['doc'], 'nothing of it was written')
})

void t.test('strangers', async t => {
  const { url } = await start(t)
  const answers = await Promise.all(['', 'nobody:x', 'me:wrong', 'me:', ':owner-secret', 'me:owner-secret2', 'ME:owner-secret'].map(auth => ask(url, 'GET', '/notes', { auth })))
  for (const answer of answers) {
    t.equal(answer.status, 401)
    t.equal(answer.text, answers[0]!.text, 'every failure says the same')
    t.match(answer.headers['www-authenticate'], /^Basic/)
  }
  for (const header of ['Basic', 'Basic !!!', 'Bearer x', 'Basic bWU=', `Basic ${'A'.repeat(9000)}`]) {
    t.equal((await ask(url, 'GET', '/', { auth: '', headers: { authorization: header } })).status, 401, header.slice(0, 12))
  }
  t.equal((await ask(url, 'PUT', '/made', { auth: 'nobody:x' })).status, 401)
  t.equal((await ask(url, 'GET', '/made')).status, 404)
  const accounts = new Accounts(ACCOUNTS)
  t.equal(accounts.credential('Basic bWU='), undefined, 'a credential without a colon is none')
})

void t.test('every row has a handler, and no handler is without a row', async t => {
  const named = SURFACE.filter(({ path }) => path !== 'welcome' && path !== 'all-dbs').map(({ id }) => id)
  t.same(Object.keys(HANDLERS).toSorted(), named.toSorted())
})

void t.test('databases', async t => {
  const { url, dir, ...embedded } = await start(t)
  t.match((await ask(url, 'GET', '/')).json, { couchdb: 'Welcome' })
  t.same((await ask(url, 'GET', '/_all_dbs')).json, ['notes', 'private-x', 'secret', 'team-a'])
  t.same((await ask(url, 'GET', '/_all_dbs', { as: 'reader' })).json, ['notes'])
  t.same((await ask(url, 'GET', '/_all_dbs', { as: 'laptop' })).json, ['notes', 'team-a'])
  const seen: unknown[] = []
  const off = embedded.onDatabases(names => { seen.push(names.filter(name => name.startsWith('a'))) })
  t.equal((await ask(url, 'PUT', '/a%2Fb')).status, 201)
  t.equal((await ask(url, 'PUT', '/a%2Fb/')).status, 412)
  t.equal((await ask(url, 'PUT', '/a%2Fb')).json.error, 'file_exists')
  t.equal((await ask(url, 'PUT', '/Upper')).json.error, 'illegal_database_name')
  t.equal((await ask(url, 'PUT', `/a${'/'.repeat(0)}${'%2F'.repeat(230)}`)).status, 201, 'the longest names have a folder')
  t.match((await ask(url, 'GET', '/a%2Fb')).json, { db_name: 'a/b', doc_count: 0, update_seq: 0, instance_start_time: '0', purge_seq: 0, compact_running: false, disk_format_version: 8, sizes: { file: Number } })
  t.equal((await ask(url, 'HEAD', '/a%2Fb')).text, '')
  await embedded.deleteDatabase('a/b')
  t.equal((await ask(url, 'GET', '/a%2Fb')).status, 404)
  off()
  t.equal(seen.length, 3)
  t.same(seen.at(-1), [`a${'/'.repeat(230)}`])
  await t.rejects(embedded.createDatabase('notes'), { code: 'already-exists' })
  await t.rejects(embedded.createDatabase('../notes'), { code: 'usage' })
  t.equal((await stat(dir)).mode & 0o777, 0o700)
  const both = await Promise.allSettled([embedded.createDatabase('twice'), embedded.createDatabase('twice')])
  t.equal(both.filter(({ status }) => status === 'fulfilled').length, 1, 'of two who make one, one does')
})

void t.test('documents', async t => {
  const { url } = await start(t)
  const on = (method: string, path: string, how?: Ask): Promise<Answer> => ask(url, method, `/notes/${path}`, how)
  const first = await on('PUT', 'a%2Fb', { body: { n: 1 } })
  t.equal(first.status, 201)
  const one = first.json.rev!
  t.same(first.json, { ok: true, id: 'a/b', rev: one })
  t.equal(first.headers.etag, `"${one}"`)
  t.equal((await on('PUT', 'a%2Fb', { body: { n: 2 } })).json.error, 'conflict')
  t.equal((await on('PUT', 'a%2Fb?rev=1-abc', { body: { n: 2 } })).status, 409)
  t.equal((await on('PUT', `a%2Fb?rev=${one}`, { body: { _rev: '1-abc', n: 2 } })).status, 400)
  const two = (await on('PUT', 'a%2Fb', { body: { n: 2 }, headers: { 'if-match': `"${one}"` } })).json.rev!
  t.match(two, /^2-/)
  const got = await on('GET', 'a%2Fb?revs=true&revs_info=true')
  t.match(got.json, { _id: 'a/b', _rev: two, n: 2, _revisions: { start: 2, ids: [two.slice(2), one.slice(2)] }, _revs_info: [{ rev: two, status: 'available' }, { rev: one, status: 'missing' }] })
  t.equal((await on('GET', 'a%2Fb', { headers: { 'if-none-match': `"${two}"` } })).status, 304)
  const head = await on('HEAD', 'a%2Fb')
  t.equal(head.text, '')
  t.equal(head.headers.etag, `"${two}"`)
  t.equal((await on('GET', `a%2Fb?rev=${one}`)).status, 404, 'old bodies go when they are replaced')
  t.same((await on('GET', 'nothing')).json, { error: 'not_found', reason: 'missing' })
  t.equal((await on('DELETE', 'nothing')).status, 404)
  t.equal((await on('DELETE', 'a%2Fb')).status, 409)
  const gone = await on('DELETE', `a%2Fb?rev=${two}`)
  t.equal(gone.status, 200)
  t.same((await on('GET', 'a%2Fb')).json, { error: 'not_found', reason: 'deleted' })
  t.match((await on('GET', `a%2Fb?rev=${gone.json.rev}`)).json, { _deleted: true })
  const posted = await ask(url, 'POST', '/notes', { body: { made: true } })
  t.match([posted.status, posted.json], [201, { ok: true, id: /^[0-9a-f]{32}$/ }])

  await on('POST', '_bulk_docs', { body: { new_edits: false, docs: [{ _id: 'c', _rev: '2-aa', _revisions: { start: 2, ids: ['aa', '11'] }, x: 1 }, { _id: 'c', _rev: '2-bb', x: 2 }, { _id: 'c', _rev: '2-cc', _deleted: true }] } })
  t.match((await on('GET', 'c?conflicts=true')).json, { _rev: '2-bb', _conflicts: ['2-aa'] })
  t.match((await on('GET', 'c?meta=true')).json, { _deleted_conflicts: ['2-cc'] })
  t.same((await on('GET', 'c?open_revs=["2-aa","9-zz"]', { headers: { accept: 'application/json' } })).json, [{ ok: { _id: 'c', _rev: '2-aa', x: 1 } }, { missing: '9-zz' }])
  t.equal(((await on('GET', 'c?open_revs=all')).json as unknown as unknown[]).length, 3)
  t.equal((await on('GET', 'nothing?open_revs=all')).status, 404)
  t.same((await on('POST', '_bulk_docs', { body: { docs: [{ _id: 'c' }, { _id: 'd' }] } })).json, [{ id: 'c', error: 'conflict', reason: 'Document update conflict.' }, { ok: true, id: 'd', rev: '1-' + (await on('GET', 'd')).headers.etag!.slice(3, -1) }])
  t.same((await on('PUT', 'e?new_edits=false', { body: { _rev: '5-ee' } })).json, { ok: true, id: 'e', rev: '5-ee' })

  const local = await on('PUT', '_local/check', { body: { _id: '_local/check', seq: 4 } })
  t.match([local.status, local.json], [201, { ok: true, id: '_local/check', rev: '0-1' }])
  t.equal((await on('PUT', '_local/check', { body: { seq: 5 } })).status, 409)
  t.equal((await on('PUT', '_local/check', { body: { _rev: '0-1', seq: 5 } })).json.rev, '0-2')
  t.match((await on('GET', '_local%2Fcheck')).json, { _id: '_local/check', seq: 5 })
  t.equal((await on('GET', '_local/other')).status, 404)
  t.equal((await on('PUT', '_local/big', { body: { x: 'x'.repeat(70_000) } })).status, 413)
  t.notOk((await on('GET', '_all_docs')).text.includes('_local'), 'a checkpoint is no document')
})

void t.test('attachments', async t => {
  const { url } = await start(t)
  const text = 'hello, attachment'
  const made = await ask(url, 'PUT', '/notes/doc/dir/a.txt', { raw: text, headers: { 'content-type': 'text/plain' } })
  t.equal(made.status, 201)
  t.equal((await ask(url, 'PUT', '/notes/doc/b', { raw: 'x' })).status, 409, 'a document that is there needs its revision')
  const got = await ask(url, 'GET', '/notes/doc/dir/a.txt')
  t.equal(got.text, text)
  t.match(got.headers, { 'content-type': 'text/plain', 'content-length': '17', 'accept-ranges': 'bytes', 'content-md5': /==$/, 'etag': /^".{24}"$/, 'content-security-policy': 'sandbox', 'x-content-type-options': 'nosniff' })
  t.equal((await ask(url, 'GET', '/notes/doc/dir/a.txt', { headers: { 'if-none-match': got.headers.etag! } })).status, 304)
  const head = await ask(url, 'HEAD', '/notes/doc/dir/a.txt')
  t.match([head.text, head.headers['content-length']], ['', '17'])
  const part = await ask(url, 'GET', '/notes/doc/dir/a.txt', { headers: { range: 'bytes=7-9' } })
  t.match([part.status, part.text, part.headers['content-range']], [206, 'att', 'bytes 7-9/17'])
  t.equal((await ask(url, 'GET', '/notes/doc/dir/a.txt', { headers: { range: 'bytes=17-' } })).status, 416)
  for (const [condition, status] of [[got.headers.etag!, 206], ['"other"', 200], [`W/${got.headers.etag}`, 200], ['Wed, 01 Jan 2025 00:00:00 GMT', 200]] as const) {
    t.equal((await ask(url, 'GET', '/notes/doc/dir/a.txt', { headers: { 'range': 'bytes=7-9', 'if-range': condition } })).status, status, condition)
  }
  for (const name of ['none', 'constructor', 'toString']) t.equal((await ask(url, 'GET', `/notes/doc/${name}`)).status, 404, name)
  t.match((await ask(url, 'GET', '/notes/doc?attachments=true')).json, { _attachments: { 'dir/a.txt': { data: Buffer.from(text).toString('base64'), content_type: 'text/plain' } } })
  t.match((await ask(url, 'GET', '/notes/doc')).json, { _attachments: { 'dir/a.txt': { stub: true, length: 17, digest: /^md5-/ } } })

  // A bare stub keeps what the replaced revision had; an unknown one is refused.
  const kept = await ask(url, 'PUT', '/notes/doc', { body: { _rev: made.json.rev, n: 1, _attachments: { 'dir/a.txt': { stub: true }, 'new': { data: 'eA' } } } })
  t.equal(kept.status, 201)
  t.equal((await ask(url, 'GET', '/notes/doc/new')).text, 'x', 'base64 without padding is taken')
  t.equal((await ask(url, 'GET', '/notes/doc/dir/a.txt')).text, text)
  t.equal((await ask(url, 'PUT', '/notes/doc', { body: { _rev: kept.json.rev, _attachments: { other: { stub: true } } } })).status, 412)
  t.equal((await ask(url, 'DELETE', `/notes/doc/none?rev=${kept.json.rev}`)).status, 404)
  t.equal((await ask(url, 'DELETE', `/notes/doc/new?rev=${made.json.rev}`)).status, 409)
  t.equal((await ask(url, 'DELETE', `/notes/doc/new?rev=${kept.json.rev}`)).status, 200)
  t.equal((await ask(url, 'GET', '/notes/doc/new')).status, 404)
  t.equal((await ask(url, 'PUT', '/notes/empty/none', { raw: '', headers: { 'content-type': 'text/plain' } })).status, 201)
  t.equal((await ask(url, 'GET', '/notes/empty/none')).text, '')

  const mixed = await ask(url, 'GET', '/notes/doc?open_revs=all&revs=true', { headers: { accept: 'multipart/mixed' } })
  const outer = /boundary="([^"]+)"/.exec(mixed.headers['content-type']!)![1]!
  t.ok(mixed.text.endsWith(`--${outer}--`))
  t.match(mixed.text, /Content-Type: multipart\/related; boundary=/)
  t.ok(mixed.text.includes(`"follows":true`) && mixed.text.includes(`\r\n\r\n${text}\r\n--`))

  const cases: Array<[string, number, ReturnType<typeof parseRange> | 416]> = [
    ['bytes=0-0', 5, [0, 0]], ['bytes=-2', 5, [3, 4]], ['bytes=-9', 5, [0, 4]], ['bytes=2-', 5, [2, 4]], ['bytes=2-99', 5, [2, 4]],
    ['bytes=3-2', 5, undefined], ['bytes=0-1,3-4', 5, undefined], ['bytes=-', 5, undefined], ['lines=1-2', 5, undefined], ['bytes=5-', 5, 416], ['bytes=-0', 5, 416], ['bytes=0-', 0, 416],
  ]
  for (const [header, length, expected] of cases) {
    if (expected === 416) t.match(thrown(() => parseRange(header, length)), { status: 416 }, header)
    else t.same(parseRange(header, length), expected, header)
  }
})

void t.test('bodies that are traps', async t => {
  const { url } = await start(t)
  await ask(url, 'PUT', '/notes/doc', { body: {} })
  const deep = (levels: number): string => `${'['.repeat(levels)}${']'.repeat(levels)}`
  const table: Array<[method: string, path: string, raw: string, status: number]> = [
    ['POST', '/notes/_revs_diff', '"text"', 400],
    ['POST', '/notes/_revs_diff', '{"a":"1-x"}', 400],
    ['POST', '/notes/_revs_diff', '{"a":[1]}', 400],
    ['POST', '/notes/_revs_diff', '{"a":{"length":1}}', 400],
    ['POST', '/notes/_revs_diff', '{"__proto__":["1-a"]}', 400],
    ['POST', '/notes/_revs_diff', '{"constructor":["1-a"],"toString":["1-a"]}', 200],
    ['POST', '/notes/_missing_revs', 'null', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":null}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":"abc"}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[null]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[[]]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":7}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":""}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"_x"}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"\\ud800"}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":null}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[],"new_edits":"no"}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_rev":"garbage"}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_rev":7}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x"}],"new_edits":false}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_revisions":"ab"}],"new_edits":false}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_revisions":{"start":1,"ids":["a","b"]}}],"new_edits":false}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_revisions":{"start":1e300,"ids":["a"]}}],"new_edits":false}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_rev":"1-a","_revisions":{"start":1,"ids":["b"]}}],"new_edits":false}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_rev":"1-a","_rev_tree":[{"pos":1,"ids":7}]}],"new_edits":false}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","_deleted":"yes"}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"__proto__":{"_id":"_design/x"}}]}', 400],
    ['POST', '/notes/_bulk_docs', '{"docs":[{"_id":"x","a":{"\\u005f_proto__":1}}]}', 400],
    ['PUT', '/notes/x', '{"_attachments":[]}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":null}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"_a":{"data":""}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"data":7}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"data":"!!"}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"data":"=AAA"}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"data":"A"}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"follows":true,"length":3}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"data":"","content_type":"a\\r\\nb: c"}}}', 400],
    ['PUT', '/notes/x', '{"_attachments":{"a":{"stub":true,"digest":"md5-AAAAAAAAAAAAAAAAAAAAAA==","length":3}}}', 412],
    ['PUT', '/notes/x', '{"_strange":1}', 400],
    ['PUT', '/notes/x', `{"a":${deep(10_000)}}`, 400],
    ['PUT', '/notes/x', `{"a":${deep(63)}}`, 201],
    ['PUT', '/notes/x', deep(65), 400],
    ['PUT', '/notes/x', '{"a":1', 400],
    ['PUT', '/notes/x', '\ufeff{}', 400],
    ['PUT', '/notes/x', '7', 400],
    ['PUT', '/notes/x', `{"a":[${'0,'.repeat(1024 * 1024)}0]}`, 413],
    ['PUT', '/notes/constructor', '{"constructor":1,"hasOwnProperty":2,"toString":3}', 201],
    ['POST', '/notes/_bulk_get', '{"docs":[null]}', 400],
    ['POST', '/notes/_bulk_get', '{"docs":[{"id":7}]}', 400],
    ['POST', '/notes/_bulk_get', '{"docs":[{"id":"doc","rev":"x"}]}', 400],
    ['POST', '/notes/_bulk_get', '{"docs":{}}', 400],
    ['POST', '/notes/_all_docs', '{"keys":"doc"}', 400],
    ['POST', '/notes/_all_docs', '{"keys":[7,null,"",{}]}', 200],
    ['POST', '/notes/_changes?filter=_selector', '{}', 400],
    ['POST', '/notes/_changes?filter=_selector', '{"selector":{"a":{"$where":"1"}}}', 400],
    ['POST', '/notes/_changes?filter=_selector', '{"selector":{"$or":7}}', 400],
    ['POST', '/notes/_changes?filter=_selector', '{"selector":{"a":{"$regex":"(a+)+$"}}}', 400],
    ['POST', '/notes/_changes?filter=_doc_ids', '{"doc_ids":"doc"}', 400],
    ['POST', '/notes/_find', '{"selector":{"$where":"process.exit()"}}', 400],
    ['POST', '/notes/_find', '{"selector":{"a":{"$mod":[0,1]}}}', 400],
    ['POST', '/notes/_find', '{"selector":{},"sort":["name"]}', 400],
    ['POST', '/notes/_find', '{"selector":{},"limit":-1}', 400],
    ['POST', '/notes/_find', '{"selector":{},"bookmark":{}}', 400],
    ['POST', '/notes/_find', '{"selector":{},"fields":[7]}', 400],
    ['POST', '/notes/_find', '{"selector":{},"fields":["__proto__.x","constructor.prototype.y"]}', 200],
    ['PUT', '/notes/_local/x', '{"_rev":"1-x"}', 400],
    ['PUT', '/notes/_local/x', '[]', 400],
  ]
  for (const [method, path, raw, status] of table) {
    const answer = await ask(url, method, path, { raw })
    t.equal(answer.status, status, `${method} ${path} ${raw.slice(0, 70)} → ${status} (${answer.text.trim().slice(0, 80)})`)
  }
  t.equal((await ask(url, 'POST', '/notes', { raw: Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]) })).status, 400, 'not UTF-8')
  t.notOk('y' in Object.prototype)
  t.equal((await ask(url, 'GET', '/notes/doc')).status, 200)
})

void t.test('lists and comparisons', async t => {
  const { url } = await start(t)
  const docs = Array.from({ length: 1203 }, (_, index) => ({ _id: `d${String(index).padStart(4, '0')}`, n: index }))
  await ask(url, 'POST', '/notes/_bulk_docs', { body: { docs } })
  const list = (query: string, how: Ask = {}): Promise<Answer> => ask(url, how.body === undefined ? 'GET' : 'POST', `/notes/_all_docs?${query}`, how)
  const all = docs.map(({ _id }) => _id)
  t.same(ids(await list('')), all, 'across pages')
  t.same(ids(await list('descending=true')), all.toReversed())
  t.match((await list('limit=0')).json, { total_rows: 1203, rows: [] })
  t.same(ids(await list('skip=1200')), all.slice(1200))
  t.same(ids(await list('startkey="d0002"&endkey="d0004"')), all.slice(2, 5))
  t.same(ids(await list('startkey="d0002"&endkey="d0004"&inclusive_end=false')), all.slice(2, 4))
  t.same(ids(await list('startkey="d0004"&endkey="d0002"&descending=true&limit=2')), ['d0004', 'd0003'])
  t.same(ids(await list('key="d0007"')), ['d0007'])
  for (const none of ['key=""', 'key=7', 'key="d"', 'endkey=""', 'startkey={}', 'startkey=7&descending=true', 'startkey="z"']) t.same(ids(await list(none)), [], none)
  t.equal(ids(await list('startkey=null')).length, 1203)
  t.equal(ids(await list('startkey=7&endkey={}')).length, 1203)
  const gone = (await ask(url, 'GET', '/notes/d0001')).json['_rev'] as string
  await ask(url, 'DELETE', `/notes/d0001?rev=${gone}`)
  t.match(rows(await list('include_docs=true', { body: { keys: ['d0003', 'none', 7, 'd0001', 'd0003'] } })), [
    { id: 'd0003', doc: { n: 3 } }, { key: 'none', error: 'not_found' }, { key: 7, error: 'not_found' }, { id: 'd0001', value: { deleted: true }, doc: null }, { id: 'd0003' },
  ])
  t.equal((await list('')).json['total_rows'], 1202)

  const { _rev } = (await ask(url, 'GET', '/notes/d0003')).json as { _rev: string }
  t.same((await ask(url, 'POST', '/notes/_revs_diff', { body: { d0003: [_rev, '2-x', '2-x'], other: ['1-a'], d0004: [] } })).json, { d0003: { missing: ['2-x'], possible_ancestors: [_rev] }, other: { missing: ['1-a'] } })
  t.same((await ask(url, 'POST', '/notes/_missing_revs', { body: { d0003: [_rev, '2-x'] } })).json, { missing_revs: { d0003: ['2-x'] } })
  t.same((await ask(url, 'POST', '/notes/_ensure_full_commit', { body: {} })).json, { ok: true, instance_start_time: '0' })
  t.same((await ask(url, 'POST', '/notes/_bulk_get?revs=true', { body: { docs: [{ id: 'd0003', rev: _rev }, { id: 'd0003', rev: '2-x' }, { id: 'none' }, { id: 'd0004' }] } })).json.results!.map(({ id, docs }) => [id, Object.keys((docs as object[])[0]!)]), [
    ['d0003', ['ok']], ['d0003', ['error']], ['none', ['error']], ['d0004', ['ok']],
  ])

  const find = (body: object): Promise<Answer> => ask(url, 'POST', '/notes/_find', { body })
  t.same(ids(await find({ selector: { n: { $gte: 600 } }, limit: 3, skip: 1 })), ['d0601', 'd0602', 'd0603'])
  t.same(ids(await find({ selector: { n: { $lt: 5 } }, sort: [{ _id: 'desc' }] })), ['d0004', 'd0003', 'd0002', 'd0000'])
  const page = await find({ selector: {}, limit: 2, fields: ['_id', 'n'] })
  t.same(page.json['docs'], [{ _id: 'd0000', n: 0 }, { _id: 'd0002', n: 2 }])
  t.same(ids(await find({ selector: {}, limit: 1, bookmark: page.json['bookmark'] })), ['d0003'])
  t.notOk((await list('')).text.includes('_design'), 'searching leaves no design documents')
})

void t.test('IDs of every script are listed, in the order of UTF-8', async t => {
  const { url } = await start(t)
  const names = ['A', 'z', 'é', 'ÿ', 'ÿ2', 'ÿby-sequenceÿ1', 'Документ', '文書', '\ue000', '\uffff', '\uffff2', '😀', '😀😀', '\u{10ffff}', 'x\u0000y', 'constructor']
  const every = names.flatMap(name => Array.from({ length: 40 }, (_, index) => `${name}-${index}`)).toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
  await ask(url, 'POST', '/notes/_bulk_docs', { body: { docs: every.map(_id => ({ _id })) } })
  const list = async (query: string): Promise<unknown[]> => (JSON.parse(Buffer.from((await ask(url, 'GET', `/notes/_all_docs?${query}`)).text, 'latin1').toString()) as { rows: Array<{ id: string }> }).rows.map(({ id }) => id)
  for (const query of ['', 'include_docs=true']) {
    t.same(await list(query), every, `all, ${query}`)
    t.same(await list(`descending=true&${query}`), every.toReversed(), `backwards, ${query}`)
    t.same(await list(`skip=300&limit=120&${query}`), every.slice(300, 420))
    for (const at of [3, 50, 400, every.length - 30]) {
      t.same(await list(`startkey=${encodeURIComponent(JSON.stringify(every[at]))}&${query}`), every.slice(at), `from ${every[at]}`)
      t.same(await list(`endkey=${encodeURIComponent(JSON.stringify(every[at]))}&${query}`), every.slice(0, at + 1), `to ${every[at]}`)
      t.same(await list(`descending=true&startkey=${encodeURIComponent(JSON.stringify(every[at]))}&${query}`), every.slice(0, at + 1).toReversed(), `back from ${every[at]}`)
    }
  }
  const found = JSON.parse(Buffer.from((await ask(url, 'POST', '/notes/_find', { body: { selector: {}, limit: 10_000, fields: ['_id'] } })).text, 'latin1').toString()) as { docs: Array<{ _id: string }> }
  t.same(found.docs.map(({ _id }) => _id), every)
})

void t.test('large attachments are sent one by one, wherever they are asked for', async t => {
  const { url } = await start(t)
  const bytes = Buffer.alloc(1_500_000, 'attachment ')
  const data = bytes.toString('base64')
  const doc = { _id: 'doc', _attachments: { '10': { data, content_type: 'a/b' }, '2': { data: 'eA==' }, 'z': { data: bytes.subarray(1).toString('base64') } } }
  await ask(url, 'POST', '/notes/_bulk_docs', { body: { docs: [doc, { ...doc, _id: 'other' }, { _id: 'small', _attachments: { s: { data: 'eQ==' } } }] } })
  const same = (given: unknown, message: string): void => {
    const attachments = (given as typeof doc)._attachments
    t.match(attachments['2'], { data: 'eA==', revpos: 1, digest: /^md5-/ }, message)
    t.equal(attachments['10'].data, data, message)
    t.equal(attachments.z.data, doc._attachments.z.data, message)
  }
  same((await ask(url, 'GET', '/notes/doc?attachments=true')).json, 'document')
  const [open] = (await ask(url, 'GET', '/notes/doc?open_revs=all&attachments=true', { headers: { accept: 'application/json' } })).json as unknown as Array<{ ok: unknown }>
  same(open!.ok, 'open_revs')
  const got = (await ask(url, 'POST', '/notes/_bulk_get?attachments=true', { body: { docs: [{ id: 'other' }, { id: 'doc' }] } })).json.results!
  for (const { docs } of got) same((docs as Array<{ ok: unknown }>)[0]!.ok, '_bulk_get')
  const all = rows(await ask(url, 'GET', '/notes/_all_docs?include_docs=true&attachments=true'))
  for (const row of all.slice(0, 2)) same(row['doc'], '_all_docs')
  t.match(all[2], { doc: { _attachments: { s: { data: 'eQ==' } } } })
  for (const order of ['', '&descending=true']) {
    const changes = (await ask(url, 'GET', `/notes/_changes?include_docs=true&attachments=true${order}`)).json.results!
    for (const row of changes.filter(({ id }) => id !== 'small')) same(row['doc'], `_changes${order}`)
  }
  t.ok((await ask(url, 'GET', '/notes/doc?open_revs=all', { headers: { accept: 'multipart/mixed' } })).text.includes(`\r\n\r\n${bytes.toString('latin1')}\r\n--`), 'multipart')
  t.equal((await ask(url, 'PUT', '/notes/huge', { body: { x: 'x'.repeat(8_000_000) } })).status, 413, 'a document without attachments is smaller')
})

void t.test('revisions are read one by one, and once, however many there are and however often they are asked for', async t => {
  const { url } = await start(t)
  const pad = 'x'.repeat(4_000_000)
  const revs = Array.from({ length: 6 }, (_, index) => `1-${index}`)
  for (const rev of revs) await ask(url, 'PUT', '/notes/doc?new_edits=false', { body: { _rev: rev, pad } })
  const cost = async (method: string, path: string, how: Ask): Promise<[answer: Answer, cpuMs: number]> => {
    const since = process.cpuUsage()
    const answer = await ask(url, method, path, how)
    t.equal(answer.status, 200)
    return [answer, cpuMs(since)]
  }
  const oks = (found: unknown): string[] => (found as Array<{ ok: { _rev: string, pad: string } }>).map(({ ok }) => ok.pad === pad ? ok._rev : 'other').toSorted()
  const json = { headers: { accept: 'application/json' } }
  const [all] = await cost('GET', '/notes/doc?open_revs=all', json)
  t.same(oks(all.json), revs)
  const [parts] = await cost('GET', '/notes/doc?open_revs=all', { headers: { accept: 'multipart/mixed' } })
  t.same([...parts.text.matchAll(/"_rev":"(1-\d)"/g)].map(match => match[1]!).toSorted(), revs)
  const [some] = await cost('GET', '/notes/doc?open_revs=["1-0","2-x","1-0"]', json)
  t.same((some.json as unknown as object[]).map(one => Object.keys(one)), [['ok'], ['missing']])
  t.same((await ask(url, 'GET', '/notes/none?open_revs=["1-0"]', json)).json, [{ missing: '1-0' }])
  t.equal((await ask(url, 'GET', '/notes/none?open_revs=all', json)).status, 404)
  t.same((await ask(url, 'GET', '/notes/doc?open_revs=[]', json)).json, [])

  const [bulk] = await cost('POST', '/notes/_bulk_get', { body: { docs: [{ id: 'none' }, { id: 'doc' }, { id: 'doc', rev: '2-x' }] } })
  t.match(bulk.json.results, [{ id: 'none', docs: [{ error: { error: 'not_found' } }] }, { id: 'doc' }, { id: 'doc', docs: [{ error: { rev: '2-x' } }] }])
  t.same(oks(bulk.json.results![1]!['docs']), revs)

  const [, once] = await cost('GET', '/notes/doc?open_revs=["1-0"]', json)
  const [, often] = await cost('GET', `/notes/doc?open_revs=${JSON.stringify(Array(400).fill('1-0'))}`, json)
  t.ok(often < 20 * once + 500, `${often} ms of CPU for 400 times what takes ${once} ms`)
})

void t.test('an attachment whose bytes are lost is not answered as an empty one', async t => {
  const pouch = { getAttachment: async () => Buffer.alloc(0) } as unknown as Pouch
  const document = { _id: 'doc', _rev: '1-a' }
  await t.rejects(readBytes(pouch, document, 'a', { digest: 'md5-x', length: 3 }), { message: /are lost/ })
  t.equal((await readBytes(pouch, document, 'a', { digest: 'md5-x', length: 0 })).length, 0)
})

void t.test('selectors', async t => {
  const doc = { a: 1, s: 'text', l: [1, 'x', { y: 2 }], o: { p: { q: null } }, 'a.b': 7, t: true }
  const yes: object[] = [
    {}, { a: 1 }, { a: { $gt: 0, $lt: 2 } }, { s: { $gte: 'text' } }, { 'o.p.q': null }, { o: { p: { q: { $exists: true } } } }, { 'a\\.b': 7 },
    { l: { $size: 3 } }, { l: { $all: [1, 'x'] } }, { l: { $elemMatch: { y: 2 } } }, { l: { $in: ['x'] } }, { a: { $in: [3, 1] } }, { a: { $nin: [3] } }, { a: { $mod: [2, 1] } },
    { $or: [{ a: 2 }, { s: 'text' }] }, { $and: [{ a: 1 }, { t: true }] }, { $nor: [{ a: 2 }] }, { $not: { a: 2 } }, { a: { $not: { $gt: 1 } } }, { a: { $ne: 2 } },
    { a: { $type: 'number' } }, { l: { $type: 'array' } }, { z: { $exists: false } }, { s: { $beginsWith: 'te' } }, { o: { $keyMapMatch: { $eq: 'p' } } }, { o: { p: { q: null } } },
  ]
  const no: object[] = [{ a: 2 }, { a: '1' }, { z: null }, { z: { $ne: 1 } }, { constructor: { $exists: true } }, { '__proto__.x': { $exists: true } }, { s: { $gt: 'text' } }, { l: { $allMatch: { $lt: 5 } } }, { a: { $lt: 1 } }, { $or: [] }]
  for (const selector of yes) t.equal(parseSelector(selector)(doc), true, JSON.stringify(selector))
  for (const selector of no) t.equal(parseSelector(selector)(doc), false, JSON.stringify(selector))
  let nested: object = { a: 1 }
  for (let depth = 0; depth < 9; depth++) nested = { $not: nested }
  for (const bad of [nested, [], 'x', { $where: '' }, { a: { $foo: 1 } }, { a: { $in: 7 } }, { a: { $exists: 'x' } }]) t.match(thrown(() => parseSelector(bad)), { status: 400 }, JSON.stringify(bad))
})

void t.test('no selector costs more than a moment for one document', async t => {
  const numbers = Array.from({ length: 20_000 }, (_, index) => index)
  const lists = numbers.map(number => [number])
  const document = { numbers, lists: numbers.map(number => [-1 - number]), o: Object.fromEntries(numbers.map(number => [number, number])) }
  const endless: object[] = [
    { lists: { $in: lists } }, { lists: { $nin: lists } }, { numbers: { $all: [-1, ...numbers.toReversed()] } }, { $or: numbers.map(() => ({ o: { x: 1 } })) }, { $or: numbers.map(() => ({ o: { $gt: { 0: 1 } } })) },
    { numbers: { $elemMatch: { $or: numbers.map(() => ({ $lt: 'x', $gt: 'y' })) } } }, { numbers: { $allMatch: { $nor: numbers.map(() => ({ $exists: false })) } } }, { o: { $keyMapMatch: { $or: numbers.map(() => '') } } },
  ]
  for (const selector of endless) {
    const since = process.cpuUsage()
    const result = thrown(() => parseSelector(selector)(document))
    if (typeof result !== 'boolean') t.match(result, { status: 400, reason: /takes too long/ })
    t.ok(cpuMs(since) < 5000, JSON.stringify(selector).slice(0, 40))
  }
  t.equal(parseSelector({ numbers: { $in: numbers.map(number => -1 - number) } })(document), false, 'numbers and words are looked up')
  t.equal(parseSelector({ numbers: { $in: [...numbers.map(number => -1 - number), 7] } })(document), true)

  const { url } = await start(t)
  await ask(url, 'PUT', '/notes/lists', { body: { lists: document.lists } })
  const selector = { lists: { $in: lists } }
  await t.rejects(ask(url, 'POST', '/notes/_changes?filter=_selector', { as: 'reader', body: { selector } }), { code: 'ECONNRESET' })
  t.match((await ask(url, 'POST', '/notes/_find', { body: { selector } })).json, { error: 'invalid_selector' })
})

void t.test('changes', async t => {
  const { url } = await start(t)
  for (const name of ['a', 'b', 'c']) await ask(url, 'PUT', `/notes/${name}`, { body: { name } })
  const changes = (query: string, how: Ask = {}): Promise<Answer> => ask(url, how.body === undefined ? 'GET' : 'POST', `/notes/_changes?${query}`, how)
  t.match((await changes('')).json, { results: [{ seq: 1, id: 'a', changes: [{ rev: /^1-/ }] }, { seq: 2 }, { seq: 3 }], last_seq: 3, pending: 0 })
  t.match((await changes('limit=1')).json, { results: [{ id: 'a' }], last_seq: 1, pending: 2 })
  t.match((await changes('limit=0')).json, { results: [{ id: 'a' }] })
  t.same(ids(await changes('since=2')), ['c'])
  t.same(ids(await changes('since="2"')), ['c'])
  t.same((await changes('since=now')).json, { results: [], last_seq: 3, pending: 0 })
  t.same((await changes('since=99')).json['last_seq'], 99)
  t.equal((await changes('since=5-opaque')).status, 400)
  t.same(ids(await changes('descending=true&limit=2')), ['c', 'b'])
  t.match((await changes('descending=true&include_docs=true')).json.results![0], { doc: { name: 'c' } })
  t.match((await changes('include_docs=true&limit=1')).json.results, [{ doc: { _id: 'a', name: 'a' } }])
  t.same(ids(await changes('filter=_doc_ids&doc_ids=["b"]')), ['b'])
  t.same(ids(await changes('filter=_doc_ids', { body: { doc_ids: ['c', 'x'] } })), ['c'])
  const selected = await changes('filter=_selector', { body: { selector: { name: { $gt: 'a' } } } })
  t.same(ids(selected), ['b', 'c'])
  t.notOk(selected.text.includes('"doc"'), 'a filter that reads documents does not show them')
  t.same(ids(await changes('filter=_selector&limit=1', { body: { selector: { name: { $gt: 'a' } } } })), ['b'])
  t.equal((await changes('filter=_selector&limit=1', { body: { selector: { name: { $gt: 'a' } } } })).json['last_seq'], 2)

  const poll = changes('feed=longpoll&since=3')
  await delay(100)
  await ask(url, 'PUT', '/notes/d', { body: {} })
  t.match((await poll).json, { results: [{ id: 'd', seq: 4 }], last_seq: 4 })
  t.same((await changes('feed=longpoll&since=4&timeout=50')).json, { results: [], last_seq: 4, pending: 0 })
  t.match((await changes('feed=longpoll&since=0')).json, { results: [{}, {}, {}, {}] })

  const feed = await openFeed(url, '/notes/_changes?feed=continuous&heartbeat=1000')
  await feed.until(/"id":"d"/)
  await ask(url, 'PUT', '/notes/e', { body: {} })
  await feed.until(/"id":"e"/)
  await feed.until(/\n\n/)
  feed.close()
  const limited = await openFeed(url, '/notes/_changes?feed=continuous&limit=2')
  t.equal(await limited.ended, true)
  t.match(limited.text().trim().split('\n').map(line => JSON.parse(line) as object), [{ id: 'a' }, { id: 'b' }, { last_seq: 2, pending: 3 }])
  const timed = await openFeed(url, '/notes/_changes?feed=continuous&since=now&timeout=50')
  t.equal(await timed.ended, true)
  t.equal(timed.text(), '{"last_seq":5,"pending":0}\n')
})

void t.test('a list of changes backwards reads a few documents at a time, and passes over those that are gone', async t => {
  const all = Array.from({ length: 200 }, (_, index) => ({ seq: 200 - index, id: `d${200 - index}`, changes: [{ rev: '1-a' }] }))
  let read = 0
  let most = 0
  const pouch = {
    changes: async (options: { include_docs: boolean }) => {
      t.equal(options.include_docs, false)
      return { results: all, last_seq: 200 }
    },
    get: async (id: string) => {
      read++
      if (id === 'd196') throw Object.assign(new Error('gone'), { status: 404, name: 'not_found' })
      return { _id: id, _rev: '1-a', n: Number(id.slice(1)) % 4 }
    },
  } as unknown as Pouch
  const store = {
    async readMany<T> (task: (pouch: Pouch) => Promise<T>) {
      read = 0
      const result = await task(pouch)
      most = Math.max(most, read)
      return result
    },
    changesAfter: async () => ({ results: [], last_seq: 200 }),
    read: (task: (pouch: Pouch) => unknown) => task(pouch),
    watch: () => () => undefined,
  } as unknown as Store
  const answer = async (query: Record<string, string>): Promise<unknown[]> => {
    let text = ''
    await HANDLERS['filtered changes']!({
      request: { method: 'POST' }, signal: new AbortController().signal, limits: EMBEDDED_LIMITS,
      readObject: async () => ({ selector: { n: 0 } }),
      parameter: (name: string) => query[name], flag: (name: string) => query[name] === 'true', count: (name: string) => query[name] && Number(query[name]),
      releaseBody: () => undefined, head: () => undefined, flush: () => undefined, write: async (part: string) => { text += part }, end: (part: string) => { text += part },
    } as unknown as Exchange, store)
    return (JSON.parse(text) as { results: Array<{ id: string }> }).results.map(({ id }) => id)
  }
  const backwards = { descending: 'true', filter: '_selector' }
  t.same(await answer(backwards), all.map(({ id }) => id).filter(id => Number(id.slice(1)) % 4 === 0 && id !== 'd196'))
  t.ok(most > 0 && most <= 25, `${most} at a time`)
  t.same(await answer({ ...backwards, limit: '2' }), ['d200', 'd192'])

  const { url } = await start(t)
  await ask(url, 'POST', '/notes/_bulk_docs', { body: { docs: Array.from({ length: 60 }, (_, index) => ({ _id: `d${index}`, n: index })) } })
  const found = await ask(url, 'POST', '/notes/_changes?descending=true&filter=_selector&include_docs=true&limit=2', { as: 'reader', body: { selector: { n: { $lt: 10 } } } })
  t.match(found.json.results, [{ id: 'd9', doc: { n: 9 } }, { id: 'd8', doc: { n: 8 } }])
  t.equal(found.json['last_seq'], found.json.results![1]!['seq'])
  t.same(ids(await ask(url, 'POST', '/notes/_changes?descending=true&filter=_doc_ids', { body: { doc_ids: ['d0', 'd5', 'none'] } })), ['d5', 'd0'])
})

void t.test('while its reader takes nothing, a list holds as many of its documents as may be held together', async t => {
  // Nobody is cut for taking nothing before it was looked at.
  const { url } = await start(t, { limits: { stallMs: 3_600_000 } })
  const rest = held()
  const all = Array.from({ length: 12 }, (_, index) => `d${String(index).padStart(2, '0')}`)
  for (const _id of all) await ask(url, 'PUT', `/notes/${_id}`, { body: { _id, large: 'x'.repeat(LARGE_BYTES) } })
  const lists: ReadonlyArray<[path: string, wanted: readonly string[], body?: object]> = [
    ['_all_docs?include_docs=true', all],
    ['_all_docs?include_docs=true&descending=true', all.toReversed()],
    ['_all_docs?include_docs=true', all, { keys: all }],
    ['_changes?include_docs=true', all],
    ['_changes?include_docs=true&filter=_selector', all, { selector: { large: { $exists: true } } }],
    ['_changes?include_docs=true&descending=true', all.toReversed()],
    ['_changes?include_docs=true&filter=_selector&descending=true', all.toReversed(), { selector: { large: { $exists: true } } }],
    ['_bulk_get', all, { docs: all.map(id => ({ id })) }],
  ]
  for (const [path, wanted, body] of lists) {
    const what = `${path} ${body === undefined ? '' : Object.keys(body).join()}`
    // Some of them have gone by, so that what is read at a time has been read.
    const list = await readPart(t, url, `/notes/${path}`, body, 3 * LARGE_BYTES)
    const most = 6 * LARGE_BYTES
    t.ok(await soon(() => held() - rest < most), `${what}: of ${all.length} documents no more than 6 are held, with their copies on the way: ${((held() - rest) / LARGE_BYTES).toFixed(1)}`)
    t.notOk(list.ended(), 'the list goes on')
    t.same(await list.ids(), wanted, what)
  }
})

/** Of one document. */
const LARGE_BYTES = 1_500_000

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** Bytes that this process cannot let go of. */
function held (): number {
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}

/** Waits until it holds, at most as long as what hangs; says whether it does. */
async function soon (holds: () => boolean): Promise<boolean> {
  for (const until = performance.now() + 30_000; !holds();) {
    if (performance.now() > until) return false
    await delay(20)
  }
  return true
}

/** Reads so many bytes of an answer, and no more until the IDs in it are asked for. */
async function readPart (t: Test, url: string, path: string, body: object | undefined, bytes: number): Promise<{ ended: () => boolean, ids: () => Promise<string[]> }> {
  const socket = connect({ host: '::1', port: Number(new URL(url).port) })
  t.teardown(() => { socket.destroy() })
  const text = body === undefined ? '' : JSON.stringify(body)
  socket.write(`${body === undefined ? 'GET' : 'POST'} ${path} HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\nAuthorization: ${authorization('me')}\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`)
  const found: string[] = []
  let isEnded = false
  let received = 0
  // Of what was received nothing is kept but the IDs, and an end in which one may have begun.
  let left = ''
  const take = (part: Buffer): void => {
    received += part.length
    left += part.toString('latin1')
    let behind = 0
    for (const { 0: text, 1: id, index } of left.matchAll(/"_id":"(d\d\d)"/g)) {
      found.push(id!)
      behind = index + text.length
    }
    left = Buffer.from(left.slice(Math.max(behind, left.length - 11))).toString()
  }
  socket.on('data', take).once('end', () => { isEnded = true })
  await new Promise<void>(resolve => {
    const enough = (): void => {
      if (received < bytes) return
      socket.off('data', enough).pause()
      resolve()
    }
    socket.on('data', enough)
  })
  return {
    ended: () => isEnded,
    async ids () {
      const ended = once(socket, 'end')
      socket.resume()
      await ended
      return found
    },
  }
}

void t.test('lists are whole, however large their documents are', async t => {
  const { url } = await start(t)
  const large = 'x'.repeat(600_000)
  // Small ones first, so that many are read at once when the large ones come.
  const docs = Array.from({ length: 60 }, (_, index) => ({ _id: `d${String(index).padStart(2, '0')}`, n: index, ...(index > 35 && index % 10 > 5 && { large }) }))
  for (let at = 0; at < docs.length; at += 15) await ask(url, 'POST', '/notes/_bulk_docs', { body: { docs: docs.slice(at, at + 15) } })
  const all = docs.map(({ _id }) => _id)
  const answers: Array<[how: string, ids: unknown[], answer: Answer]> = []
  const list = async (path: string, wanted: unknown[], body?: object): Promise<void> => { answers.push([path, wanted, await ask(url, body === undefined ? 'GET' : 'POST', `/notes/${path}`, { body })]) }
  await list('_all_docs?include_docs=true', all)
  await list('_all_docs?include_docs=true&descending=true&skip=3&limit=40', all.toReversed().slice(3, 43))
  await list('_all_docs?include_docs=true', [...all.toReversed(), ...all], { keys: [...all.toReversed(), ...all] })
  await list('_changes?include_docs=true', all)
  await list('_changes?include_docs=true&limit=45', all.slice(0, 45))
  await list('_changes?include_docs=true&filter=_selector', all.slice(40), { selector: { n: { $gte: 40 } } })
  await list('_changes?include_docs=true&descending=true', all.toReversed())
  await list('_bulk_get', [...all, ...all], { docs: [...all, ...all].map(id => ({ id })) })
  await list('_find', all.slice(30, 50), { selector: { n: { $gte: 30 } }, limit: 20, fields: ['_id'] })
  for (const [how, wanted, answer] of answers) {
    t.equal(answer.status, 200, how)
    t.same(ids(answer), wanted, how)
  }
  const bulk = answers.find(([how]) => how === '_bulk_get')![2].json.results! as unknown as Array<{ docs: Array<{ ok: { n: number, large?: string } }> }>
  t.ok(bulk.every(({ docs: [one] }, index) => docs[index % 60]!.n === one!.ok.n && docs[index % 60]!.large === one!.ok.large))

  const document = (length: number): StoredDocument => ({ _id: 'a', _rev: '1-a', x: ['y'.repeat(length)] })
  t.equal(holdable([]), 0)
  t.equal(holdable([document(2_000_000), document(1)]), 1)
  t.equal(holdable([document(500_000), null, document(400_000), document(400_000), undefined]), 3)
  t.equal(holdable([document(1), undefined, document(2)]), 3)
})

void t.test('feeds end with the right to them, with the database, and with the service', { timeout: 30_000 }, async t => {
  // Neither a heartbeat nor the drain limit would end anything here.
  const { url, ...embedded } = await start(t, { limits: { drainMs: 3_600_000 } })
  const open = (as: string, database = 'notes'): ReturnType<typeof openFeed> => openFeed(url, `/${database}/_changes?feed=continuous&heartbeat=3600000`, as)
  const [reader, writer, laptop, me, dying] = await Promise.all([open('reader'), open('writer'), open('laptop'), open('me'), open('me', 'secret')])
  await embedded.setAccounts(ACCOUNTS.filter(({ username }) => username !== 'reader').map(account => account.username === 'writer' ? { ...account, password: 'changed' } : account))
  t.equal(await reader.ended, false, 'cut, and not as though it were complete')
  t.equal(await writer.ended, false, 'a changed password ends what the old one began')
  t.equal((await ask(url, 'GET', '/notes', { as: 'reader' })).status, 401)
  await embedded.setAccounts(ACCOUNTS.map(account => account.username === 'laptop' ? { ...account, scope: { kind: 'own', databases: { 'team-*': 'read' } } } : account))
  t.equal(await laptop.ended, false)
  await embedded.deleteDatabase('secret')
  t.equal(await dying.ended, false)
  await ask(url, 'PUT', '/notes/x', { body: {} })
  await me.until(/"id":"x"/)
  await embedded.stop()
  t.equal(await me.ended, false, 'feeds are not waited for')
})

void t.test('replication with PouchDB', async t => {
  const { url } = await start(t)
  const dir = await temporary(t)
  const [here, there] = [localPouch(join(dir, 'here')), localPouch(join(dir, 'there'))]
  const remote = remotePouch(url, 'notes', 'writer')
  t.teardown(() => Promise.all([here.close(), there.close()]))
  const bytes = Buffer.alloc(300_000, 'patchcord ')
  await here.bulkDocs([...Array.from({ length: 120 }, (_, index) => ({ _id: `doc ${index}/ü`, index })), { _id: 'with', _attachments: { 'dir/a b.bin': { content_type: 'application/x-test', data: bytes } } }])
  t.match(await here.replicate.to(remote), { ok: true, docs_written: 121, doc_write_failures: 0 })
  t.match(await here.replicate.to(remote), { docs_read: 0, docs_written: 0 }, 'the checkpoint was kept')
  t.match(await there.replicate.from(remote), { ok: true, docs_written: 121 })
  t.match(await there.replicate.from(remote), { docs_read: 0 })
  const copy = await there.get('with', { attachments: true })
  t.equal(copy._attachments['dir/a b.bin']!.data, bytes.toString('base64'))
  t.equal(copy._rev, (await here.get('with'))._rev)
  t.same((await there.allDocs()).rows.map(({ id, value }) => [id, value.rev]), (await here.allDocs()).rows.map(({ id, value }) => [id, value.rev]))

  const up = here.replicate.to(remote, { live: true, retry: true })
  const down = there.replicate.from(remote, { live: true, retry: true })
  const arrived = new Promise(resolve => { void down.on('change', resolve) })
  await here.put({ _id: 'live', x: 1 })
  await arrived
  t.match(await there.get('live'), { x: 1 })
  up.cancel()
  down.cancel()
  await Promise.all([up, down])
  t.match(await localPouchReads(t, url), { denied: true }, 'who may only read cannot push')
})

async function localPouchReads (t: Test, url: string): Promise<{ denied: boolean }> {
  const local = localPouch(join(await temporary(t), 'local'))
  t.teardown(() => local.close())
  await local.put({ _id: 'intruder' })
  const failed = await local.replicate.to(remotePouch(url, 'notes', 'reader')).then(() => false, () => true)
  const there = await ask(url, 'GET', '/notes/intruder')
  return { denied: failed && there.status === 404 }
}

void t.test('300 feeds at once', async t => {
  const { url } = await start(t)
  const warnings: string[] = []
  const warned = (warning: Error): void => { warnings.push(warning.message) }
  process.on('warning', warned)
  t.teardown(() => process.off('warning', warned))
  const feeds = await Promise.all(Array.from({ length: 300 }, (_, index) => openFeed(url, `/notes/_changes?feed=${index % 2 ? 'continuous' : 'longpoll'}&heartbeat=20000&include_docs=${index % 3 === 0}`)))
  await ask(url, 'PUT', '/notes/one', { body: {} })
  await Promise.all(feeds.map(feed => feed.until(/"id":"one"/)))
  for (const feed of feeds) feed.close()
  t.equal((await ask(url, 'GET', '/notes/one')).status, 200)
  t.same(warnings, [], 'and no listener leaked')
})

void t.test('limits of bodies', async t => {
  const { url } = await start(t, { limits: { bodyBytes: 200_000, smallBodyBytes: 1000, bodies: 2, bodiesPerAccount: 1, stallMs: 300, feedsPerAccount: 1 } })
  t.equal((await ask(url, 'PUT', '/notes/x', { body: { x: 'x'.repeat(200_001) } })).status, 413)
  t.equal((await ask(url, 'PUT', '/notes/x/a', { raw: Buffer.alloc(200_001) })).status, 413)
  t.equal((await ask(url, 'PUT', '/notes/x', { raw: JSON.stringify({ x: 'x'.repeat(200_001) }), headers: { 'transfer-encoding': 'chunked', } })).status, 413, 'a chunked body too')
  // One account's slow body does not keep another's out, and does not stay.
  const slow = connect({ host: '::1', port: Number(new URL(url).port) })
  t.teardown(() => { slow.destroy() })
  slow.write(`PUT /notes/slow HTTP/1.1\r\nHost: [::1]\r\nAuthorization: ${authorization('writer')}\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{`)
  const said = new Promise<string>(resolve => { slow.once('data', data => { resolve(data.toString()) }) })
  t.equal((await ask(url, 'PUT', '/notes/large', { body: { x: 'x'.repeat(5000) } })).status, 201)
  t.equal((await ask(url, 'PUT', '/notes/large2', { as: 'writer', body: { x: 'x'.repeat(5000) } })).status, 201, 'its own next one waits for its end')
  t.match(await said, /^HTTP\/1\.1 408 /)
  // Of more headers than are read nobody knows what they say.
  for (const [what, lines] of [['Host', ''], ['host', 'Host: [::1]\r\nHost: [::1]\r\n'], ['too many headers', `Host: [::1]\r\n${Array.from({ length: EMBEDDED_LIMITS.headers }, (_, n) => `X-${n}: y\r\n`).join('')}`]] as const) {
    const refused = connect({ host: '::1', port: Number(new URL(url).port) })
    t.teardown(() => { refused.destroy() })
    refused.write(`GET /notes HTTP/1.1\r\n${lines}Authorization: ${authorization('reader')}\r\n\r\n`)
    t.match(await new Promise<string>(resolve => { refused.once('data', data => { resolve(data.toString()) }) }), new RegExp(`^HTTP/1\\.1 400 [^]*bad_request[^]*${what}`), what)
  }
  // Nothing is sent for a request that is refused by its head.
  const early = connect({ host: '::1', port: Number(new URL(url).port) })
  t.teardown(() => { early.destroy() })
  early.write(`PUT /notes/y HTTP/1.1\r\nHost: [::1]\r\nAuthorization: ${authorization('reader')}\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n`)
  t.match(await new Promise<string>(resolve => { early.once('data', data => { resolve(data.toString()) }) }), /^HTTP\/1\.1 403 /)
  t.equal((await ask(url, 'PUT', '/notes/z', { body: {}, headers: { expect: '100-continue' } })).status, 201)
  const feed = await openFeed(url, '/notes/_changes?feed=continuous')
  t.equal((await ask(url, 'GET', '/notes/_changes?feed=longpoll')).status, 429)
  feed.close()
})

void t.test('who left before its body had a turn keeps nobody else waiting', async t => {
  const bodies = new Bodies({ ...EMBEDDED_LIMITS, smallBodyBytes: 1000, bodiesPerAccount: 1, stallMs: 60_000 })
  for (let turn = 1; turn <= 3; turn++) {
    const incoming = new IncomingMessage(new Socket())
    incoming.destroy()
    await t.rejects(bodies.readBytes(incoming, new ServerResponse(incoming), { headers: new Map(), body: { length: 5000 } } as never, 'writer', 10_000, AbortSignal.abort()), /cut off/, `turn ${turn}`)
  }
})

void t.test('a damaged database is named, and the others go on', async t => {
  const { url, dir, ...embedded } = await start(t)
  await ask(url, 'PUT', '/notes/doc', { body: {} })
  await embedded.stop()
  const current = join(dir, 'secret', 'CURRENT')
  await truncate(current)
  await writeFile(current, 'MANIFEST-999999\n')
  const again = await startEmbedded({ dir, accounts: ACCOUNTS, listen: { host: '::1', port: 0 } })
  t.teardown(() => again.stop())
  t.same(await again.databases(), ['notes', 'private-x', 'secret', 'team-a'])
  const broken = await ask(again.url, 'GET', '/secret')
  t.match([broken.status, broken.json], [500, { error: 'database_unusable', reason: /secret/ }])
  t.notOk(broken.text.includes(dir), 'without a path')
  t.equal((await ask(again.url, 'GET', '/notes/doc')).status, 200)
  t.same((await readdir(dir)).toSorted(), ['notes', 'private-x', 'secret', 'team-a'])
})

void t.test('a write that compacts next to feeds, pages and attachments', async t => {
  const { url } = await start(t)
  const docs = ['2-aa', '2-zz'].map(_rev => ({ _id: 'split', _rev }))
  await ask(url, 'POST', '/notes/_bulk_docs', { body: { docs, new_edits: false } })
  let rev = (await ask(url, 'PUT', '/notes/file/a', { raw: 'x'.repeat(5000) })).json.rev!
  let winner = '2-zz'
  let done = false
  const readers = Array.from({ length: 6 }, async (_, index) => {
    const seen = new Set<string>()
    while (!done) {
      const answer = await (index % 2 ? ask(url, 'GET', '/notes/_changes?include_docs=true&conflicts=true&attachments=true') : ask(url, 'GET', '/notes/file/a'))
      seen.add(index % 2 ? String(answer.status) : `${answer.status} ${answer.text.length}`)
    }
    return [...seen]
  })
  for (let round = 0; round < 40; round++) {
    rev = (await ask(url, 'PUT', `/notes/file/a?rev=${rev}`, { raw: String(round % 10).repeat(5000) })).json.rev!
    winner = (await ask(url, 'PUT', `/notes/split?rev=${winner}`, { body: { round } })).json.rev!
  }
  done = true
  t.same((await Promise.all(readers)).flat().filter((one, index, all) => all.indexOf(one) === index).toSorted(), ['200', '200 5000'], 'no reader saw half of it')
  const order: string[] = []
  const lock = new SharedLock()
  const task = (name: string, ms: number) => async (): Promise<void> => { order.push(`${name}<`); await delay(ms); order.push(`${name}>`) }
  await Promise.all([lock.read(task('r1', 20)), lock.read(task('r2', 10)), lock.write(task('w', 5)), lock.read(task('r3', 1))])
  t.same(order, ['r1<', 'r2<', 'r2>', 'r1>', 'w<', 'w>', 'r3<', 'r3>'])
})

void t.test('stop leaves nothing behind, and what was written stays', async t => {
  const dir = join(await temporary(t), 'couch')
  const before = handles()
  const first = await startEmbedded({ dir, accounts: ACCOUNTS, listen: { host: '::1', port: 0 } })
  await first.createDatabase('kept')
  await ask(first.url, 'PUT', '/kept/doc', { body: { n: 1 } })
  const feed = await openFeed(first.url, '/kept/_changes?feed=continuous&heartbeat=1000')
  await first.stop()
  await feed.ended
  await soon(() => handles().join() === before.join())
  t.same(handles(), before)
  await t.rejects(ask(first.url, 'GET', '/'), { code: 'ECONNREFUSED' })
  // The port is free again, and a socket that is bound already is taken as well as an address.
  const socket = bindSocket({ host: '::1', port: Number(new URL(first.url).port) })
  const second = await startEmbedded({ dir, accounts: ACCOUNTS, listen: socket.handle })
  t.equal(second.url, first.url)
  t.match((await ask(second.url, 'GET', '/kept/doc')).json, { n: 1 })
  t.throws(() => bindSocket({ host: '::1', port: socket.port }), { code: 'port-in-use' })
  await t.rejects(startEmbedded({ dir: join(dir, 'other'), accounts: [], listen: { host: '::1', port: socket.port } }), { code: 'port-in-use' })
  await second.stop()
})

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { PassThrough } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { BadAnswer } from '../src/core/answer-head.js'
import { PatchcordError, systemCode } from '../src/core/errors.js'
import { DEFAULT_LIMITS } from '../src/core/limits.js'
import { createBodyCheck } from '../src/couch/body-check.js'
import { checkedBody } from '../src/couch/checked-body.js'
import { sendCouchError } from '../src/core/couch-answers.js'
import { boundedFeedQuery } from '../src/policy/feed.js'
import { requestHeaders, responseHeaders } from '../src/policy/couch-headers.js'
import { CouchProxy, parseCouchUrl } from '../src/couch/proxy.js'
import { AnswerParser } from '../src/couch/answer-parser.js'
import { socketAddress } from '../src/couch/upstream.js'
import { COUCH_WELCOME, visibleDatabases } from '../src/couch/welcome.js'
import type { DatabaseName } from '../src/core/ids.js'
import type { BodyForm } from '../src/policy/surface.js'
import { answerText, ask, askRaw, dial, eventually, JSON_OK, own, peer, RawUpstream, startGate, type Answer, type Dialled, type Gate, type GateOptions } from './couch-fixtures.js'
import { ManualClock } from './fixtures/manual-clock.js'

const OUR_AUTHORIZATION = `Basic ${Buffer.from('limited:secret').toString('base64')}`

async function stand (t: Test, answer: Answer | string = JSON_OK, options: GateOptions = {}): Promise<{ upstream: RawUpstream, gate: Gate }> {
  const upstream = await RawUpstream.start(answer)
  const gate = await startGate(upstream.url, options)
  t.teardown(async () => {
    await gate.close()
    await upstream.close()
  })
  return { upstream, gate }
}

const silent: Answer = () => {}

// ---- what goes up

void t.test('a request goes up written anew', async t => {
  const { upstream, gate } = await stand(t, JSON_OK, { principal: peer })
  const answer = await ask(gate, {
    path: '/couch/db/doc%20one?revs=true&rev=1-a',
    headers: {
      'Authorization': 'Basic YWRtaW46YWRtaW4=', 'Cookie': 'AuthSession=x', 'X-Auth-CouchDB-UserName': 'admin', 'X-Auth-CouchDB-Roles': '_admin',
      'X-Auth-CouchDB-Token': 'x', 'X-Forwarded-For': '1.2.3.4', 'Forwarded': 'for=1.2.3.4', 'Proxy-Authorization': 'Basic x', 'Accept': 'application/json',
      'If-None-Match': '"1-a"', 'User-Agent': 'test', 'X-Foo': 'bar', 'Connection': 'X-Foo, Accept-Encoding', 'Accept-Encoding': 'gzip', 'Origin': `https://127.0.0.1:${gate.port}`, 'TE': 'trailers',
    },
  })
  t.equal(answer.status, 200)
  t.equal(answer.body.toString(), '{"ok":true}\n')
  const [request] = upstream.requests
  t.equal(`${request!.method} ${request!.target}`, 'GET /db/doc%20one?revs=true&rev=1-a')
  t.strictSame([...request!.names].toSorted(), ['accept', 'authorization', 'connection', 'host', 'if-none-match', 'user-agent'])
  t.equal(request!.headers.get('authorization'), OUR_AUTHORIZATION)
  t.equal(request!.headers.get('host'), upstream.url.slice('http://'.length))
  t.equal(request!.headers.get('connection'), 'keep-alive')
})

const ALLOWED_UP = new Set(['host', 'authorization', 'accept', 'accept-encoding', 'content-type', 'content-length', 'content-encoding', 'transfer-encoding', 'if-match', 'if-none-match', 'range', 'user-agent', 'x-couch-full-commit'])

void t.test('no header of the client\'s but those of the list reaches upstream', async t => {
  const name = fc.oneof(fc.constantFrom('authorization', 'cookie', 'x-auth-couchdb-username', 'x-auth-couchdb-roles', 'x-auth-couchdb-token', 'x-forwarded-for', 'x-http-method-override', 'destination', 'host', 'expect', 'trailer', 'te', 'upgrade', 'connection', 'proxy-authorization', '__proto__', 'accept', 'if-match', 'range', 'content-length', 'transfer-encoding'), fc.stringMatching(/^[a-z0-9-]{1,20}$/))
  const value = fc.oneof(fc.constant('CLIENT-SECRET'), fc.string({ unit: 'binary' }).map(text => `CLIENT${text}`), fc.constantFrom('chunked', '12'))
  const forms = fc.constantFrom<BodyForm>('none', 'empty', 'document', 'attachment')
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(fc.tuple(name, value)), forms, (pairs, bodyForm) => {
    const headers = new Map([...pairs, ['content-type', 'application/json'] as const])
    let outgoing: ReturnType<typeof requestHeaders>
    try {
      outgoing = requestHeaders(headers, { host: 'h', authorization: 'ours', bodyForm })
    } catch (error) {
      const length = headers.get('content-length')
      return error instanceof PatchcordError && error.code === 'internal' && length !== undefined && !/^\d+$/.test(length)
    }
    for (const [name, value] of Object.entries(outgoing)) {
      if (!ALLOWED_UP.has(name)) return false
      // oxlint-disable-next-line no-control-regex
      if (/[^\t\x20-\x7e\x80-\xff]/.test(String(value))) return false
    }
    return outgoing.host === 'h' && outgoing['authorization'] === 'ours' && !Object.hasOwn(outgoing, 'content-encoding') &&
      (bodyForm !== 'none' || (outgoing['content-length'] === undefined && outgoing['transfer-encoding'] === undefined && outgoing['content-type'] === undefined))
  }), { numRuns: 2000 }))
})

void t.test('a Range goes up without a condition that CouchDB does not know, never with it lost', t => {
  const sent = (...pairs: Array<[string, string]>): unknown => requestHeaders(new Map(pairs), { host: 'h', bodyForm: 'none' })
  t.same(sent(['range', 'bytes=5-']), { host: 'h', range: 'bytes=5-' })
  t.same(sent(['range', 'bytes=5-'], ['if-range', '"tag"']), { host: 'h' }, 'the whole is always right')
  t.end()
})

void t.test('media types and encodings', async t => {
  const context = (bodyForm: BodyForm) => ({ host: 'h', authorization: 'a', bodyForm })
  const headers = (...pairs: Array<[string, string]>) => new Map<string, string>([['content-length', '5'], ...pairs])
  const refused: ReadonlyArray<[BodyForm, Array<[string, string]>]> = [
    ['document', []],
    ['document', [['content-type', 'text/plain']]],
    ['document', [['content-type', 'application/jsonx']]],
    ['document', [['content-type', 'application/json; charset=utf-16']]],
    ['document', [['content-type', 'application/json; charset=utf-8; x=y']]],
    ['document', [['content-type', 'multipart/related; boundary=x']]],
    ['bulk-docs', [['content-type', 'application/json'], ['content-encoding', 'gzip']]],
    ['bulk-docs', [['content-type', 'application/json'], ['content-encoding', 'GZIP']]],
    ['bulk-docs', [['content-type', 'application/json'], ['content-encoding', 'identity, gzip']]],
    ['empty', [['content-type', 'text/plain']]],
    ['attachment', [['content-encoding', 'deflate']]],
  ]
  for (const [form, pairs] of refused) t.throws(() => requestHeaders(headers(...pairs), context(form)), { code: 'unsupported-media' }, `${form} ${JSON.stringify(pairs)}`)
  for (const type of ['application/json', 'Application/JSON', 'application/json;charset=utf-8', 'application/json; charset="UTF-8"']) {
    t.equal(requestHeaders(headers(['content-type', type], ['content-encoding', 'identity']), context('document'))['content-type'], 'application/json', type)
  }
  t.match(requestHeaders(headers(['content-type', 'image/png'], ['content-encoding', 'gzip']), context('attachment')), { 'content-type': 'image/png', 'content-encoding': 'gzip', 'content-length': '5' })
  t.match(requestHeaders(new Map(), context('empty')), { 'content-type': 'application/json', 'content-length': '0' })
})

void t.test('paths arrive as they were meant', async t => {
  const { upstream, gate } = await stand(t)
  const paths: ReadonlyArray<[asked: string, sent: string]> = [
    ['/couch/db/http%3A%2F%2Fexample.com', '/db/http%3A%2F%2Fexample.com'],
    ['/couch/db/http:%2Fx', '/db/http%3A%2Fx'],
    ['/couch/db/https%3A%2Fx/http:', '/db/https%3A%2Fx/http%3A'],
    ['/couch/db/http:/att', '/db/http%3A/att'],
    ['/couch/db/a%2F%2Fb', '/db/a%2F%2Fb'],
    ['/couch/db/a%5Cb', '/db/a%5Cb'],
    ['/couch/db/a%23b%3Fc', '/db/a%23b%3Fc'],
    ['/couch/db/doc/a%5Cb%23c%3Fd', '/db/doc/a%5Cb%23c%3Fd'],
    ['/couch/db/%C5%BE%25', '/db/%C5%BE%25'],
    ['/couch/a%2Fb/x', '/a%2Fb/x'],
    ['/couch/db/it\'s(1)!*~', '/db/it\'s(1)!*~'],
    ['/couch/db/_design%2Fx', '/db/_design/x'],
    ['/couch/db/%5Fdesign/x', '/db/_design/x'],
    ['/couch/db/_local/abc', '/db/_local/hash-abc'],
    ['/couch/db/_local/hash-abc', '/db/_local/hash-abc'],
    ['/couch/db/_local%2Fabc', '/db/_local/hash-abc'],
    ['/couch/db/', '/db'],
    ['/couch/db/_all_docs?startkey=%22http:%2F%2Fx%3Fa%23b%22', '/db/_all_docs?startkey=%22http%3A%2F%2Fx%3Fa%23b%22'],
  ]
  for (const [path] of paths) t.equal((await ask(gate, { path })).status, 200, path)
  t.strictSame(upstream.requests.map(({ target }) => target), paths.map(([, sent]) => sent))
  for (const path of ['/couch//db', '/couch/db/a\\b', '/couch/db/a#b', '/couch/db/x%2Fy/..', 'http://x/couch/db']) {
    t.match(await askRaw(gate, `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`), /^HTTP\/1\.1 400/, path)
  }
  t.equal(upstream.requests.length, paths.length, 'and nothing else')
})

void t.test('bodies that pass arrive as they were, with their framing', async t => {
  const { upstream, gate } = await stand(t)
  const body = JSON.stringify({ docs: Array.from({ length: 3000 }, (_, n) => ({ _id: `doc-${n}`, text: 'ž'.repeat(n % 50) })) })
  const bytes = Buffer.from(body)
  t.equal((await ask(gate, { method: 'POST', path: '/couch/db/_bulk_docs', body })).status, 200)
  t.equal((await ask(gate, { method: 'POST', path: '/couch/db/_bulk_docs', body: [bytes.subarray(0, 1), bytes.subarray(1, 70_001), bytes.subarray(70_001)] })).status, 200)
  t.equal((await ask(gate, { method: 'PUT', path: '/couch/db/doc/pixel.png', headers: { 'content-type': 'image/png', 'content-encoding': 'gzip' }, body: Buffer.from([0, 255]) })).status, 200)
  t.equal((await ask(gate, { method: 'POST', path: '/couch/db/_ensure_full_commit', headers: { 'content-length': '0' } })).status, 200)
  const [plain, chunked, attachment, empty] = upstream.requests
  t.equal(plain!.body.toString(), body)
  t.equal(plain!.headers.get('content-length'), String(bytes.length))
  t.equal(chunked!.body.toString(), body)
  t.equal(chunked!.headers.get('transfer-encoding'), 'chunked')
  t.equal(chunked!.headers.get('content-length'), undefined)
  t.strictSame(attachment!.body, Buffer.from([0, 255]))
  t.equal(attachment!.headers.get('content-encoding'), 'gzip')
  t.equal(empty!.headers.get('content-type'), 'application/json')
  t.equal(empty!.headers.get('content-length'), '0')
})

void t.test('upstream never holds a complete refused request', async t => {
  const pad = (text: string): string => `{"docs":[${Array.from({ length: 4000 }, (_, n) => `{"_id":"doc-${n}","x":"${'y'.repeat(40)}"},`).join('')}${text}]}`
  const table: ReadonlyArray<[name: string, path: string, body: string, status: number, headers?: Record<string, string>]> = [
    ['a design document', '/couch/db/_bulk_docs', '{"docs":[{"_id":"_design/x"}]}', 403],
    ['a design document at the end of a long list', '/couch/db/_bulk_docs', pad('{"_id":"_design/x"}'), 403],
    ['an escaped one', '/couch/db', '{"\\u005fid":"\\u005fdesign/x"}', 403],
    ['a local one to be read', '/couch/db/_bulk_get', '{"docs":[{"id":"_local/x"}]}', 403],
    ['a local key', '/couch/db/_all_docs', '{"keys":["_local/x"]}', 403],
    ['revisions of a local one', '/couch/db/_revs_diff', '{"_local/x":["1-a"]}', 403],
    ['a missing end', '/couch/db/_bulk_docs', '{"docs":[{"_id":"a"}]', 400],
    ['a missing end after much', '/couch/db/_bulk_docs', pad('{}').slice(0, -1), 400],
    ['trailing data', '/couch/db/_bulk_docs', '{"docs":[]}{"docs":[{"_id":"_design/x"}]}', 400],
    ['trailing data after much', '/couch/db/_bulk_docs', `${pad('{}')}x`, 400],
    ['two _id', '/couch/db', '{"_id":"a","_id":"_design/x"}', 400],
    ['gzip', '/couch/db/_bulk_docs', '{"docs":[]}', 415, { 'content-encoding': 'gzip' }],
    ['another type', '/couch/db/_bulk_docs', '{"docs":[]}', 415, { 'content-type': 'text/plain' }],
    ['too much', '/couch/db/_bulk_docs', `{"docs":["${'x'.repeat(1_000_000)}`, 413],
  ]
  for (const [name, path, body, status, headers = {}] of table) {
    const half = Math.floor(body.length / 2)
    for (const form of [body, [body], [body.slice(0, half), body.slice(half, -1), body.slice(-1)]]) {
      const { upstream, gate } = await stand(t, JSON_OK, { principal: peer, limits: { bodyBytes: 900_000 } })
      const got = await ask(gate, { method: 'POST', path, body: form, headers }).then(({ status }) => String(status), (error: unknown) => String(systemCode(error)))
      // A client that still writes when the connection is closed may see the reset before the answer.
      t.ok(got === String(status) || (body.length > 10_000 && ['EPIPE', 'ECONNRESET'].includes(got)), `${name}: ${got}`)
      t.ok(await eventually(() => gate.outcomes.length === 1 && upstream.connections.every(({ closed }) => closed)), 'upstream\'s connection is destroyed')
      t.match(gate.outcomes, [{ status }])
      t.equal(upstream.requests.length, 0, `${name}: upstream saw no complete request`)
    }
  }
})

void t.test('a body that ends before its end fails the checked one', async t => {
  const source = new PassThrough()
  const body = checkedBody(source, createBodyCheck('document', DEFAULT_LIMITS))
  const failed = once(body, 'error')
  body.resume()
  source.write('{"a":1}')
  source.destroy()
  t.match(await failed, [{ code: 'ECONNRESET' }])
  const gone = checkedBody(source, createBodyCheck('document', DEFAULT_LIMITS))
  t.match(await once(gone, 'error'), [{ code: 'ECONNRESET' }])
})

void t.test('who writes on is told, and the connection is closed', async t => {
  const { gate } = await stand(t)
  const socket = connect({ port: gate.port, host: '127.0.0.1', allowHalfOpen: true })
  t.teardown(() => { socket.destroy() })
  let received = ''
  socket.on('data', chunk => { received += chunk.toString() })
  socket.on('error', () => {})
  socket.write('POST /couch/db HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n18\r\n{"_id":"_design/x","a":"\r\n')
  t.ok(await eventually(() => received.includes('HTTP/1.1 403')))
  t.match(received, /\r\nconnection: close\r\n/i)
})

void t.test('an entry has so many checkpoints in a database', async t => {
  let status = '201 Created'
  const { upstream, gate } = await stand(t, socket => { socket.write(`HTTP/1.1 ${status}\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}`) }, { limits: { checkpoints: 3 } })
  const put = async (id: string, database = 'db'): Promise<number> => (await ask(gate, { method: 'PUT', path: `/couch/${database}/_local/${id}`, body: '{"n":1}' })).status
  status = '409 Conflict'
  t.equal(await put('refused'), 409, 'what CouchDB refuses does not count')
  for (const id of ['x', 'y', 'z']) t.equal((await ask(gate, { method: 'PUT', path: `/couch/db/_local/${id}`, body: '[]' })).status, 400, 'nor what is refused here')
  status = '201 Created'
  const slow = connect(gate.port, '127.0.0.1')
  slow.write('PUT /couch/db/_local/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{')
  await sleep(30)
  for (const id of ['a', 'b', 'c']) t.equal(await put(id), 201, id)
  const refused = gate.outcomes.length
  slow.end('}}}}}}}}}')
  t.ok(await eventually(() => gate.outcomes.length > refused))
  t.match(gate.outcomes.at(-1), { code: 'not-canonical' }, 'what was written meanwhile counts on')
  const sent = upstream.requests.length
  t.equal(await put('d'), 429, 'one more is refused')
  t.equal(upstream.requests.length, sent, 'and upstream does not hear of it')
  t.equal(await put('a'), 201, 'those that are there are written again')
  t.equal(await put(encodeURIComponent(`${own.checkpoints}-a`)), 201, 'by either of their names')
  t.equal(await put('d', 'other'), 201, 'another database has a count of its own')
  t.equal((await ask(gate, { path: '/couch/db/_local/e' })).status, 201, 'reading costs nothing')
})

void t.test('no body goes up with a DELETE', async t => {
  const smuggled = 'DELETE /db HTTP/1.1\r\nHost: x\r\n\r\n'
  const text = `DELETE /couch/db/doc?rev=1-a HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n${smuggled.length.toString(16)}\r\n${smuggled}\r\n0\r\n\r\n`
  const { upstream, gate } = await stand(t)
  t.match(await askRaw(gate, text), /^HTTP\/1\.1 400/)
  t.equal(upstream.bytes, '')
  // Where the policy let it through, it must still not reach the wire.
  const lax = await startGate(upstream.url, { lax: true })
  t.teardown(() => lax.close())
  t.match(await askRaw(lax, text), /^HTTP\/1\.1 200/)
  t.equal(upstream.requests.length, 1)
  t.equal(upstream.requests[0]!.headers.get('transfer-encoding'), undefined)
  t.notMatch(upstream.bytes, /DELETE \/db HTTP/)
})

void t.test('Expect and Trailer', async t => {
  const { upstream, gate } = await stand(t)
  const expected = await askRaw(gate, 'PUT /couch/db/doc HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic eDp5\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}')
  t.match(expected, /HTTP\/1\.1 200 OK/)
  t.equal(upstream.requests[0]!.headers.get('expect'), undefined)
  t.equal(upstream.requests[0]!.headers.get('authorization'), OUR_AUTHORIZATION)
  const trailer = 'PUT /couch/db/doc HTTP/1.1\r\nHost: 127.0.0.1\r\nTrailer: X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}'
  t.match(await askRaw(gate, trailer), /HTTP\/1\.1 400/)
  // And where the policy let it through.
  const lax = await startGate(upstream.url, { lax: true })
  t.teardown(() => lax.close())
  t.match(await askRaw(lax, trailer), /HTTP\/1\.1 200/)
  t.equal(upstream.requests.length, 2)
  t.equal(upstream.requests[1]!.headers.get('trailer'), undefined)
})

// ---- what comes back

void t.test('answers come back by allow-list', async t => {
  const { gate } = await stand(t, answerText('201 Whatever', [
    'Content-Type: application/json', 'ETag: "1-a"', 'Server: CouchDB/3.3.3', 'Set-Cookie: AuthSession=x', 'Location: http://127.0.0.1:5984/db/doc', 'X-Couch-Request-ID: 1', 'WWW-Authenticate: Basic',
    'Cache-Control: must-revalidate', 'Connection: X-Secret', 'X-Secret: 1', 'Trailer: X', 'Keep-Alive: timeout=4', 'Access-Control-Allow-Origin: *', 'Date: Thu, 01 Jan 1970 00:00:00 GMT',
  ], '{}'))
  const document = await ask(gate, { path: '/couch/db/doc' })
  t.equal(document.status, 201)
  t.equal(document.message, 'Created')
  const { connection, ...headers } = document.headers
  t.ok(connection === 'close' || connection === 'keep-alive')
  t.strictSame(headers, { 'content-type': 'application/json', 'etag': '"1-a"', 'cache-control': 'must-revalidate', 'x-content-type-options': 'nosniff', 'content-length': '2', 'date': 'Thu, 01 Jan 1970 00:00:00 GMT' })
  const attachment = await ask(gate, { path: '/couch/db/doc/page.html' })
  t.equal(attachment.headers['content-security-policy'], 'sandbox')
  t.equal(attachment.headers['x-content-type-options'], 'nosniff')
  t.equal((await ask(gate, { path: '/couch/db/_design/d/page.html' })).headers['content-security-policy'], 'sandbox')
})

void t.test('an answer that has no body needs no length: what is unchanged is 304, with no Content-Length as Node sends it', async t => {
  for (const status of ['204 No Content', '304 Not Modified']) {
    const { gate } = await stand(t, `HTTP/1.1 ${status}\r\nETag: "1-a"\r\n\r\n`)
    for (const request of [{ path: '/couch/db/doc' }, { method: 'PUT', path: '/couch/db/doc', body: '{}' }]) {
      const answer = await ask(gate, request)
      t.match(answer, { status: Number(status.slice(0, 3)), complete: true, headers: { etag: '"1-a"' } }, `${status}, for ${request.method ?? 'GET'}`)
      t.equal(answer.body.length, 0)
    }
  }
})

void t.test('a header value that no header may have is dropped', async t => {
  t.strictSame(responseHeaders({ 'content-type': 'text/plain\r\nx: y', 'etag': 'a\u0000', 'content-length': '1, 2', 'content-range': '\u{1f600}' }, 'document'), { 'x-content-type-options': 'nosniff' })
})

void t.test('hostile answers cost the request and nothing else', async t => {
  const hostile: ReadonlyArray<[name: string, answer: string, status: number]> = [
    ['status 099', 'HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\n{}', 502],
    ['status 000', 'HTTP/1.1 000 Odd\r\nContent-Length: 2\r\n\r\n{}', 502],
    ['status 600', 'HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\n{}', 502],
    ['status 999', 'HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\n{}', 502],
    ['status 407', 'HTTP/1.1 407 Odd\r\nContent-Length: 2\r\n\r\n{}', 502],
    ['status 101', 'HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n', 502],
    ['a control character in the reason', 'HTTP/1.1 200 O\u0001K\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}', 200],
    ['a high character in the reason', 'HTTP/1.1 200 O\u00ffK\r\nContent-Length: 2\r\n\r\n{}', 200],
    ['Trailer', 'HTTP/1.1 200 OK\r\nTrailer: X\r\nContent-Length: 2\r\n\r\n{}', 200],
    ['trailers', 'HTTP/1.1 200 OK\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n', 200],
    ['no length', 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}', 502],
    ['gzip, chunked', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n', 502],
    ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}', 502],
    ['length and chunked', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n', 502],
    ['a head without end', `HTTP/1.1 200 OK\r\nX: ${'y'.repeat(100_000)}`, 502],
    ['garbage', 'SSH-2.0-OpenSSH_9.6\r\n', 502],
    ['100 and then the answer', `HTTP/1.1 100 Continue\r\n\r\n${JSON_OK}`, 200],
    ['401', 'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 2\r\n\r\n{}', 502],
    ['403', 'HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\n{"a":"b"} ', 403],
  ]
  for (const [name, text, status] of hostile) {
    const { gate, upstream } = await stand(t, text)
    const answer = await ask(gate, { path: '/couch/db/doc' })
    t.equal(answer.status, status, name)
    t.ok(answer.complete, name)
    t.notOk(answer.headers['www-authenticate'], name)
    if (status !== 200) t.match(JSON.parse(answer.body.toString()), { error: String, reason: String })
    t.notMatch(answer.body.toString(), /"a":"b"/)
    // The next request on the same gate is none the worse.
    upstream.answer(socket => { socket.write(JSON_OK) })
    t.equal((await ask(gate, { path: '/couch/db/doc' })).status, 200, `after ${name}`)
  }
})

void t.test('an answer is the same however it comes in pieces, and what is none is never one', t => {
  const read = (method: string, text: string, size: number): { told: string, isWhole: boolean, isReusable: boolean } | 'bad' => {
    let told = ''
    const parser = new AnswerParser(method, {
      answered: ({ status, headers }) => { told += `${status} ${JSON.stringify(headers)}|` },
      data: (bytes, from, to) => { told += bytes.toString('latin1', from, to) },
    })
    // With rubbish behind it, as in a buffer that was used before.
    const bytes = Buffer.from(text, 'latin1')
    let isWhole = false
    try {
      for (let at = 0; at < bytes.length && !isWhole; at += size) {
        const piece = bytes.subarray(at, at + size)
        isWhole = parser.read(Buffer.concat([piece, Buffer.from('\r\n\r\n0\r\n\r\n')]), piece.length)
      }
    } catch (error) {
      if (error instanceof BadAnswer) return 'bad'
      throw error
    }
    return { told, isWhole, isReusable: parser.isReusable }
  }
  const good: ReadonlyArray<[method: string, text: string, told: string, isReusable: boolean]> = [
    ['GET', 'HTTP/1.1 200 OK\r\nContent-Length:  2 \r\n\r\n{}', '200 {"content-length":"2"}|{}', true],
    ['GET', 'HTTP/1.1 200\r\nETag: "1"\r\nETag: "2"\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n', '200 {"content-length":"0","connection":"x, Close","etag":"\\"1\\""}|', false],
    ['GET', 'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nA;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n', '200 {"transfer-encoding":"chunked"}|{}0123456789', true],
    ['HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n', '200 {"content-length":"9"}|', true],
    ['GET', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n', '304 {"content-length":"9"}|', true],
    ['GET', 'HTTP/1.0 200 OK\r\n__proto__: x\r\nContent-Length: 1\r\n\r\n1', '200 {"content-length":"1"}|1', false],
  ]
  for (const [method, text, told, isReusable] of good) {
    for (let size = 1; size <= text.length; size++) t.strictSame(read(method, text, size), { told, isWhole: true, isReusable }, `${JSON.stringify(text)} by ${size}`)
  }
  const more = read('GET', `${good[0]![1]}HTTP/1.1 200 OK\r\n`, 1000)
  t.match(more, { isWhole: true, isReusable: false }, 'what comes behind it ends its connection')
  const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
  for (const text of [
    'HTTP/2 200\r\n\r\n', 'HTTP/1.1 20 OK\r\n\r\n', ' HTTP/1.1 200 OK\r\n\r\n', 'HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n', 'HTTP/1.1 200 OK\r\nContent-Length: 0\nX: y\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n', 'HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 0\r\n\r\n', 'HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n', 'HTTP/1.1 200 OK\r\nX: \u0000\r\nContent-Length: 0\r\n\r\n',
    ...['', 'Content-Length: +1', 'Content-Length: 0x1', 'Content-Length: 1, 1', 'Content-Length: 1\r\nContent-Length: 1', 'Content-Length: 1\r\nTransfer-Encoding: chunked', 'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked', 'Transfer-Encoding: Chunked', 'Transfer-Encoding: gzip, chunked', 'Transfer-Encoding: identity', 'Transfer-Encoding: chunked\t', 'Transfer-Encoding:\tchunked', 'Content-Length: 0\t'].map(lines => `HTTP/1.1 200 OK\r\n${lines}\r\n\r\n`),
    'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', 'HTTP/1.1 101 Switching\r\n\r\n', 'HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', `HTTP/1.1 200 OK\r\nX: ${'y'.repeat(17_000)}`, `${'HTTP/1.1 100 Continue\r\n\r\n'.repeat(1000)}`,
    ...['-1', '0x1', ' 1', '1 ', '', 'g', '123456789', `1;${'x'.repeat(300)}`].map(size => `${chunked}${size}\r\n1\r\n0\r\n\r\n`), `${chunked}1\r\n12\r\n0\r\n\r\n`, `${chunked}1\n1\r\n0\r\n\r\n`, `${chunked}0\r\n${'X: y\r\n'.repeat(4000)}\r\n`,
    ...['X', 'X : y', ' X: y', 'X: y\r\n z', 'X: \u0000', ': y', 'Content-Length: 0', 'transfer-encoding: chunked'].map(line => `${chunked}0\r\n${line}\r\n\r\n`),
  ]) for (const size of [1, 7, 65_536]) t.equal(read('GET', text, size), 'bad', `${JSON.stringify(text.slice(0, 120))} by ${size}`)
  t.end()
})

void t.test('what nobody asked for is no answer', async t => {
  const { gate, upstream } = await stand(t, `${JSON_OK}${answerText('200 OK', [], '{"of":"another"}')}`)
  for (let n = 0; n < 3; n++) t.equal((await ask(gate, { path: `/couch/db/doc-${n}` })).body.toString(), '{"ok":true}\n')
  t.equal(upstream.connections.length, 3, 'behind an answer')
  upstream.answer(socket => { socket.write(JSON_OK) })
  await ask(gate, { path: '/couch/db/doc' })
  const kept = upstream.connections.at(-1)!
  kept.socket.write(answerText('200 OK', [], '{"of":"another"}'))
  t.ok(await eventually(() => kept.closed), 'on a connection that rests')
  t.equal((await ask(gate, { path: '/couch/db/doc' })).body.toString(), '{"ok":true}\n')
})

void t.test('a broken answer is 502 before its head and a cut after it, and the next request gets its own answer', async t => {
  const chunked = (chunks: string): string => `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunks}`
  // What breaks in the same breath as the head is 502, too. What the client gets: a status, and whether the answer is whole. `end` closes upstream's side after the bytes.
  const faults: ReadonlyArray<[name: string, answer: string, end: boolean, status: number, isWhole: boolean]> = [
    ['nothing', '', true, 502, true],
    ['half a head', 'HTTP/1.1 200 OK\r\nContent-Le', true, 502, true],
    ['10,000 headers', `HTTP/1.1 200 OK\r\n${'X: y\r\n'.repeat(10_000)}Content-Length: 2\r\n\r\n{}`, false, 502, true],
    ['a folded header', 'HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 9\r\nContent-Length: 2\r\n\r\n{}', false, 502, true],
    ['a length with a sign', 'HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}', false, 502, true],
    ['a length in hexadecimal', 'HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n{}', false, 502, true],
    ['TLS', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', false, 502, true],
    ['less than its length, and the end', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}', true, 200, false],
    ['no chunk', chunked('1\r\n{\r\nzz\r\n{}\r\n0\r\n\r\n'), false, 200, false],
    ['a chunk with a sign', chunked('1\r\n{\r\n-2\r\n{}\r\n0\r\n\r\n'), false, 200, false],
    ['a chunk longer than its size', chunked('1\r\n{\r\n1\r\n{}\r\n0\r\n\r\n'), false, 200, false],
    ['a chunk of more than there can be', chunked('1\r\n{\r\nfffffffffffffffff\r\n{}'), false, 200, false],
    ['the end before the last chunk', chunked('2\r\n{}\r\n'), true, 200, false],
    ['more than its length', `HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}${answerText('200 OK', [], 'SMUGGLED')}`, false, 200, true],
    ['more behind the last chunk', chunked(`2\r\n{}\r\n0\r\n\r\n${answerText('200 OK', [], 'SMUGGLED')}`), false, 200, true],
    ['a 204 with a body', answerText('204 No Content', [], answerText('200 OK', [], 'SMUGGLED')), false, 204, true],
    ['a 304 with a body', answerText('304 Not Modified', [], answerText('200 OK', [], 'SMUGGLED')), false, 304, true],
  ]
  for (const request of [{ path: '/couch/db/doc' }, { method: 'PUT', path: '/couch/db/doc', body: '{}' }]) {
    for (const [name, text, end, status, isWhole] of faults) {
      // What breaks after the head breaks when the client has it, and a byte of the body.
      let begun: () => void = () => {}
      const hasBegun = new Promise<void>(resolve => { begun = resolve })
      const { gate, upstream } = await stand(t, async socket => {
        const head = isWhole ? text.length : text.indexOf('{') + 3
        socket.write(text.slice(0, head), 'latin1')
        if (!isWhole) await hasBegun
        socket.write(text.slice(head), 'latin1')
        if (end) socket.end()
      })
      const what = `${name}, for ${request.method ?? 'GET'}`
      const answer = await ask(gate, { ...request, onBody: bytes => { if (bytes > 0) begun() } }).catch((error: unknown) => ({ status: 200, complete: false, body: Buffer.from(String(systemCode(error))) }))
      t.strictSame([answer.status, answer.complete], [status, isWhole], what)
      t.notMatch(answer.body.toString(), /SMUGGLED/, what)
      upstream.answer(socket => { socket.write(answerText('200 OK', ['Content-Type: application/json'], '{"next":1}')) })
      t.equal((await ask(gate, request)).body.toString(), '{"next":1}', `after ${what}`)
    }
  }
})

void t.test('a head that never ends is 504', async t => {
  for (const line of ['y', '\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: ']) for (const request of [{ path: '/couch/db/doc' }, { method: 'PUT', path: '/couch/db/doc', body: '{}' }]) {
    let drip: NodeJS.Timeout | undefined
    let drops = 0
    const clock = new ManualClock(0)
    const { gate, upstream } = await stand(t, socket => {
      socket.write('HTTP/1.1 103 Early Hints\r\nX: ')
      drip = setInterval(() => { socket.write(line, () => { drops++ }) }, 1)
    }, { limits: { upstreamMs: 2000, stallMs: 1000 }, clock })
    const asking = ask(gate, request)
    for (let passed = 0; passed < 2300; passed += 100) {
      const before = drops
      t.ok(await eventually(() => drops > before))
      clock.advance(100)
    }
    t.equal((await asking).status, 504, request.method ?? 'GET')
    clearInterval(drip)
    t.match(gate.outcomes, [{ code: 'upstream-slow' }])
    t.ok(await eventually(() => upstream.connections.every(({ closed }) => closed)))
  }
})

void t.test('a 404 is ours, to the byte', async t => {
  const { gate } = await stand(t, answerText('404 Object Not Found', ['Content-Type: application/json', 'Server: CouchDB/3', 'X-Couch-Request-ID: 7'], '{"error":"not_found","reason":"Database does not exist."}\n'), { principal: peer })
  const strip = (text: string): string => text.replace(/Date: [^\r]*\r\n/, '')
  for (const method of ['GET', 'HEAD']) {
    const request = async (path: string): Promise<string> => strip(await askRaw(gate, `${method} ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n`, 'closed'))
    const absent = await request('/couch/db/nothing')
    const notGranted = await request('/couch/other/nothing')
    const noRoute = await request('/couch/db/_security')
    t.match(absent, /^HTTP\/1\.1 404 Not Found\r\n/)
    t.equal(absent, notGranted)
    t.equal(absent, noRoute)
    t.equal(absent.endsWith('{"error":"not_found","reason":"missing"}\n'), method === 'GET')
  }
})

void t.test('HEAD has headers and no body', async t => {
  const { gate, upstream } = await stand(t, 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n')
  for (let n = 0; n < 2; n++) {
    const text = await askRaw(gate, 'HEAD /couch/db/doc HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n', 'closed')
    t.match(text, /^HTTP\/1\.1 200 OK\r\n/)
    t.match(text, /content-length: 1000\r\n/i)
    t.ok(text.endsWith('\r\n\r\n'))
  }
  t.equal(upstream.connections.length, 1, 'the connection is used again')
})

// ---- who leaves

void t.test('a client that leaves takes the upstream request with it', async t => {
  const half = 'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{'
  const cases: ReadonlyArray<[name: string, answer: Answer | string, request: string]> = [
    ['while CouchDB thinks', silent, 'GET /couch/db/doc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'],
    ['in the middle of the answer', half, 'GET /couch/db/doc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'],
    ['in a feed', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n', 'GET /couch/db/_changes?feed=continuous HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'],
    ['after its whole body', silent, 'POST /couch/db HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}'],
    ['in the middle of its body', silent, `PUT /couch/db/doc/att HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n${'x'.repeat(300_000)}`],
  ]
  for (const [name, answer, request] of cases) {
    const { gate, upstream } = await stand(t, answer)
    const socket = connect(gate.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write(request)
    t.ok(await eventually(() => upstream.bytes.length > 0), `${name}: it arrived`)
    await sleep(20)
    const [connection] = upstream.connections
    t.notOk(connection!.closed)
    socket.destroy()
    t.ok(await eventually(() => connection!.closed), `${name}: closed`)
    t.ok(await eventually(() => gate.outcomes.length === 1))
    t.match(gate.outcomes, [{ cut: 'client' }], name)
  }
})

void t.test('a client that leaves while it waits for a connection never reaches upstream', async t => {
  const { gate, upstream } = await stand(t, silent)
  const waiting = Array.from({ length: 33 }, (_, n) => {
    const socket = connect(gate.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write(`GET /couch/db/doc-${n} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`)
    return socket
  })
  t.ok(await eventually(() => upstream.requests.length === 32))
  await sleep(50)
  const last = waiting.findIndex((_, n) => !upstream.bytes.includes(`/doc-${n} `))
  waiting[last]!.destroy()
  t.ok(await eventually(() => gate.outcomes.length === 1), 'it ends before a connection was there')
  t.match(gate.outcomes, [{ status: 499, cut: 'client' }])
  for (const socket of waiting) socket.destroy()
  t.ok(await eventually(() => gate.outcomes.length === 33))
  t.equal(upstream.requests.length, 32)
})

void t.test('an upstream that dies in the middle never looks complete', async t => {
  const heads: ReadonlyArray<[string, string]> = [
    ['with a length', 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a":'],
    ['chunked', 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n'],
  ]
  for (const [name, text] of heads) {
    for (const end of ['reset', 'end'] as const) {
      let die: () => void = () => {}
      const { gate } = await stand(t, socket => {
        socket.write(text)
        die = () => { if (end === 'reset') socket.resetAndDestroy(); else socket.destroy() }
      })
      const answer = await ask(gate, { path: '/couch/db/doc', onBody: bytes => { if (bytes === 5) die() } })
      t.equal(answer.status, 200)
      t.equal(answer.body.toString(), '{"a":')
      t.notOk(answer.complete, `${name}, ${end}`)
      t.match(gate.outcomes, [{ status: 200, bytes: 5, cut: 'upstream' }])
    }
  }
})

void t.test('an upstream that is not there, or hangs up', async t => {
  const { gate } = await stand(t, socket => { socket.destroy() })
  const answer = await ask(gate, { path: '/couch/db/doc' })
  t.equal(answer.status, 502)
  t.notMatch(answer.body.toString(), /127\.0\.0\.1/, 'where CouchDB is stays our own')
  const gone = await RawUpstream.start()
  const { url } = gone
  await gone.close()
  const down = await startGate(url)
  t.teardown(() => down.close())
  t.equal((await ask(down, { path: '/couch/db/doc' })).status, 502)
  t.equal((await ask(down, { method: 'PUT', path: '/couch/db/doc', body: '{}' })).status, 502)
  t.match(down.outcomes, [{ code: 'upstream-down' }, { code: 'upstream-down' }])
})

void t.test('an answer that comes before the body ended', async t => {
  const upstream = await RawUpstream.start(silent)
  const gate = await startGate(upstream.url)
  t.teardown(async () => {
    await gate.close()
    await upstream.close()
  })
  const socket = connect(gate.port, '127.0.0.1')
  let received = ''
  socket.on('data', chunk => { received += chunk.toString() })
  socket.on('error', () => {})
  socket.write(`PUT /couch/db/doc/att HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n${'x'.repeat(200_000)}`)
  t.ok(await eventually(() => upstream.bytes.length > 0))
  upstream.connections[0]!.socket.write(answerText('409 Conflict', ['Content-Type: application/json'], '{"error":"conflict"}'))
  t.ok(await eventually(() => received.includes('{"error":"conflict"}')))
  t.ok(await eventually(() => upstream.connections[0]!.closed), 'the half request\'s connection is not used again')
  t.match(gate.outcomes, [{ status: 409 }])
  socket.destroy()
})

// ---- time

void t.test('a slow head is 504, a feed waits', async t => {
  const limits = { upstreamMs: 1000, stallMs: 600, heartbeatMs: 2000 }
  const asked = async (path: string): Promise<{ gate: Gate, upstream: RawUpstream, clock: ManualClock, answer: Promise<{ status: number }> }> => {
    const clock = new ManualClock(0)
    const { gate, upstream } = await stand(t, silent, { limits, clock })
    const answer = ask(gate, { path })
    t.ok(await eventually(() => upstream.requests.length === 1))
    await pass(clock, limits.upstreamMs)
    t.strictSame(gate.outcomes, [], path)
    await pass(clock, LATE_MS)
    return { gate, upstream, clock, answer }
  }
  const document = await asked('/couch/db/doc')
  t.match(document.gate.outcomes, [{ code: 'upstream-slow' }])
  t.equal((await document.answer).status, 504)
  const feed = await asked('/couch/db/_changes?feed=longpoll')
  t.strictSame(feed.gate.outcomes, [], 'a feed waits')
  await pass(feed.clock, limits.heartbeatMs + limits.stallMs - limits.upstreamMs)
  t.equal((await feed.answer).status, 504, 'no longer than a heartbeat and a stall')
  t.ok(await eventually(() => feed.upstream.connections.every(({ closed }) => closed)))
})

/** How late a deadline may be kept: a few periods of the patrol of these limits. */
const LATE_MS = 200

/** Time passes, and what is due happens. */
async function pass (clock: ManualClock, ms: number): Promise<void> {
  clock.advance(ms)
  await turn()
}

/** What is on its way in this process arrives. */
async function turn (): Promise<void> {
  for (let n = 0; n < 3; n++) await new Promise(resolve => { setImmediate(resolve) })
}

void t.test('the head of a feed does not wait for its first line', async t => {
  const { gate } = await stand(t, 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
  t.match(await askRaw(gate, 'GET /couch/db/_changes?feed=continuous HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'), /^HTTP\/1\.1 200 OK/)
})

void t.test('a stalled transfer is cut on both sides', async t => {
  const limits = { stallMs: 1000, upstreamMs: 50_000, heartbeatMs: 1000 }
  const begin = async (answer: Answer | string, request: string, hasBegun: (received: string, upstream: RawUpstream) => boolean): Promise<{ gate: Gate, upstream: RawUpstream, clock: ManualClock, client: Dialled }> => {
    const clock = new ManualClock(0)
    const { gate, upstream } = await stand(t, answer, { limits, clock })
    const client = dial(gate, request)
    t.ok(await eventually(() => hasBegun(client.text, upstream)))
    return { gate, upstream, clock, client }
  }
  const isCutAfter = async (ms: number, { gate, upstream, clock, client }: Awaited<ReturnType<typeof begin>>, what: string): Promise<void> => {
    await pass(clock, ms)
    t.strictSame([client.isClosed, gate.outcomes], [false, []], `${what}: not before its time`)
    await pass(clock, LATE_MS)
    t.match(gate.outcomes, [{ cut: 'stalled' }], what)
    t.ok(await eventually(() => client.isClosed && upstream.connections.every(({ closed }) => closed)), `${what}: on both sides`)
  }
  const get = 'GET /couch/db/doc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'
  await isCutAfter(limits.stallMs, await begin('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{', get, text => text.endsWith('\r\n\r\n{')), 'by CouchDB')

  const fromClient = await begin(silent, `PUT /couch/db/doc/att HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n${'x'.repeat(100_000)}`, (_, { bytes }) => bytes.length > 50_000)
  await turn()
  await isCutAfter(limits.stallMs, fromClient, 'by the client')
  t.equal(fromClient.client.text, '')

  const moving = await begin('HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nx', get, text => text.endsWith('x'))
  for (let n = 1; n <= 6; n++) {
    await pass(moving.clock, limits.stallMs - LATE_MS)
    moving.upstream.connections[0]!.socket.write('x')
    t.ok(await eventually(() => moving.client.isClosed || moving.client.text.endsWith('x'.repeat(n + 1))))
  }
  t.ok(moving.client.text.endsWith('xxxxxxx'), 'what moves is not cut')
  t.match(moving.gate.outcomes, [{ status: 200, bytes: 7 }])

  const feed = await begin('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n', 'GET /couch/db/_changes?feed=continuous HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n', text => text.includes('\r\n\n\r\n'))
  await isCutAfter(limits.heartbeatMs + limits.stallMs, feed, 'a feed has a heartbeat more')
})

void t.test('an upstream that reads nothing is slow', async t => {
  const deaf = await RawUpstream.start(silent)
  t.teardown(() => deaf.close())
  const other = await startGate(deaf.url, { limits: { stallMs: 150 } })
  t.teardown(() => other.close())
  const timer = setInterval(() => { for (const { socket } of deaf.connections) socket.pause() }, 1)
  t.teardown(() => { clearInterval(timer) })
  const socket = connect(other.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write('PUT /couch/db/doc/att HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000000\r\n\r\n')
  socket.write(Buffer.alloc(50_000_000))
  t.ok(await eventually(() => other.outcomes.length === 1))
  t.match(other.outcomes, [{ code: 'upstream-slow' }])
  socket.destroy()
})

void t.test('feeds get a heartbeat within the limit', async t => {
  const table: ReadonlyArray<[asked: Record<string, string>, sent: Record<string, string>]> = [
    [{}, { heartbeat: '20000' }],
    [{ heartbeat: 'true' }, { heartbeat: '20000' }],
    [{ heartbeat: '60000' }, { heartbeat: '20000' }],
    [{ heartbeat: '10000' }, { heartbeat: '10000' }],
    [{ heartbeat: '0' }, { heartbeat: '1000' }],
    [{ heartbeat: '10000', timeout: '90000' }, { heartbeat: '10000', timeout: '90000' }],
    [{ timeout: '5000' }, { timeout: '5000' }],
    [{ timeout: '90000' }, { timeout: '20000' }],
  ]
  for (const [asked, sent] of table) t.strictSame(Object.fromEntries(boundedFeedQuery(new Map(Object.entries(asked)), 20_000)), sent, JSON.stringify(asked))
  const { gate, upstream } = await stand(t)
  await ask(gate, { path: '/couch/db/_changes?feed=longpoll&since=0' })
  await ask(gate, { path: '/couch/db/_changes?since=0' })
  t.strictSame(upstream.requests.map(({ target }) => target), ['/db/_changes?feed=longpoll&since=0&heartbeat=20000', '/db/_changes?since=0'])
})

void t.test('a feed whose upstream keeps silent gets heartbeats of ours, and nothing in the middle of a line', async t => {
  const limits = { heartbeatMs: 1000, stallMs: 7500 }
  const head = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'
  const chunk = (text: string): string => `${text.length.toString(16)}\r\n${text}\r\n`
  const feeds: ReadonlyArray<[answer: string, body: RegExp, begun: number]> = [
    [`${head}Transfer-Encoding: chunked\r\n\r\n`, /^\n{7,9}$/, 0],
    [`${head}Transfer-Encoding: chunked\r\n\r\n${chunk('{"results":[\n')}`, /^\{"results":\[\n\n{7,9}$/, 13],
    [`${head}Transfer-Encoding: chunked\r\n\r\n${chunk('{"seq":"1')}`, /^\{"seq":"1$/, 9],
    [`${head}Content-Length: 20\r\n\r\n{"a":1}\n`, /^\{"a":1\}\n$/, 8],
    [`${head}Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n${chunk('x\n')}`, /^x\n$/, 2],
  ]
  for (const [answer, body, begun] of feeds) {
    const clock = new ManualClock(0)
    const { gate } = await stand(t, answer, { limits, clock })
    for (const how of [{ path: '/couch/db/_changes?feed=continuous' }, { path: '/couch/db/_changes?feed=longpoll&filter=_doc_ids', method: 'POST', body: '{"doc_ids":[]}' }]) {
      let received = -1
      const asking = ask(gate, { ...how, onBody: bytes => { received = bytes } })
      t.ok(await eventually(() => received >= begun))
      for (let beats = 0; beats < 9; beats++) await pass(clock, limits.heartbeatMs)
      const feed = await asking
      t.match(feed.body.toString(), body, JSON.stringify(answer))
      t.notOk(feed.complete)
    }
    t.match(gate.outcomes, [{ cut: 'stalled' }, { cut: 'stalled' }], 'the silence itself is bounded as before')
  }
  const clock = new ManualClock(0)
  const whole = await stand(t, `${head}Transfer-Encoding: chunked\r\n\r\n${chunk('{"results":[\n')}`, { limits, clock })
  let received = 0
  const asking = ask(whole.gate, { path: '/couch/db/_changes?feed=longpoll', onBody: bytes => { received = bytes } })
  for (let beats = 0; beats < 3; beats++) {
    t.ok(await eventually(() => received === 13 + beats), `${beats} of our heartbeats`)
    await pass(clock, limits.heartbeatMs)
  }
  whole.upstream.connections[0]!.socket.write(`${chunk('{"seq":1},\n')}${chunk('{"seq":2}\n],"last_seq":2}\n')}0\r\n\r\n`)
  const answer = await asking
  t.ok(answer.complete)
  t.same(JSON.parse(answer.body.toString()), { results: [{ seq: 1 }, { seq: 2 }], last_seq: 2 })
  t.match(whole.gate.outcomes, [{ bytes: answer.body.length }])
})

// ---- connections

void t.test('connections are kept, bounded, and apart', async t => {
  const { gate, upstream } = await stand(t)
  for (let n = 0; n < 20; n++) await ask(gate, { path: `/couch/db/doc-${n}` })
  t.equal(upstream.connections.length, 1, 'twenty requests, one connection')

  upstream.answer(socket => { setTimeout(() => { socket.write(JSON_OK) }, 20) })
  for (let round = 0; round < 3; round++) await Promise.all(Array.from({ length: 24 }, (_, n) => ask(gate, { path: `/couch/db/doc-${n}` })))
  t.ok(upstream.connections.length <= 24, `bursts keep theirs: ${upstream.connections.length}`)
  const before = upstream.connections.length

  // In two parts, as the end of a body that is thrown away comes late.
  let ends = 0
  upstream.answer(socket => {
    socket.write('HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n')
    setTimeout(() => { socket.write('{}', () => { ends++ }) }, 5)
  })
  for (let n = 1; n <= 5; n++) {
    t.equal((await ask(gate, { path: '/couch/db/nothing' })).status, 404)
    t.ok(await eventually(() => ends === n))
    await turn()
  }
  t.equal(upstream.connections.length, before, 'nor does a 404 cost one')

  const apart = await stand(t, (socket, { target }) => { if (!target.includes('feed=')) socket.write(JSON_OK) }, { limits: { feedsPerEntry: 4 } })
  const feeds = Array.from({ length: 6 }, () => ask(apart.gate, { path: '/couch/db/_changes?feed=longpoll' }).catch(() => undefined))
  t.ok(await eventually(() => apart.upstream.requests.length === 4))
  await sleep(30)
  t.equal(apart.upstream.requests.length, 4, 'so many feeds and no more')
  t.equal((await ask(apart.gate, { path: '/couch/db/doc' })).status, 200, 'and they starve nothing else')
  await apart.gate.proxy.close()
  await Promise.all(feeds)
})

void t.test('a kept connection that upstream closed is not an error', async t => {
  // The first request on a connection is answered; the second finds it closed.
  const { gate, upstream } = await stand(t, (socket, _request, index) => { if (index === 1) socket.write(JSON_OK); else socket.resetAndDestroy() })
  t.equal((await ask(gate, { path: '/couch/db/a' })).status, 200)
  t.equal((await ask(gate, { path: '/couch/db/b' })).status, 200, 'read again on a new one')
  t.equal((await ask(gate, { method: 'DELETE', path: '/couch/db/c?rev=1-a' })).status, 502, 'what writes is not sent twice')
  t.equal((await ask(gate, { method: 'PUT', path: '/couch/db/d', body: '{}' })).status, 200, 'bodies have connections of their own')
  t.equal((await ask(gate, { method: 'PUT', path: '/couch/db/e', body: '{}' })).status, 502, 'nor is a body')
  for (const target of ['/db/c?rev=1-a', '/db/e']) t.equal(upstream.requests.filter(request => request.target === target).length, 1, target)
})

void t.test('different entries never share a connection', async t => {
  const upstream = await RawUpstream.start()
  const gate = await startGate(upstream.url)
  const proxy = new CouchProxy({ url: upstream.url })
  t.teardown(async () => {
    await proxy.close()
    await gate.close()
    await upstream.close()
  })
  await ask(gate, { path: '/couch/db/a' })
  const other = await startGate(upstream.url, { principal: { ...own, entry: 'own:b' } })
  t.teardown(() => other.close())
  await ask(other, { path: '/couch/db/a' })
  t.equal(upstream.connections.length, 2)
})

void t.test('close ends what runs', async t => {
  const { gate, upstream } = await stand(t, silent)
  const waiting = ask(gate, { path: '/couch/db/doc' })
  t.ok(await eventually(() => upstream.requests.length === 1))
  await gate.proxy.close()
  t.equal((await waiting).status, 503)
  t.ok(await eventually(() => upstream.connections[0]!.closed))
  t.equal((await ask(gate, { path: '/couch/db/doc' })).status, 503)
})

// ---- the rest

void t.test('upstream is a literal loopback address', async t => {
  for (const url of ['https://127.0.0.1:5984', 'http://localhost:5984', 'http://127.1:5984', 'http://2130706433', 'http://0x7f.0.0.1', 'http://127.0.0.256:1', 'http://10.0.0.1:5984', 'http://[::]:5984', 'http://[fe80::1]:5984', 'http://user:secret@127.0.0.1:5984', 'http://127.0.0.1:5984/path', 'http://127.0.0.1:5984?x', 'http://127.0.0.1:0', 'http://127.0.0.1:65536', 'http://127.0.0.1:5984#x', '', '127.0.0.1:5984']) {
    t.throws(() => new CouchProxy({ url }), { code: 'bad-env' }, url)
    try {
      parseCouchUrl(url)
    } catch (error) {
      t.notMatch((error as PatchcordError).message, /secret/)
    }
  }
  t.strictSame(parseCouchUrl('http://[::1]:5984/'), { host: '::1', port: 5984 })
  t.strictSame(parseCouchUrl('http://127.9.0.1'), { host: '127.9.0.1', port: 80 })
})

void t.test('a CouchDB at an IPv4 address is reached by an IPv6 socket, where such sockets can', async t => {
  for (const [host, platform, isMapped, address] of [
    ['127.0.0.1', 'linux', true, '::ffff:127.0.0.1'], ['127.0.0.1', 'linux', false, '127.0.0.1'], ['127.0.0.1', 'darwin', true, '127.0.0.1'], ['127.0.0.1', 'win32', true, '127.0.0.1'], ['::1', 'linux', true, '::1'], ['::1', 'linux', false, '::1'],
  ] as const) t.equal(socketAddress(host, platform, () => isMapped), address, `${host} on ${platform}${isMapped ? '' : ' with net.ipv6.bindv6only'}`)
  const { gate, upstream } = await stand(t)
  t.match(upstream.url, /^http:\/\/127\.0\.0\.1:/)
  t.equal((await ask(gate, { path: '/couch/db/doc' })).status, 200)
  t.match(upstream.requests[0]!.headers.get('host') ?? '', /^127\.0\.0\.1:/, 'what it is told is the address that was given')
})

void t.test('what is answered here never goes up', async t => {
  const { gate, upstream } = await stand(t)
  t.equal((await ask(gate, { path: '/couch/' })).status, 500)
  t.equal((await ask(gate, { path: '/couch/_all_dbs' })).status, 500)
  t.equal(upstream.bytes, '')
  t.strictSame(visibleDatabases(peer, ['shown', 'hidden', 'db', 'db'] as DatabaseName[]), ['db', 'shown'])
  t.strictSame(visibleDatabases(own, ['b', 'a'] as DatabaseName[]), ['a', 'b'])
  t.match(COUCH_WELCOME, { couchdb: 'Welcome', vendor: { name: 'patchcord' } })
  t.equal(typeof sendCouchError, 'function')
})

void t.test('a colon in the user name is refused, not sent', async t => {
  const { gate, upstream } = await stand(t)
  await t.rejects(gate.proxy.forward({
    action: { kind: 'couch', row: { id: 'x', methods: ['GET'], path: 'document', query: {}, body: 'none', needs: 'read', who: 'all' }, target: { database: 'db' as DatabaseName, document: 'a' }, query: new Map() },
    request: { method: 'GET', segments: [], trailingSlash: false, query: new Map(), headers: new Map(), body: undefined },
    principal: own, credentials: { username: 'a:b', password: 'c' }, body: undefined as never, response: undefined as never,
  }), { code: 'bad-env' })
  t.equal(upstream.bytes, '')
})

void t.test('no deprecation is printed, and util is as it was', async t => {
  const script = `
    import util from 'node:util'
    const _extend = () => { throw new Error('util._extend was called') }
    util._extend = _extend
    const { createServer } = await import('node:http')
    const { sendUpstream } = await import(${JSON.stringify(new URL('../src/couch/quiet-http-proxy.js', import.meta.url).href)})
    const { Readable } = await import('node:stream')
    const server = createServer((request, response) => response.end('fine')).listen(0, '127.0.0.1', () => {
      sendUpstream({ host: '127.0.0.1', port: server.address().port }, { method: 'GET', path: '/', headers: {} }, { body: Readable.from([]), agent: undefined }, {
        failed () {}, data () {}, caughtUp () {},
        answered ({ status }) { console.log(status, util._extend === _extend) },
        ended () { server.close(); server.closeAllConnections() },
      })
    })`
  const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], { env: { ...process.env, NODE_OPTIONS: '' } })
  t.equal(stdout, '200 true\n')
  t.equal(stderr, '')
})

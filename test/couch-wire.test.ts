import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { deflateSync, gzipSync } from 'node:zlib'
import t, { type Test } from 'tap'
import type { ServerUpdate } from '../src/index.js'
import { JSON_OK, RawUpstream, type Answer, type ParsedRequest } from './couch-fixtures.js'
import { Client, envOf, eventually, friendDevice, get, GRANTS, head, laptop, WHITELIST, writer, type Credential } from './fixtures/server-world.js'

// Refusals from the outside: raw sockets at the executable, before an upstream that keeps every byte. `friend` may read
// `shared`, `writer` may write it, `laptop` is an own device.

const SCRIPT = fileURLToPath(new URL('../src/bin/patchcord-server.js', import.meta.url))

interface World {
  readonly upstream: RawUpstream
  /** The complete requests that arrived, in their order. */
  readonly arrived: ParsedRequest[]
  readonly port: number
  /** Resolves when the server has acknowledged it. */
  update (part: ServerUpdate): Promise<void>
}

const DATABASES = ['other', 'secret', 'shared', 'shared-', 'shared/x', 'sharedx']

async function startWorld (answer: Answer = socket => { socket.write(JSON_OK) }): Promise<World> {
  const arrived: ParsedRequest[] = []
  const upstream = await RawUpstream.start((socket, request, index) => {
    arrived.push(request)
    return answer(socket, request, index)
  })
  const child = spawn(process.execPath, [SCRIPT], { env: {}, stdio: ['pipe', 'pipe', 'ignore'] })
  const exited = once(child, 'close')
  t.teardown(async () => {
    child.stdin.end()
    await exited
    await upstream.close()
  })
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const next = async (): Promise<Record<string, unknown>> => JSON.parse((await lines.next()).value as string) as Record<string, unknown>
  const credentials = Object.fromEntries(['own', 'friend', 'writer'].map(name => [name, { username: `${name}-user`, password: 'secret' }]))
  child.stdin.write(`${JSON.stringify(envOf({ couch: { url: upstream.url, databases: DATABASES as never, credentials }, limits: { acceptBurst: 10_000, acceptsPerSecond: 10_000, bodyBytes: 100_000, bodies: 1_000, headMs: 2_000 } }))}\n`)
  const { listen } = await next() as { listen: Array<{ port: number }> }
  let seq = 0
  return {
    upstream, arrived, port: listen[0]!.port,
    update: async part => {
      child.stdin.write(`${JSON.stringify({ op: 'update', seq: ++seq, ...part })}\n`)
      t.match(await next(), { event: 'updated', seq })
    },
  }
}

const json = (line: string, body: string | Buffer, ...headers: string[]): string =>
  `${head(`${line} HTTP/1.1`, 'Content-Type: application/json', `Content-Length: ${Buffer.byteLength(body)}`, ...headers)}${body.toString('latin1')}`
const chunked = (line: string, chunks: string, ...headers: string[]): string =>
  `${head(`${line} HTTP/1.1`, 'Content-Type: application/json', 'Transfer-Encoding: chunked', ...headers)}${chunks}`
const INNER = 'GET /couch/secret HTTP/1.1\r\nHost: [::1]\r\n\r\n'
const put = (...headers: string[]): string => head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', ...headers)

/** Who sends what, and the statuses that come back. Nothing of it may reach CouchDB whole. */
type Refused = readonly [name: string, who: Credential, bytes: string, statuses: readonly number[]]

const FRAMING: readonly Refused[] = [
  ['CL.TE', writer, `${put('Content-Length: 6', 'Transfer-Encoding: chunked')}0\r\n\r\nG`, [400]],
  ['TE.CL', writer, `${put('Transfer-Encoding: chunked', 'Content-Length: 4')}5c\r\n${INNER}\r\n0\r\n\r\n`, [400]],
  ...['xchunked', 'chunked, identity', 'identity', 'identity, chunked', 'gzip, chunked', 'chunked, chunked', 'Chunked', '"chunked"', 'chunked;q=1', 'x', 'chunked\x0b', 'ch\x00unked', ''].map((value): Refused =>
    [`Transfer-Encoding: ${JSON.stringify(value)}`, writer, `${put(`Transfer-Encoding: ${value}`)}0\r\n\r\n${INNER}`, [400]]),
  ['Transfer-Encoding with a space before the colon', writer, `${put('Transfer-Encoding : chunked', 'Content-Length: 2')}{}`, [400]],
  ['Transfer-Encoding behind a bare line feed', writer, `${put('X: y\nTransfer-Encoding: chunked', 'Content-Length: 2')}{}`, [400]],
  ['Transfer-Encoding behind a bare carriage return', writer, `${put('X: y\rTransfer-Encoding: chunked', 'Content-Length: 2')}{}`, [400]],
  ['Transfer-Encoding in a folded line', writer, `${put('X: y\r\n Transfer-Encoding: chunked', 'Content-Length: 2')}{}`, [400]],
  ['a folded length', writer, `${put('Content-Length:\r\n 2')}{}`, [400]],
  ...['2, 2', '2,3', '+2', '-2', '0x2', '2 2', '2.0', '2e0', '1_0', '9007199254740993', '99999999999999999999', '\x0b2', ''].map((value): Refused =>
    [`Content-Length: ${JSON.stringify(value)}`, writer, `${put(`Content-Length: ${value}`)}{}${INNER}`, [400]]),
  ['two lengths that agree', writer, `${put('Content-Length: 2', 'Content-Length: 2')}{}`, [400]],
  ['more than a body may have', writer, put('Content-Length: 100001'), [413]],
  ...['2\n{}\r\n0\r\n\r\n', '+2\r\n{}\r\n0\r\n\r\n', '0x2\r\n{}\r\n0\r\n\r\n', '-2\r\n{}\r\n0\r\n\r\n', 'fffffffffffffffff2\r\n{}\r\n0\r\n\r\n', ' 2\r\n{}\r\n0\r\n\r\n', '\r\n2\r\n{}\r\n0\r\n\r\n', '2;a\x00=b\r\n{}\r\n0\r\n\r\n', '2;\n\r\n{}\r\n0\r\n\r\n'].map((chunks): Refused =>
    [`chunks: ${JSON.stringify(chunks)}`, writer, chunked('PUT /couch/shared/a', `${chunks}${INNER}`), [400]]),
  // The request was under way: there is nothing to answer with.
  ['a chunk that is longer than it says', writer, chunked('PUT /couch/shared/a', `2\r\n{}X\r\n0\r\n\r\n${INNER}`), []],
  ['HTTP/1.0 that keeps alive', writer, 'GET /couch/shared HTTP/1.0\r\nHost: [::1]\r\nConnection: keep-alive\r\n\r\n', [400]],
  ['HTTP/1.0, chunked', writer, `POST /couch/shared HTTP/1.0\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${INNER}`, [400]],
  ['HTTP/0.9', writer, 'GET /couch/shared\r\n\r\n', [400]],
  ['HTTP/1.2', writer, 'GET /couch/shared HTTP/1.2\r\nHost: [::1]\r\n\r\n', [400]],
  ['absolute-form of our own', writer, 'GET https://[::1]/couch/shared HTTP/1.1\r\nHost: [::1]\r\n\r\n', [400]],
  ['absolute-form of CouchDB', writer, 'GET http://127.0.0.1:5984/_users HTTP/1.1\r\nHost: [::1]\r\n\r\n', [400]],
  ['authority-form', writer, 'GET [::1]:5984 HTTP/1.1\r\nHost: [::1]\r\n\r\n', [400]],
  ['a target and a space', writer, 'GET /couch/shared /couch/secret HTTP/1.1\r\nHost: [::1]\r\n\r\n', [400]],
  ['a tab in the request line', writer, 'GET\t/couch/shared HTTP/1.1\r\nHost: [::1]\r\n\r\n', [400]],
  ['a method in small letters', writer, 'get /couch/shared HTTP/1.1\r\nHost: [::1]\r\n\r\n', [400]],
  ...['GET', 'HEAD', 'DELETE', 'COPY', 'OPTIONS', 'PATCH'].flatMap((method): Refused[] => [
    [`${method} with a body`, writer, `${head(`${method} /couch/shared/a HTTP/1.1`, `Content-Length: ${INNER.length}`)}${INNER}`, [400]],
    [`${method}, chunked`, writer, `${head(`${method} /couch/shared/a HTTP/1.1`, 'Transfer-Encoding: chunked')}${INNER.length.toString(16)}\r\n${INNER}\r\n0\r\n\r\n`, [400]],
  ]),
  ['Upgrade', writer, get('/couch/shared', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Key: x', 'Sec-WebSocket-Version: 13'), [400]],
  ['Upgrade that Connection does not name', writer, get('/couch/shared', 'Upgrade: h2c'), [400]],
  ['Trailer', writer, chunked('PUT /couch/shared/a', '2\r\n{}\r\n0\r\nX-HTTP-Method-Override: DELETE\r\n\r\n', 'Trailer: X-HTTP-Method-Override'), [400]],
  ['Expect twice', writer, `${put('Expect: 100-continue', 'Expect: 100-continue', 'Content-Length: 2')}{}`, [400]],
  ['another Expect', writer, `${put('Expect: 100-continue, x', 'Content-Length: 2')}{}`, [400]],
  ['a method override', writer, json('POST /couch/shared', '{}', 'X-HTTP-Method-Override: DELETE'), [400]],
  ...['Content-Length', 'Transfer-Encoding', 'Host', 'Expect', 'close, CONTENT-LENGTH'].map((value): Refused =>
    [`Connection: ${value}`, writer, json('PUT /couch/shared/a', '{}', `Connection: ${value}`), [400]]),
]

const GZIP = gzipSync('{"_id":"_design/x"}')
const DEFLATE = deflateSync('{"_id":"_design/x"}')
const wide = (text: string, bytes: 2 | 4, little: boolean): Buffer => Buffer.concat(Array.from(text, character => {
  const code = Buffer.alloc(bytes)
  if (little) code.writeUIntLE(character.charCodeAt(0), 0, bytes)
  else code.writeUIntBE(character.charCodeAt(0), 0, bytes)
  return code
}))
const MULTIPART = '--x\r\nContent-Type: application/json\r\n\r\n{"_id":"_design/x"}\r\n--x--'
const DESIGN = '{"_id":"_design/x"}'

const ENCODINGS: readonly Refused[] = [
  ...['gzip', 'x-gzip', 'deflate', 'br', 'zstd', 'GZIP', 'gzip, identity', 'identity, gzip'].map((value): Refused =>
    [`Content-Encoding: ${value}`, writer, json('POST /couch/shared', GZIP, `Content-Encoding: ${value}`), [415]]),
  ['gzip that nobody names', writer, json('POST /couch/shared', GZIP), [400]],
  ['deflate that nobody names', writer, json('POST /couch/shared', DEFLATE), [400]],
  ...[2, 4].flatMap(bytes => [true, false].flatMap((little): Refused[] => [
    [`UTF-${bytes * 8} ${little ? 'LE' : 'BE'}`, writer, json('POST /couch/shared', wide(DESIGN, bytes as 2 | 4, little)), [400]],
    [`UTF-${bytes * 8} ${little ? 'LE' : 'BE'} with a mark`, writer, json('POST /couch/shared', wide(`\ufeff${DESIGN}`, bytes as 2 | 4, little)), [400]],
  ])),
  ['a byte order mark', writer, json('POST /couch/shared', Buffer.from(`\ufeff${DESIGN}`)), [400]],
  ['an overlong underscore', writer, json('POST /couch/shared', Buffer.from(DESIGN.replaceAll('_', '\xc1\x9f'), 'latin1')), [400]],
  ['UTF-7', writer, json('POST /couch/shared', '{"+AF8-id":"+AF8-design/x"}'.replace('{', '+AHs-')), [400]],
  ...['application/json; charset=utf-16', 'application/json; charset=utf-16; charset=utf-8', 'text/json', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/octet-stream', ''].map((type): Refused =>
    [`Content-Type: ${type}`, writer, `${head('POST /couch/shared HTTP/1.1', `Content-Type: ${type}`, 'Content-Length: 2')}{}`, [415]]),
  ['multipart/related', writer, `${head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: multipart/related; boundary="x"', `Content-Length: ${MULTIPART.length}`)}${MULTIPART}`, [415]],
]

const PATHS: readonly Refused[] = [
  // Names that are alike: what is not granted is 404, what is not canonical 400.
  ...['share', 'sharedx', 'shared-', 'shared_', 'shared%2Fx', 'shared%2fx', 'Shared', 'SHARED', 'shared%20', '%20shared', 'shared+', 'shared;x', 'shared,secret', 'shared%3Fx', 'shared%23', 'shared%2F', 'shared%252Fx', 'secret', '%73ecret', '_users', '%5Fusers', '_replicator', '%5f%75sers', 'shared%26', 'shared:5984', '*', 'sh%61red%2f_security', 'shared%2F_design%2Fx', 'sharéd'.replace('é', '%C3%A9')].flatMap(name => ['', '/doc', '/_all_docs'].map((rest): Refused =>
    [`the database ${name}${rest}`, friendDevice, get(`/couch/${name}${rest}`), [404]])),
  ...['shared/../secret', 'shared/%2e%2e/secret', 'shared%2F..%2Fsecret', 'shared/..%2fsecret', './shared', 'shared//secret', '/shared', 'shared\\secret', 'shared%00', 'shared%0a', 'shared%0d%0a', 'shared%', 'shared%zz', 'shared%c0%af', 'shared%u002f', 'shared#', 'shared%7f', 'shared/%252e%252e/secret', 'shared/.', '%2e'].map((path): Refused =>
    [`the path ${path}`, friendDevice, get(`/couch/${path}`), [400]]),
  ...['_security', '_shards', '_purge', '_compact', '_revs_limit', '_local_docs', '_design_docs', '_changes/x', '_all_docs/x', '_all_docs/queries', '_bulk_docs/x', '_find/x', '_index', '_explain', '_partition/x', '_%73ecurity', '%5Fsecurity', '_auto_purge', '_sync_shards', '_missing_revs/x', '_design', '_design/', '_local', '_local/', '_design/x/_info', '_design/x/_show/y', '_design/x/_list/y/z', '_design/x/_update/y', '_design/x/_rewrite', '_design/x/_rewrite/y', '_design/x/_nouveau/y', '_design/x/_search/y', '_design/x/_view', '_design/x/_view/y/z', '_design%2Fx/_show/y', '_local/x/att', 'doc/_att', 'doc/'].map((path): Refused =>
    [`shared/${path}`, laptop, get(`/couch/shared/${path}`), [404]]),
  ...['', '_up', '_utils', '_utils/', '_session', '_active_tasks', '_db_updates', '_node/_local/_config', '_membership', '_uuids', '_scheduler/jobs', '_stats', '_reshard', '_replicate', '_dbs_info', '_cluster_setup', '_all_dbs/x', 'favicon.ico', '_oauth', '_config', '_log', '_restart', '_prometheus', '_node/nonode@nohost/_system'].filter(name => name !== '').map((name): Refused =>
    [`/couch/${name}`, laptop, get(`/couch/${name}`), [404]]),
  ['couch in capitals', laptop, get('/COUCH/shared'), [404]],
  ['couch, escaped twice', laptop, get('/%2563ouch/shared'), [404]],
  ['couch and a slash, escaped', laptop, get('/couch%2Fshared'), [400]],
]

const DESIGN_AND_LOCAL: readonly Refused[] = [
  ...['_design/x', '_design%2Fx', '%5Fdesign/x', '%5fdesign%2fx', '_%64esign/x', '_design/x%2Fy', '_design/x/att', '_design%2Fx/att'].flatMap((path): Refused[] => [
    [`PUT ${path}`, laptop, json(`PUT /couch/shared/${path}`, '{}'), [404]],
    [`DELETE ${path}`, laptop, head(`DELETE /couch/shared/${path}?rev=1-a HTTP/1.1`), [404]],
    [`PUT ${path}, by a writer`, writer, json(`PUT /couch/shared/${path}`, '{}'), [404]],
  ]),
  ...['_design/x', '%5Fdesign%2Fx', '_local/x'].map((to): Refused => [`COPY to ${to}`, laptop, head('COPY /couch/shared/a HTTP/1.1', `Destination: ${to}`), [404]]),
  ['MOVE', laptop, head('MOVE /couch/shared/a HTTP/1.1', 'Destination: _design/x'), [404]],
  ['DELETE of a checkpoint', laptop, head('DELETE /couch/shared/_local/x HTTP/1.1'), [404]],
  ['COPY of a checkpoint', laptop, head('COPY /couch/shared/_local/x HTTP/1.1', 'Destination: a'), [404]],
  ...[DESIGN, '{"_id":"_local/x"}', '{"\\u005fid":"_design/x"}', '{"_id":"\\u005fdesign/x"}', '{"_id":"_design\\/x"}', '{"_\\u0069\\u0064":"\\u005f\\u0064esign\\u002fx"}', '{"a":[{"b":{}}],"_id":"_design/x"}', '{"_id":"_users"}', '{"_id":"_"}', '{ "_id" : "_design/x" }'].flatMap((document): Refused[] => [
    [`POST ${document}`, writer, json('POST /couch/shared', document), [403]],
    [`PUT ${document}`, writer, json('PUT /couch/shared/a', document), [403]],
    [`_bulk_docs of ${document}`, writer, json('POST /couch/shared/_bulk_docs', `{"docs":[{"_id":"a"},${document}]}`), [403]],
    [`new_edits:false of ${document}`, laptop, json('POST /couch/shared/_bulk_docs', `{"new_edits":false,"docs":[${document}]}`), [403]],
    [`new_edits:false behind ${document}`, laptop, json('POST /couch/shared/_bulk_docs', `{"docs":[${document}],"new_edits":false}`), [403]],
  ]),
  ...['{"_id":"a","_id":"_design/x"}', '{"_id":"a","\\u005fid":"_design/x"}', '{"_id":["_design/x"]}', '{"_id":{"_id":"_design/x"}}', '{"_id":null}', '[{"_id":"_design/x"}]', '"_design/x"', '', ' ', '{}{"_id":"_design/x"}', '{}\n{"_id":"_design/x"}', '{"_id":"a"', '{\'_id\':"_design/x"}', '{_id:"_design/x"}', '{"_id":"a",}', '/**/{"_id":"_design/x"}', '{"_id":"\\ud800_design/x"}'].map((document): Refused =>
    [`POST ${JSON.stringify(document)}`, writer, json('POST /couch/shared', Buffer.from(document)), [400]]),
  ...['{"docs":[],"docs":[{"_id":"_design/x"}]}', '{"docs":[],"\\u0064ocs":[{"_id":"_design/x"}]}', '{"docs":{"_id":"_design/x"}}', '{"docs":[[{"_id":"_design/x"}]]}', '{"docs":"_design/x"}', '{"docs":null}', '[{"_id":"_design/x"}]', '{"docs":[{"_id":"a"}', `{"docs":[{"a":${'['.repeat(70)}${']'.repeat(70)}}]}`, `{"docs":[{"a":${'1'.repeat(2000)}}]}`, '{"docs":[{"a":1e99999,}]}'].map((body): Refused =>
    [`_bulk_docs ${body.slice(0, 60)}`, writer, json('POST /couch/shared/_bulk_docs', body), [400]]),
  ['_bulk_get of a checkpoint', friendDevice, json('POST /couch/shared/_bulk_get', '{"docs":[{"id":"_local/x"}]}'), [403]],
  ['_bulk_get of a checkpoint, escaped', friendDevice, json('POST /couch/shared/_bulk_get', '{"docs":[{"id":"\\u005flocal\\/x"}]}'), [403]],
  ['_bulk_get with two IDs', friendDevice, json('POST /couch/shared/_bulk_get', '{"docs":[{"id":"a","id":"_local/x"}]}'), [400]],
  ['_all_docs of a checkpoint', friendDevice, json('POST /couch/shared/_all_docs', '{"keys":["_local/x"]}'), [403]],
  ['_all_docs from a checkpoint on', friendDevice, json('POST /couch/shared/_all_docs', '{"start_key":"_local/"}'), [403]],
  ['_all_docs with queries for one', friendDevice, json('POST /couch/shared/_all_docs', '{"queries":[{"keys":["_local/x"]}]}'), [403]],
  ['_all_docs with what no row has', friendDevice, json('POST /couch/shared/_all_docs', '{"keys":["a"],"filter":"x"}'), [400]],
  ['_revs_diff of a checkpoint', friendDevice, json('POST /couch/shared/_revs_diff', '{"_local/x":["1-a"]}'), [403]],
  ['_missing_revs of a checkpoint', friendDevice, json('POST /couch/shared/_missing_revs', '{"_local/x":["1-a"]}'), [403]],
  ['_changes of a checkpoint', friendDevice, json('POST /couch/shared/_changes?filter=_doc_ids', '{"doc_ids":["_local/x"]}'), [403]],
  ['a selector with $regex', friendDevice, json('POST /couch/shared/_changes?filter=_selector', '{"selector":{"a":{"$regex":"(a+)+$"}}}'), [403]],
  ['a selector with an escaped $regex', friendDevice, json('POST /couch/shared/_changes?filter=_selector', '{"selector":{"a":{"\\u0024regex":"(a+)+$"}}}'), [403]],
  ...['key=%22_local/x%22', 'keys=%5B%22_local/x%22%5D', 'startkey=%22_local/%22', 'start_key=%22%5Clocal%22', 'startkey_docid=_local/x', 'end_key_doc_id=_local/x', 'key=%22%5Cu005flocal/x%22', 'key=%22_local/x%22&key=%22a%22', 'keys=x', 'stale=ok', 'reduce=false', 'limit=-1', 'limit=1e9', 'callback=x', 'include_docs=1'].map((query): Refused =>
    [`_all_docs?${query}`, friendDevice, get(`/couch/shared/_all_docs?${query}`), [400]]),
  ...['filter=ddoc/name', 'filter=_view&view=d/v', 'filter=_design', 'filter=_docs', 'feed=eventsource', 'feed=normal&feed=continuous', 'doc_ids=%5B%22_local/x%22%5D', 'heartbeat=-1', 'since=%7B%7D', 'last-event-id=1', 'view=d/v', 'selector=%7B%7D', 'limit=x', 'style=all', 'attachments=yes', 'conflicts=1'].map((query): Refused =>
    [`_changes?${query}`, friendDevice, get(`/couch/shared/_changes?${query}`), [400]]),
  ...['open_revs=x', 'open_revs=%5B%221-a%22,%22_local/x%22%5D', 'rev=x', 'rev=1-a&rev=1-b', 'w=1', 'batch=ok', 'new_edits=false', 'attachments=x'].map((query): Refused =>
    [`doc?${query}`, friendDevice, get(`/couch/shared/doc?${query}`), [400]]),
]

const READ_ONLY: readonly Refused[] = [
  ['PUT', friendDevice, json('PUT /couch/shared/a', '{}'), [403]],
  ['DELETE', friendDevice, head('DELETE /couch/shared/a?rev=1-a HTTP/1.1'), [403]],
  ['POST', friendDevice, json('POST /couch/shared', '{}'), [403]],
  ['_bulk_docs', friendDevice, json('POST /couch/shared/_bulk_docs', '{"docs":[]}'), [403]],
  ['an attachment', friendDevice, json('PUT /couch/shared/a/b', 'x'), [403]],
  ['an attachment of a path', friendDevice, json('PUT /couch/shared/a/b/c', 'x'), [403]],
  ['the end of an attachment', friendDevice, head('DELETE /couch/shared/a/b?rev=1-a HTTP/1.1'), [403]],
  ['_find', friendDevice, json('POST /couch/shared/_find', '{"selector":{}}'), [403]],
  ['a view', friendDevice, get('/couch/shared/_design/d/_view/v'), [403]],
  ['_find, by a writer', writer, json('POST /couch/shared/_find', '{"selector":{}}'), [403]],
  ['a view, by a writer', writer, json('POST /couch/shared/_design/d/_view/v', '{"keys":[]}'), [403]],
  ['a body that is a request', friendDevice, json('PUT /couch/shared/a', INNER), [403]],
  ['a new database', laptop, json('PUT /couch/shared', '{}'), [404]],
  ['the end of a database', laptop, head('DELETE /couch/shared HTTP/1.1'), [404]],
]

const world = await startWorld()

/** Each row on a connection of its own; a few at a time. */
async function refuseAll (t: Test, rows: readonly Refused[]): Promise<void> {
  const before = world.arrived.length
  // A line end in front of a request is allowed (RFC 9112 section 2.2) and keeps a read out of the plain lane: both ways refuse the same.
  const queue = rows.flatMap((row): Refused[] => row[2].startsWith('GET ') && row[3].length > 0 ? [row, [`${row[0]}, by Node's server`, row[1], `\r\n${row[2]}`, row[3]]] : [row])
  await Promise.all(Array.from({ length: 8 }, async () => {
    for (let row = queue.shift(); row !== undefined; row = queue.shift()) {
      const [name, who, bytes, statuses] = row
      // latin1: what stands in the table are bytes.
      const client = new Client(world.port, who).write(Buffer.from(bytes, 'latin1'))
      await client.until(({ statuses: seen, isClosed }) => seen.length >= statuses.length || isClosed, 15_000)
      // A frame that breaks behind its head may find the request under way: then it is cut, unanswered.
      if (name.startsWith('chunks:') && client.isClosed && client.statuses.length === 0) t.pass(name)
      else t.strictSame(client.statuses, statuses, name)
      client.end()
    }
  }))
  t.strictSame(world.arrived.slice(before).map(({ method, target }) => `${method} ${target}`), [], 'upstream saw no complete request')
}

await t.test('framing games', t => refuseAll(t, FRAMING))
await t.test('encodings', t => refuseAll(t, ENCODINGS))
await t.test('paths', t => refuseAll(t, PATHS))
await t.test('design and local documents, by every way in', t => refuseAll(t, DESIGN_AND_LOCAL))
await t.test('who may only read, and what nobody may', t => refuseAll(t, READ_ONLY))

// ---- what is taken is written anew

await t.test('of the headers of a request that is taken, none that speaks for somebody arrives', async t => {
  const before = world.arrived.length
  const spoofed = ['Authorization: Basic YWRtaW46YWRtaW4=', 'authorization : x'.replace(' :', ':'), 'Cookie: AuthSession=SPOOFED', 'X-Auth-CouchDB-UserName: SPOOFED', 'X-Auth-CouchDB-Roles: _admin', 'X-Auth-CouchDB-Token: SPOOFED', 'Proxy-Authorization: Basic SPOOFED', 'X-Forwarded-For: SPOOFED', 'X-Forwarded-Host: SPOOFED', 'X-Forwarded-User: SPOOFED', 'Forwarded: for=SPOOFED', 'Via: SPOOFED', 'X-Real-IP: SPOOFED', 'X-Couch-Request-ID: SPOOFED', 'Destination: SPOOFED', 'X-Original-URL: /SPOOFED', 'X-Rewrite-URL: /SPOOFED', 'Referer: https://SPOOFED', 'Accept-Language: SPOOFED', 'Keep-Alive: SPOOFED', 'Proxy-Connection: SPOOFED', 'TE: SPOOFED', 'Sec-WebSocket-Key: SPOOFED']
  const twice = new Client(world.port, writer).write(get('/couch/shared/a', ...spoofed.slice(0, 2)))
  t.ok(await twice.ended())
  t.strictSame(twice.statuses, [400], 'two logins are no request')
  for (const header of spoofed.filter((_, at) => at !== 1)) {
    for (const [bytes, target] of [[get('/couch/shared/a', header), 'GET /shared/a'], [json('POST /couch/shared', '{}', header), 'POST /shared'], [chunked('PUT /couch/shared/a', '2\r\n{}\r\n0\r\n\r\n', header), 'PUT /shared/a']] as const) {
      const client = new Client(world.port, writer).write(bytes)
      t.ok(await client.answers(1))
      t.strictSame(client.statuses, [200], header)
      client.end()
      const { method, target: arrived, names, headers } = world.arrived.at(-1)!
      t.equal(`${method} ${arrived}`, target)
      t.equal(headers.get('authorization'), `Basic ${Buffer.from('writer-user:secret').toString('base64')}`)
      t.strictSame(names.filter(name => !['host', 'authorization', 'connection', 'content-type', 'content-length', 'transfer-encoding'].includes(name)), [], header)
    }
  }
  t.equal(world.arrived.length - before, 3 * (spoofed.length - 1))
  t.notMatch(world.upstream.bytes, /SPOOFED|YWRtaW4/)
})

await t.test('chunk extensions and trailers stay behind', async t => {
  const client = new Client(world.port, writer).write(chunked('PUT /couch/shared/a', '1;SPOOFED="x"\r\n{\r\n1\r\n}\r\n0\r\nX-HTTP-Method-Override: SPOOFED\r\n\r\n') + get('/couch/shared/b'))
  await client.until(({ statuses, isClosed }) => statuses.length === 2 || isClosed)
  client.end()
  t.notMatch(world.upstream.bytes, /SPOOFED/)
  t.strictSame(client.statuses, [200, 200])
  t.equal(world.arrived.findLast(({ target }) => target === '/shared/a')!.body.toString(), '{}')
})

// ---- pipelining across a decision

const targets = ({ arrived }: World): string[] => arrived.map(({ method, target }) => `${method} ${target}`)

await t.test('allowed, refused, allowed: CouchDB sees what was allowed, and after a broken frame nothing more', async t => {
  // What has to follow the answers, whether the connection stays, and what CouchDB gets. After a refused body it may
  // stay or go, as the rest of the body was there or not.
  const rows: ReadonlyArray<readonly [name: string, who: Credential, sent: readonly string[], statuses: readonly number[], end: 'stays' | 'closes' | 'either', arrived: readonly string[]]> = [
    ['not granted in the middle', friendDevice, [get('/couch/shared/1'), get('/couch/secret/1'), get('/couch/shared/2')], [200, 404, 200], 'stays', ['GET /shared/1', 'GET /shared/2']],
    ['read-only in the middle', friendDevice, [get('/couch/shared/3'), head('DELETE /couch/shared/3?rev=1-a HTTP/1.1'), get('/couch/shared/4')], [200, 403, 200], 'stays', ['GET /shared/3', 'GET /shared/4']],
    ['a parameter in the middle', friendDevice, [get('/couch/shared/5'), get('/couch/shared/_changes?filter=d/f'), get('/couch/shared/6')], [200, 400], 'closes', ['GET /shared/5']],
    ['not canonical in the middle', friendDevice, [get('/couch/shared/7'), get('/couch/shared/../secret'), get('/couch/shared/8')], [200, 400], 'closes', ['GET /shared/7']],
    ['a design document in the middle', writer, [json('PUT /couch/shared/11', '{"_id":"11"}'), json('POST /couch/shared', DESIGN), get('/couch/shared/12')], [200, 403, 200], 'either', ['PUT /shared/11', 'GET /shared/12']],
    ['a body for nobody in the middle', friendDevice, [get('/couch/shared/13'), json('PUT /couch/shared/13', INNER), get('/couch/shared/14')], [200, 403, 200], 'either', ['GET /shared/13', 'GET /shared/14']],
    ['another type in the middle', writer, [get('/couch/shared/15'), json('POST /couch/shared', GZIP, 'Content-Encoding: gzip'), get('/couch/shared/16')], [200, 415, 200], 'either', ['GET /shared/15', 'GET /shared/16']],
    ['writes only', writer, ['17', '18', '19'].map(id => json(`PUT /couch/shared/${id}`, '{}')), [200, 200, 200], 'stays', ['PUT /shared/17', 'PUT /shared/18', 'PUT /shared/19']],
    ['a write behind a refused one', writer, [json('PUT /couch/shared/20', '{"_id":"_design/x"}'), json('PUT /couch/shared/21', '{}')], [403, 200], 'either', ['PUT /shared/21']],
  ]
  for (const [name, who, sent, statuses, end, arrived] of rows) {
    for (const form of ['at once', 'byte by byte'] as const) {
      const before = targets(world).length
      const client = new Client(world.port, who)
      const bytes = Buffer.from(sent.join(''), 'latin1')
      if (form === 'at once') client.write(bytes)
      else for (const byte of bytes) client.write(Buffer.of(byte))
      await client.until(({ statuses: seen, isClosed }) => isClosed || (end !== 'closes' && seen.length >= statuses.length), 10_000)
      const cut = end === 'either' && client.isClosed && client.statuses.length < statuses.length ? 1 : 0
      t.strictSame(client.statuses, statuses.slice(0, statuses.length - cut), `${name}, ${form}`)
      if (end !== 'either') t.equal(client.isClosed, end === 'closes', `${name}, ${form}: the connection`)
      client.end()
      t.strictSame(targets(world).slice(before), arrived.slice(0, arrived.length - cut), `${name}, ${form}: what arrived`)
    }
  }
  // The parser finds the broken frame before the request in front of it is served, whose answer it may take.
  const before = targets(world).length
  const broken = new Client(world.port, writer).write(get('/couch/shared/9') + `${put('Content-Length: 5', 'Transfer-Encoding: chunked')}0\r\n\r\n` + get('/couch/shared/10'))
  t.ok(await broken.ended())
  t.ok(broken.statuses.length <= 2)
  t.strictSame(targets(world).slice(before).filter(target => target !== 'GET /shared/9'), [])
})

/** A server whose upstream answers `/db/slow` only when it is told to. */
async function startSlow (): Promise<World & { readonly answer: () => void }> {
  const waiting: Array<() => void> = []
  const slow = await startWorld((socket, { target }) => {
    if (target.endsWith('/slow')) waiting.push(() => { socket.write(JSON_OK) })
    else socket.write(JSON_OK)
  })
  return { ...slow, answer: () => { for (const answer of waiting.splice(0)) answer() } }
}

await t.test('a grant that is withdrawn, given or narrowed between pipelined requests counts for those behind it', async t => {
  const slow = await startSlow()
  const grants = (databases: Record<string, 'read' | 'write'>): ServerUpdate => ({ grants: { ...GRANTS, writer: { databases, files: 'referenced' } } })
  const both = grants({ shared: 'write', other: 'write' })
  await slow.update(both)
  const rows: ReadonlyArray<readonly [name: string, sent: readonly string[], part: ServerUpdate, statuses: readonly number[], arrived: readonly string[]]> = [
    ['withdrawn', [get('/couch/other/slow'), get('/couch/shared/a'), head('DELETE /couch/shared/a?rev=1-a HTTP/1.1'), get('/couch/other/a')], grants({ other: 'write' }), [200, 404, 404, 200], ['GET /other/slow', 'GET /other/a']],
    ['narrowed', [get('/couch/other/slow'), get('/couch/shared/b'), head('DELETE /couch/shared/b?rev=1-a HTTP/1.1'), get('/couch/other/b')], grants({ shared: 'read', other: 'write' }), [200, 200, 403, 200], ['GET /other/slow', 'GET /shared/b', 'GET /other/b']],
    ['given', [get('/couch/other/slow'), get('/couch/secret/c'), get('/couch/other/c')], grants({ secret: 'read', other: 'write' }), [200, 200, 200], ['GET /other/slow', 'GET /secret/c', 'GET /other/c']],
    ['withdrawn from what runs', [get('/couch/shared/slow'), get('/couch/other/d'), json('PUT /couch/other/d', '{}')], grants({ other: 'write' }), [], ['GET /shared/slow']],
    ['the entry gone', [get('/couch/other/slow'), get('/couch/other/e')], { whitelist: WHITELIST.filter(({ name }) => name !== 'writer') }, [], ['GET /other/slow']],
    ['revoked', [get('/couch/other/slow'), get('/couch/other/f'), json('PUT /couch/other/f', '{}')], { revoked: [writer.id] }, [], ['GET /other/slow']],
  ]
  for (const [name, sent, part, statuses, arrived] of rows) {
    const before = targets(slow).length
    const client = new Client(slow.port, writer).write(sent.join(''))
    t.ok(await eventually(() => targets(slow).length === before + 1), `${name}: the first one runs`)
    await slow.update(part)
    slow.answer()
    await client.until(({ statuses: seen, isClosed }) => isClosed || (statuses.length > 0 && seen.length >= statuses.length), 10_000)
    t.strictSame(client.statuses, statuses, name)
    client.end()
    t.strictSame(targets(slow).slice(before), arrived, `${name}: what arrived`)
    await slow.update({ ...both, whitelist: WHITELIST, revoked: [] })
  }
})

await t.test('a body that is under way when its right is taken away never becomes whole', async t => {
  const slow = await startSlow()
  for (const part of [{ grants: { ...GRANTS, writer: { databases: { shared: 'read' }, files: 'referenced' } } }, { revoked: [writer.id] }] satisfies ServerUpdate[]) {
    const client = new Client(slow.port, writer).write(`${head('POST /couch/shared/_bulk_docs HTTP/1.1', 'Content-Type: application/json', 'Content-Length: 40')}{"docs":[{"_id":"a"`)
    await new Promise(resolve => { setTimeout(resolve, 50) })
    client.write('}')
    t.ok(await eventually(() => slow.upstream.bytes.includes('{"docs":[{"_id":"a"')), 'the beginning is there')
    await slow.update(part)
    client.write(',{"_id":"b"}]}      ')
    t.ok(await client.ended())
    t.strictSame(client.statuses, [])
    t.ok(await eventually(() => slow.upstream.connections.every(({ closed }) => closed)), 'and its connection is gone')
    t.strictSame(targets(slow), [])
    await slow.update({ grants: GRANTS, revoked: [] })
  }
})

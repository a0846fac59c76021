import { subscribe } from 'node:diagnostics_channel'
import fs from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import { mkdir, writeFile } from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { DEFAULT_LIMITS, type ServerEnv } from '../src/index.js'
import { sent } from '../src/server/dispatch.js'
import { LaneAnswer } from '../src/server/lane-answer.js'
import { PlainHeads } from '../src/server/plain-head.js'
import { answerText, JSON_OK, RawUpstream, type Answer } from './couch-fixtures.js'
import { ManualClock } from './fixtures/manual-clock.js'
import { Client, eventually, friendDevice, get, head, laptop, start, writer, type Credential, type Started } from './fixtures/server-world.js'

// The plain lane beside Node's HTTP server: what it recognises Node reads the same, and whatever comes over a connection, in whatever
// pieces, is answered byte for byte as by Node's server alone.

/** Requests that Node's server has read, in this process. */
let byNode = 0
subscribe('http.server.request.start', () => { byNode++ })

// ---- 1. the recogniser

const PLAIN = 'GET /couch/shared/a?rev=1-a HTTP/1.1\r\nHost: [::1]:4984\r\nAccept: application/json\r\nUser-Agent: a client (of mine)\r\n\r\n'
const recogniseAll = (text: string | Buffer): ReturnType<PlainHeads['recognise']> => new PlainHeads(DEFAULT_LIMITS).recognise(Buffer.from(text as string, 'latin1'))
/** The one head that it is. */
const recognise = (text: string | Buffer): NonNullable<ReturnType<PlainHeads['recognise']>>[number] | undefined => {
  const heads = recogniseAll(text)
  return heads?.length === 1 ? heads[0] : undefined
}
const REQUEST_LINE = 'GET /couch/shared/a HTTP/1.1'
const withLine = (line: string): string => `${REQUEST_LINE}\r\nHost: [::1]\r\n${line}\r\n\r\n`

/** Heads, and what is like a head, that only Node may read. */
const ODD: ReadonlyArray<readonly [name: string, bytes: string]> = [
  ...['Content-Length: 0', 'Content-Length: 2', 'Transfer-Encoding: chunked', 'transfer-encoding: identity', 'TE: trailers', 'Trailer: x', 'Upgrade: h2c', 'Expect: 100-continue', 'Connection: close', 'Connection: Upgrade', 'Connection: keep-alive, x', 'Connection: x', 'Proxy-Connection: keep-alive',
    'X:y', 'X:  y', 'X: y ', 'X: y  z', 'X:\ty', 'X: a\tb', 'X: ', 'X:', 'X', ': y', ' X: y', 'X : y', 'X\t: y', 'X: \u0000', 'X: a\u0000b', 'X: \u007f', 'X: \u00e9', 'X\u0000: y', 'X\u00e9: y', 'X(: y', 'X: a\nY: b', 'X: a\rY: b', 'X: a\r\n b', 'X: a\r\n\tb', 'X: a\n', 'X: a\r', 'X: a\r\r'].map(line => [JSON.stringify(line), withLine(line)] as const),
  ...['get /couch/shared/a HTTP/1.1', 'POST /couch/shared/a HTTP/1.1', 'DELETE /couch/shared/a?rev=1-a HTTP/1.1', 'COPY /couch/shared/a HTTP/1.1', 'OPTIONS * HTTP/1.1', 'CONNECT [::1]:22 HTTP/1.1', 'GETS /couch/shared/a HTTP/1.1', 'GET  /couch/shared/a HTTP/1.1', 'GET /couch/shared/a  HTTP/1.1', 'GET /couch/shared/a HTTP/1.1 ', 'GET\t/couch/shared/a HTTP/1.1', ' GET /couch/shared/a HTTP/1.1',
    'GET /couch/shared/a HTTP/1.0', 'GET /couch/shared/a HTTP/1.2', 'GET /couch/shared/a HTTP/2.0', 'GET /couch/shared/a http/1.1', 'GET /couch/shared/a', 'GET https://[::1]/couch/shared/a HTTP/1.1', 'GET couch/shared/a HTTP/1.1', 'GET * HTTP/1.1', 'GET /couch/shared/a#x HTTP/1.1', 'GET /couch\\shared HTTP/1.1', 'GET /couch/sh\u00e9 HTTP/1.1', 'GET /couch/sh\u0000 HTTP/1.1', 'GET /couch/sh\u007f HTTP/1.1', 'GET /couch/a b HTTP/1.1'].map(line => [JSON.stringify(line), `${line}\r\nHost: [::1]\r\n\r\n`] as const),
  ['a line feed alone behind the request line', `${REQUEST_LINE}\nHost: [::1]\r\n\r\n`],
  ['line feeds alone', `${REQUEST_LINE}\nHost: [::1]\n\n`],
  ['a carriage return alone', `${REQUEST_LINE}\rHost: [::1]\r\n\r\n`],
  ['an end of two line feeds', `${REQUEST_LINE}\r\nHost: [::1]\r\n\n`],
  ['a line end in front', `\r\n${PLAIN}`],
  ['a line feed in front', `\n${PLAIN}`],
  ['a byte behind it', `${PLAIN}G`],
  ['a line end behind it', `${PLAIN}\r\n`],
  ['two empty lines', `${PLAIN.slice(0, -2)}\r\n\r\n`],
  ['the preface of h2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
  ['no HTTP', '\u0016\u0003\u0001\u0002\u0000\u0001\u0000'],
  ['nothing but an end', '\r\n\r\n'],
  ['65 headers', head(REQUEST_LINE, ...Array.from({ length: 64 }, (_, at) => `X-${at}: y`))],
  ['a long header', head(REQUEST_LINE, `X: ${'y'.repeat(17_000)}`)],
  ['a long target', get(`/couch/${'y'.repeat(17_000)}`)],
]

await t.test('the recogniser takes one form alone', t => {
  t.match(recognise(PLAIN), { method: 'GET', target: '/couch/shared/a?rev=1-a', httpVersion: '1.1', rawHeaders: ['Host', '[::1]:4984', 'Accept', 'application/json', 'User-Agent', 'a client (of mine)'] })
  for (const bytes of [head('HEAD /couch/ HTTP/1.1'), 'GET / HTTP/1.1\r\n\r\n', withLine('Connection: keep-alive'), withLine('connection: Keep-Alive'), head(REQUEST_LINE, ...Array.from({ length: 63 }, (_, at) => `X-${at}: y`))]) t.ok(recognise(bytes), JSON.stringify(bytes.slice(0, 80)))
  for (const [name, bytes] of ODD) t.equal(recognise(bytes), undefined, name)
  for (let at = 0; at < PLAIN.length; at++) {
    t.equal(recognise(PLAIN.slice(0, at)), undefined, `the first ${at} bytes`)
    if (at > 0) t.equal(recogniseAll(PLAIN + PLAIN.slice(0, at)), undefined, `and behind another`)
  }
  const three = recogniseAll(get('/a') + get('/b', 'X: 1') + head('HEAD /c HTTP/1.1'))
  t.strictSame(three?.map(({ method, target }) => [method, target]), [['GET', '/a'], ['GET', '/b'], ['HEAD', '/c']])
  for (const [name, bytes] of ODD) t.equal(recogniseAll(PLAIN + bytes) ?? recogniseAll(bytes + PLAIN), undefined, `${name}, among others`)
  t.equal(recogniseAll(get('/a').repeat(1000)), undefined, 'more than TLS gives at once')
  t.end()
})

await t.test('the same header lines are read once, and others anew', t => {
  const heads = new PlainHeads(DEFAULT_LIMITS)
  const read = (text: string): NonNullable<ReturnType<PlainHeads['recognise']>>[number] | undefined => heads.recognise(Buffer.from(text))?.[0]
  const [first, second, third, fourth] = [read(get('/a', 'X: 1')), read(get('/b', 'X: 1')), read(get('/b', 'X: 2')), read(get('/b', 'X: 1'))]
  t.equal(first!.known, second!.known)
  t.not(second!.known, third!.known)
  t.strictSame([third!.rawHeaders.at(-1), fourth!.rawHeaders.at(-1)], ['2', '1'])
  t.equal(read(get('/c', 'X:  1')), undefined)
  t.end()
})

/** What Node's HTTP server reads of bytes, with the options that the port gives it. */
async function readByNode (bytes: Buffer): Promise<readonly object[] | undefined> {
  const http = createServer({ maxHeaderSize: DEFAULT_LIMITS.headBytes, requireHostHeader: false, insecureHTTPParser: false })
  http.maxHeadersCount = DEFAULT_LIMITS.headers + 1
  const read: IncomingMessage[] = []
  let isBroken = false
  http.on('request', message => { read.push(message) })
  http.on('checkContinue', message => { read.push(message) })
  http.on('checkExpectation', message => { read.push(message) })
  http.on('clientError', () => { isBroken = true })
  http.on('upgrade', () => { isBroken = true })
  const socket = new Duplex({ read () { /* pushed below */ }, write (_chunk, _encoding, done) { done() } })
  http.emit('connection', socket)
  socket.push(bytes)
  await new Promise(resolve => { setImmediate(resolve) })
  socket.destroy()
  if (isBroken || read.some(({ complete }) => !complete)) return undefined
  return read.map(({ method, url: target, httpVersion, rawHeaders }) => ({ method, target, httpVersion, rawHeaders }))
}

await t.test('what the lane recognises, Node reads the same', async t => {
  const token = fc.stringMatching(/^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}$/)
  const names = fc.oneof({ weight: 4, arbitrary: token }, fc.constantFrom('Host', 'Accept', 'Connection', 'Content-Length', 'Transfer-Encoding', 'TE', 'Upgrade', 'Expect', 'Keep-Alive', 'Proxy-Connection', 'HTTP2-Settings', 'Set-Cookie', 'Content-Type', 'Sec-WebSocket-Key'))
  const values = fc.oneof({ weight: 4, arbitrary: fc.stringMatching(/^[!-~]{1,12}( [!-~]{1,6}){0,3}$/) }, fc.constantFrom('keep-alive', 'close', 'chunked', '0', '5', 'gzip, chunked', '100-continue', 'h2c', '[::1]', ''))
  const plain = fc.tuple(fc.constantFrom('GET', 'GET', 'GET', 'HEAD', 'POST'), fc.stringMatching(/^[!-~]{0,20}$/), fc.constantFrom('HTTP/1.1', 'HTTP/1.1', 'HTTP/1.1', 'HTTP/1.0'), fc.array(fc.tuple(names, values), { maxLength: 8 }))
    .map(([method, target, version, lines]) => `${method} /${target} ${version}\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`)
  const pieces = fc.constantFrom('\r\n', '\n', '\r', ' ', '\t', ':', '\0', '\u007f', '\u00ff', '\r\n\r\n', ' HTTP/1.1', 'Content-Length: 3\r\n', ',', '%', 'x')
  const mutated = fc.tuple(plain, fc.array(fc.tuple(fc.nat(), fc.nat({ max: 3 }), pieces), { maxLength: 3 })).map(([text, changes]) => changes.reduce((changed, [where, remove, piece]) => {
    const at = where % (changed.length + 1)
    return changed.slice(0, at) + piece + changed.slice(at + remove)
  }, text))
  let [taken, several] = [0, 0]
  await fc.assert(fc.asyncProperty(fc.oneof(plain, mutated, fc.array(plain, { minLength: 2, maxLength: 3 }).map(all => all.join('')), fc.tuple(plain, mutated).map(all => all.join(''))), async text => {
    const bytes = Buffer.from(text, 'latin1')
    const found = recogniseAll(bytes)
    if (found === undefined) return true
    taken++
    if (found.length > 1) several++
    const told = found.map(({ method, target, httpVersion, rawHeaders }) => ({ method, target, httpVersion, rawHeaders }))
    const read = await readByNode(bytes)
    if (JSON.stringify(read) !== JSON.stringify(told)) throw new Error(`Node: ${JSON.stringify(read)}, the lane: ${JSON.stringify(told)}`)
    return true
  }), { numRuns: 4000 })
  t.ok(taken > 500 && several > 20, `it holds, for ${taken} that were recognised, ${several} of them more than one`)
})

// ---- 2. both ways, side by side

/** A connection that the lane reads, and one that was handed to Node's server. */
const WAYS = { lane: '/couch/', node: '/' } as const

interface World extends Started { readonly upstream: RawUpstream }

async function startWorld (t: Test, answer: Answer, changes: Partial<ServerEnv> = {}): Promise<World> {
  const upstream = await RawUpstream.start(answer)
  t.teardown(() => upstream.close())
  const credentials = Object.fromEntries(['own', 'friend', 'writer'].map(name => [name, { username: `${name}-user`, password: 'secret' }]))
  const started = await start(t, { couch: { url: upstream.url, databases: ['shared', 'secret'] as never, credentials }, ...changes, limits: { acceptBurst: 10_000, acceptsPerSecond: 10_000, handshakes: 1000, connectionsPerEntry: 1000, requestsPerEntry: 200, ...changes.limits } })
  return { ...started, upstream }
}

/** A connection that was used once, so that it is read by one of the two. */
async function connected (t: Test, port: number, way: keyof typeof WAYS, who: Credential = laptop): Promise<Client> {
  const client = new Client(port, who).write(get(WAYS[way]))
  if (!await client.answers(1, 20_000)) t.fail('the first request was not answered')
  client.text = ''
  return client
}

/** What came back, but for the time of day and for where a long row of x was cut into chunks. */
const told = ({ text }: Client): string => text.replaceAll(/^Date: .*$/gmi, 'Date: now').replaceAll(/(?:(?<=x)\r\n)?[0-9a-f]+\r\n(?=x)/g, '')

/** Sends pieces one after the other, and resolves when the connection is closed, or silent with nothing left to come. */
async function play (t: Test, port: number, way: keyof typeof WAYS, pieces: readonly string[], who?: Credential): Promise<{ text: string, isClosed: boolean }> {
  const client = await connected(t, port, way, who)
  for (const [at, piece] of pieces.entries()) {
    if (at > 0) await sleep(15)
    client.write(Buffer.from(piece, 'latin1'))
  }
  let bytes = -1
  for (let quiet = 0; quiet < 4 && !client.isClosed;) {
    await sleep(60)
    if (client.bytes === bytes) quiet++
    else quiet = 0
    bytes = client.bytes
  }
  const played = { text: told(client), isClosed: client.isClosed }
  client.end()
  return played
}

/** Plays it both ways and compares. Whether a piece comes while the one before it runs is a matter of luck on a busy machine: what differs is played again,
 * and has to differ each time. */
async function same (t: Test, port: number, name: string, pieces: readonly string[], who?: Credential, tries = 4): Promise<string> {
  const [lane, node] = await Promise.all([play(t, port, 'lane', pieces, who), play(t, port, 'node', pieces, who)])
  if (JSON.stringify(lane) !== JSON.stringify(node) && tries > 1) return await same(t, port, name, pieces, who, tries - 1)
  // One by one: a thousand rows of assertions say no more than one of what differs.
  if (JSON.stringify(lane) !== JSON.stringify(node)) t.strictSame(lane, node, name)
  return lane.text
}

const answerSlowly: Answer = async (socket, { target }) => {
  if (target.includes('slow')) await sleep(80)
  socket.write(JSON_OK)
}

await t.test('whatever comes, in whatever pieces, is answered as by Node\'s server alone', async t => {
  const { port, upstream } = await startWorld(t, answerSlowly)
  const next = get('/couch/shared/next')
  const slow = get('/couch/shared/slow')
  const cases: Array<readonly [string, readonly string[]]> = [
    ...ODD.map(([name, bytes]) => [name, [bytes, next]] as const),
    ...ODD.map(([name, bytes]) => [`${name}, at once with the next`, [bytes + next]] as const),
    ...ODD.map(([name, bytes]) => [`${name}, while a request runs`, [slow, bytes]] as const),
    ...['/couch/', '/couch', '/couch?x', '/couchx/', '/COUCH/', '/%63ouch/', '/couch/_all_dbs', '/couch/absent', '/couch/secret/../shared', '/couch//shared', '/couch/shared/%2e%2e', '/couch/shared/%', '/couch/shared?x=1', '/couch/shared/_changes?limit=x', '/couch/shared/_security', '/couch/shared/a?rev=1-a&rev=1-a', '/files/x', '/mail/x', '/', '/../couch/', '/couch/shared/_design/x/_view/y', '/couch/shared/a/b%2Fc', '/couch/./shared', `/couch/shared/${'a'.repeat(3000)}`].map(path => [path, [get(path), next]] as const),
    ...['Host: [::1]', 'Host: example.org', 'Origin: https://example.org', 'Origin: https://[::1]', 'Sec-Fetch-Site: cross-site', 'X-HTTP-Method-Override: DELETE', 'Authorization: Basic eDp5', 'Cookie: a=b', 'If-None-Match: "1"', 'Connection: keep-alive', 'Range: bytes=0-1', 'Accept: a', 'Keep-Alive: timeout=5', 'X-A: b\r\nX-A: c', 'Accept: a\r\nAccept: b', 'Referer: x\r\nReferer: y'].map(line => [line, [withLine(line), next]] as const),
    ['no Host', ['GET /couch/shared HTTP/1.1\r\n\r\n', next]],
    ['HEAD', [head('HEAD /couch/shared/a HTTP/1.1'), next]],
    ['one behind the other', [next, head('HEAD /couch/shared/a HTTP/1.1'), next, get('/couch/absent'), next]],
    ['many at once', [next.repeat(20)]],
    ['many of all kinds at once', [next + get('/couch/absent') + head('HEAD /couch/shared/a HTTP/1.1') + slow + next + get('/couch/') + next]],
    ['one that ends the connection among many', [next + get('/couch/shared/%') + next]],
    ['one that ends the connection behind one that runs', [slow + get('/couch/shared/%') + next]],
    ['many while one runs', [slow, next.repeat(3), next]],
    ['half a head while one runs', [slow, next.slice(0, 20), next.slice(20)]],
    ['half a head, and the rest with another', [next.slice(0, 20), next.slice(20) + next]],
    ['a head and half of another', [next + next.slice(0, 20), next.slice(20)]],
    ['a write behind a read', [next, `${head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', 'Content-Length: 2')}{}`, next]],
    ['a write and its body apart', [head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', 'Content-Length: 2'), '{', '}', next]],
    ['a write while a read runs', [slow, `${head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', 'Content-Length: 2')}{}`]],
    ['a chunked write behind a read', [next, `${head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', 'Transfer-Encoding: chunked')}2\r\n{}\r\n0\r\n\r\n`, next]],
    ['a body that hides a request', [`${head('GET /couch/shared/a HTTP/1.1', `Content-Length: ${next.length}`)}${next}`]],
    ['a body that hides a request, apart', [head('GET /couch/shared/a HTTP/1.1', `Content-Length: ${next.length}`), next]],
    ['a chunked body that hides a request, apart', [head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', 'Transfer-Encoding: chunked'), next]],
    ['one that waits for 100', [head('PUT /couch/shared/a HTTP/1.1', 'Content-Type: application/json', 'Content-Length: 2', 'Expect: 100-continue'), '{}', next]],
    ...Array.from({ length: next.length - 1 }, (_, at) => at).filter(at => at % 2 === 0 || next.length - at < 6).map(at => [`split at ${at + 1}`, [next.slice(0, at + 1), next.slice(at + 1), next]] as const),
  ]
  // So many at a time that the machine keeps up with the pauses.
  for (let at = 0; at < cases.length; at += 40) await Promise.all(cases.slice(at, at + 40).map(([name, pieces]) => same(t, port, name, pieces)))
  for (const way of ['lane', 'node'] as const) await play(t, port, way, [get('/couch/shared/compared', 'Authorization: Basic eDp5', 'X-Forwarded-For: x', 'Accept: text/plain')])
  const [one, other, ...more] = upstream.requests.filter(({ target }) => target === '/shared/compared')
  t.strictSame([one, more], [other, []], 'and what CouchDB gets is the same')
  t.pass(`${cases.length} cases`)
})

await t.test('so are mutated heads', async t => {
  const { port } = await startWorld(t, answerSlowly)
  const base = fc.constantFrom(PLAIN, get('/couch/shared/a'), head('HEAD /couch/shared HTTP/1.1', 'Accept: a b'), `${get('/couch/shared/slow')}${get('/couch/')}`)
  const pieces = fc.constantFrom('\r\n', '\n', '\r', ' ', '\t', ':', '\0', '\u00ff', '\r\n\r\n', 'Content-Length: 3\r\n', 'Transfer-Encoding: chunked\r\n', '0', '/', '..', '%2e', 'GET ')
  const mutated = fc.tuple(base, fc.array(fc.tuple(fc.nat(), fc.nat({ max: 2 }), pieces), { minLength: 1, maxLength: 2 }), fc.option(fc.nat(), { nil: undefined })).map(([text, changes, cut]) => {
    const changed = changes.reduce((whole, [where, remove, piece]) => whole.slice(0, where % whole.length) + piece + whole.slice(where % whole.length + remove), text)
    return cut === undefined ? [changed, PLAIN] : [changed.slice(0, cut % changed.length), changed.slice(cut % changed.length), PLAIN]
  })
  const all = fc.sample(mutated, { numRuns: 120 })
  for (let at = 0; at < all.length; at += 40) await Promise.all(all.slice(at, at + 40).map(pieces => same(t, port, JSON.stringify(pieces), pieces)))
  t.pass(`${all.length} samples`)
})

await t.test('what CouchDB answers, and how it breaks off, comes out the same', async t => {
  const chunked = (...chunks: string[]): string => `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n${chunks.map(chunk => `${chunk.length.toString(16)}\r\n${chunk}\r\n`).join('')}0\r\n\r\n`
  const large = 'x'.repeat(300_000)
  const answers: Record<string, Answer | string> = {
    whole: answerText('200 OK', ['Content-Type: application/json', 'ETag: "1"', 'Date: Mon, 01 Jan 2024 00:00:00 GMT', 'Cache-Control: must-revalidate', 'Server: CouchDB', 'Set-Cookie: a=b', 'Location: http://127.0.0.1/x'], '{}\n'),
    empty: answerText('200 OK', []),
    none: 'HTTP/1.1 204 No Content\r\n\r\n',
    same: 'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n',
    chunked: chunked('{"a":', '1}\n'),
    nochunks: chunked(),
    large: answerText('200 OK', [], large),
    largechunks: chunked(large, large),
    pieces: async socket => {
      for (const piece of ['HTTP/1.1 200 OK\r\nTransfer-', 'Encoding: chunked\r\n\r\n', '2\r\n{}\r\n', '1\r\n\n\r\n', '0\r\n\r\n']) {
        socket.write(piece)
        await sleep(10)
      }
    },
    ...Object.fromEntries([400, 401, 403, 404, 406, 407, 409, 412, 416, 500, 503].map(status => [`status${status}`, answerText(`${status} X`, ['Content-Type: application/json'], '{"error":"x","reason":"theirs"}\n')])),
    status206: answerText('206 Partial Content', ['Content-Range: bytes 0-1/5'], 'ab'),
    status600: answerText('600 X', [], 'x'),
    garbage: 'SSH-2.0\r\n',
    nolength: 'HTTP/1.1 200 OK\r\n\r\n{}',
    reset: socket => { socket.resetAndDestroy() },
    midhead: socket => { socket.end('HTTP/1.1 200 OK\r\nContent-Le') },
    early: socket => { socket.end('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{') },
    broken: async socket => {
      socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n')
      await sleep(20)
      socket.write('nonsense\r\n')
    },
    silent: () => { /* 504 */ },
  }
  const asAsked: Answer = (socket, request, index) => {
    const answer = answers[request.target.split('/').at(-1)!]!
    if (typeof answer === 'string') socket.write(request.method === 'HEAD' ? answer.slice(0, answer.indexOf('\r\n\r\n') + 4) : answer, 'latin1')
    else void answer(socket, request, index)
  }
  const { port, log } = await startWorld(t, asAsked, { limits: { stallMs: 300 } })
  // What is meant to be late, and what a busy machine makes late, are two things.
  const impatient = await startWorld(t, asAsked, { limits: { upstreamMs: 150, stallMs: 300 } })
  const texts = await Promise.all(Object.entries(answers).flatMap(([name, answer]) => (typeof answer === 'string' && answer.includes('\r\n\r\n') ? ['GET', 'HEAD'] : ['GET']).map(async method =>
    [`${method} ${name}`, await same(t, name === 'silent' ? impatient.port : port, `${method} ${name}`, [head(`${method} /couch/shared/${name} HTTP/1.1`), get('/couch/shared/whole')])] as const)))
  const byName = Object.fromEntries(texts)
  t.match(byName['GET whole'], /^HTTP\/1\.1 200 OK\r\nx-content-type-options: nosniff\r\n.*\r\n\r\n\{\}\n/s)
  t.match(byName['GET silent'], /^HTTP\/1\.1 504 /)
  t.match(byName['GET garbage'], /^HTTP\/1\.1 502 /)
  t.match(byName['GET status404'], /"reason":"missing"/)
  t.notMatch(Object.values(byName).join(''), /theirs"[^]*"theirs401|Set-Cookie|Server:|Location:/)
  const lines = [...log.requests(), ...impatient.log.requests()].filter(({ action }) => String(action).includes('shared'))
  const outcomes = (wanted: string): number => lines.filter(({ status }) => String(status) === wanted).length
  t.ok(outcomes('504') >= 2 && outcomes('502') >= 8 && outcomes('206') >= 2, 'each has its line in the log')
})

await t.test('files of all kinds come out the same, one by one and many at once', async t => {
  const root = t.testdir({})
  const id = (letter: string): string => `${letter.repeat(51)}a`
  const put = async (letter: string, bytes: Buffer): Promise<void> => {
    const path = join(root, id(letter).slice(0, 2), id(letter).slice(2))
    await mkdir(join(path, '..'), { recursive: true })
    await writeFile(path, bytes)
  }
  // The text of an answer is compared: what it says for each byte.
  await put('b', Buffer.from('a small file'))
  await put('c', Buffer.alloc(0))
  await put('d', Buffer.alloc(40_000, 'y'))
  await put('e', Buffer.alloc(3_000_000, 'large file'))
  const { port, log } = await startWorld(t, answerSlowly, { files: { root } })
  const file = (letter: string, ...headers: string[]): string => get(`/files/${id(letter)}`, ...headers)
  const kinds = [file('b'), file('c'), file('d'), file('e', 'Range: bytes=0-9'), file('b', 'Range: bytes=2-4'), file('b', 'Range: bytes=99-'), file('b', `If-None-Match: "${id('b')}"`), file('b', 'If-Match: "x"'), head(`HEAD /files/${id('e')} HTTP/1.1`), file('a'), get(`/files/${id('b')}/leaves`), get(`/files/${id('b')}/records`), get('/files/x'), get('/couch/shared/a')]
  await Promise.all(kinds.map(kind => same(t, port, kind.slice(0, kind.indexOf('\r')), [kind, file('b')])))
  await same(t, port, 'one after the other', kinds)
  await same(t, port, 'all at once', [kinds.join('')])
  await same(t, port, 'a large one among small ones', [file('b') + file('e') + file('b'), file('b')])
  await same(t, port, 'another method behind many', [file('b').repeat(5) + head(`PUT /files/${id('b')} HTTP/1.1`, 'Content-Length: 0') + file('b')])
  await same(t, port, 'as one who may read none', [kinds.join('')], friendDevice)
  const client = new Client(port, laptop)
  byNode = 0
  t.ok(await client.write(file('b').repeat(60)).until(({ text }) => text.split('a small file').length === 61, 30_000), 'as many as may be asked at once')
  t.equal(byNode, 0)
  client.end()
  t.ok(log.requests().every(({ status, bytes }) => Number(status) !== 500 && Number(bytes) >= 0))
})

await t.test('answers that wait to be written together: an update cuts them, a client that takes nothing is left, a server that stops lets them go out', async t => {
  const root = t.testdir({})
  const id = `${'b'.repeat(51)}a`
  await mkdir(join(root, 'bb'))
  await writeFile(join(root, 'bb', id.slice(2)), Buffer.alloc(60_000, 'y'))
  const until = new Date(Date.now() + 3_600_000).toISOString()
  const { port, server, log } = await startWorld(t, answerSlowly, { files: { root }, lent: [{ device: writer.id, files: [id as never], until }], limits: { stallMs: 2000, requestsPerEntry: 1000 } })
  const file = get(`/files/${id}`)
  const lentTo = new Client(port, writer)
  t.ok(await lentTo.write(file).answers(1))
  lentTo.socket.pause()
  // More than the system takes for one that reads nothing, so that answers have ended here and did not leave.
  for (let n = 0; n < 8; n++) lentTo.write(file.repeat(60))
  let before = 0
  for (let quiet = 0; quiet < 10;) {
    await sleep(20)
    const { requests: { '2xx': answered = 0 } } = server.counts()
    if (answered === before && answered > 20) quiet += 1
    else quiet = 0
    before = answered
  }
  t.strictSame(await server.update({ lent: [] }), { cut: 1 }, 'what ended and did not leave is decided again')
  t.ok(await eventually(() => server.counts().connections === 0))
  const stalled = new Client(port, laptop)
  t.ok(await stalled.write(file).answers(1))
  stalled.socket.pause()
  for (let n = 0; n < 8; n++) stalled.write(file.repeat(60))
  t.ok(await eventually(() => server.counts().connections === 0, 30_000), 'cut after stallMs')
  stalled.end()
  lentTo.end()
  const last = new Client(port, laptop)
  t.ok(await last.write(get('/couch/')).answers(1))
  t.equal(log.requests().at(-1)!['action'], 'welcome', 'what waited behind the answer that stalled is not answered')
  const { connection: lastId } = log.requests().at(-1)!
  const answered = (): number => log.requests().filter(({ connection, bytes }) => connection === lastId && bytes === 60_000).length
  last.write(file.repeat(10))
  t.ok(await eventually(() => answered() > 0))
  await server.stop()
  t.ok(await last.ended())
  t.ok(answered() === 10 && last.bytes > 600_000, `what was asked for before has arrived: ${last.bytes} bytes`)
})

await t.test('answers of CouchDB that were asked for at once do not wait for each other to be written', async t => {
  const { port } = await startWorld(t, answerSlowly)
  const client = await connected(t, port, 'lane')
  let pieces = 0
  client.socket.on('data', () => { pieces++ })
  t.ok(await client.write(get('/couch/shared/a').repeat(40)).answers(40))
  t.ok(pieces < 30, `in ${pieces} pieces`)
  client.end()
})

await t.test('a disk that fails costs no answer before it, and not the process', async t => {
  const root = t.testdir({})
  const id = (letter: string): string => `${letter.repeat(51)}a`
  for (const [letter, bytes] of [['b', Buffer.from('a small file')], ['e', Buffer.alloc(100_000)]] as const) {
    await mkdir(join(root, letter + letter))
    await writeFile(join(root, letter + letter, id(letter).slice(2)), bytes)
  }
  const { port } = await startWorld(t, answerSlowly, { files: { root } })
  const { read, closeSync } = fs
  t.teardown(() => {
    Object.assign(fs, { read, closeSync })
    syncBuiltinESMExports()
  })
  const failure = Object.assign(new Error('EIO'), { code: 'EIO' })
  const small = get(`/files/${id('b')}`)
  fs.closeSync = descriptor => {
    closeSync(descriptor)
    throw failure
  }
  syncBuiltinESMExports()
  const closing = await connected(t, port, 'lane')
  t.ok(await closing.write(small).answers(1), 'a file that is not closed well')
  closing.end()
  const failing = (_descriptor: number, buffer: Buffer, at: number, length: number, position: number, done: (error: Error | null, bytes: number, buffer: Buffer) => void): void => {
    if (length === 10) done(failure, 0, buffer)
    else read(_descriptor, buffer, at, length, position, done)
  }
  Object.assign(fs, { closeSync, read: failing })
  syncBuiltinESMExports()
  const broken = await connected(t, port, 'lane')
  broken.write(small.repeat(3) + get(`/files/${id('e')}`, 'Range: bytes=0-9'))
  t.ok(await broken.ended())
  t.strictSame(broken.statuses, [200, 200, 200])
})

await t.test('what comes behind the answer that ends the connection does not cut those before it', async t => {
  const root = t.testdir({})
  const id = `${'b'.repeat(51)}a`
  await mkdir(join(root, 'bb'))
  await writeFile(join(root, 'bb', id.slice(2)), Buffer.alloc(60_000, 'y'))
  const { port, log } = await startWorld(t, answerSlowly, { files: { root } })
  const file = get(`/files/${id}`)
  const refused = (): number => log.requests().filter(({ status }) => status === 400).length
  // How much the system takes for one that does not read is its own to say.
  for (let count = 20; count < 130; count += 2) {
    const client = await connected(t, port, 'lane')
    client.bytes = 0
    client.socket.pause()
    const before = refused()
    client.write(file.repeat(count) + get('/couch/shared/%'))
    await sleep(40)
    const isOnItsWay = refused() === before
    client.write(file)
    await sleep(15)
    client.socket.resume()
    if (!await client.ended(10_000)) t.fail('it ends')
    if (isOnItsWay && client.bytes < 60_000 * count) t.fail(`${count} were answered, and ${client.bytes} bytes came`)
  }
  t.pass('all came')
})

await t.test('an answer whose client takes anything is not cut; one whose client takes nothing is', async t => {
  const clock = new ManualClock(0)
  let [left, cut] = [300_000, 0]
  const response = { once () { /* neither finishes nor closes */ }, destroy: () => { cut = clock.monotonic() } }
  void sent(response as never, { stallMs: 1000 }, clock, () => left)
  for (let n = 0; n < 10; n++) {
    clock.advance(600)
    left -= 10_000
  }
  t.equal(cut, 0)
  clock.advance(1500)
  t.ok(cut >= 6600 && cut <= 7300, `after ${cut} ms`)
  t.equal(clock.timers, 0)
  t.end()
})

// ---- 3. what happens around a request of the lane

const ENDLESS: Answer = (socket, { target }) => {
  if (!target.includes('_changes')) return void socket.write(JSON_OK)
  socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
  const line = `{"seq":"${'x'.repeat(2000)}"}\n`
  const timer = setInterval(() => { socket.write(`${line.length.toString(16)}\r\n${line}\r\n`) }, 2)
  socket.once('close', () => { clearInterval(timer) })
}
const FEED = get('/couch/shared/_changes?feed=continuous')

await t.test('plain reads never reach Node\'s server; after the first other thing all do', async t => {
  const { port, server } = await startWorld(t, answerSlowly)
  const client = new Client(port, laptop)
  byNode = 0
  for (let n = 1; n <= 5; n++) t.ok(await client.write(get(`/couch/shared/${n}`)).answers(n))
  t.ok(await client.write(head('HEAD /couch/shared/a HTTP/1.1')).answers(6))
  t.ok(await client.write(get('/couch/absent')).answers(7))
  t.equal(byNode, 0)
  t.ok(await client.write(get('/')).answers(8))
  t.ok(await client.write(get('/couch/shared/a')).answers(9))
  t.equal(byNode, 2)
  t.strictSame(new Set(client.statuses), new Set([200]))
  t.match(server.counts(), { connections: 1, requests: { '2xx': 9 } })
  client.end()
})

for (const way of ['lane', 'node'] as const) {
  await t.test(`${way}: an update cuts what runs, and decides what comes next`, async t => {
    const { port, server, upstream } = await startWorld(t, ENDLESS)
    const feed = (await connected(t, port, way, friendDevice)).write(FEED)
    const reads = (await connected(t, port, way, writer)).write(get('/couch/shared/a'))
    t.ok(await feed.until(({ bytes }) => bytes > 20_000))
    t.ok(await reads.answers(1))
    t.strictSame(await server.update({ grants: { own: { databases: { '*': 'write' }, files: 'all' }, friend: { databases: {}, files: 'referenced' }, writer: { databases: { secret: 'read' }, files: 'referenced' } } }), { cut: 1 })
    await sleep(1)
    const { bytes } = feed
    t.ok(await feed.ended())
    t.equal(feed.bytes, bytes, 'not one byte follows')
    t.ok(await eventually(() => upstream.connections.some(({ bytes: of, closed }) => closed && of.includes('_changes'))), 'and its feed at CouchDB has ended')
    t.ok(await reads.write(get('/couch/shared/a')).answers(2))
    t.ok(await reads.write(get('/couch/secret/a')).answers(3))
    t.strictSame(reads.statuses, [200, 404, 200])
    t.strictSame(await server.update({ revoked: [writer.id] }), { cut: 1 })
    t.ok(reads.isClosed || await reads.ended())
  })

  await t.test(`${way}: who leaves, and who takes nothing`, async t => {
    const huge = Buffer.alloc(64 * 1024 * 1024, 'x')
    const { port, upstream } = await startWorld(t, (socket, { target }) => {
      if (!target.endsWith('huge')) return
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${huge.length}\r\n\r\n`)
      socket.write(huge)
    }, { limits: { stallMs: 300 } })
    const asked = (what: string) => upstream.connections.find(({ bytes }) => bytes.includes(what))
    const leaving = (await connected(t, port, way)).write(get('/couch/shared/never'))
    t.ok(await eventually(() => asked('never') !== undefined))
    leaving.end()
    t.ok(await eventually(() => asked('never')!.closed), 'CouchDB is told at once')
    const hungUp = (await connected(t, port, way)).write(get('/couch/shared/also-never'))
    t.ok(await eventually(() => asked('also-never') !== undefined))
    hungUp.socket.end()
    t.ok(await eventually(() => asked('also-never')!.closed), 'so it is where the client has only closed its half')
    const stalled = await connected(t, port, way)
    stalled.socket.pause()
    stalled.write(get('/couch/shared/huge'))
    t.ok(await eventually(() => asked('huge')?.closed === true), 'an answer whose reader takes nothing is cut')
    stalled.end()
  })

  await t.test(`${way}: limits, and the end of the server`, async t => {
    const { port, server } = await startWorld(t, (socket, request, index) => request.target.includes('never') ? undefined : ENDLESS(socket, request, index), { limits: { requestsPerEntry: 3, feedsPerEntry: 1, idleMs: 1000, headMs: 1000, upstreamMs: 60_000 } })
    const idle = (await connected(t, port, way)).write(get('/couch/shared/a'))
    const feed = (await connected(t, port, way, friendDevice)).write(FEED)
    t.ok(await feed.answers(1))
    const second = (await connected(t, port, way, friendDevice)).write(FEED)
    t.ok(await second.answers(1))
    t.strictSame(second.statuses, [429])
    const waiting = [await connected(t, port, way, friendDevice), await connected(t, port, way, friendDevice)].map(client => client.write(get('/couch/shared/never')))
    await sleep(50)
    t.ok(await second.write(get('/couch/shared/a')).answers(2))
    t.strictSame(second.statuses, [429, 429], 'a fourth at once')
    const flood = await connected(t, port, way)
    flood.write(get('/couch/shared/never'))
    for (let n = 0; n < 4; n++) {
      await sleep(5)
      flood.write(get('/couch/shared/a'))
    }
    t.ok(await flood.ended(), 'who has more waiting than may ever run is cut')
    t.strictSame(flood.statuses, [])
    const half = await connected(t, port, way)
    half.write('GET /couch/shared/a HTTP/1.1\r\nHost: ')
    t.ok(await half.ended(), 'half a head is cut after headMs')
    t.strictSame(half.statuses, [408])
    t.ok(await idle.ended(), 'who rests is cut after idleMs')
    t.notOk(feed.isClosed)
    const stopped = server.stop()
    t.ok(await feed.ended(), 'a feed ends at once')
    for (const client of waiting) client.end()
    await stopped
  })
}

await t.test('an answer of the lane holds what a header may, and nothing else', t => {
  const answer = new LaneAnswer({ begin () { /* nothing is written */ } } as never, 'GET', 5000)
  for (const headers of [{ 'x\r\ny': 'z' }, { x: 'y\r\nz: 1' }, { x: 'y\u0000' }, { '': 'y' }, { x: '\u{1f600}' }] as Array<Record<string, string>>) t.throws(() => { answer.writeHead(200, headers) }, TypeError, JSON.stringify(headers))
  t.end()
})

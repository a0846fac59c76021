import { once } from 'node:events'
import { Agent, request as httpRequest, type IncomingHttpHeaders, type OutgoingHttpHeaders } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createServer, type TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { systemClock } from '../src/core/clock.js'
import type { DatabaseName, DeviceId } from '../src/core/ids.js'
import type { Limits } from '../src/core/limits.js'
import { silentLogger } from '../src/core/log.js'
import { startBridge, type Bridge, type BridgeToken } from '../src/sync/bridge.js'
import { PeerAgent } from '../src/sync/peer-agent.js'
import { openHttpDatabase, replicate } from '../src/sync/pouch.js'
import { Lab } from '../src/testing.js'
import { laptop, serverId, serverIdentity, strangerDevice, user } from './fixtures/server-world.js'

const GENERAL: BridgeToken = { token: 'general-token-general-token', program: 'general', scope: 'general' }
const READER: BridgeToken = { token: 'reader-token-reader-token', program: 'reader', scope: { device: serverId, database: 'db' as DatabaseName, mode: 'read' } }
const WRITER: BridgeToken = { token: 'writer-token-writer-token', program: 'writer', scope: { device: serverId, database: 'db' as DatabaseName, mode: 'write' } }
const JSON_OK = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"ok": true}'
const at = (path: string): string => `/peer/${serverId}/couch${path}`

type Behave = (socket: TLSSocket, head: string) => void

/** A peer that says whatever it is told to, behind the real certificate of a device. */
async function hostilePeer (t: Test, behave: Behave | string, identity = serverIdentity()): Promise<{ port: number, heads: string[], bytes: () => string, sockets: TLSSocket[] }> {
  const heads: string[] = []
  const sockets: TLSSocket[] = []
  let all = ''
  const server = createServer({ key: identity.key, cert: identity.certificates, requestCert: true, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] }, socket => {
    sockets.push(socket)
    socket.on('error', () => undefined)
    let pending = ''
    socket.on('data', (chunk: Buffer) => {
      all += chunk.toString('latin1')
      pending += chunk.toString('latin1')
      const end = pending.indexOf('\r\n\r\n')
      if (end === -1) return
      const head = pending.slice(0, end)
      pending = ''
      heads.push(head)
      if (typeof behave === 'string') socket.write(behave, 'latin1')
      else behave(socket, head)
    })
  })
  server.listen(0, '::1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { port: (server.address() as AddressInfo).port, heads, bytes: () => all, sockets }
}

async function bridgeTo (t: Test, port: number, limits: Partial<Limits> = {}, tokens = [GENERAL, READER, WRITER]): Promise<Bridge> {
  const agent = new PeerAgent({ device: serverId, credentials: async () => ({ key: laptop.key, certificate: laptop.cert, ca: user.pem, revoked: new Set() }), address: () => ({ host: '::1', port }), clock: systemClock })
  const bridge = await startBridge({ port: 0, tokens, peerAgent: device => device === serverId ? agent : undefined, logger: silentLogger(), limits })
  t.teardown(async () => {
    await bridge.stop()
    agent.destroy()
  })
  return bridge
}

interface Got { status: number, headers: IncomingHttpHeaders, body: string, cut: boolean }

function ask (bridge: Bridge, path: string, { token = GENERAL.token, username = 'patchcord', method = 'GET', headers = {}, body }: { token?: string | null, username?: string, method?: string, headers?: OutgoingHttpHeaders, body?: string } = {}): Promise<Got> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(bridge.url)
    // Not as a URL: that would take the dots out of the path itself.
    const sent = httpRequest({ host: hostname, port, path, method, agent: false, ...token === null ? {} : { auth: `${username}:${token}` }, headers }, answer => {
      let text = ''
      answer.setEncoding('latin1').on('data', (chunk: string) => { text += chunk })
      answer.on('error', () => undefined)
      answer.on('close', () => { resolve({ status: answer.statusCode!, headers: answer.headers, body: text, cut: !answer.complete }) })
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

await t.test('who has no token, a foreign name or an Origin is refused, and the peer hears nothing of it', async t => {
  const peer = await hostilePeer(t, JSON_OK)
  const bridge = await bridgeTo(t, peer.port)
  const port = new URL(bridge.url).port
  const refused: Array<[string, number, Promise<Got>]> = [
    ['no token', 401, ask(bridge, at('/db'), { token: null })],
    ['a wrong token', 401, ask(bridge, at('/db'), { token: 'general-token-general-toke' })],
    ['another user name', 401, ask(bridge, at('/db'), { username: 'admin' })],
    ['a foreign Host', 400, ask(bridge, at('/db'), { headers: { Host: `evil.example:${port}` } })],
    ['the peer\'s own name as Host', 400, ask(bridge, at('/db'), { headers: { Host: 'patchcord.invalid' } })],
    ['an Origin', 403, ask(bridge, at('/db'), { headers: { Origin: 'https://evil.example' } })],
    ['an Origin that is the bridge\'s', 403, ask(bridge, at('/db'), { headers: { Origin: bridge.url } })],
    ['another site', 403, ask(bridge, at('/db'), { headers: { 'Sec-Fetch-Site': 'cross-site' } })],
    ['a dot segment', 400, ask(bridge, at('/db/%2e%2e/other'))],
    ['an encoded slash where none may be', 400, ask(bridge, `/peer/${serverId}%2Fcouch/db`)],
    ['a double slash', 400, ask(bridge, at('//db'))],
    ['a method override', 400, ask(bridge, at('/db'), { method: 'POST', headers: { 'X-HTTP-Method-Override': 'DELETE' } })],
    ['another device', 404, ask(bridge, `/peer/${strangerDevice.id}/couch/db`)],
    ['no device', 404, ask(bridge, '/peer/x/couch/db')],
    ['the peer\'s files', 404, ask(bridge, `/peer/${serverId}/files/${strangerDevice.id}`)],
    ['its mail', 404, ask(bridge, `/peer/${serverId}/mail`)],
    ['what is no row of the surface', 404, ask(bridge, at('/db/_security'))],
    ['a parameter of no row', 400, ask(bridge, at('/db/_changes?filter=_view'))],
    ['another database', 404, ask(bridge, at('/other'), { token: READER.token })],
    ['a write with a token that reads', 403, ask(bridge, at('/db/doc'), { token: READER.token, method: 'PUT', headers: { 'Content-Type': 'application/json' }, body: '{}' })],
    ['a body that is no JSON', 415, ask(bridge, at('/db/doc'), { token: WRITER.token, method: 'PUT', headers: { 'Content-Type': 'text/plain' }, body: '{}' })],
  ]
  for (const [what, status, got] of refused) t.equal((await got).status, status, what)
  t.equal(peer.heads.length, 0)
  t.match(await ask(bridge, at('/_all_dbs'), { token: READER.token }), { status: 200, body: '["db"]\n' })
})

await t.test('what the peer gets: written anew, without the token', async t => {
  const peer = await hostilePeer(t, JSON_OK)
  const bridge = await bridgeTo(t, peer.port)
  const got = await ask(bridge, at('/db%2Fx/_local/check?'), { headers: { Cookie: 'AuthSession=x', 'X-Forwarded-For': '::1', 'X-Auth-CouchDB-UserName': 'admin', 'If-None-Match': '"1"' } })
  t.match(got, { status: 200, body: '{"ok": true}' })
  t.equal(peer.heads[0]!.split('\r\n')[0], 'GET /couch/db%2Fx/_local/check HTTP/1.1')
  const names = peer.heads[0]!.split('\r\n').slice(1).map(line => line.split(':')[0]!.toLowerCase())
  t.same(names.toSorted(), ['connection', 'host', 'if-none-match'])
  t.notMatch(peer.bytes(), Buffer.from(`patchcord:${GENERAL.token}`).toString('base64'))
  t.match(await ask(bridge, at('/db/doc'), { token: WRITER.token, method: 'PUT', headers: { 'Content-Type': 'application/json', Expect: '100-continue' }, body: '{"a":1}' }), { status: 200 })
})

await t.test('a hostile peer', async t => {
  const cases: Array<[string, Behave | string, number, RegExp?]> = [
    ['asks for the program\'s password', 'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="CouchDB"\r\nContent-Length: 0\r\n\r\n', 502],
    ['asks for a proxy\'s password', 'HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n', 502],
    ['status 099', 'HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n', 502],
    ['status 999', 'HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n', 502],
    ['a 404 with words of its own', 'HTTP/1.1 404 No\r\nContent-Length: 6\r\n\r\n<evil>', 404, /"reason":"missing"/],
    ['a 403 with words of its own', 'HTTP/1.1 403 No\r\nContent-Length: 6\r\n\r\n<evil>', 403, /does not allow it/],
    ['no length', 'HTTP/1.1 200 OK\r\n\r\nhello', 502],
    ['both lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 502],
    ['another protocol', 'HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n', 502],
    ['preliminary answers without end', socket => { const timer = setInterval(() => { socket.write('HTTP/1.1 103 Early\r\n\r\n') }, 1); socket.on('close', () => { clearInterval(timer) }) }, 502],
    ['a head larger than it may be', `HTTP/1.1 200 OK\r\n${Array.from({ length: 2_000 }, (_, at) => `X-${at}: ${'y'.repeat(20)}\r\n`).join('')}Content-Length: 0\r\n\r\n`, 502],
    ['headers without end', socket => { socket.write('HTTP/1.1 200 OK\r\n'); const timer = setInterval(() => { socket.write(`X: ${'y'.repeat(1_000)}\r\n`) }, 1); socket.on('close', () => { clearInterval(timer) }) }, 502],
    ['no HTTP', 'SSH-2.0-OpenSSH\r\n\r\n', 502],
    ['nothing at all, and goes', socket => { socket.destroy() }, 502],
    ['silence', () => undefined, 504],
  ]
  for (const [what, behave, status, body] of cases) {
    const peer = await hostilePeer(t, behave)
    const bridge = await bridgeTo(t, peer.port, { upstreamMs: 300, stallMs: 300 })
    const got = await ask(bridge, at('/db/doc'))
    t.equal(got.status, status, what)
    t.notOk(got.headers['www-authenticate'], 'asks for no password')
    if (body !== undefined) t.match(got.body, body)
    t.notMatch(got.body, 'evil')
  }
})

await t.test('headers of a hostile peer: the allow-list alone', async t => {
  const peer = await hostilePeer(t, 'HTTP/1.1 200 Evil\x01\r\nSet-Cookie: a=b\r\nLocation: https://evil.example/\r\nAccess-Control-Allow-Origin: *\r\nContent-Type: text/html\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTrailer: X\r\nServer: evil\r\nETag: "1"\r\nContent-Length: 2\r\n\r\nhi'.replace('\x01', ''))
  const bridge = await bridgeTo(t, peer.port)
  const got = await ask(bridge, at('/db/doc/page.html'))
  t.same(Object.keys(got.headers).toSorted(), ['connection', 'content-length', 'content-security-policy', 'content-type', 'date', 'etag', 'x-content-type-options'])
  t.equal(got.headers['content-security-policy'], 'sandbox')
})

await t.test('who is not the device in the path gets no request', async t => {
  const peer = await hostilePeer(t, JSON_OK, { ...serverIdentity(), key: strangerDevice.key, certificates: strangerDevice.cert })
  const bridge = await bridgeTo(t, peer.port)
  const got = await ask(bridge, at('/db'))
  t.ok(got.status >= 500)
  t.equal(peer.heads.length, 0)
})

await t.test('bodies stream at the pace of the slower side', async t => {
  let written = 0
  let blocked = false
  const peer = await hostilePeer(t, socket => {
    socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
    const chunk = Buffer.concat([Buffer.from('10000\r\n'), Buffer.alloc(65_536), Buffer.from('\r\n')])
    const pour = (): void => {
      if (socket.destroyed) return
      written += chunk.length
      blocked = !socket.write(chunk)
      if (blocked) socket.once('drain', pour)
      else setImmediate(pour)
    }
    pour()
  })
  const bridge = await bridgeTo(t, peer.port)
  const rss = process.memoryUsage.rss()
  const slow = connect(Number(new URL(bridge.url).port), '127.0.0.1')
  slow.write(`GET ${at('/db/doc/endless')} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic ${Buffer.from(`patchcord:${GENERAL.token}`).toString('base64')}\r\n\r\n`)
  await once(slow, 'readable')
  // All of it is in this process: what nothing is written to in so many turns of its loop waits.
  let still = 0
  for (let seen = written; still < 100 && written < 256 * 1024 * 1024; seen = written) {
    await sleep(2)
    still = written === seen ? still + 1 : 0
  }
  t.ok(blocked && still === 100, 'an endless body waits for its reader')
  t.ok(process.memoryUsage.rss() - rss < 128 * 1024 * 1024)
  const cut = new Promise(resolve => { peer.sockets[0]!.once('close', resolve) })
  slow.destroy()
  await cut
  t.pass('who leaves takes the peer\'s connection along')
})

await t.test('a peer that goes in the middle, or falls silent, never looks complete', async t => {
  for (const [what, behave] of [
    ['goes', socket => { socket.write('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf', () => { socket.destroy() }) }],
    ['falls silent', socket => { socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n') }],
  ] satisfies Array<[string, Behave]>) {
    const peer = await hostilePeer(t, behave)
    const bridge = await bridgeTo(t, peer.port, { stallMs: 200 })
    t.match(await ask(bridge, at('/db/doc')), { status: 200, cut: true }, what)
  }
})

await t.test('a program that leaves in the middle of its upload never looks complete', async t => {
  const peer = await hostilePeer(t, () => undefined)
  const bridge = await bridgeTo(t, peer.port)
  const sent = httpRequest(bridge.url + at('/db/doc/file'), { method: 'PUT', agent: false, auth: `patchcord:${WRITER.token}`, headers: { 'Content-Length': 1_000_000 } })
  sent.on('error', () => undefined)
  sent.write(Buffer.alloc(1_000))
  while (peer.sockets.length === 0 || peer.heads.length === 0) await sleep(10)
  const cut = new Promise(resolve => { peer.sockets[0]!.once('close', resolve) })
  sent.destroy()
  await cut
  t.ok(peer.bytes().length < 10_000)
})

await t.test('tokens that are taken away, and devices that are cut, end what runs', async t => {
  const peer = await hostilePeer(t, socket => { socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n') })
  const bridge = await bridgeTo(t, peer.port)
  const feed = (token: string): Promise<Got> => ask(bridge, at('/db/_changes?feed=continuous'), { token })
  const [reader, writer] = [feed(READER.token), feed(WRITER.token)]
  while (peer.heads.length < 2) await sleep(10)
  await sleep(50)
  bridge.setTokens([GENERAL, WRITER])
  t.match(await reader, { cut: true })
  t.equal((await ask(bridge, at('/db'), { token: READER.token })).status, 401)
  const settled = await Promise.race([writer.then(() => 'ended'), sleep(100).then(() => 'runs')])
  t.equal(settled, 'runs')
  bridge.cut(serverId, 'another')
  bridge.cut(serverId, 'db')
  t.match(await writer, { cut: true })
  t.throws(() => { bridge.setTokens([{ ...GENERAL, token: 'short' }]) }, { code: 'bad-env' })
})

await t.test('PouchDB through the bridge, with the embedded database of a friend', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const mine = await lab.device({ user: 'u1', name: 'mine' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(mine, friend)
  await friend.call('db-create', { name: 'notes' })
  await friend.call('share', { database: 'notes', with: mine.device, write: true })
  for (let at = 0; at < 50; at++) await friend.db('PUT', `/notes/doc${at}`, { at, _attachments: { a: { content_type: 'text/plain', data: Buffer.from(`text ${at}`).toString('base64') } } })
  await mine.call('db-create', { name: 'copy' })
  const device = friend.device as DeviceId
  const token: BridgeToken = { token: 'pouch-token-pouch-token-1', program: 'pouch', scope: { device, database: 'notes' as DatabaseName, mode: 'write' } }
  const options = { tokens: [token], peerAgent: (id: DeviceId) => mine.agent.peers.peer(id)?.link.agent, logger: silentLogger(), clock: systemClock }
  let bridge = await startBridge({ ...options, port: 0 })
  const { port } = new URL(bridge.url)
  const http = new Agent({ keepAlive: true })
  t.teardown(async () => {
    http.destroy()
    await bridge.stop()
  })
  const remote = openHttpDatabase('bridge-notes', `${bridge.url}/peer/${device}/couch/notes`, { agent: http, auth: { username: 'patchcord', password: token.token } })
  const local = openHttpDatabase('copy', `${mine.couch.url}/copy`, { agent: http, auth: mine.couch })
  const run = async (from: typeof remote, to: typeof remote): Promise<{ docs_written: number, docs_read: number }> => {
    const replication = replicate(from, to, { live: false, batch_size: 20, heartbeat: 10_000 })
    const [result] = await once(replication, 'complete') as [{ docs_written: number, docs_read: number }]
    return result
  }
  t.equal((await run(remote, local)).docs_written, 50)
  await mine.db('PUT', '/copy/back', { from: 'mine' })
  t.equal((await run(local, remote)).docs_written, 1)
  t.equal((await friend.db('GET', '/notes/back')).status, 200)

  // The port is kept: what a checkpoint covers is not asked for again.
  await bridge.stop()
  bridge = await startBridge({ ...options, port: Number(port) })
  await friend.db('PUT', '/notes/later', { at: 1 })
  const again = await run(remote, local)
  t.ok(again.docs_read <= 2, `${again.docs_read} read after the restart`)
  await t.rejects(startBridge({ ...options, port: Number(port) }), { code: 'port-in-use' })
  await remote.close()
  await local.close()
})

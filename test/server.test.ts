import { spawn } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import { Client, device, friendDevice, get, head, keyPem, laptop, serverId, start, strangerDevice, type Credential } from './fixtures/server-world.js'
import { basicConstraints, EKU, extendedKeyUsage, keyUsage, makePki, toPem } from './fixtures/mint.js'

type Device = typeof serverId
type Shown = Pick<Credential, 'key' | 'cert'>

// ---- 1. admission

await t.test('who is not admitted never gets as far as HTTP', async t => {
  const pki = makePki(Date.now())
  const serves = pki.cases.find(({ name }) => name === 'good-server')!
  const serverCertificate = { key: keyPem(pki.server.privateKey), cert: toPem(serves.der) }
  const { port, log } = await start(t, {
    identity: { device: pki.deviceId as Device, key: serverCertificate.key, certificates: serverCertificate.cert, userCa: pki.user.pem },
    whitelist: [{ name: 'friend', ca: pki.friend.pem, grant: 'friend' }, { name: 'browser', device: pki.listedRsa as Device, ca: pki.user.pem, grant: 'writer' }],
    revoked: [pki.revokedId as Device],
  })
  const say = async (shown: Shown | undefined): Promise<Client> => {
    const client = new Client(port, shown && { ...shown, id: serverId })
    client.write(get('/mail') + get('/'))
    await client.until(({ isClosed, statuses }) => isClosed || statuses.length >= 2)
    const { isClosed } = client
    client.end()
    client.isClosed = isClosed
    return client
  }
  const refused = async (name: string, shown: Shown | undefined): Promise<void> => {
    const before = log.requests().length
    const client = await say(shown)
    t.strictSame([client.isClosed, client.bytes, log.requests().length - before], [true, 0, 0], `${name}: closed, not a byte, no request`)
  }
  await refused('no certificate', undefined)
  await refused('the server\'s own certificate', serverCertificate)
  await refused('serverAuth alone', device(pki.user, { extensions: [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.serverAuth)] }))
  const clients = pki.cases.filter(({ end }) => end === 'client')
  const atThePort: string[] = []
  for (const { name, der, chain, key, refusedBy } of clients) {
    if (refusedBy === undefined || name === 'expired') continue
    try {
      await refused(`${name} (${refusedBy})`, { key: keyPem(key), cert: [der, ...chain].map(bytes => toPem(bytes)).join('') })
      atThePort.push(name)
    } catch (error) {
      // The client's own OpenSSL takes some of them for no certificate at all; admission.test.ts has those.
      t.match((error as NodeJS.ErrnoException).code, /^ERR_(?:OSSL|SSL)/, `${name}: this client cannot even present it`)
    }
  }
  for (const name of ['stranger', 'forged-issuer', 'self-signed', 'revoked', 'revoked-friend', 'expired-long-ago', 'not-yet-valid', 'ca-true', 'no-eku', 'any-eku', 'p384', 'compressed-point', 'rsa-2048', 'rsa-not-listed', 'by-intermediate', 'by-device']) {
    t.ok(atThePort.includes(name), `${name} was tried at the port`)
  }
  t.strictSame(log.requests(), [])
  const expired = clients.find(({ name }) => name === 'expired')!
  const renewing = await say({ key: keyPem(expired.key), cert: toPem(expired.der) })
  t.strictSame(renewing.statuses, [200, 403], 'expired yesterday: its mail and nothing else')
  for (const { name, der, key, refusedBy } of clients) {
    if (refusedBy !== undefined) continue
    t.strictSame((await say({ key: keyPem(key), cert: toPem(der) })).statuses, [200, 200], `${name} comes in`)
  }
  t.ok(log.requests().length > 10)
})

await t.test('the handshake gives nothing away and nothing up', async t => {
  const { port, log } = await start(t)
  const failed = async (what: string, client: Client): Promise<void> => {
    client.write(get('/'))
    t.ok(await client.ended(), `${what}: refused`)
    t.equal(client.bytes, 0, `${what}: not a byte`)
  }
  await failed('TLS 1.2', new Client(port, laptop, { minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' }))
  await failed('h2 alone', new Client(port, laptop, { ALPNProtocols: ['h2'] }))
  await failed('a stranger who offers it too', new Client(port, strangerDevice, { ALPNProtocols: ['h2', 'http/1.1'] }))
  t.strictSame(log.requests(), [])

  const first = new Client(port, laptop)
  const sessions: Buffer[] = []
  first.socket.on('session', session => { sessions.push(session) })
  first.write(get('/'))
  t.ok(await first.answers(1))
  t.equal(first.socket.getProtocol(), 'TLSv1.3')
  t.equal(first.socket.alpnProtocol, 'http/1.1')
  t.notOk(first.socket.isSessionReused())
  const tickets = [...sessions, first.socket.getSession()].filter(session => session !== undefined)
  t.ok(tickets.length > 0)
  for (const session of tickets) {
    const again = new Client(port, laptop, { session })
    again.write(get('/'))
    t.ok(await again.answers(1))
    t.equal(again.socket.isSessionReused(), false, 'a session is never resumed')
    again.end()
    const thief = new Client(port, undefined, { session })
    thief.write(get('/'))
    t.ok(await thief.ended(), 'a session without the key that made it opens nothing')
    t.equal(thief.bytes, 0)
  }
  first.end()

  const openssl = spawn('openssl', ['s_client', '-connect', `[::1]:${port}`, '-tls1_3', '-alpn', 'http/1.1'], { stdio: ['pipe', 'pipe', 'pipe'] })
  let said = ''
  openssl.stdout.on('data', (chunk: Buffer) => { said += chunk.toString() })
  openssl.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
  openssl.stdin.on('error', () => undefined)
  await once(openssl, 'close')
  t.match(said, 'No client certificate CA names sent', 'a stranger is not told whom this server trusts')
  t.match(said, /Acceptable client certificate|Requested Signature Algorithms/, 'though it is asked for a certificate')
})

// ---- 2. the canonical form

/** Heads that are refused, with the statuses that may answer. Each is written as it stands. */
const HOSTILE: ReadonlyArray<readonly [name: string, bytes: string, status: 400 | 403 | 431]> = [
  ['two Host', head('GET / HTTP/1.1', 'Host: [::1]'), 400],
  ['no Host', 'GET / HTTP/1.1\r\n\r\n', 400],
  ['an empty Host', 'GET / HTTP/1.1\r\nHost:\r\n\r\n', 400],
  ['a Host of somebody else', 'GET / HTTP/1.1\r\nHost: example.org\r\n\r\n', 400],
  ['a Host with userinfo', 'GET / HTTP/1.1\r\nHost: a@[::1]\r\n\r\n', 400],
  ['absolute-form', 'GET https://[::1]/ HTTP/1.1\r\nHost: [::1]\r\n\r\n', 400],
  ['asterisk-form', 'OPTIONS * HTTP/1.1\r\nHost: [::1]\r\n\r\n', 400],
  ['HTTP/1.0', 'GET / HTTP/1.0\r\nHost: [::1]\r\n\r\n', 400],
  ['HTTP/2.0', 'GET / HTTP/2.0\r\nHost: [::1]\r\n\r\n', 400],
  ['HTTP/0.9', 'GET /\r\n\r\n', 400],
  ['the preface of h2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
  ['bare LF', 'GET / HTTP/1.1\nHost: [::1]\n\n', 400],
  ['a space before the colon', head('GET / HTTP/1.1', 'X : y'), 400],
  ['a folded header', head('GET / HTTP/1.1', 'X: a\r\n b'), 400],
  ['NUL in a header', head('GET / HTTP/1.1', 'X: a\0b'), 400],
  ['gzip, chunked', `${head('PUT /couch/shared/a HTTP/1.1', 'Transfer-Encoding: gzip, chunked')}0\r\n\r\n`, 400],
  ['chunked twice', `${head('PUT /couch/shared/a HTTP/1.1', 'Transfer-Encoding: chunked', 'Transfer-Encoding: chunked')}0\r\n\r\n`, 400],
  ['chunked in capitals', `${head('PUT /couch/shared/a HTTP/1.1', 'Transfer-Encoding: Chunked')}0\r\n\r\n`, 400],
  ['chunked and a length', `${head('PUT /couch/shared/a HTTP/1.1', 'Transfer-Encoding: chunked', 'Content-Length: 2')}0\r\n\r\n`, 400],
  ['two lengths', `${head('PUT /couch/shared/a HTTP/1.1', 'Content-Length: 2', 'Content-Length: 3')}{}`, 400],
  ['a length with a sign', `${head('PUT /couch/shared/a HTTP/1.1', 'Content-Length: +2')}{}`, 400],
  ['GET with a body', `${head('GET / HTTP/1.1', 'Content-Length: 2')}{}`, 400],
  ['chunked GET', `${head('GET / HTTP/1.1', 'Transfer-Encoding: chunked')}0\r\n\r\n`, 400],
  ['chunked DELETE', `${head('DELETE /couch/shared/a HTTP/1.1', 'Transfer-Encoding: chunked')}0\r\n\r\n`, 400],
  ['DELETE with a body', `${head('DELETE /couch/shared/a HTTP/1.1', 'Content-Length: 2')}{}`, 400],
  ['Upgrade', head('GET / HTTP/1.1', 'Connection: upgrade', 'Upgrade: websocket'), 400],
  ['Upgrade to h2c', head('GET / HTTP/1.1', 'Connection: upgrade, http2-settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAAP__'), 400],
  ['another Expect', head('GET / HTTP/1.1', 'Expect: 200-ok'), 400],
  ['a method override', head('POST / HTTP/1.1', 'X-HTTP-Method-Override: DELETE', 'Content-Length: 0'), 400],
  ['Connection that names Host', head('GET / HTTP/1.1', 'Connection: close, host'), 400],
  ['Connection that names the length', head('PUT /couch/shared/a HTTP/1.1', 'Connection: content-length', 'Content-Length: 0'), 400],
  ['Trailer', head('PUT /couch/shared/a HTTP/1.1', 'Trailer: x', 'Content-Length: 0'), 400],
  ['a dot segment', get('/couch/../mail'), 400],
  ['an escaped dot segment', get('/couch/%2e%2E/mail'), 400],
  ['a dot segment escaped twice', get('/couch/%252e%252e/mail'), 400],
  ['//', get('//mail'), 400],
  ['an inner //', get('/couch//shared'), 400],
  ['a backslash', get('/couch\\shared'), 400],
  ['a fragment', get('/mail#x'), 400],
  ['a bad escape', get('/mail%'), 400],
  ['an overlong escape', get('/couch/%c0%ae%c0%ae/'), 400],
  ['an escaped NUL', get('/mail%00'), 400],
  ['an escaped line end', get('/couch/shared/a%0d%0ab'), 400],
  ['an escaped slash where none belongs', get('/files%2fx'), 400],
  ['a byte above ASCII', get('/m\u00e4il'), 400],
  ['a parameter twice', get('/couch/shared/_changes?since=1&since=2'), 400],
  ['a header twice', head('GET / HTTP/1.1', 'Origin: https://[::1]', 'Origin: https://[::1]'), 400],
  ['65 headers', head('GET / HTTP/1.1', ...Array.from({ length: 64 }, (_, at) => `X-${at}: y`)), 400],
  ['500 headers, the last one hostile', head('GET / HTTP/1.1', ...Array.from({ length: 499 }, (_, at) => `X-${at}: y`), 'Upgrade: h2c'), 400],
  ['a head of 17 KiB', head('GET / HTTP/1.1', `X: ${'y'.repeat(17 * 1024)}`), 431],
  ['a target of 17 KiB', get(`/${'y'.repeat(17 * 1024)}`), 431],
  ['a foreign Origin', head('GET / HTTP/1.1', 'Origin: https://example.org'), 403],
  ['Origin null', head('GET / HTTP/1.1', 'Origin: null'), 403],
  ['our Origin over http', head('GET / HTTP/1.1', 'Origin: http://[::1]'), 403],
  ['a cross-site fetch', head('GET / HTTP/1.1', 'Sec-Fetch-Site: cross-site'), 403],
  ['a same-site fetch', head('GET / HTTP/1.1', 'Sec-Fetch-Site: same-site'), 403],
]

await t.test('what is not canonical is refused, the connection closes, and nothing behind it is looked at', async t => {
  const { port, log } = await start(t, { limits: { acceptBurst: 10_000, headMs: 1000 } })
  await Promise.all(HOSTILE.map(async ([name, bytes, status]) => {
    const client = new Client(port, laptop)
    // latin1: what stands in the table are bytes.
    client.write(Buffer.from(bytes + get('/mail') + get('/'), 'latin1'))
    t.ok(await client.ended(), `${name}: closed`)
    t.strictSame(client.statuses, [status], `${name}: one answer alone`)
  }))
  t.strictSame(log.requests().filter(({ status }) => status === 200), [], 'no request behind a refused one was served')
  const connect = new Client(port, laptop).write('CONNECT [::1]:22 HTTP/1.1\r\nHost: [::1]\r\n\r\n' + get('/'))
  t.ok(await connect.ended(), 'CONNECT: closed')
  t.strictSame(connect.statuses, [], 'CONNECT is not even answered')

  const served: ReadonlyArray<readonly [string, string]> = [
    ['64 headers', head('GET / HTTP/1.1', ...Array.from({ length: 63 }, (_, at) => `X-${at}: y`))],
    ['our own name', `GET / HTTP/1.1\r\nHost: ${serverId}.patchcord.invalid:4984\r\n\r\n`],
    ['an IPv4 Host', 'GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n'],
    ['our own Origin', head('GET / HTTP/1.1', 'Origin: https://[::1]', 'Sec-Fetch-Site: same-origin')],
    ['an address bar', head('GET / HTTP/1.1', 'Sec-Fetch-Site: none')],
    ['HEAD', head('HEAD / HTTP/1.1')],
  ]
  for (const [name, bytes] of served) {
    const client = new Client(port, laptop).write(bytes + get('/mail'))
    t.ok(await client.answers(2), `${name}: served, and what is pipelined behind it`)
    t.strictSame(client.statuses, [200, 200])
    t.notOk(client.isClosed)
    client.end()
  }
})

await t.test('a refusal of what is well-formed keeps the connection', async t => {
  const { port } = await start(t)
  const client = new Client(port, friendDevice)
  client.write(get('/nothing') + get('/couch/secret') + head('DELETE /couch/shared HTTP/1.1') + get('/'))
  t.ok(await client.answers(4))
  t.strictSame(client.statuses, [404, 404, 404, 200])
  client.end()
})

await t.test('100-continue is said after the decision, never before', async t => {
  const { port } = await start(t)
  const asking = (path: string): string => head(`PUT ${path} HTTP/1.1`, 'Expect: 100-continue', 'Content-Type: application/json', 'Content-Length: 2')
  const reader = new Client(port, friendDevice).write(asking('/couch/shared/a'))
  t.ok(await reader.ended())
  t.strictSame(reader.statuses, [403], 'who may only read is not asked for the body')
  const own = new Client(port, laptop).write(asking('/couch/shared/a'))
  t.ok(await own.ended())
  t.strictSame(own.statuses, [100, 502], 'who may write is asked, and then told that no CouchDB is there')
  const hostile = new Client(port, laptop).write(head('PUT /couch/../a HTTP/1.1', 'Expect: 100-continue', 'Content-Length: 2'))
  t.ok(await hostile.ended())
  t.strictSame(hostile.statuses, [400])
})

await t.test('a head that comes slowly, or never, is cut', async t => {
  const { port, log } = await start(t, { limits: { headMs: 150, idleMs: 400 } })
  const from = performance.now()
  const dripping = new Client(port, laptop).write('GET / HTTP/1.1\r\nHost: [::1]\r\nX: ')
  const drip = setInterval(() => { dripping.write('y') }, 20)
  const silent = new Client(port, laptop)
  t.ok(await dripping.ended())
  clearInterval(drip)
  t.ok(await silent.ended())
  t.ok(performance.now() - from < 1500, 'within the limit and the interval of the check')
  t.strictSame([...dripping.statuses, ...silent.statuses], [408, 408])
  t.strictSame(log.requests(), [])
  const idle = new Client(port, laptop).write(get('/'))
  t.ok(await idle.answers(1))
  const answered = performance.now()
  t.ok(await idle.ended())
  t.ok(performance.now() - answered > 250, 'a keep-alive connection rests for idleMs, and no longer')
})

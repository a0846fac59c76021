import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { Agent as HttpAgent, createServer as createHttpServer, type IncomingMessage, type RequestListener } from 'node:http'
import { connect as tcpConnect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { createServer as createTlsServer, type TLSSocket } from 'node:tls'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import type { Address } from '../src/core/address.js'
import { systemClock } from '../src/core/clock.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DatabaseName, DeviceId } from '../src/core/ids.js'
import { silentLogger } from '../src/core/log.js'
import { startEmbedded } from '../src/embedded/front.js'
import { contentIdOf, LEAF_BYTES, leafHash } from '../src/files/content-id.js'
import { FileStore } from '../src/files/store.js'
import { issueDevice, issueServer, createUserCa } from '../src/identity/certificates.js'
import { deviceIdOf, generateKey, privateKeyToPem, spkiOf } from '../src/identity/keys.js'
import { askFirst, askLeaves, askRange, type Source } from '../src/sync/ask-file.js'
import { Distrust } from '../src/sync/distrust.js'
import { download } from '../src/sync/download.js'
import { askPeer, bytePool, PeerAgent, readBody } from '../src/sync/peer-agent.js'
import { PeerLink } from '../src/sync/peer-link.js'
import { Pull } from '../src/sync/pull.js'
import { until } from './fixtures/processes.js'
import type { StopsAt } from './fixtures/stopping-peer.js'

// The other side is hostile in all of this: a peer that was paired and turned, or a stranger at its address.

const now = Date.now()

interface User { readonly ca: string, readonly caKey: Awaited<ReturnType<typeof generateKey>>['privateKey'] }
interface Made { readonly device: DeviceId, readonly key: string, readonly certificate: string, readonly serverKey: string, readonly serverCertificate: string }

async function user (at = now): Promise<User> {
  const { privateKey } = await generateKey()
  return { ca: await createUserCa(privateKey, at), caKey: privateKey }
}

async function makeDevice (of: User, at = now): Promise<Made> {
  const [device, server] = await Promise.all([generateKey(), generateKey()])
  const spki = spkiOf(device.publicKey)
  const id = deviceIdOf(spki)
  return {
    device: id,
    key: privateKeyToPem(device.privateKey), certificate: await issueDevice({ ca: of.ca, caKey: of.caKey, spki, now: at }),
    serverKey: privateKeyToPem(server.privateKey), serverCertificate: await issueServer({ ca: of.ca, caKey: of.caKey, spki: spkiOf(server.publicKey), device: id, now: at }),
  }
}

const friend = await user()
const stranger = await user()
const peer = await makeDevice(friend)
const otherPeer = await makeDevice(friend)
const strange = await makeDevice(stranger)
const self = await makeDevice(await user())

/** An HTTPS server that shows whatever it likes, and counts what it is sent after the handshake. */
async function impostor (t: { teardown (end: () => unknown): void }, shown: { key: string, cert: string }, answer: RequestListener): Promise<{ port: number, requests: IncomingMessage[], bytes: () => number, stall: () => void }> {
  const requests: IncomingMessage[] = []
  let bytes = 0
  let isStalled = false
  const http = createHttpServer((request, response) => {
    requests.push(request)
    if (!isStalled) answer(request, response)
  })
  const sockets = new Set<Socket>()
  const tls = createTlsServer({ ...shown, requestCert: true, rejectUnauthorized: false, minVersion: 'TLSv1.3' }, (socket: TLSSocket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.on('data', chunk => { bytes += chunk.length })
    http.emit('connection', socket)
  })
  tls.on('tlsClientError', () => undefined)
  tls.listen({ host: '::1', port: 0 })
  await once(tls, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    tls.close()
  })
  return { port: (tls.address() as AddressInfo).port, requests, bytes: () => bytes, stall: () => { isStalled = true } }
}

function agentTo (port: number, { ca = friend.ca, revoked = new Set<DeviceId>(), clockAt = now }: { ca?: string, revoked?: Set<DeviceId>, clockAt?: number } = {}): PeerAgent {
  return new PeerAgent({
    device: peer.device,
    credentials: async () => ({ key: self.key, certificate: self.certificate, ca, revoked }),
    address: () => ({ host: '::1', port }),
    clock: { ...systemClock, now: () => clockAt },
  })
}

await t.test('no request is sent to who cannot prove to be the device that was meant', async t => {
  const year = 366 * 24 * 3600_000
  const longAgo = await user(now - 2 * year)
  const old = await makeDevice(longAgo, now - 2 * year)
  for (const [what, shown, options, code] of [
    ['another device of the same user', { key: otherPeer.serverKey, cert: otherPeer.serverCertificate }, {}, 'verification'],
    ['a stranger', { key: strange.serverKey, cert: strange.serverCertificate }, {}, 'verification'],
    ['the device\'s own client certificate', { key: peer.key, cert: peer.certificate }, {}, 'verification'],
    ['an expired certificate', { key: old.serverKey, cert: old.serverCertificate }, { ca: longAgo.ca }, 'verification'],
    ['the right one, signed by a CA that is not the pinned one', { key: peer.serverKey, cert: peer.serverCertificate }, { ca: stranger.ca }, 'verification'],
    ['the right one, revoked', { key: peer.serverKey, cert: peer.serverCertificate }, { revoked: new Set([peer.device]) }, 'verification'],
    ['the right one, before its dates', { key: peer.serverKey, cert: peer.serverCertificate }, { clockAt: now - year }, 'verification'],
  ] as const) {
    const server = await impostor(t, shown, (_request, response) => { response.end('{}') })
    const agent = agentTo(server.port, options)
    await t.rejects(askPeer(agent, peer.device, '/'), { code }, what)
    t.strictSame([server.requests.length, server.bytes()], [0, 0], `${what}: not a byte`)
    agent.destroy()
  }
  const good = await impostor(t, { key: peer.serverKey, cert: peer.serverCertificate }, (_request, response) => { response.end('{}') })
  const agent = agentTo(good.port)
  t.equal((await readBody(await askPeer(agent, peer.device, '/'), 10)).toString(), '{}')
  t.equal(good.requests[0]?.headers.host, `${peer.device}.patchcord.invalid`)
  agent.destroy()
})

await t.test('an endless answer is cut at the bound', async t => {
  let ended = false
  const server = await impostor(t, { key: peer.serverKey, cert: peer.serverCertificate }, (_request, response) => {
    const pour = (): void => { while (!response.destroyed && response.write(Buffer.alloc(65_536))); }
    response.on('drain', pour)
    response.on('close', () => { ended = true })
    pour()
  })
  const agent = agentTo(server.port)
  await t.rejects(askPeer(agent, peer.device, '/mail').then(answer => readBody(answer, 1_000_000)), { code: 'too-large' })
  while (!ended) await new Promise(resolve => { setTimeout(resolve, 10) })
  agent.destroy()
})

const STOPPING = fileURLToPath(new URL('fixtures/stopping-peer.js', import.meta.url))

/** A pool towards a process that is stopped at a moment; whether it is so yet. */
async function stoppingPeer (t: Test, at: StopsAt, answer = ''): Promise<{ source: Source, isStopped: () => boolean }> {
  const child = spawn(process.execPath, [STOPPING], { stdio: ['pipe', 'pipe', 'inherit'] })
  child.stdin.end(JSON.stringify({ key: peer.serverKey, cert: peer.serverCertificate, at, answer }))
  const [port] = await once(createInterface({ input: child.stdout }), 'line') as [string]
  const bytes = bytePool({
    device: peer.device, clock: systemClock, address: () => ({ host: '::1', port: Number(port) }),
    credentials: async () => ({ key: self.key, certificate: self.certificate, ca: friend.ca, revoked: new Set() }),
  }, 2)
  t.teardown(async () => {
    bytes.destroy()
    child.kill('SIGKILL')
    await once(child, 'close')
  })
  return { source: { device: peer.device, bytes }, isStopped: () => / T /.test(readFileSync(`/proc/${child.pid}/stat`, 'utf8')) }
}

const half = Buffer.from('half of a leaf').toString('latin1')
/** Where a peer may hang while it is asked: the process is stopped, and what was sent before that. */
const HANGS: ReadonlyArray<readonly [what: string, at: StopsAt, answer?: string]> = [
  ['before it accepts', 'listening'],
  ['in the handshake', 'handshake'],
  ['before the head', 'request'],
  ['in the head', 'answer', 'HTTP/1.1 200 OK\r\nContent-'],
  ['before the body', 'answer', 'HTTP/1.1 206 Partial Content\r\nContent-Length: 1048576\r\nContent-Range: bytes 0-1048575/4194304\r\n\r\n'],
  ['in the body', 'answer', `HTTP/1.1 206 Partial Content\r\nContent-Length: 1048576\r\nContent-Range: bytes 0-1048575/4194304\r\n\r\n${half}`],
  ['in a leaf list', 'answer', `HTTP/1.1 200 OK\r\nContent-Length: 128\r\nPatchcord-File-Size: 4194304\r\n\r\n${half}`],
  ['in a refusal', 'answer', `HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n${half}`],
]

await t.test('what was asked of a peer that hangs, wherever it does, ends when nobody wants it any more', async t => {
  const file = randomBytes(4 * LEAF_BYTES)
  const leaves = Buffer.concat([0, 1, 2, 3].map(leaf => leafHash(file.subarray(leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES))))
  const id = contentIdOf(leaves)
  await Promise.all(HANGS.map(async ([what, at, answer]) => {
    const { source, isStopped } = await stoppingPeer(t, at, answer)
    const questions: ReadonlyArray<readonly [name: string, ask: (signal: AbortSignal) => Promise<unknown>]> = [
      ['the first leaf', signal => askFirst(source, id, undefined, signal)],
      ['the list', signal => askLeaves(source, id, Infinity, signal)],
      ['a range, in turn', signal => askRange(source, id, file.length, 0, LEAF_BYTES, { signal, onConnection: () => undefined, onBytes: () => false })],
      ['the list, in turn', signal => askLeaves(source, id, Infinity, signal)],
    ]
    const stop = new AbortController()
    const reason = new Error('nobody wants it')
    const ended = questions.map(([, ask]) => ask(stop.signal).then(() => 'done', (error: unknown) => error))
    await until(`the peer that hangs ${what}`, isStopped)
    // What came before it stopped is read.
    await new Promise(resolve => { setTimeout(resolve, 50) })
    // All connections are busy: what is asked when nobody wants it any more waits for none.
    for (const [name, ask] of questions) await t.rejects(ask(AbortSignal.abort(reason)), reason, `${what}, ${name}: asked too late`)
    stop.abort(reason)
    for (const [index, [name]] of questions.entries()) {
      const error = await ended[index]
      // A refusal, or an answer to another question, may have ended it before.
      t.ok(error === reason || (error instanceof PatchcordError && ['not-found', 'verification', 'conflict'].includes(error.code)), `${what}, ${name}: ${String(error)}`)
    }
  }))
})

await t.test('of a peer that hangs, wherever it does, nobody waits for the end where another has the file', async t => {
  const file = randomBytes(4 * LEAF_BYTES)
  const leaves = Buffer.concat([0, 1, 2, 3].map(leaf => leafHash(file.subarray(leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES))))
  const id = contentIdOf(leaves)
  const good = await impostor(t, { key: otherPeer.serverKey, cert: otherPeer.serverCertificate }, ({ url, headers }, response) => {
    if (url?.endsWith('/leaves') === true) return response.writeHead(200, { 'Content-Length': leaves.length, 'Patchcord-File-Size': file.length }).end(leaves)
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '')!
    const part = file.subarray(Number(first), Number(last) + 1)
    return response.writeHead(206, { 'Content-Length': part.length, 'Content-Range': `bytes ${first}-${last}/${file.length}` }).end(part)
  })
  const bytes = bytePool({
    device: otherPeer.device, clock: systemClock, address: () => ({ host: '::1', port: good.port }),
    credentials: async () => ({ key: self.key, certificate: self.certificate, ca: friend.ca, revoked: new Set() }),
  }, 4)
  t.teardown(() => { bytes.destroy() })
  const hangs = HANGS.filter(([what]) => what !== 'in the handshake' && what !== 'before the body' && what !== 'in the head')
  const homes = t.testdir(Object.fromEntries(hangs.map((_, at) => [String(at), {}])))
  await Promise.all(hangs.map(async ([what, at, answer], index) => {
    const { source } = await stoppingPeer(t, at, answer)
    const store = await FileStore.open(join(homes, String(index), 'files'))
    const overtaken: string[] = []
    const { sources } = await download(store, id, {
      sources: () => [source, { device: otherPeer.device, bytes }],
      onEvent: event => { if (event.event === 'overtaken') overtaken.push(event.device) },
    }, { clock: systemClock, logger: silentLogger(), distrust: new Distrust() })
    t.strictSame([[...sources], overtaken.filter(device => device !== peer.device)], [[otherPeer.device], []], what)
    t.ok(readFileSync(store.path(id)).equals(file), what)
    await store.close()
  }))
})

await t.test('a link: mail that changes all the time does not make it spin, and a dead peer is tried again', async t => {
  let etag = 0
  const server = await impostor(t, { key: peer.serverKey, cert: peer.serverCertificate }, (request, response) => {
    response.setHeader('ETag', `"${etag++}"`)
    response.end(request.url === '/mail' ? '{"shares":[]}' : '{}')
  })
  let mails = 0
  const changes: boolean[] = []
  const link = new PeerLink({
    device: peer.device,
    credentials: async () => ({ key: self.key, certificate: self.certificate, ca: friend.ca, revoked: new Set() }),
    addresses: () => [{ host: '::1', port: 1 }, { host: '::1', port: server.port }],
    clock: systemClock, logger: silentLogger(),
    onMail: () => { mails++ },
    onChange: () => { changes.push(link.connected) },
  })
  const start = performance.now()
  await until('more mails than come at once', () => mails > 20)
  const most = 16 + (performance.now() - start) / 100
  await link.stop()
  t.strictSame(changes, [true, false], 'the second address answered')
  t.ok(mails > 16 && mails <= most + 1, `${mails} mails, where 16 and ten a second may be: ${most}`)
})

await t.test('addresses are raced: the first that proves to be the device wins, and the others are cut', async t => {
  const proof = { key: peer.serverKey, cert: peer.serverCertificate }
  // It takes every connection and says nothing, as a machine does that was unplugged half-way.
  const silent = new Set<Socket>()
  let closed = 0
  const hole = createTcpServer(socket => {
    silent.add(socket.on('error', () => undefined).on('close', () => { closed++ }).resume())
  }).listen({ host: '::1', port: 0 })
  await once(hole, 'listening')
  t.teardown(() => {
    for (const socket of silent) socket.destroy()
    hole.close()
  })
  const honest = await impostor(t, proof, (request, response) => { if (request.url !== '/mail') response.end('{}') })
  const stranger = await impostor(t, { key: strange.serverKey, cert: strange.serverCertificate }, (_request, response) => { response.end('{}') })
  // It proves to be the device, as who relays the bytes of the real one does, and answers nothing.
  const relayed = await impostor(t, proof, () => undefined)
  const spare = await impostor(t, proof, (request, response) => { if (request.url !== '/mail') response.end('{}') })
  const at = (port: number): Address => ({ host: '::1', port })
  const port = (hole.address() as AddressInfo).port
  const link = new PeerLink({
    device: peer.device,
    credentials: async () => ({ key: self.key, certificate: self.certificate, ca: friend.ca, revoked: new Set() }),
    addresses: () => [at(port), at(stranger.port), at(relayed.port), at(honest.port), at(spare.port)],
    clock: systemClock, logger: silentLogger(), onMail: () => undefined, onChange: () => undefined,
  })
  const until = async (what: string, holds: () => boolean): Promise<void> => {
    const deadline = performance.now() + 30_000
    while (!holds()) {
      if (performance.now() > deadline) throw new Error(`waited 30 s for ${what}`)
      await new Promise(resolve => { setTimeout(resolve, 10) })
    }
  }
  await until('the link', () => link.connected)
  t.equal(link.address?.port, honest.port)
  t.equal(stranger.bytes(), 0, 'who is not the device is asked nothing')
  await until('the losers being cut', () => closed === silent.size)

  // Where the peer is now answers no more, and it proves to be elsewhere: nobody waits for a time-out.
  honest.stall()
  link.check()
  await until('the link at the other address', () => link.connected && link.address?.port === spare.port)
  t.ok(relayed.requests.length >= 1)
  await link.stop()
})

await t.test('what a pull writes was asked for: a hostile database gets nothing else in', async t => {
  const owner = { username: 'me', password: 'pw', scope: { kind: 'owner' } } as const
  const embedded = await startEmbedded({ dir: join(t.testdir({}), 'couch'), accounts: [owner, { username: 'sync', password: 'pw', scope: { kind: 'peer', databases: { mine: 'write' } } }], listen: { host: '::1', port: 0 } })
  t.teardown(() => embedded.stop())
  await embedded.createDatabase('mine')
  const local = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => await (await fetch(`${embedded.url}${path}`, {
    method, headers: { 'content-type': 'application/json', authorization: `Basic ${btoa('me:pw')}` }, ...body === undefined ? {} : { body: JSON.stringify(body) },
  })).json() as Record<string, unknown>
  const kept = await local('PUT', '/mine/precious', { text: 'mine' })

  const hash = (letter: string): string => letter.repeat(32)
  const document = (id: string, rev: string, ids: string[] = [rev.slice(2)]): object => ({ _id: id, _rev: rev, _revisions: { start: Number(rev.slice(0, rev.indexOf('-'))), ids }, text: 'hostile' })
  const good = document('good', `1-${hash('a')}`)
  // Announced: one honest document, a design document, and one that will be answered with other revisions.
  const results = [
    { seq: 1, id: 'good', changes: [{ rev: `1-${hash('a')}` }] },
    { seq: 2, id: '_design/evil', changes: [{ rev: `1-${hash('b')}` }] },
    { seq: 3, id: 'switched', changes: [{ rev: `1-${hash('c')}` }] },
  ]
  const asked: string[] = []
  const http = createHttpServer((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => { body += chunk.toString() })
    request.on('end', () => {
      const url = request.url ?? ''
      const say = (value: unknown): void => { response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value)) }
      if (url.includes('_changes')) {
        if (url.includes('since=0')) say({ results, last_seq: 3, pending: 0 })
        else if (url.includes('feed=longpoll')) return
        else say({ results: [], last_seq: 3, pending: 0 })
      } else if (url.includes('_bulk_get')) {
        asked.push(...(JSON.parse(body) as { docs: Array<{ id: string }> }).docs.map(({ id }) => id))
        say({ results: [
          { id: 'good', docs: [{ ok: good }] },
          { id: '_design/evil', docs: [{ ok: document('_design/evil', `1-${hash('b')}`) }] },
          { id: 'switched', docs: [{ ok: document('switched', `9-${hash('d')}`) }, { ok: document('switched', `1-${hash('c')}`, [hash('e')]) }] },
          { id: 'switched', docs: [{ ok: document('precious', `99-${hash('f')}`) }] },
          { id: 'unannounced', docs: [{ ok: document('unannounced', `1-${hash('a')}`) }] },
          { id: '_local/x', docs: [{ ok: document('_local/x', `1-${hash('a')}`) }] },
          { id: 'good', docs: [{ ok: { ...good, _id: 'smuggled' } }] },
        ] })
      } else if (url.includes('_local')) {
        if (request.method === 'PUT') say({ ok: true, id: '_local/x', rev: '0-1' })
        else response.writeHead(404, { 'content-type': 'application/json' }).end('{"error":"not_found","reason":"missing"}')
      } else say({ db_name: 'theirs', update_seq: 3, doc_count: 3 })
    })
  })
  http.listen({ host: '::1', port: 0 })
  await once(http, 'listening')
  const { port } = http.address() as AddressInfo
  class Redirected extends HttpAgent {
    override createConnection (): Socket { return tcpConnect({ host: '::1', port }) }
  }
  const source = new Redirected({ keepAlive: true })
  const targetAgent = new HttpAgent({ keepAlive: true })
  const pull = new Pull({
    source: { device: peer.device, database: 'theirs' as DatabaseName, agent: source },
    target: { url: embedded.url, database: 'mine' as DatabaseName, agent: targetAgent, username: 'sync', password: 'pw' },
    checkRoom: async () => undefined, clock: systemClock, logger: silentLogger(),
  })
  t.teardown(async () => {
    await pull.stop()
    source.destroy()
    targetAgent.destroy()
    http.closeAllConnections()
    http.close()
  })
  const deadline = performance.now() + 30_000
  while (pull.state !== 'in sync' && pull.state !== 'failed' && performance.now() < deadline) await new Promise(resolve => { setTimeout(resolve, 20) })
  const rows = (await local('GET', '/mine/_all_docs'))['rows'] as Array<{ id: string, value: { rev: string } }>
  t.strictSame(rows.map(({ id, value }) => [id, value.rev]), [['good', `1-${hash('a')}`], ['precious', kept['rev']]], 'the honest one, and ours as it was')
  t.notOk(asked.includes('_design/evil'), 'design documents are not even asked for')
})

await t.test('an error of ours survives the way through an agent', async t => {
  const agent = new PeerAgent({ device: peer.device, credentials: () => Promise.reject(new PatchcordError('unsafe-mode', 'others can read the key')), address: () => ({ host: '::1', port: 1 }), clock: systemClock })
  await t.rejects(askPeer(agent, peer.device, '/'), { code: 'unsafe-mode' })
  const nowhere = new PeerAgent({ device: peer.device, credentials: async () => ({ key: self.key, certificate: self.certificate, ca: friend.ca, revoked: new Set() }), address: () => undefined, clock: systemClock })
  await t.rejects(askPeer(nowhere, peer.device, '/'), { code: 'unreachable', message: /no address is known/ })
})

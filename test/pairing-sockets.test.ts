import { once } from 'node:events'
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { createServer as createTcpServer, connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join as joinPath } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect, createServer as createTlsServer, type TLSSocket } from 'node:tls'
import t from 'tap'
import type { Address } from '../src/core/address.js'
import { systemClock, type Clock } from '../src/core/clock.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DatabaseName } from '../src/core/ids.js'
import { silentLogger } from '../src/core/log.js'
import { formatBundle, formatIssue, parseBundle, parseIssue, parseRequest } from '../src/identity/bundle.js'
import { Keystore } from '../src/identity/keystore.js'
import { deviceIdOf, privateKeyFromPem, spkiOf } from '../src/identity/keys.js'
import { readLeaf } from '../src/identity/leaf.js'
import { decodeOnePem, decodePem, encodePem } from '../src/identity/pem.js'
import { Charges, dialable, join, parseInvitation, PairingWindow, PendingPairs, SpentShares, tlsOptions, channelOf, type Certificates, type InitiatorHost, type JoinOutcome, type Other, type Pair, type Relation, type ResponderHost, type Self, type WindowOptions } from '../src/pairing/index.js'
import { waitAfter } from '../src/pairing/charges.js'
import { FrameReader, MESSAGE } from '../src/pairing/frames.js'
import { encodeHello, encodeShare, encodeTag, parseHello, parseTag } from '../src/pairing/messages.js'
import { isSameTag, keysOf, shareOf, type Binding } from '../src/pairing/proof.js'
import { basicConstraints, keyUsage, mint, nameOf, toPem } from './fixtures/mint.js'

// Real sockets, real certificates out of the identity room, real files. What the agent will hand in is
// written here as it would be there.

const pem = (label: string, ...ders: readonly Buffer[]): string => ders.map(der => encodePem(label, der)).join('')
const ders = (text: string): Buffer[] => decodePem(text).map(({ der }) => der)

const certificates: Certificates = {
  deviceOf: certificate => {
    const { deviceId, keyForm } = readLeaf(certificate)
    if (keyForm !== 'p256') throw new PatchcordError('bad-certificate', 'not P-256')
    return deviceId
  },
  identify: (device, ca) => parseBundle(formatBundle(pem('CERTIFICATE', device), pem('CERTIFICATE', ca))),
  deviceOfRequests: requests => deviceIdOf(parseRequest(pem('CERTIFICATE REQUEST', ...requests)).deviceSpki),
  deviceOfIssue: (issued, ca) => parseIssue(pem('CERTIFICATE', ...issued, ca), Date.now()).device,
}

interface Device {
  readonly root: string
  readonly name: string
  readonly keystore: Keystore
  readonly self: Self
  readonly charges: Charges
  readonly pending: PendingPairs
  readonly spent: SpentShares
  readonly pairs: Array<{ pair: Pair, at: Address | undefined }>
  readonly asked: Other[]
  readonly failures: Array<{ error: PatchcordError, attemptsLeft: number }>
  answer: Relation | undefined
  selfSigned: ResponderHost['selfSigned']
}

async function makeDevice (name: string, clock: Clock = systemClock): Promise<Device> {
  const root = await mkdtemp(joinPath(tmpdir(), 'patchcord-pairing-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const keystore = await Keystore.create(joinPath(root, 'identity'))
  const self: Self = {
    get device () { return keystore.identity.device },
    get user () { return keystore.identity.user },
    certificates,
    isRevoked: () => false,
    objection: () => undefined,
    get record () {
      const { deviceCertificate, userCa } = keystore.identity
      return { name, deviceCertificate: decodeOnePem(deviceCertificate, 'CERTIFICATE'), userCa: decodeOnePem(userCa, 'CERTIFICATE'), requests: [], port: 4984, databases: new Map([['notes' as DatabaseName, 'read' as const]]) }
    },
  }
  return {
    root, name, keystore, self, asked: [], failures: [], pairs: [], answer: 'peer',
    charges: await Charges.open(root, clock), pending: await PendingPairs.open(root, clock), spent: new SpentShares(clock),
    selfSigned: async () => {
      const key = await keystore.deviceKey()
      return { key, certificate: selfSignedOver(key) }
    },
  }
}

/** A certificate over the device key that it signed itself. It names nobody but the device ID. */
function selfSignedOver (key: string): string {
  const signer = privateKeyFromPem(key)
  const spki = spkiOf(signer)
  const name = nameOf(deviceIdOf(spki))
  return toPem(mint({ subject: name, issuer: name, notBefore: Date.now() - 60_000, notAfter: Date.now() + 3_600_000, spki, signer, extensions: [basicConstraints(false), keyUsage(0)] }))
}

/** What the agent hands to both drivers. */
function hostOf (device: Device, changes: Partial<ResponderHost & InitiatorHost> = {}): ResponderHost & InitiatorHost {
  const { keystore, charges, pending, spent, self } = device
  return {
    clock: systemClock, logger: silentLogger(), self, charges, pending, spent,
    selfSigned: () => device.selfSigned(),
    confirm: other => {
      device.asked.push(other)
      return Promise.resolve(device.answer)
    },
    requests: async () => ders(await keystore.request()),
    issue: async other => ders(await keystore.issue(pem('CERTIFICATE REQUEST', ...other.requests))).slice(0, 2),
    commit: async (pair, at) => {
      if (pair.role === 'I' && pair.relation === 'own') await keystore.installIssued(formatIssue(pem('CERTIFICATE', pair.certificates[0]!), pem('CERTIFICATE', pair.certificates[1]!), pem('CERTIFICATE', pair.other.userCa)))
      device.pairs.push({ pair, at })
    },
    failed: (error, attemptsLeft) => { device.failures.push({ error, attemptsLeft }) },
    ...changes,
  }
}

const LOOPBACK: WindowOptions = { host: '::1', addresses: port => [{ host: '::1', port }] }
const open = async (device: Device, changes: Partial<ResponderHost> = {}, options: WindowOptions = {}): Promise<PairingWindow> => {
  const window = await PairingWindow.open(hostOf(device, changes), { ...LOOPBACK, ...options })
  t.teardown(() => window.close())
  return window
}
const joinAt = (device: Device, text: string, relation: Relation, port: number, changes: Partial<InitiatorHost> = {}): Promise<JoinOutcome> =>
  join(hostOf(device, changes), { invitation: parseInvitation(text), addresses: [{ host: '::1', port }], relation })
const wrong = (code: string): string => String((Number(code) + 1) % 1_000_000).padStart(6, '0')
/** `once` would reject for the error that comes before a close. */
const gone = (socket: Socket): Promise<void> => new Promise(resolve => { socket.once('close', () => { resolve() }) })
/** Resolves when `holds` does; rejects after 30 s. */
async function soon (what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + 30_000
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`waited 30 s for ${what}`)
    await sleep(5)
  }
}
const sockets = (): string[] => process.getActiveResourcesInfo().filter(name => /TCP|TLS|Server/.test(name))

await t.test('two devices of two people pair, by code and by link', async t => {
  const before = sockets().length
  const durations: number[] = []
  for (const by of ['code', 'link', 'code', 'link', 'code', 'link'] as const) {
    const [rob, ida] = [await makeDevice('Rob’s desktop'), await makeDevice('Ida’s laptop')]
    const window = await open(rob)
    const { code, link, addresses } = window.invitation
    t.match(code, /^\d{6}$/)
    t.same(addresses, [{ host: '::1', port: window.invitation.port }])
    const started = performance.now()
    const outcome = await joinAt(ida, by === 'code' ? code! : link, 'peer', window.invitation.port)
    const end = await window.done
    if (outcome.result !== 'paired') t.comment(outcome.error, rob.failures)
    durations.push(performance.now() - started)
    t.match(outcome, { result: 'paired', pair: { relation: 'peer', other: { device: rob.self.device, user: rob.self.user, name: 'Rob’s desktop', port: 4984 } } })
    t.match(end, { confirmed: true, pair: { relation: 'peer', other: { device: ida.self.device, user: ida.self.user, name: 'Ida’s laptop' } } })
    t.same(rob.pairs, [{ pair: end.pair, at: { host: '::1', port: 4984 } }])
    t.same(ida.pairs.map(({ at }) => at), [{ host: '::1', port: 4984 }])
    t.same([...end.pair!.other.databases], [['notes', 'read']])
    t.same(rob.asked.map(({ device, relation }) => ({ device, relation })), [{ device: ida.self.device, relation: 'peer' }])
    t.same(ida.pending.all(), [], 'nothing is left pending')
    t.equal(rob.charges.wait, 0, 'a success leaves no back-off')
    await t.rejects(connected(window.invitation.port), 'the listener is gone')
    for (const { root } of [rob, ida]) {
      for (const file of await readdir(root)) if (file.endsWith('.json')) t.notOk((await readFile(joinPath(root, file), 'utf8')).includes(code!), 'no secret on disk')
    }
  }
  await soon('every socket to be gone', () => sockets().length <= before)
  t.equal(sockets().length, before, 'no socket and no listener is left')
  const sorted = durations.toSorted((one, other) => one - other)
  t.comment(`a pairing besides the person: median ${sorted[3]!.toFixed(1)} ms, worst ${sorted.at(-1)!.toFixed(1)} ms`)
  t.ok(sorted[3]! < 1000)
})

await t.test('a device becomes another one’s own, and pairing again mends', async t => {
  const [rob, ida] = [await makeDevice('desktop'), await makeDevice('laptop')]
  rob.answer = ida.answer = 'own'
  const device = ida.self.device
  for (const round of [1, 2]) {
    const window = await open(rob)
    const outcome = await joinAt(ida, window.invitation.code!, 'own', window.invitation.port)
    t.equal(outcome.result, 'paired', `round ${round}`)
    t.match(await window.done, { confirmed: true, pair: { relation: 'own' } })
    t.equal(ida.keystore.identity.user, rob.keystore.identity.user, 'it belongs to Rob now')
    t.equal(ida.keystore.identity.device, device, 'with the same key and ID')
    t.equal(ida.keystore.identity.hasCaKey, false, 'and the CA key never travelled')
  }
  // Own devices do not pair as peers.
  rob.answer = ida.answer = 'peer'
  const window = await open(rob)
  t.match(await joinAt(ida, window.invitation.code!, 'peer', window.invitation.port), { result: 'failed', error: { code: 'refused' } })
  await window.close()
})

await t.test('a wrong code, a wrong relation and a no are told to both, and exit as the contracts say', async t => {
  const [rob, ida] = [await makeDevice('rob'), await makeDevice('ida')]
  const window = await open(rob)
  const { code, port } = window.invitation
  const mistyped = await joinAt(ida, wrong(code!), 'peer', port)
  t.match(mistyped, { result: 'failed', error: { code: 'verification', exit: 5, message: /mistyped, or somebody stands between/ } })
  await soon('Rob being told', () => rob.failures.length > 0)
  t.match(rob.failures, [{ error: { code: 'verification' }, attemptsLeft: 2 }])
  t.same([...rob.asked, ...ida.asked], [])
  rob.answer = undefined
  t.match(await joinAt(ida, code!, 'peer', port), { result: 'failed', error: { code: 'refused', exit: 3, message: 'the person at the other device said no' } })
  t.match(await window.done, { confirmed: false })
  t.same([...rob.pairs, ...ida.pairs], [])
  t.same(ida.pending.all(), [])
  rob.answer = 'own'
  const again = await open(rob)
  t.match(await joinAt(ida, again.invitation.code!, 'peer', again.invitation.port), { result: 'failed', error: { message: /different relations/ } })
  await again.close()
  t.match(await joinAt(ida, again.invitation.code!, 'peer', again.invitation.port), { result: 'failed', error: { code: 'unreachable', exit: 4 } })
  // The link of one device, answered by another.
  const eve = await makeDevice('eve')
  const [robs, eves] = [await open(rob), await open(eve)]
  t.match(await joinAt(ida, robs.invitation.link, 'peer', eves.invitation.port), { result: 'failed', error: { code: 'verification', message: /not the one in the link/ } })
  await Promise.all([robs.close(), eves.close()])
  t.same(eve.failures, [], 'she learned nothing, not even of an attempt')
})

/** A TLS connection to a window, as a stranger with a key of its own makes one. */
async function connected (port: number, context?: Awaited<ReturnType<ResponderHost['selfSigned']>>): Promise<TLSSocket> {
  const socket = connect({ ...tlsOptions(context ?? await stranger()), host: '::1', port })
  socket.on('error', () => { socket.destroy() })
  await Promise.race([once(socket, 'secureConnect'), once(socket, 'close').then(() => { throw new Error('closed') })])
  return socket
}
let strangerDevice: Promise<Device> | undefined
const stranger = async (): ReturnType<ResponderHost['selfSigned']> => (await (strangerDevice ??= makeDevice('stranger'))).selfSigned()

await t.test('a man in the middle, with TLS of his own to both', async t => {
  const [rob, ida, mallory] = [await makeDevice('rob'), await makeDevice('ida'), await makeDevice('mallory')]
  const context = await mallory.selfSigned()
  for (const he of ['relays every byte', 'speaks the protocol himself']) {
    const window = await open(rob)
    rob.failures.length = 0
    const seen: Buffer[] = []
    const server = createTlsServer({ ...tlsOptions(context), requestCert: true })
    server.on('secureConnection', left => {
      left.on('error', () => undefined)
      void connected(window.invitation.port, context).then(right => {
        left.on('close', () => { right.end() })
        right.on('close', () => { if (he === 'relays every byte') left.end() })
        const answered = once(right, 'data')
        right.on('data', (chunk: Buffer) => { seen.push(chunk); if (he === 'relays every byte') left.write(chunk) })
        const leftChannel = channelOf(left, certificates)!
        const rightChannel = channelOf(right, certificates)!
        // Right once in a million, and then this test would be wrong.
        const guess = Buffer.from(wrong(window.invitation.code!))
        let tagForI: Uint8Array = Buffer.alloc(64)
        const reader = new FrameReader()
        left.on('data', (chunk: Buffer) => {
          seen.push(chunk)
          if (he === 'relays every byte') {
            right.write(chunk)
            return
          }
          // To each side he is the other one, with his own key and a guess at the code.
          for (const { number, body } of reader.push(chunk).frames) {
            if (number === MESSAGE.hello) {
              const toI: Binding = { kind: 'code', secret: guess, sid: leftChannel.sid, initiator: leftChannel.other, responder: mallory.self.device }
              const toR: Binding = { kind: 'code', secret: guess, sid: rightChannel.sid, initiator: mallory.self.device, responder: rightChannel.other }
              const hello = parseHello(body)
              if (hello === undefined || hello === 'version') throw new Error('not a hello')
              const ownForI = shareOf(toI, leftChannel.random)
              tagForI = keysOf(toI, 'R', ownForI, hello.share)!.tags.R
              left.write(encodeShare(ownForI.share))
              right.write(encodeHello('code', shareOf(toR, rightChannel.random).share))
            }
            // I's tag goes on to R, whom it does not fit; I gets the one that his guess would make right.
            if (number === MESSAGE.tagI) {
              void answered.then(async () => {
                right.write(Buffer.concat([Buffer.of(MESSAGE.tagI, 0, body.length), body]))
                await once(right, 'data')
                left.write(encodeTag(MESSAGE.tagR, tagForI))
              })
            }
          }
        })
      }, () => { left.destroy() })
    })
    server.listen(0, '::1')
    t.teardown(() => { server.close() })
    await once(server, 'listening')
    const outcome = await joinAt(ida, window.invitation.code!, 'peer', (server.address() as AddressInfo).port)
    t.equal(outcome.result, 'failed', he)
    if (outcome.result === 'failed') t.match(outcome.error, { code: 'verification', message: /somebody stands between/ })
    await soon('Rob being told', () => rob.failures.length > 0)
    t.match(rob.failures, [{ error: { code: 'verification', message: /somebody stands between/ }, attemptsLeft: 2 }])
    t.match(JSON.parse(await readFile(joinPath(rob.root, 'pairing.json'), 'utf8')), { charges: 1, failures: 1 }, 'the code is charged, on disk')
    t.same([...rob.pairs, ...ida.pairs, ...rob.asked, ...ida.asked], [])
    const all = Buffer.concat(seen)
    for (const { keystore, name } of [rob, ida]) {
      t.notOk(all.includes(name))
      t.notOk(all.includes(decodeOnePem(keystore.identity.userCa, 'CERTIFICATE').subarray(40, 80)), 'no CA')
    }
    await window.close()
    server.close()
    await rob.charges.proven()
  }
})

await t.test('50 lying responders get 3 guesses', async t => {
  const ida = await makeDevice('ida')
  const liar = await makeDevice('liar')
  const context = await liar.selfSigned()
  let hellos = 0
  let checked = 0
  const servers = await Promise.all(Array.from({ length: 50 }, async (_, index) => {
    const server = createTlsServer({ ...tlsOptions(context), requestCert: true })
    server.on('secureConnection', socket => {
      socket.on('error', () => undefined)
      const channel = channelOf(socket, certificates)!
      const reader = new FrameReader()
      let expected: Buffer | undefined
      socket.on('data', (chunk: Buffer) => {
        for (const { number, body } of reader.push(chunk).frames) {
          if (number === MESSAGE.hello) {
            hellos++
            const hello = parseHello(body)
            if (hello === undefined || hello === 'version') throw new Error('not a hello')
            const binding: Binding = { kind: 'code', secret: Buffer.from(String(index).padStart(6, '0')), sid: channel.sid, initiator: channel.other, responder: liar.self.device }
            const own = shareOf(binding, channel.random)
            expected = keysOf(binding, 'R', own, hello.share)!.tags.I
            socket.write(encodeShare(own.share))
          } else if (number === MESSAGE.tagI) {
            checked++
            if (isSameTag(parseTag(body)!, expected!)) throw new Error('guessed')
            socket.end()
          }
        }
      })
    })
    server.listen(0, '::1')
    t.teardown(() => { server.close() })
    await once(server, 'listening')
    return server
  }))
  const outcomes: JoinOutcome[] = []
  for (const server of servers) outcomes.push(await joinAt(ida, '987654', 'peer', (server.address() as AddressInfo).port))
  t.equal(hellos, 3)
  t.equal(checked, 3)
  t.equal(outcomes.filter(outcome => outcome.result === 'failed').length, 50)
  t.match(outcomes.at(-1), { error: { code: 'refused', message: /three times/ } })
  t.equal((await joinAt(ida, '987653', 'peer', (servers[0]!.address() as AddressInfo).port)).result, 'failed')
  t.equal(hellos, 4, 'another code has its own three')
  for (const server of servers) server.close()
})

await t.test('charges survive a restart, and codes back off', async t => {
  const rob = await makeDevice('rob')
  let now = Date.now()
  let monotonic = 0
  const clock: Clock = { now: () => now, monotonic: () => monotonic, after: (delay, task) => systemClock.after(delay, task) }
  const at = (charges: Charges): number => charges.wait
  let charges = await Charges.open(rob.root, clock)
  t.equal(at(charges), 0)
  const waits: number[] = []
  for (let failure = 1; failure <= 9; failure++) {
    await charges.charge(1)
    await charges.charge(2)
    // A restart between the charge and whatever came of it.
    charges = await Charges.open(rob.root, clock)
    waits.push(at(charges))
    now += at(charges) + 1000
    monotonic = 0
    charges = await Charges.open(rob.root, clock)
    t.equal(at(charges), 0)
  }
  t.same(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600].map(seconds => seconds * 1000))
  t.same([0, 1, 2].map(waitAfter), [0, 10_000, 20_000])
  await charges.charge(1)
  const wait = charges.wait
  now -= 24 * 3600 * 1000
  t.equal(charges.wait, wait, 'the person’s clock does not matter while we run')
  t.equal((await Charges.open(rob.root, clock)).wait, wait, 'set back, it costs one wait')
  await t.rejects(open(rob, { charges }), { code: 'too-many', message: /600 s/ })
  const linkOnly = await open(rob, { charges }, { withCode: false })
  t.equal(linkOnly.invitation.code, undefined)
  const ida = await makeDevice('ida')
  t.equal((await joinAt(ida, linkOnly.invitation.link, 'peer', linkOnly.invitation.port)).result, 'paired', 'links do not wait')
  await linkOnly.done
  t.equal(charges.wait, 0, 'a success takes it back')
  now += 48 * 3600 * 1000
  monotonic += 48 * 3600 * 1000
  await charges.charge(1)
  t.equal(charges.wait, 10_000, 'the day before yesterday is forgotten')
  await writeFile(joinPath(rob.root, 'pairing.json'), '{"version":1}', { mode: 0o600 })
  await t.rejects(Charges.open(rob.root, clock), { code: 'bad-state' })
})

await t.test('a charge that cannot be written: no share leaves', async t => {
  const [rob, ida] = [await makeDevice('rob'), await makeDevice('ida')]
  const window = await open(rob)
  await rm(rob.root, { recursive: true })
  const socket = await connected(window.invitation.port)
  const channel = channelOf(socket, certificates)!
  const got: Buffer[] = []
  socket.on('data', (chunk: Buffer) => got.push(chunk))
  socket.write(encodeHello('code', shareOf({ kind: 'code', secret: Buffer.from(window.invitation.code!), sid: channel.sid, initiator: (await (strangerDevice!)).self.device, responder: rob.self.device }, channel.random).share))
  await gone(socket)
  t.equal(Buffer.concat(got)[0], MESSAGE.refuse)
  t.match(rob.failures, [{ error: { code: 'unreadable' }, attemptsLeft: 2 }])
  t.equal((await joinAt(ida, window.invitation.code!, 'peer', window.invitation.port)).result, 'failed')
  await window.close()
})

await t.test('a commit that cannot be written leaves neither; a lost one leaves I pending', async t => {
  const [rob, ida] = [await makeDevice('rob'), await makeDevice('ida')]
  const first = await open(rob, { commit: () => Promise.reject(new PatchcordError('disk-full', 'full')) })
  t.match(await joinAt(ida, first.invitation.code!, 'peer', first.invitation.port), { result: 'failed', error: { message: /the other device could not write/ } })
  t.match(await first.done, { confirmed: false })
  t.same(ida.pending.all(), [])

  // R has the pair on disk and dies before it says so: the cable is pulled at the commit.
  const second = await open(rob, { commit: async (pair, at) => {
    rob.pairs.push({ pair, at })
    proxy.cut()
    await sleep(20)
  } })
  const proxy = await cable(second.invitation.port)
  const outcome = await joinAt(ida, second.invitation.code!, 'peer', proxy.port)
  t.match(outcome, { result: 'pending', pair: { other: { device: rob.self.device } } })
  t.match(await second.done, { confirmed: false, pair: { relation: 'peer' } })
  const reopened = await PendingPairs.open(ida.root, systemClock)
  t.match(reopened.all(), [{ other: { device: rob.self.device, user: rob.self.user, name: 'rob' }, at: '[::1]:4984' }], 'it outlives the process')
  t.same(ida.pairs, [], 'and is no pair')
  const later = (ms: number): Clock => ({ ...systemClock, now: () => Date.now() + ms })
  t.equal((await PendingPairs.open(ida.root, later(599_000))).all().length, 1)
  t.same((await PendingPairs.open(ida.root, later(600_001))).all(), [], 'ten minutes drop it')
  t.same((await PendingPairs.open(ida.root, later(-60_000))).all(), [], 'and so does a clock that was set back')
  // Pairing again with the same key mends it.
  const third = await open(rob)
  t.equal((await joinAt(ida, third.invitation.code!, 'peer', third.invitation.port)).result, 'paired')
  t.match(await third.done, { confirmed: true })
  t.same(ida.pending.all(), [])
  proxy.close()
})

/** A piece of cable: bytes go through until it is cut. */
async function cable (port: number): Promise<{ port: number, cut: () => void, close: () => void }> {
  const ends = new Set<{ destroy: () => void }>()
  const server = createTcpServer(left => {
    const right = connectTcp({ host: '::1', port })
    for (const one of [left, right]) {
      ends.add(one)
      one.on('error', () => undefined)
    }
    left.pipe(right).pipe(left)
  })
  server.listen(0, '::1')
  server.unref()
  await once(server, 'listening')
  return { port: (server.address() as AddressInfo).port, cut: () => { for (const end of ends) end.destroy() }, close: () => { server.close() } }
}

await t.test('strangers at the listener', async t => {
  const [rob, ida] = [await makeDevice('rob'), await makeDevice('ida')]
  const window = await open(rob)
  const { port } = window.invitation
  const context = await stranger()
  // It says nothing, and has its time.
  const silent = connectTcp({ host: '::1', port })
  silent.on('error', () => undefined)
  await once(silent, 'connect')
  const fails = async (options: object): Promise<void> => {
    const socket = connect({ ...tlsOptions(context), host: '::1', port, ...options })
    socket.on('error', () => { socket.destroy() })
    socket.resume()
    await gone(socket)
    t.notOk(isOver, 'at once, not when its time is over: who came before it still has some')
  }
  let isOver = false
  silent.once('close', () => { isOver = true }).resume()
  await fails({ maxVersion: 'TLSv1.2', minVersion: 'TLSv1.2' })
  await fails({ ALPNProtocols: ['http/1.1'] })
  await fails({ ALPNProtocols: undefined })
  await fails({ key: undefined, cert: undefined })
  silent.destroy()
  const rough = connectTcp({ host: '::1', port })
  rough.on('error', () => undefined)
  rough.end('GET / HTTP/1.1\r\n\r\n')
  rough.resume()
  await gone(rough)
  for (const junk of [Buffer.from('GET / HTTP/1.1\r\n\r\n'), Buffer.alloc(70_000, 5), Buffer.of(1, 0, 1, 0), Buffer.of(3, 0, 0)]) {
    const socket = await connected(port)
    socket.end(junk)
    socket.resume()
    await gone(socket)
  }
  t.same(rob.failures, [], 'nobody made an attempt')
  // A second session is told to wait; the first one has its place until it leaves.
  const holder = await connected(port)
  holder.write(encodeHello('link', shareOf({ kind: 'code', secret: Buffer.from('x'), sid: Buffer.alloc(32), initiator: rob.self.device, responder: ida.self.device }, Buffer.alloc(32, 7)).share))
  await once(holder, 'data')
  t.match(await joinAt(ida, window.invitation.code!, 'peer', port), { result: 'failed', error: { code: 'too-many', exit: 4 } })
  t.equal(rob.charges.wait, 0, 'and costs nothing')
  holder.destroy()
  await soon('its place to be free', () => rob.failures.length > 0)
  t.equal((await joinAt(ida, window.invitation.code!, 'peer', port)).result, 'paired')
  await window.done
  // Sources that the agent does not admit.
  const closed = await open(rob, { admits: () => false })
  t.match(await joinAt(ida, closed.invitation.code!, 'peer', closed.invitation.port), { error: { code: 'unreachable' } })
  await closed.close()
  await t.rejects(open(await makeDevice('x'.repeat(101))), { code: 'usage' })
  t.ok(dialable([{ host: '::1', port }]).length === 1)
})

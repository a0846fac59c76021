import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { CaBook } from '../src/agent/ca-book.js'
import { Renewal } from '../src/agent/renewal.js'
import type { Clock } from '../src/core/clock.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DeviceId } from '../src/core/ids.js'
import { silentLogger } from '../src/core/log.js'
import { openKit, sealKit } from '../src/identity/ca-kit.js'
import { mergeCaRecords, MOST_SUCCESSIONS, standingOf, type CaRecords, type Pin } from '../src/identity/ca-lineage.js'
import { recoveryKeyId, signRetirement, signSuccession, verifyRetirement, verifySuccession, type CaRecord } from '../src/identity/ca-records.js'
import { readAuthority } from '../src/identity/authority.js'
import { createUserCa } from '../src/identity/certificates.js'
import { deviceIdOf, generateKey, spkiOf, userIdOf } from '../src/identity/keys.js'
import { Keystore } from '../src/identity/keystore.js'
import type { KnownDevice } from '../src/agent/trust-book.js'
import { ManualClock } from './fixtures/manual-clock.js'

const NOW = Date.UTC(2030, 5, 15, 12)
const DAY = 24 * 60 * 60 * 1000

async function makeCa (): Promise<{ key: Awaited<ReturnType<typeof generateKey>>['privateKey'], pem: string, user: ReturnType<typeof userIdOf>, recovery: Awaited<ReturnType<typeof generateKey>>['privateKey'], recoverySpki: Buffer }> {
  const { privateKey: key } = await generateKey()
  const { privateKey: recovery } = await generateKey()
  return { key, pem: await createUserCa(key, NOW), user: userIdOf(spkiOf(key)), recovery, recoverySpki: spkiOf(recovery) }
}
type Ca = Awaited<ReturnType<typeof makeCa>>

const [a, b, c, d, thief] = await Promise.all([makeCa(), makeCa(), makeCa(), makeCa(), makeCa()]) as [Ca, Ca, Ca, Ca, Ca]
const succeed = (from: Ca, to: Ca, seq: number, key = from.recovery, issuedAt = NOW): CaRecord => verifySuccession(signSuccession({ ca: from.user, recoveryKey: key, newCa: to.pem, newCaKey: to.key, nextRecoveryKey: to.recoverySpki, seq, issuedAt }))
const retire = (ca: Ca, issuedAt = NOW): CaRecord => verifyRetirement(signRetirement(ca.key, issuedAt), readAuthority(ca.pem))
const setOf = (...records: CaRecord[]): CaRecords => mergeCaRecords(new Map(), records)
const pin: Pin = { ca: a.user, recoveryKey: recoveryKeyId(a.recoverySpki) }
const told = (records: CaRecords, from = pin): [string, string] => { const { state, ca } = standingOf(from, records); return [state, ca] }

await t.test('what becomes of a CA', t => {
  for (const [what, records, expected] of [
    ['nothing', [], ['good', a.user]],
    ['it retires', [retire(a)], ['retired', a.user]],
    ['another follows', [succeed(a, b, 1)], ['good', b.user]],
    ['another follows the retired', [retire(a), succeed(a, b, 1)], ['good', b.user]],
    ['and retires too', [succeed(a, b, 1), retire(b)], ['retired', b.user]],
    ['two in a row', [succeed(a, b, 1), succeed(b, c, 2)], ['good', c.user]],
    ['numbers must rise along the line', [succeed(a, b, 3), succeed(b, c, 3)], ['good', b.user]],
    ['the highest number counts', [succeed(a, b, 1), succeed(a, c, 2)], ['good', c.user]],
    ['two bodies for one number', [succeed(a, b, 1), succeed(a, c, 1)], ['frozen', a.user]],
    ['a later one does not thaw it', [succeed(a, b, 1), succeed(a, c, 1), succeed(a, d, 2)], ['frozen', a.user]],
    ['the same successor, two dates', [succeed(a, b, 1), succeed(a, b, 1, a.recovery, NOW + 1)], ['frozen', a.user]],
    ['signed by the stolen CA key instead', [succeed(a, thief, 1, a.key)], ['good', a.user]],
    ['signed by a recovery key of nobody', [succeed(a, thief, 1, thief.recovery)], ['good', a.user]],
    ['the recovery key of before, for the new CA', [succeed(a, b, 1), succeed(b, thief, 2, a.recovery)], ['good', b.user]],
    ['in a circle', [succeed(a, b, 1), succeed(b, a, 2)], ['good', b.user]],
  ] as const) t.strictSame(told(setOf(...records)), expected, what)
  t.strictSame(told(setOf(succeed(a, b, 1)), { ca: a.user }), ['good', a.user], 'without a pinned recovery key nobody follows')
  const many = Array.from({ length: MOST_SUCCESSIONS + 3 }, (_, at) => succeed(a, b, at + 1))
  t.strictSame(told(setOf(...many)), ['frozen', a.user], 'more than a person would make')
  t.equal(setOf(...many).size, MOST_SUCCESSIONS + 1, 'and bounded')
  t.end()
})

await t.test('any order, repetition and grouping merges to the same set', t => {
  const pool = [retire(a), retire(a, NOW - 5), retire(b), retire(c), succeed(a, b, 1), succeed(a, c, 1), succeed(a, d, 2), succeed(b, c, 2), succeed(b, d, 3), succeed(c, d, 4), succeed(a, thief, 5, a.key), ...Array.from({ length: MOST_SUCCESSIONS + 4 }, (_, at) => succeed(a, b, at + 10))]
  const spell = (records: CaRecords): string => JSON.stringify([...records].toSorted(([one], [other]) => one < other ? -1 : 1).map(([, { record }]) => record))
  fc.assert(fc.property(fc.subarray(pool, { minLength: 1 }).chain(chosen => fc.tuple(fc.constant(chosen), fc.array(fc.shuffledSubarray(chosen), { maxLength: 4 }), fc.shuffledSubarray(chosen, { minLength: chosen.length, maxLength: chosen.length }))), ([chosen, pieces, all]) => {
    let grown: CaRecords = new Map()
    for (const piece of [...pieces, all]) grown = mergeCaRecords(grown, setOf(...piece).values())
    return spell(grown) === spell(setOf(...chosen)) && JSON.stringify(standingOf(pin, grown)) === JSON.stringify(standingOf(pin, setOf(...chosen)))
  }), { numRuns: 300 })
  t.pass('the property holds')
  t.end()
})

await t.test('no sequence of old-CA signatures ever adds trust', t => {
  // All that a thief of A's key can make: retirements, and successions signed by A's key or keys of the thief's.
  const takings = fc.constantFrom(retire(a), retire(a, 0), retire(a, NOW + 9e12), ...[1, 2, 7, 0xffffffff].flatMap(seq => [succeed(a, thief, seq, a.key), succeed(a, thief, seq, thief.recovery), succeed(b, thief, seq, a.key), succeed(thief, a, seq, thief.recovery)]))
  const goods = [[], [succeed(a, b, 1)], [succeed(a, b, 1), succeed(b, c, 2)], [retire(a), succeed(a, b, 1)]]
  fc.assert(fc.property(fc.constantFrom(...goods), fc.array(takings, { maxLength: 8 }), (good, stolen) => {
    const before = standingOf(pin, setOf(...good))
    const after = standingOf(pin, setOf(...good, ...stolen))
    return after.ca === before.ca && after.recoveryKey === before.recoveryKey && (after.state === before.state || after.state === 'retired')
  }), { numRuns: 500 })
  t.pass('the property holds')
  t.end()
})

await t.test('records have one spelling', t => {
  const record = signSuccession({ ca: a.user, recoveryKey: a.recovery, newCa: b.pem, newCaKey: b.key, nextRecoveryKey: b.recoverySpki, seq: 1, issuedAt: NOW })
  const believes = (changed: unknown): boolean => {
    try {
      verifySuccession(changed)
      return true
    } catch (error) {
      if (error instanceof PatchcordError && error.code === 'verification') return false
      throw error
    }
  }
  t.ok(believes(record))
  for (const field of ['body', 'sig', 'key', 'ca', 'next'] as const) {
    fc.assert(fc.property(fc.nat(), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      const bytes = Buffer.from(record[field], 'base64url')
      bytes[at % bytes.length]! ^= flip
      return !believes({ ...record, [field]: bytes.toString('base64url') })
    }), { numRuns: 60 })
    t.notOk(believes({ ...record, [field]: `${record[field]}A` }))
  }
  t.notOk(believes({ ...record, more: 1 }))
  const retirement = signRetirement(a.key, NOW)
  for (let at = 0; at < Buffer.from(retirement.body, 'base64url').length; at++) {
    const bytes = Buffer.from(retirement.body, 'base64url')
    bytes[at]! ^= 1
    t.throws(() => verifyRetirement({ ...retirement, body: bytes.toString('base64url') }, readAuthority(a.pem)), { code: 'verification' })
  }
  t.throws(() => verifyRetirement(retirement, readAuthority(b.pem)), { code: 'verification' })
  t.end()
})

await t.test('the book of CAs: the first recovery key stays, only what is backed is kept', async t => {
  const root = mkdtempSync(join(tmpdir(), 'cas-'))
  t.teardown(() => { rmSync(root, { recursive: true, force: true }) })
  const book = await CaBook.open(root)
  const wire = (record: CaRecord): unknown => record.record
  t.notOk(await book.add([wire(retire(a)), wire(succeed(a, b, 1))]), 'nobody knows these CAs')
  await book.pin(a.pem, a.recoverySpki)
  await book.pin(a.pem)
  await t.rejects(book.pin(a.pem, thief.recoverySpki), { code: 'refused' })
  t.notOk(await book.add([wire(succeed(a, thief, 1, a.key)), wire(succeed(a, thief, 1, thief.recovery)), 7, null, {}, { next: 1 }]))
  t.ok(await book.add([wire(succeed(b, c, 2)), wire(succeed(a, b, 1)), wire(retire(b))]), 'one backs the next, in any order')
  t.notOk(await book.add([wire(succeed(a, b, 1))]), 'nothing new')
  for (const opened of [book, await CaBook.open(root)]) {
    t.match(opened.standing(a.user), { state: 'good', ca: c.user })
    t.ok(opened.isOver(a.user) && opened.isOver(b.user) && !opened.isOver(c.user))
    t.ok(opened.recoveryKey(c.user)?.equals(c.recoverySpki))
  }
  await book.add([wire(succeed(a, d, 3))])
  t.match(book.standing(b.user), { ca: d.user }, 'who was known with a CA that was passed over is known with the one that counts')
})

await t.test('a kit opens with its passphrase alone, and unchanged', async t => {
  const kit = await sealKit({ ca: a.pem, caKey: a.key, recoveryKey: a.recovery }, 'four calling birds', NOW)
  const opened = await openKit(kit, 'four calling birds')
  t.equal(opened.ca, a.pem)
  t.ok(spkiOf(opened.recoveryKey).equals(a.recoverySpki))
  t.notMatch(kit, /PRIVATE/)
  await t.rejects(openKit(kit, 'four calling bird'), { code: 'refused' })
  const parsed = JSON.parse(kit) as Record<string, string>
  await t.rejects(openKit(JSON.stringify({ ...parsed, made: '2031' }), 'four calling birds'), { code: 'refused' }, 'the head counts too')
  for (const bad of ['', '{}', JSON.stringify({ ...parsed, N: 2 }), kit.slice(0, -20)]) await t.rejects(openKit(bad, 'four calling birds'), { code: 'usage' })
  await t.rejects(sealKit(opened, 'short', NOW), { code: 'usage' })
})

await t.test('renewal: only what was asked for, of the CA that is meant, with clocks that agree', async t => {
  const root = mkdtempSync(join(tmpdir(), 'renew-'))
  t.teardown(() => { rmSync(root, { recursive: true, force: true }) })
  const [holderClock, askerClock] = [new ManualClock(NOW), new ManualClock(NOW)]
  const open = (name: string, clock: Clock): Promise<Keystore> => Keystore.create(join(root, name), clock)
  const [holderKeys, askerKeys, strangerKeys] = [await open('holder', holderClock), await open('asker', askerClock), await open('stranger', askerClock)]
  const hisOwn = await askerKeys.issue(await askerKeys.request())
  await askerKeys.installIssued(await holderKeys.issue(await askerKeys.request()))
  const { device, user } = askerKeys.identity
  const holder = holderKeys.identity.device
  let listed: ReadonlySet<DeviceId> = new Set([device])
  let latest = 0
  const make = (keystore: Keystore, clock: Clock): Renewal => new Renewal({
    keystore, clock, logger: silentLogger(),
    standing: () => ({ state: 'good', ca: keystore.identity.user, seq: 0, line: [keystore.identity.user] }),
    expectedCa: () => keystore.identity.userCa,
    latestDate: () => latest,
    ownDevice: id => listed.has(id) ? { device: id, user, name: 'asker', relation: 'own', ca: '', addresses: [], certificate: undefined } as KnownDevice : undefined,
    onIssued: async () => undefined,
    onRenewed: async () => undefined,
  })
  const [holding, asking] = [make(holderKeys, holderClock), make(askerKeys, askerClock)]
  const nothing = { revocations: [], revoke: [], statements: [] }
  const said = (renewal: Renewal, to: DeviceId): Parameters<Renewal['received']>[1] => ({ ...nothing, ...renewal.mailFor(to) })
  const { notAfter } = askerKeys.identity

  await asking.received(holder, said(holding, device))
  t.equal(asking.mailFor(holder).csr, undefined, 'before two thirds of its life it asks for nothing')
  await asking.received(holder, { ...nothing, certificates: await holderKeys.issue(await askerKeys.request()) })
  for (const clock of [holderClock, askerClock]) clock.advance(250 * DAY)
  await asking.received(holder, { ...nothing, certificates: await holderKeys.issue(await askerKeys.request()) })
  t.equal(askerKeys.identity.notAfter, notAfter, 'what was not asked for is not installed')

  t.ok(await asking.received(holder, said(holding, device)))
  const request = said(asking, holder)
  t.ok(request.csr !== undefined)
  for (const certificates of ['', 'x', hisOwn, await strangerKeys.issue(await askerKeys.request()), await holderKeys.issue(await strangerKeys.request()), holderKeys.bundle()]) {
    await asking.received(holder, { ...nothing, certificates })
    t.strictSame([askerKeys.identity.user, askerKeys.identity.notAfter], [user, notAfter], 'a holder that lies installs nothing')
  }

  const refused = async (what: string, mail = request): Promise<void> => {
    t.notOk(await holding.received(device, mail), what)
    t.equal(holding.mailFor(device).certificates, undefined, what)
  }
  listed = new Set()
  await refused('who is not listed, or revoked, gets nothing')
  listed = new Set([device])
  await refused('a nonce that the holder did not give', { ...nothing, csr: { request: await askerKeys.request('A'.repeat(22)), at: askerClock.now() } })
  await refused('a request without one', { ...nothing, csr: { request: await askerKeys.request(), at: askerClock.now() } })
  await refused('another device\'s key under this one\'s nonce', { ...nothing, csr: { request: await strangerKeys.request(holding.mailFor(device).nonce), at: askerClock.now() } })
  await refused('a clock over a day behind', { ...request, csr: { ...request.csr!, at: holderClock.now() - DAY - 1 } })
  await refused('a clock over a day ahead', { ...request, csr: { ...request.csr!, at: holderClock.now() + DAY + 1 } })
  t.match(holding.problem, /clocks differ/)
  latest = holderClock.now() + 2 * DAY
  await refused('a holder whose clock is behind what its CA dated')
  latest = holderClock.now() + DAY / 2
  t.ok(await holding.received(device, request))
  t.notOk(await holding.received(device, request), 'each nonce signs once')
  t.ok(await asking.received(holder, said(holding, device)))
  t.ok(askerKeys.identity.notAfter > notAfter)
  t.ok(askerKeys.identity.notAfter >= latest + 365 * DAY - 1000, 'the time is never earlier than what the CA dated')
  t.equal(askerKeys.identity.device, device)
  t.equal(asking.mailFor(holder).csr, undefined)
})

await t.test('a fresh key is another device, and counts whole or not at all', async t => {
  const root = mkdtempSync(join(tmpdir(), 'fresh-'))
  t.teardown(() => { rmSync(root, { recursive: true, force: true }) })
  const clock = new ManualClock(NOW)
  const keys = await Keystore.create(join(root, 'k'), clock)
  const was = keys.identity
  const fresh = await keys.renewKeys()
  t.equal(keys.identity.device, was.device, 'what runs keeps what it has')
  const opened = await Keystore.open(join(root, 'k'), clock)
  t.strictSame([opened.identity.device, opened.identity.user], [fresh.device, was.user])
  t.not(fresh.device, was.device)
  await opened.renew()
  const again = await Keystore.open(join(root, 'k'), clock)
  t.equal(again.identity.device, fresh.device, 'renewals go on with the fresh key')
  t.equal(deviceIdOf(spkiOf((await import('../src/identity/keys.js')).privateKeyFromPem(await again.deviceKey()))), fresh.device)
})

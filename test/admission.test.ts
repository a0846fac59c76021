import { createHash, randomBytes } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { encodeBase32 } from '../src/core/base32.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DeviceId } from '../src/core/ids.js'
import { admitClient, admitServer, buildTrust, isRefusal, RENEWABLE_MS, type Refusal, type RefusalRule, type WhitelistEntry } from '../src/identity/admission.js'
import { readLeaf, type Leaf } from '../src/identity/leaf.js'
import type { Grant, Principal } from '../src/policy/principal.js'
import {
  authorityKeyId, basicConstraints, EKU, extendedKeyUsage, idOf, keyUsage, makePki, mintCa, mintLeaf, nameOf, p256Key, p384Key, rsaKey, uris, YEAR_MS,
  type Extension, type MintedCa, type MintedKey,
} from './fixtures/mint.js'

const NOW = Date.UTC(2030, 5, 15, 12)
const DAY = 86_400_000

const GRANTS: Record<string, Grant> = {
  own: { databases: { '*': 'write' }, files: 'all' },
  friend: { databases: { shared: 'read' }, files: 'referenced' },
  person: { databases: { shared: 'write' }, files: 'referenced' },
}

const asDevice = (id: string): DeviceId => id as DeviceId

await t.test('every certificate of certs/pki.ts is refused by the rule it names, or admitted', t => {
  const pki = makePki(NOW)
  const trust = buildTrust({
    userCa: pki.user.pem,
    whitelist: [{ name: 'friend', ca: pki.friend.pem, grant: 'friend' }, { name: 'browser', device: asDevice(pki.listedRsa), ca: pki.user.pem, grant: 'person' }],
    revoked: [asDevice(pki.revokedId)],
    grants: GRANTS,
  })
  const ruleOf = ({ der, end }: { der: Buffer, end: 'client' | 'server' }): string | undefined => {
    try {
      const leaf = readLeaf(der)
      const result = end === 'client' ? admitClient(trust, leaf, NOW) : admitServer({ device: asDevice(pki.deviceId), ca: pki.user.pem, revoked: trust.revoked }, leaf, NOW)
      return isRefusal(result) ? result.refused : undefined
    } catch (error) {
      return (error as PatchcordError).code
    }
  }
  for (const row of pki.cases.toSorted((one, other) => Number(one.refusedBy === undefined) - Number(other.refusedBy === undefined))) {
    t.equal(ruleOf(row), row.refusedBy, `${row.name}: ${row.why}`)
  }
  t.ok(pki.cases.filter(({ refusedBy }) => refusedBy !== undefined).length > 40)
  t.end()
})

// The model: each axis by name, and the decision written down a second time from 3-surface.md, over those
// names alone and with no certificate in sight. The code under test sees the real certificates.

const SIGNERS = ['own', 'friend', 'stranger', 'self'] as const
const DATES = ['good', 'future', 'ended', 'ended long ago'] as const
const FORMS = ['p256', 'rsa3072', 'p384'] as const
const USAGES = ['client', 'server', 'none', 'any'] as const
const SHAPES = ['leaf', 'ca'] as const
const DEVICE_ENTRIES = ['absent', 'alone', 'alone, ended', 'with own', 'with friend', 'with friend, ended'] as const
const CA_ENTRIES = ['absent', 'friend', 'friend, ended', 'own', 'friend with dead CA'] as const

interface Point {
  signer: typeof SIGNERS[number]
  dates: typeof DATES[number]
  form: typeof FORMS[number]
  usage: typeof USAGES[number]
  shape: typeof SHAPES[number]
  deviceEntry: typeof DEVICE_ENTRIES[number]
  caEntry: typeof CA_ENTRIES[number]
  revoked: boolean
}

type Expected = { rule: RefusalRule, renewable?: string } | { admitted: string }

function model ({ signer, dates, form, usage, shape, deviceEntry, caEntry, revoked }: Point): Expected {
  if (revoked) return { rule: 'revoked' }
  if (shape === 'ca') return { rule: 'not-a-leaf' }
  if (form === 'p384') return { rule: 'key-form' }
  if (usage !== 'client') return { rule: 'wrong-usage' }
  let admitted: string
  if (deviceEntry !== 'absent') {
    if (deviceEntry.startsWith('with friend') && signer !== 'friend') return { rule: 'bad-signature' }
    if (deviceEntry === 'with own' && signer !== 'own') return { rule: 'bad-signature' }
    if (deviceEntry.endsWith('ended')) return { rule: 'entry-ended' }
    admitted = 'device friend peer'
  } else if (form === 'rsa3072') {
    return { rule: 'key-form' }
  } else if (signer === 'friend' && caEntry.startsWith('friend')) {
    if (caEntry === 'friend, ended') return { rule: 'entry-ended' }
    if (caEntry === 'friend with dead CA') return { rule: 'ca-dates' }
    admitted = 'ca person peer'
  } else if (signer === 'own') {
    admitted = caEntry === 'own' ? 'ca person peer' : 'own own own'
  } else {
    return { rule: 'unknown' }
  }
  if (dates === 'future') return { rule: 'not-yet-valid' }
  if (dates === 'ended') return { rule: 'expired', renewable: admitted }
  if (dates === 'ended long ago') return { rule: 'expired' }
  return { admitted }
}

const whoOf = (principal: Principal): string => `${principal.entry.split(':')[0]} ${principal.grantName} ${principal.relation}`

function seen (result: Principal | Refusal): Expected {
  if (!isRefusal(result)) return { admitted: whoOf(result) }
  return result.renewable === undefined ? { rule: result.refused } : { rule: result.refused, renewable: whoOf(result.renewable) }
}

interface World { own: MintedCa, friend: MintedCa, deadFriend: string, leaves: Map<string, Leaf>, keys: Record<string, MintedKey> }

function makeWorld (): World {
  const [own, friend, stranger] = [mintCa('own', NOW), mintCa('friend', NOW), mintCa('stranger', NOW)]
  // The same key and name, certified for a time that is over.
  const deadFriend = mintCa('friend', NOW, { spki: friend.spki, signer: friend.key, notBefore: NOW - 2 * DAY, notAfter: NOW - DAY }).pem
  const keys = { p256: p256Key(), rsa3072: rsaKey(3072), p384: p384Key() }
  const leaves = new Map<string, Leaf>()
  const spans = { 'good': [NOW - DAY, NOW + DAY], 'future': [NOW + DAY, NOW + 2 * DAY], 'ended': [NOW - 3 * DAY, NOW - DAY], 'ended long ago': [NOW - 3 * YEAR_MS, NOW - YEAR_MS - DAY] } as const
  const purposes = { client: [EKU.clientAuth], server: [EKU.serverAuth], none: [], any: [EKU.any] }
  for (const signer of SIGNERS) for (const dates of DATES) for (const form of FORMS) for (const usage of USAGES) for (const shape of SHAPES) {
    const ca = { own, friend, stranger, self: own }[signer]
    const extensions: Extension[] = [basicConstraints(shape === 'ca'), keyUsage(0), ...(usage === 'none' ? [] : [extendedKeyUsage(...purposes[usage])]), authorityKeyId(ca.keyId)]
    const [notBefore, notAfter] = spans[dates]
    leaves.set([signer, dates, form, usage, shape].join(), readLeaf(mintLeaf(ca, keys[form].spki, NOW, { notBefore, notAfter, extensions, ...(signer === 'self' ? { signer: keys[form].privateKey } : {}) })))
  }
  return { own, friend, deadFriend, leaves, keys }
}

function whitelistOf ({ own, friend, deadFriend }: World, device: string, { deviceEntry, caEntry }: Pick<Point, 'deviceEntry' | 'caEntry'>): WhitelistEntry[] {
  const past = { notAfter: new Date(NOW - 1).toISOString() }
  const devices: Record<Point['deviceEntry'], Partial<WhitelistEntry> | undefined> = {
    'absent': undefined, 'alone': {}, 'alone, ended': past, 'with own': { ca: own.pem }, 'with friend': { ca: friend.pem }, 'with friend, ended': { ca: friend.pem, ...past },
  }
  const cas: Record<Point['caEntry'], Partial<WhitelistEntry> | undefined> = {
    'absent': undefined, 'friend': { ca: friend.pem }, 'friend, ended': { ca: friend.pem, ...past }, 'own': { ca: own.pem }, 'friend with dead CA': { ca: deadFriend },
  }
  return [
    ...(devices[deviceEntry] === undefined ? [] : [{ name: 'listed', device: asDevice(device), grant: 'friend', ...devices[deviceEntry] }]),
    ...(cas[caEntry] === undefined ? [] : [{ name: 'person', grant: 'person', ...cas[caEntry] }]),
  ]
}

const world = makeWorld()

await t.test('admission agrees with the model at every point of the product', t => {
  const outcomes = new Map<string, number>()
  let points = 0
  const wrong: unknown[] = []
  for (const form of FORMS) for (const deviceEntry of DEVICE_ENTRIES) for (const caEntry of CA_ENTRIES) for (const revoked of [true, false]) {
    const device = idOf(world.keys[form]!.spki)
    const trust = buildTrust({ userCa: world.own.pem, whitelist: whitelistOf(world, device, { deviceEntry, caEntry }), revoked: revoked ? [asDevice(device)] : [], grants: GRANTS })
    for (const signer of SIGNERS) for (const dates of DATES) for (const usage of USAGES) for (const shape of SHAPES) {
      const point: Point = { signer, dates, form, usage, shape, deviceEntry, caEntry, revoked }
      const expected = model(point)
      const result = seen(admitClient(trust, world.leaves.get([signer, dates, form, usage, shape].join())!, NOW))
      points++
      if (JSON.stringify(result) !== JSON.stringify(expected)) wrong.push({ point, result, expected })
      const outcome = 'rule' in expected ? expected.rule : expected.admitted
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
    }
  }
  t.strictSame(wrong.slice(0, 3), [])
  t.equal(points, 4 * 4 * 3 * 4 * 2 * 6 * 5 * 2)
  t.strictSame([...outcomes.keys()].toSorted(), ['bad-signature', 'ca person peer', 'ca-dates', 'device friend peer', 'entry-ended', 'expired', 'key-form', 'not-a-leaf', 'not-yet-valid', 'own own own', 'revoked', 'unknown', 'wrong-usage'], 'every outcome happens')
  t.end()
})

await t.test('adding revocations never admits more', t => {
  const leaves = [...world.leaves.values()]
  const devices = [...new Set(leaves.map(({ deviceId }) => deviceId))]
  const others = Array.from({ length: 5 }, () => idOf(randomBytes(32)) as DeviceId)
  const revoked = fc.uniqueArray(fc.constantFrom(...devices, ...others))
  fc.assert(fc.property(fc.constantFrom(...DEVICE_ENTRIES), fc.constantFrom(...CA_ENTRIES), fc.constantFrom(...leaves), revoked, revoked, (deviceEntry, caEntry, leaf, some, more) => {
    const build = (list: DeviceId[]) => buildTrust({ userCa: world.own.pem, whitelist: whitelistOf(world, leaf.deviceId, { deviceEntry, caEntry }), revoked: list, grants: GRANTS })
    const before = admitClient(build(some), leaf, NOW)
    const after = admitClient(build([...some, ...more]), leaf, NOW)
    const admittedMore = isRefusal(before) && (!isRefusal(after) || (before.renewable === undefined && after.renewable !== undefined))
    return !admittedMore && (!more.includes(leaf.deviceId) || (isRefusal(after) && after.refused === 'revoked'))
  }), { numRuns: 2000 })
  t.pass('2000 certificates, whitelists and revocations')
  t.end()
})

await t.test('dates are judged to the millisecond, by the time that is given', t => {
  const key = p256Key()
  const [notBefore, notAfter] = [NOW - DAY, NOW + DAY]
  const leaf = readLeaf(mintLeaf(world.own, key.spki, NOW, { notBefore, notAfter }))
  const trust = buildTrust({ userCa: world.own.pem, whitelist: [], revoked: [], grants: GRANTS })
  const rule = (now: number): string => { const result = admitClient(trust, leaf, now); return isRefusal(result) ? `${result.refused}${result.renewable === undefined ? '' : ', renewable'}` : 'admitted' }
  t.not(rule(NaN), 'admitted', 'a clock that gives no number admits nobody')
  t.equal(rule(notBefore - 1), 'ca-dates', 'before the CA begins')
  t.equal(rule(NOW), 'admitted')
  t.equal(rule(notAfter), 'admitted', 'the last moment is inside')
  t.equal(rule(notAfter + 1), 'expired, renewable')
  t.equal(rule(notAfter + RENEWABLE_MS), 'expired, renewable')
  t.equal(rule(notAfter + RENEWABLE_MS + 1), 'expired')
  const listed = buildTrust({ userCa: world.own.pem, whitelist: [{ name: 'x', device: leaf.deviceId, grant: 'friend', notAfter: new Date(NOW).toISOString() }], revoked: [], grants: GRANTS })
  t.equal((admitClient(listed, leaf, NaN) as Refusal).refused, 'entry-ended')
  t.equal((admitClient(listed, leaf, NOW + 1) as Refusal).refused, 'entry-ended')
  t.equal((admitClient(listed, leaf, NOW) as Principal).endsAt, NOW, 'the entry ends before the certificate')
  t.end()
})

await t.test('a principal has everything that later rooms ask for', t => {
  const key = p256Key()
  const leaf = readLeaf(mintLeaf(world.friend, key.spki, NOW))
  const id = idOf(key.spki)
  const admit = (whitelist: WhitelistEntry[]) => admitClient(buildTrust({ userCa: world.own.pem, whitelist, revoked: [], grants: GRANTS }), leaf, NOW) as Principal
  const checkpoints = encodeBase32(createHash('sha256').update(`patchcord-checkpoints/1${id}`).digest()).slice(0, 26)
  t.strictSame(admit([{ name: 'anna', device: asDevice(id), ca: world.friend.pem, grant: 'friend' }]), {
    device: id, user: idOf(world.friend.spki), relation: 'peer', entry: `device:${id}`, name: 'anna', grantName: 'friend', grant: GRANTS['friend'], checkpoints, endsAt: Math.floor((NOW + YEAR_MS) / 1000) * 1000,
  })
  t.equal(admit([{ name: 'anna', device: asDevice(id), grant: 'friend' }]).user, undefined, 'without a CA nobody says whose device it is')
  t.equal(admit([{ name: 'anna', ca: world.friend.pem, grant: 'friend' }]).entry, `ca:${idOf(world.friend.spki)}`, 'limits count per CA')
  const own = admitClient(buildTrust({ userCa: world.friend.pem, whitelist: [], revoked: [], grants: GRANTS }), leaf, NOW) as Principal
  t.equal(own.entry, `own:${id}`)
  t.throws(() => { (own.grant.databases as Record<string, string>)['x'] = 'write' }, 'what was admitted cannot be changed')
  t.end()
})

await t.test('a whitelist that cannot be meant is refused, naming the field', t => {
  const device = asDevice(idOf(randomBytes(8)))
  const rsaCa = (() => { const key = rsaKey(2048); return mintCa('rsa', NOW, { spki: key.spki, signer: key.privateKey }).pem })()
  const rows: Array<[string, WhitelistEntry[], RegExp, Record<string, Grant>?]> = [
    ['a grant that does not exist', [{ name: 'a', device, grant: 'nobody' }], /whitelist\[0\]\.grant: there is no grant "nobody"/],
    ['a grant by a name of Object.prototype', [{ name: 'a', device, grant: 'constructor' }], /whitelist\[0\]\.grant/],
    ['own for a device that our CA did not certify', [{ name: 'a', device, grant: 'own' }], /whitelist\[0\]\.grant: "own"/],
    ['own for a friend', [{ name: 'a', ca: world.friend.pem, grant: 'own' }], /whitelist\[0\]\.grant: "own"/],
    ['neither device nor CA', [{ name: 'a', grant: 'friend' }], /whitelist\[0\]: it names neither/],
    ['a device twice', [{ name: 'a', device, grant: 'friend' }, { name: 'b', device, grant: 'person' }], /whitelist\[1\]\.device: .* listed twice/],
    ['a CA twice', [{ name: 'a', ca: world.friend.pem, grant: 'friend' }, { name: 'b', ca: world.deadFriend, grant: 'person' }], /whitelist\[1\]\.ca: .* listed twice/],
    ['a date without a zone', [{ name: 'a', device, grant: 'friend', notAfter: '2030-01-01T00:00:00' }], /whitelist\[0\]\.notAfter/],
    ['a date that is none', [{ name: 'a', device, grant: 'friend', notAfter: '2030-13-01T00:00:00Z' }], /whitelist\[0\]\.notAfter/],
    ['a CA that is not PEM', [{ name: 'a', ca: 'x', grant: 'friend' }], /whitelist\[0\]\.ca/],
    ['a leaf for a CA', [{ name: 'a', ca: mintCa('leaf', NOW, { extensions: [basicConstraints(false)] }).pem, grant: 'friend' }], /whitelist\[0\]\.ca: .*not a CA/],
    ['a CA that may not sign', [{ name: 'a', ca: mintCa('x', NOW, { extensions: [basicConstraints(true), keyUsage(0)] }).pem, grant: 'friend' }], /keyCertSign/],
    ['a CA with an unknown critical extension', [{ name: 'a', ca: mintCa('x', NOW, { extensions: [basicConstraints(true), { id: '1.2.3', critical: true, value: Buffer.from('3000', 'hex') }] }).pem, grant: 'friend' }], /critical/],
    ['a CA that is not P-256', [{ name: 'a', ca: rsaCa, grant: 'friend' }], /P-256/],
  ]
  for (const [what, whitelist, message] of rows) {
    t.throws(() => buildTrust({ userCa: world.own.pem, whitelist, revoked: [], grants: GRANTS }), { code: 'bad-env', message }, what)
  }
  t.throws(() => buildTrust({ userCa: '', whitelist: [], revoked: [], grants: GRANTS }), { code: 'bad-env', message: /identity\.userCa/ })
  const leaf = readLeaf(mintLeaf(world.own, p256Key().spki, NOW))
  t.match(admitClient(buildTrust({ userCa: world.own.pem, whitelist: [], revoked: [], grants: {} }), leaf, NOW), { refused: 'no-grant' }, 'without a grant called own nobody has it')
  t.match(admitClient(buildTrust({ userCa: world.own.pem, whitelist: [{ name: 'mine', device: leaf.deviceId, ca: world.own.pem, grant: 'own' }], revoked: [], grants: GRANTS }), leaf, NOW), { relation: 'own', entry: `device:${leaf.deviceId}` })
  t.end()
})

await t.test('what was built does not follow its parts', t => {
  const leaf = readLeaf(mintLeaf(world.own, p256Key().spki, NOW))
  const grants = { own: { databases: { a: 'read' as 'read' | 'write' }, files: 'all' as const } }
  const revoked: DeviceId[] = []
  const trust = buildTrust({ userCa: world.own.pem, whitelist: [], revoked, grants })
  revoked.push(leaf.deviceId)
  grants.own.databases.a = 'write'
  t.match(admitClient(trust, leaf, NOW), { grant: { databases: { a: 'read' } } })
  t.end()
})

await t.test('names are hints: among many CAs they find the right one, and only it', t => {
  const crowd = Array.from({ length: 40 }, () => mintCa('one name for all', NOW))
  const whitelist = crowd.map((ca, index) => ({ name: `c${index}`, ca: ca.pem, grant: 'friend' }))
  const trust = buildTrust({ userCa: world.own.pem, whitelist, revoked: [], grants: GRANTS })
  const last = crowd[39]!
  const { spki } = p256Key()
  const rule = (leaf: Buffer): string => { const result = admitClient(trust, readLeaf(leaf), NOW); return isRefusal(result) ? result.refused : result.name }
  const extensions = [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.clientAuth)]
  t.equal(rule(mintLeaf(last, spki, NOW, { signer: world.friend.key })), 'unknown', 'the key identifier of a listed CA over a stranger\'s signature')
  t.equal(rule(mintLeaf(last, spki, NOW, { extensions })), 'unknown', 'the signatures that are checked are bounded, and who is not found is refused')
  t.equal(rule(mintLeaf(last, spki, NOW)), 'c39', 'found by key identifier')
  t.equal(rule(mintLeaf(last, spki, NOW, { issuer: nameOf('another') })), 'c39', 'whatever the issuer is called')
  t.equal(rule(mintLeaf(crowd[0]!, spki, NOW, { extensions })), 'c0', 'found by name')
  t.equal(rule(mintLeaf(world.own, spki, NOW, { issuer: nameOf('x'), extensions })), idOf(spki), 'our own CA is tried whatever the names are')
  const few = buildTrust({ userCa: world.own.pem, whitelist: whitelist.slice(32), revoked: [], grants: GRANTS })
  t.match(admitClient(few, readLeaf(mintLeaf(last, spki, NOW, { issuer: nameOf('x'), extensions })), NOW), { name: 'c39' }, 'up to eight are all tried')
  t.end()
})

await t.test('a server is the one that was meant, or refused', t => {
  const [device, server] = [asDevice(idOf(p256Key().spki)), p256Key()]
  const extensions = [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.serverAuth), uris(`urn:patchcord:${device}`)]
  const leaf = readLeaf(mintLeaf(world.own, server.spki, NOW, { extensions }))
  const dead = mintCa('own', NOW, { spki: world.own.spki, signer: world.own.key, notAfter: NOW - 1000 }).pem
  const nobody = new Set<DeviceId>()
  t.match(admitServer({ device, ca: world.own.pem, revoked: new Set([device]) }, leaf, NOW), { refused: 'revoked' })
  t.match(admitServer({ device, ca: undefined, revoked: nobody }, leaf, NOW), { refused: 'unknown' }, 'without a pinned CA nothing proves a server')
  t.match(admitServer({ device, ca: dead, revoked: nobody }, leaf, NOW), { refused: 'ca-dates' })
  t.match(admitServer({ device, ca: world.own.pem, revoked: nobody }, leaf, NOW + 2 * YEAR_MS), { refused: 'expired' })
  t.match(admitClient(buildTrust({ userCa: world.own.pem, whitelist: [{ name: 'x', device: leaf.deviceId, grant: 'friend' }], revoked: [], grants: GRANTS }), leaf, NOW), { refused: 'wrong-usage' }, 'a server certificate never admits, even when its key is listed')
  t.strictSame(admitServer({ device, ca: world.own.pem, revoked: nobody }, leaf, NOW), { admitted: true, device, endsAt: leaf.notAfter })
  t.end()
})

await t.test('a leaf that nobody read has no signature', t => {
  const leaf = readLeaf(mintLeaf(world.own, p256Key().spki, NOW))
  const trust = buildTrust({ userCa: world.own.pem, whitelist: [], revoked: [], grants: GRANTS })
  t.match(admitClient(trust, leaf, NOW), { relation: 'own' })
  t.match(admitClient(trust, { ...leaf, deviceId: asDevice(idOf(randomBytes(3))) }, NOW), { refused: 'unknown' })
  t.end()
})

await t.test('the cost does not grow with the whitelist', t => {
  const devices = Array.from({ length: 100_000 }, () => asDevice(idOf(randomBytes(16))))
  const entries = (count: number): WhitelistEntry[] => devices.slice(0, count).map((device, index) => ({ name: `d${index}`, device, grant: 'friend', ...(index % 2 === 0 ? { ca: world.friend.pem } : {}) }))
  const key = p256Key()
  const leaf = readLeaf(mintLeaf(world.friend, key.spki, NOW))
  const costs: number[] = []
  for (const count of [10, 100_000]) {
    const whitelist = [...entries(count - 1), { name: 'it', device: asDevice(idOf(key.spki)), ca: world.friend.pem, grant: 'friend' }]
    const revoked = devices.slice(0, count)
    const built = process.cpuUsage()
    const trust = buildTrust({ userCa: world.own.pem, whitelist, revoked, grants: GRANTS })
    const buildMs = spent(built) / 1000
    for (let run = 0; run < 20_000; run++) admitClient(trust, leaf, NOW)
    const best = Math.min(...Array.from({ length: 5 }, () => {
      const from = process.cpuUsage()
      for (let run = 0; run < 20_000; run++) admitClient(trust, leaf, NOW)
      return spent(from) / 20_000
    }))
    t.comment(`${count} entries: built in ${buildMs.toFixed(0)} ms, admitClient ${best.toFixed(2)} µs of CPU`)
    costs.push(best)
  }
  t.ok(costs[1]! < costs[0]! * 4 + 2, 'flat from 10 to 100,000 entries')
  t.end()
})

function spent (from: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(from)
  return user + system
}

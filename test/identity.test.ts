import { execFile } from 'node:child_process'
import { createPublicKey, generateKeyPairSync, randomBytes, sign, X509Certificate } from 'node:crypto'
import { chmod, mkdir, readdir, readFile, readlink, rename, rm, stat, symlink, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import { PatchcordError } from '../src/core/errors.js'
import type { DeviceId, UserId } from '../src/core/ids.js'
import { lvCat, splitLvCat } from '../src/core/lv-cat.js'
import { admitClient, admitServer, buildTrust, isRefusal } from '../src/identity/admission.js'
import { readAuthority } from '../src/identity/authority.js'
import { formatBundle, parseBundle, parseIssue, parseRequest } from '../src/identity/bundle.js'
import { BACKDATE_MS, createUserCa, issueClient, issueDevice, issueServer, LEAF_LIFETIME_MS } from '../src/identity/certificates.js'
import { createCsr, readCsr } from '../src/identity/csr.js'
import { checkDer, DER_LIMIT, DerReader } from '../src/identity/der.js'
import { DEFAULT_GRANTS, readGrants, writeGrants } from '../src/identity/grants.js'
import { keyFormOf } from '../src/identity/key-form.js'
import { deviceIdOf, generateClientKey, generateKey, privateKeyFromPem, privateKeyToPem, spkiOf, userIdOf } from '../src/identity/keys.js'
import { Keystore } from '../src/identity/keystore.js'
import { readLeaf } from '../src/identity/leaf.js'
import { decodeOnePem, decodePem, encodePem } from '../src/identity/pem.js'
import { encodeBody, REASON, signRevocation, verifyRevocation, type RevocationBody } from '../src/identity/revocation.js'
import { effectiveRevocations, mergeRevocations, Revocations, type Revocation } from '../src/identity/revocations.js'
import { readWhitelist, writeWhitelist } from '../src/identity/whitelist.js'
import { basicConstraints, bits, der, EKU, extendedKeyUsage, idOf, integer, keyUsage, mintCa, mintLeaf, nameOf, p256Key, p384Key, respellP256, rsaKey, sequence, YEAR_MS } from './fixtures/mint.js'

const run = promisify(execFile)
const NOW = Date.UTC(2030, 5, 15, 12)
const clock = { now: () => NOW, monotonic: () => 0, after: () => ({ cancel () {} }) }
const codeOf = (act: () => unknown): string => {
  try {
    act()
    return 'none'
  } catch (error) {
    return error instanceof PatchcordError ? error.code : `not ours: ${String(error)}`
  }
}

await t.test('keys have one spelling', async t => {
  const { privateKey, publicKey } = await generateKey()
  const spki = spkiOf(privateKey)
  t.equal(spki.length, 91)
  t.ok(spki.equals(spkiOf(publicKey)))
  t.ok(spki.equals(publicKey.export({ type: 'spki', format: 'der' })))
  t.ok(spki.equals(spkiOf(createPublicKey({ key: respellP256(spki, 'compressed'), format: 'der', type: 'spki' }))), 'a key that was loaded compressed comes out canonical')
  t.equal(deviceIdOf(spki), idOf(spki))
  t.equal(userIdOf(spki), idOf(spki))
  t.ok(spkiOf(privateKeyFromPem(privateKeyToPem(privateKey))).equals(spki))
  t.match(privateKeyToPem(privateKey), /^-----BEGIN PRIVATE KEY-----\n/)
  for (const pem of ['', 'x', publicKey.export({ type: 'spki', format: 'pem' }).toString(), privateKeyToPem(privateKey) + 'x', privateKeyToPem(privateKey).replace(/M/, 'N'), privateKeyToPem(p384Key().privateKey), privateKey.export({ type: 'sec1', format: 'pem' }).toString()]) {
    t.equal(codeOf(() => privateKeyFromPem(pem)), 'bad-certificate', pem.slice(0, 30))
  }
})

await t.test('the key forms', t => {
  const good = p256Key().spki
  const rsa = rsaKey(3072).spki
  const change = (at: number, spki = good): Buffer => { const copy = Buffer.from(spki); copy[at] = copy[at]! ^ 1; return copy }
  const tooBig = Buffer.concat([good.subarray(0, 27), Buffer.alloc(32, 0xff), good.subarray(59)])
  for (const [name, spki] of Object.entries({ empty: Buffer.alloc(0), compressed: respellP256(good, 'compressed'), hybrid: respellP256(good, 'hybrid'), offCurve: change(90), longer: Buffer.concat([good, Buffer.of(0)]), tooBig, zero: Buffer.concat([good.subarray(0, 27), Buffer.alloc(64)]), head: change(20), p384: p384Key().spki, notReduced: notReduced(good), rsaHead: change(4, rsa), rsaShorter: topBitOff(rsa), rsaEven: change(416, rsa), rsaExponent: change(421, rsa), rsa2048: rsaKey(2048).spki })) {
    t.equal(keyFormOf(spki), 'other', name)
  }
  t.equal(keyFormOf(rsa), 'rsa3072')
  t.equal(keyFormOf(good), 'p256')
  // Held against OpenSSL: a point is on the curve exactly where it can be imported.
  fc.assert(fc.property(fc.uint8Array({ minLength: 32, maxLength: 32 }), fc.uint8Array({ minLength: 32, maxLength: 32 }), (x, y) => keyFormOf(Buffer.concat([good.subarray(0, 27), x, y])) === 'other'))
  for (let count = 0; count < 50; count++) if (keyFormOf(p256Key().spki) !== 'p256') t.fail('a good key is not p256')
  t.end()
})

/** A point of the curve whose x is spelled as x + p, which still fits into 32 bytes. */
function notReduced (spki: Buffer): Buffer {
  const p = 2n ** 256n - 2n ** 224n + 2n ** 192n + 2n ** 96n - 1n
  const b = 0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604bn
  const power = (base: bigint, exponent: bigint): bigint => exponent === 0n ? 1n : power(base * base % p, exponent >> 1n) * ((exponent & 1n) === 1n ? base : 1n) % p
  const bytesOf = (value: bigint): Buffer => Buffer.from(value.toString(16).padStart(64, '0'), 'hex')
  for (let x = 1n; ; x++) {
    const square = (x * x * x - 3n * x + b + 3n * p) % p
    const y = power(square, (p + 1n) / 4n)
    if (y * y % p !== square) continue
    if (keyFormOf(Buffer.concat([spki.subarray(0, 27), bytesOf(x), bytesOf(y)])) !== 'p256') throw new Error('the point is not on the curve')
    return Buffer.concat([spki.subarray(0, 27), bytesOf(x + p), bytesOf(y)])
  }
}

function topBitOff (spki: Buffer): Buffer {
  const copy = Buffer.from(spki)
  copy[33] = copy[33]! & 0x7f
  return copy
}

await t.test('DER has one spelling', async t => {
  const leaf = mintLeaf(mintCa('user', NOW), p256Key().spki, NOW)
  const rows: Array<[string, Uint8Array]> = [
    ['empty', Buffer.alloc(0)],
    ['a head alone', Buffer.of(0x30)],
    ['longer than its input', Buffer.from('300102', 'hex')],
    ['something after it', Buffer.from('30000500', 'hex')],
    ['indefinite length', Buffer.from('308005000000', 'hex')],
    ['indefinite length of a string', Buffer.concat([Buffer.from('04800100', 'hex'), Buffer.alloc(254)])],
    ['a length in one byte too many', Buffer.from('30810205 00'.replace(' ', ''), 'hex')],
    ['a length in two bytes too many', Buffer.concat([Buffer.from('30820080', 'hex'), der(0x04, Buffer.alloc(126))])],
    ['a length in three bytes', Buffer.concat([Buffer.from('3083000400', 'hex'), Buffer.alloc(1024)])],
    ['a length of 127 bytes', Buffer.from('30ff', 'hex')],
    ['a high tag', Buffer.from('1f1f00', 'hex')],
    ['end of contents', Buffer.from('30020000', 'hex')],
    ['a boolean of 1', Buffer.from('010101', 'hex')],
    ['a boolean of two bytes', Buffer.from('0102ffff', 'hex')],
    ['an empty integer', Buffer.from('0200', 'hex')],
    ['a padded integer', Buffer.from('0202007f', 'hex')],
    ['a padded negative integer', Buffer.from('0202ff80', 'hex')],
    ['a null with content', Buffer.from('050100', 'hex')],
    ['an empty OID', Buffer.from('0600', 'hex')],
    ['an OID that is cut off', Buffer.from('06022a86', 'hex')],
    ['a padded OID', Buffer.from('06032a8001', 'hex')],
    ['a bit string without its first byte', Buffer.from('0300', 'hex')],
    ['a bit string with 8 unused bits', Buffer.from('03020800', 'hex')],
    ['a bit string with unused bits set', Buffer.from('03020101', 'hex')],
    ['an empty bit string with unused bits', Buffer.from('030101', 'hex')],
    ['a primitive sequence', Buffer.from('1000', 'hex')],
    ['a string in pieces', Buffer.from('2404040261620000', 'hex').subarray(0, 6)],
    ['too deep', Array.from({ length: 20 }).reduce<Buffer>(inner => sequence(inner), sequence())],
    ['too long', der(0x04, Buffer.alloc(DER_LIMIT))],
    ['a million-byte OID', der(0x06, Buffer.alloc(0xfffff0, 1))],
  ]
  for (const [what, bytes] of rows) t.equal(codeOf(() => { checkDer(bytes) }), 'bad-certificate', what)
  for (const text of ['3000', '0500', '020100', '020180', '02020080', '0101ff', '010100', '030100', '03020780', '06032a8648', '0400', 'a003020102', '800100']) t.equal(codeOf(() => { checkDer(Buffer.from(text, 'hex')) }), 'none', text)
  t.equal(codeOf(() => { checkDer(der(0x04, Buffer.alloc(DER_LIMIT - 4))) }), 'none', 'as long as may be')

  t.equal(codeOf(() => { checkDer(leaf) }), 'none')
  for (let length = 0; length < leaf.length; length++) if (codeOf(() => readLeaf(leaf.subarray(0, length))) !== 'bad-certificate') t.fail(`cut to ${length} bytes it is read`)
  // Each value of a certificate, its length written in one byte more: all refuse.
  const padded = spellings(leaf)
  t.ok(padded.length > 40)
  t.strictSame(padded.filter(bytes => codeOf(() => readLeaf(bytes)) !== 'bad-certificate'), [])

  await t.test('the reader', async t => {
    const reader = DerReader.of(sequence(integer(Buffer.of(5)), bits(Buffer.of(1)))).enter(0x30)
    t.equal(reader.optional(0x01), undefined)
    t.strictSame(reader.content(0x02), Buffer.of(5))
    t.equal(codeOf(() => reader.content(0x02)), 'bad-certificate', 'another tag')
    t.equal(codeOf(() => { reader.finish() }), 'bad-certificate', 'something is left')
    t.strictSame(reader.any(), { tag: 3, content: Buffer.of(0, 1) })
    reader.finish()
    t.equal(codeOf(() => reader.any()), 'bad-certificate', 'nothing is left')
    t.equal(codeOf(() => reader.whole(0x02)), 'bad-certificate')
  })
})

/** `bytes` once for each value in it, with that value's length spelled in one byte more, and everything
 * around it made to fit. */
function spellings (bytes: Buffer): Buffer[] {
  const all: Buffer[] = []
  const walk = (at: number, end: number, wrap: (inner: Buffer) => Buffer): void => {
    const from = at
    while (at < end) {
      const tag = bytes[at]!
      const first = bytes[at + 1]!
      const size = first < 0x80 ? 0 : first & 0x7f
      const length = size === 0 ? first : bytes.readUIntBE(at + 2, size)
      const content = at + 2 + size
      const stop = content + length
      const head = size === 0 ? [tag, 0x81, first] : [tag, 0x80 | size + 1, 0, ...bytes.subarray(at + 2, content)]
      const [before, after] = [bytes.subarray(from, at), bytes.subarray(stop, end)]
      all.push(wrap(Buffer.concat([before, Buffer.from(head), bytes.subarray(content, stop), after])))
      if ((tag & 0x20) !== 0) walk(content, stop, inner => wrap(Buffer.concat([before, der(tag, inner), after])))
      at = stop
    }
  }
  walk(0, bytes.length, inner => inner)
  return all
}

await t.test('whatever a stranger sends, reading it refuses or gives frozen facts', async t => {
  const ca = mintCa('user', NOW)
  const leaf = mintLeaf(ca, p256Key().spki, NOW)
  const authority = readAuthority(ca.pem)
  const honest = readLeaf(leaf)
  const trust = buildTrust({ userCa: ca.pem, whitelist: [], revoked: [], grants: { own: { databases: {}, files: 'all' } } })
  t.notOk(isRefusal(admitClient(trust, honest, NOW)))
  t.equal(authority.user, userIdOf(ca.spki))
  const survives = (bytes: Uint8Array): boolean => ['none', 'bad-certificate'].includes(codeOf(() => readLeaf(bytes)))
  fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), survives), { numRuns: 2000 })
  fc.assert(fc.property(fc.array(fc.tuple(fc.nat(leaf.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }), changes => {
    const bytes = Buffer.from(leaf)
    for (const [at, byte] of changes) bytes[at] = byte
    if (!survives(bytes)) return false
    if (bytes.equals(leaf) || codeOf(() => readLeaf(bytes)) !== 'none') return true
    // Whatever was changed, either the signature is over other bytes or the signature itself is another.
    return isRefusal(admitClient(trust, readLeaf(bytes), NOW))
  }), { numRuns: 5000 })
  t.throws(() => { (honest as { isCa: boolean }).isCa = true })
  t.throws(() => { (honest.uris as string[]).push('x') })
})

await t.test('a leaf is read once, and is what its bytes say', async t => {
  const ca = mintCa('user', NOW)
  const { spki } = p256Key()
  const bytes = mintLeaf(ca, spki, NOW, { extensions: [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.clientAuth, EKU.any), { id: '2.5.29.17', value: sequence(der(0x82, Buffer.from('a.example')), der(0x86, Buffer.from('urn:a')), der(0x86, Buffer.from('urn:b'))) }] })
  const leaf = readLeaf(bytes)
  t.equal(readLeaf(Buffer.from(bytes)), leaf, 'the same object for the same bytes')
  const oracle = new X509Certificate(bytes)
  t.equal(leaf.fingerprint, oracle.fingerprint256.replaceAll(':', '').toLowerCase())
  t.equal(leaf.notBefore, Date.parse(oracle.validFrom))
  t.equal(leaf.notAfter, Date.parse(oracle.validTo))
  t.ok(leaf.spki.equals(spki))
  t.match(leaf, { keyForm: 'p256', deviceId: idOf(spki), isCa: false, canSignCertificates: false, canAuthenticate: true, clientAuth: true, serverAuth: false, uris: ['urn:a', 'urn:b'], unknownCritical: false, issuer: nameOf('user') })
  t.equal(leaf.authorityKeyId, undefined)
  bytes.fill(0)
  t.not(leaf.der[0], 0, 'the caller\'s bytes may change')
  const far = readLeaf(mintLeaf(ca, spki, NOW, { notAfter: Date.UTC(9999, 11, 31, 23, 59, 59) }))
  t.equal(far.notAfter, Date.UTC(9999, 11, 31, 23, 59, 59))
  t.equal(readLeaf(mintLeaf(ca, spki, NOW, { notBefore: Date.UTC(1970, 0, 1) })).notBefore, 0)
  for (const [what, from, to] of [['31 February', '300615', '300231'], ['month 13', '300615', '301315'], ['month 0', '300615', '300015'], ['24:00', '300615115500', '300615245500'], ['a letter', '300615115500', '30061511550x']] as const) {
    t.equal(codeOf(() => readLeaf(Buffer.from(mintLeaf(ca, spki, NOW).toString('latin1').replace(from, to), 'latin1'))), 'bad-certificate', what)
  }
  const good = mintLeaf(ca, spki, NOW, { serial: Buffer.alloc(16, 0x41) })
  t.equal(codeOf(() => readLeaf(good)), 'none')
  t.equal(codeOf(() => readLeaf(Buffer.from(good.toString('latin1').replace('\x02\x10A', '\x02\x10\xc1'), 'latin1'))), 'bad-certificate', 'a negative serial number')
  t.equal(codeOf(() => readLeaf(mintLeaf(ca, spki, NOW, { serial: Buffer.alloc(21, 0x40) }))), 'bad-certificate', 'a serial number of 21 bytes')
  t.equal(codeOf(() => readLeaf(sequence(good.subarray(4), der(0x05)))), 'bad-certificate', 'something after the signature')
  t.equal(codeOf(() => readLeaf(mintLeaf(ca, spki, NOW, { extensions: [{ id: '2.5.29.17', value: sequence(der(0x86, Buffer.from('urn:\0'))) }] }))), 'bad-certificate', 'NUL in a URI')
})

await t.test('reading a leaf is cheap', async t => {
  const ca = mintCa('user', NOW)
  const { spki } = p256Key()
  const leaves = Array.from({ length: 3000 }, () => mintLeaf(ca, spki, NOW))
  for (const leaf of leaves.slice(0, 1000)) readLeaf(leaf)
  const from = process.cpuUsage()
  for (const leaf of leaves.slice(1000)) readLeaf(leaf)
  const { user, system } = process.cpuUsage(from)
  const each = (user + system) / 2000
  t.comment(`readLeaf: ${each.toFixed(1)} µs of CPU, never seen before`)
  t.ok(each < 500)
})

await t.test('PEM is blocks and nothing else', async t => {
  const bytes = randomBytes(100)
  const pem = encodePem('CERTIFICATE', bytes)
  t.strictSame(decodePem(pem + '\n' + pem.replaceAll('\n', '\r\n')), [{ label: 'CERTIFICATE', der: bytes }, { label: 'CERTIFICATE', der: bytes }])
  t.strictSame(decodeOnePem(pem.trimEnd(), 'CERTIFICATE'), bytes)
  for (const text of ['', '\n', 'text\n' + pem, pem + 'text', pem.replace('END CERTIFICATE', 'END KEY'), pem.slice(0, -30), pem + pem.slice(0, 40), pem.repeat(400), '-----BEGIN X-----\nAAB=\n-----END X-----\n', '-----BEGIN X-----\n-----END X-----\n']) {
    t.equal(codeOf(() => decodePem(text)), 'bad-certificate', JSON.stringify(text.slice(0, 40)))
  }
  t.equal(codeOf(() => decodeOnePem(pem, 'PRIVATE KEY')), 'bad-certificate')
  t.equal(codeOf(() => decodeOnePem(pem + pem, 'CERTIFICATE')), 'bad-certificate')
})

async function makeUser (now = NOW) {
  const [caKey, device, server] = [(await generateKey()).privateKey, (await generateKey()).privateKey, (await generateKey()).privateKey]
  const ca = await createUserCa(caKey, now)
  const deviceId = deviceIdOf(spkiOf(device))
  return {
    ca, caKey, device, server, deviceId,
    devicePem: await issueDevice({ ca, caKey, spki: spkiOf(device), now }),
    serverPem: await issueServer({ ca, caKey, spki: spkiOf(server), device: deviceId, now }),
  }
}

await t.test('the certificates that patchcord makes', async t => {
  const now = Date.now()
  const user = await makeUser(now)
  const dir = t.testdir({ 'ca.pem': user.ca, 'device.pem': user.devicePem, 'server.pem': user.serverPem })
  const openssl = async (purpose: string, file: string): Promise<boolean> => await run('openssl', ['verify', '-x509_strict', '-purpose', purpose, '-CAfile', join(dir, 'ca.pem'), join(dir, file)]).then(() => true, () => false)
  t.notOk(await openssl('sslserver', 'device.pem'), 'OpenSSL takes no device for a server')
  t.notOk(await openssl('sslclient', 'server.pem'), 'nor a server for a client')
  t.ok(await openssl('sslclient', 'device.pem'), 'a device passes as client under the name constraints')
  t.ok(await openssl('sslserver', 'server.pem'), 'a server as server')
  const { stdout } = await run('openssl', ['x509', '-in', join(dir, 'ca.pem'), '-noout', '-text'])
  t.match(stdout, /Basic Constraints: critical\s+CA:TRUE, pathlen:0\s+X509v3 Key Usage: critical\s+Digital Signature, Certificate Sign, CRL Sign\s+X509v3 Name Constraints: critical\s+Permitted:\s+DNS:patchcord\.invalid\s+IP:FE80:0:0:0:0:0:0:0\/FFC0:0:0:0:0:0:0:0\s/)

  // The constraints bite: a website's name under the same CA.
  const stolen = mintLeaf({ ...mintCa('x', now), key: user.caKey, name: readAuthority(user.ca).subject }, p256Key().spki, now, { extensions: [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.serverAuth), { id: '2.5.29.17', value: sequence(der(0x82, Buffer.from('bank.example'))) }] })
  await writeFile(join(dir, 'bank.pem'), encodePem('CERTIFICATE', stolen))
  const bank = await run('openssl', ['verify', '-CAfile', join(dir, 'ca.pem'), join(dir, 'bank.pem')]).then(() => 'accepted', (error: unknown) => String((error as { stderr?: string }).stderr))
  t.match(bank, /permitted subtree violation/, 'a CA that somebody imports endangers no website')

  const device = readLeaf(decodeOnePem(user.devicePem, 'CERTIFICATE'))
  const server = readLeaf(decodeOnePem(user.serverPem, 'CERTIFICATE'))
  t.match(device, { clientAuth: true, serverAuth: false, isCa: false, canSignCertificates: false, uris: [`urn:patchcord:${user.deviceId}`], deviceId: user.deviceId })
  t.match(server, { clientAuth: false, serverAuth: true, isCa: false, canSignCertificates: false, uris: [`urn:patchcord:${user.deviceId}`] })
  t.ok(device.notBefore >= now - BACKDATE_MS && device.notBefore < now - BACKDATE_MS + 1000)
  t.ok(device.notAfter <= now + LEAF_LIFETIME_MS && device.notAfter > now + LEAF_LIFETIME_MS - 1000)
  t.equal(new X509Certificate(user.devicePem).subject, `CN=${user.deviceId}`)
  t.equal(new X509Certificate(user.ca).subject, `CN=${readAuthority(user.ca).user}`)
  t.match(new X509Certificate(user.serverPem).subjectAltName, `DNS:${user.deviceId}.patchcord.invalid`)
  const serials = new Set(await Promise.all(Array.from({ length: 20 }, async () => new X509Certificate(await issueDevice({ ...user, spki: spkiOf(user.device), now })).serialNumber)))
  t.equal(serials.size, 20)
  for (const serial of serials) t.match(serial, /^[4-7][0-9A-F]{31}$/)

  const trust = buildTrust({ userCa: user.ca, whitelist: [], revoked: [], grants: DEFAULT_GRANTS })
  t.match(admitClient(trust, device, now), { relation: 'own' })
  t.match(admitServer({ device: user.deviceId, ca: user.ca, revoked: new Set() }, server, now), { admitted: true })

  const spki = spkiOf(user.device)
  const other = (await generateKey()).privateKey
  const issuing = { ca: user.ca, caKey: user.caKey, spki, now }
  await t.rejects(issueDevice({ ...issuing, caKey: other }), { code: 'bad-certificate' }, 'another CA\'s key')
  await t.rejects(issueDevice({ ...issuing, ca: user.devicePem }), { code: 'bad-certificate' }, 'a device for a CA')
  await t.rejects(issueDevice({ ...issuing, spki: respellP256(spki, 'compressed') }), { code: 'bad-certificate' }, 'a second spelling')
  await t.rejects(issueDevice({ ...issuing, now: now + 21 * YEAR_MS }), { code: 'bad-certificate' }, 'after the CA\'s end')
  await t.rejects(issueDevice({ ...issuing, now: now - 2 * 3_600_000 }), { code: 'bad-certificate' }, 'before its begin')
  const late = readLeaf(decodeOnePem(await issueDevice({ ...issuing, now: now + 19.9 * YEAR_MS }), 'CERTIFICATE'))
  t.ok(late.notAfter <= readAuthority(user.ca).notAfter, 'no leaf outlives its CA')
  const early = readLeaf(decodeOnePem(await issueDevice({ ...issuing, now: now - 58 * 60_000 }), 'CERTIFICATE'))
  t.equal(early.notBefore, readAuthority(user.ca).notBefore, 'nor begins before it')
  const client = spkiOf((await generateClientKey()).privateKey)
  t.match(readLeaf(decodeOnePem(await issueClient({ ...issuing, spki: client }), 'CERTIFICATE')), { keyForm: 'rsa3072', clientAuth: true, serverAuth: false })
  await t.rejects(issueDevice({ ...issuing, spki: client }), { code: 'bad-certificate' })
})

/** The PEM with one bit of its content changed: of the private half of a key, of the signature else. */
function flipped (pem: string, at?: number): string {
  const [{ label, der }] = decodePem(pem) as [{ label: string, der: Buffer }]
  const copy = Buffer.from(der)
  copy[at ?? der.length - 1] = copy[at ?? der.length - 1]! ^ 1
  return encodePem(label, copy)
}

await t.test('a signing request is read for its key alone', async t => {
  const { privateKey } = await generateKey()
  const pem = await createCsr(privateKey, 'n0nce')
  const bytes = decodeOnePem(pem, 'CERTIFICATE REQUEST')
  const at = (needle: Uint8Array): number => bytes.indexOf(needle)
  const flip = (index: number): Buffer => { const copy = Buffer.from(bytes); copy[index] = copy[index]! ^ 1; return copy }
  t.equal(codeOf(() => readCsr(flip(bytes.length - 1))), 'bad-certificate', 'another signature')
  t.equal(codeOf(() => readCsr(flip(at(Buffer.from('n0nce'))))), 'bad-certificate', 'another nonce')
  t.equal(codeOf(() => readCsr(flip(at(spkiOf(privateKey)) + 90))), 'bad-certificate', 'another key')
  t.equal(codeOf(() => readCsr(encodePem('CERTIFICATE', bytes))), 'bad-certificate', 'another label')
  t.equal(codeOf(() => readCsr(der(0x30, Buffer.alloc(9000)))), 'bad-certificate', 'too long')
  const long = await createCsr(privateKey, 'n'.repeat(9000))
  t.equal(codeOf(() => readCsr(long)), 'bad-certificate', 'good but for its length')
  for (const [what, pair] of Object.entries({ p384: generateKeyPairSync('ec', { namedCurve: 'P-384' }), rsa: generateKeyPairSync('rsa', { modulusLength: 2048 }) })) {
    const dir = t.testdir({ 'k.pem': pair.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString() })
    const { stdout } = await run('openssl', ['req', '-new', '-key', join(dir, 'k.pem'), '-subj', '/CN=x'])
    t.equal(codeOf(() => readCsr(stdout)), 'bad-certificate', what)
  }
  t.strictSame(readCsr(pem), { spki: spkiOf(privateKey), nonce: 'n0nce' })
  t.strictSame(readCsr(await createCsr(privateKey)), { spki: spkiOf(privateKey) })
  const dir = t.testdir({ 'k.pem': privateKeyToPem(privateKey) })
  const { stdout } = await run('openssl', ['req', '-new', '-key', join(dir, 'k.pem'), '-subj', '/CN=somebody/O=else', '-addext', 'basicConstraints=critical,CA:TRUE'])
  t.strictSame(readCsr(stdout), { spki: spkiOf(privateKey) }, 'what OpenSSL made, whatever it asks for')
})

await t.test('a bundle speaks for the device it holds', async t => {
  const [one, two] = [await makeUser(), await makeUser()]
  t.equal(codeOf(() => parseBundle(formatBundle(one.devicePem, two.ca))), 'bad-certificate', 'another CA')
  t.equal(codeOf(() => parseBundle(formatBundle(one.serverPem, one.ca))), 'bad-certificate', 'a server certificate')
  t.equal(codeOf(() => parseBundle(one.ca + one.devicePem)), 'bad-certificate', 'the wrong order')
  t.equal(codeOf(() => parseBundle(one.devicePem)), 'bad-certificate', 'no CA')
  t.equal(codeOf(() => parseBundle(formatBundle(one.devicePem, one.ca) + one.devicePem)), 'bad-certificate', 'three')
  t.equal(codeOf(() => parseBundle(formatBundle(one.ca, one.ca))), 'bad-certificate', 'a CA for a device')
  const sameKey = await issueServer({ ca: one.ca, caKey: one.caKey, spki: spkiOf(one.device), device: one.deviceId, now: NOW })
  t.equal(codeOf(() => parseIssue(one.devicePem + sameKey + one.ca)), 'bad-certificate', 'a server certificate over the device key')
  t.equal(codeOf(() => parseIssue(one.devicePem + one.serverPem + one.ca)), 'none')
  t.match(parseBundle(formatBundle(one.devicePem, one.ca)), { device: one.deviceId, user: userIdOf(spkiOf(one.caKey)), deviceCertificate: one.devicePem, userCa: one.ca })
})

await t.test('the first run makes everything, privately', async t => {
  const dir = join(t.testdir({}), 'identity')
  t.notOk(await Keystore.exists(dir))
  await t.rejects(Keystore.open(dir, clock), { code: 'unreadable' })
  let ran = 0
  const store = await Keystore.create(dir, clock, { alongside: async () => { ran++; t.notOk(await Keystore.exists(dir), 'before it counts') } })
  t.equal(ran, 1)
  await t.rejects(Keystore.create(dir, clock), { code: 'already-exists' })
  t.strictSame((await readdir(dir)).toSorted(), ['1', 'current', 'device.key', 'server.key'])
  t.strictSame((await readdir(join(dir, '1'))).toSorted(), ['ca.key', 'ca.pem', 'device.pem', 'server.pem'])
  t.equal(await readlink(join(dir, 'current')), '1')
  for (const name of ['', '1']) t.equal((await stat(join(dir, name))).mode & 0o777, 0o700)
  for (const name of ['device.key', 'server.key', '1/ca.key', '1/ca.pem', '1/device.pem', '1/server.pem']) t.equal((await stat(join(dir, name))).mode & 0o777, 0o600, name)
  const { identity } = store
  t.equal(identity.device, deviceIdOf(spkiOf(privateKeyFromPem(await store.deviceKey()))))
  t.not(await store.deviceKey(), await store.serverKey())
  t.equal(identity.hasCaKey, true)
  t.equal(await store.withCaKey(async (key, ca) => userIdOf(spkiOf(key)) === identity.user && ca === identity.userCa), true)
  t.match(parseBundle(store.bundle()), { device: identity.device, user: identity.user })
  t.strictSame((await Keystore.open(dir, clock)).identity, identity)
  t.strictSame((await Keystore.openOrCreate(dir, clock)).identity, identity)
  t.throws(() => { (identity as { user: string }).user = 'x' })
  const renewed = await store.renew()
  t.match(renewed, { device: identity.device, user: identity.user, userCa: identity.userCa, hasCaKey: true })
  t.not(renewed.deviceCertificate, identity.deviceCertificate)
  t.equal(await readlink(join(dir, 'current')), '2')
  t.strictSame((await Keystore.open(dir, clock)).identity, renewed)
})

await t.test('half an identity is none: it is finished or made again', async t => {
  const whole = join(t.testdir({}), 'identity')
  const made = await Keystore.create(whole, clock)
  const key = await made.deviceKey()

  await unlink(join(whole, 'current'))
  t.notOk(await Keystore.exists(whole))
  await t.rejects(Keystore.open(whole, clock), { code: 'bad-state' })
  t.strictSame((await Keystore.create(whole, clock)).identity, made.identity, 'all but the last rename: finished, and the CA is kept')

  await unlink(join(whole, 'current'))
  await rename(join(whole, '1'), join(whole, '.new-1'))
  await unlink(join(whole, '.new-1', 'server.pem'))
  await symlink('1', join(whole, '.new-current'))
  await writeFile(join(whole, '.device.key.0123.tmp'), 'half', { mode: 0o600 })
  const again = await Keystore.create(whole, clock)
  t.not(again.identity.user, made.identity.user, 'half of a folder: made again')
  t.equal(await again.deviceKey(), key, 'over the same device key')
  t.strictSame((await readdir(whole)).toSorted(), ['1', 'current', 'device.key', 'server.key'])

  await unlink(join(whole, 'current'))
  await t.rejects(Keystore.create(whole, clock, { alongside: async () => { throw new Error('disk full') } }), { message: 'disk full' })
  t.notOk(await Keystore.exists(whole), 'what has to exist beside it does not, so it does not count')

  await mkdir(join(whole, '2'), { mode: 0o700 })
  await t.rejects(Keystore.create(whole, clock), { code: 'bad-state', message: /several/ }, 'a lost pointer is not guessed')
})

await t.test('a keystore that others can read, or that does not fit together, is refused by name', async t => {
  const home = t.testdir({})
  const dir = join(home, 'identity')
  const other = join(home, 'other')
  await Keystore.create(dir, clock)
  await Keystore.create(other, clock)
  const files = ['device.key', 'server.key', '1/ca.pem', '1/ca.key', '1/device.pem', '1/server.pem']
  for (const file of files) {
    const path = join(dir, file)
    const content = await readFile(path)
    await chmod(path, 0o640)
    await t.rejects(Keystore.open(dir, clock), { code: 'unsafe-mode', message: path }, `${file} that the group can read`)
    await chmod(path, 0o600)
    for (const [what, damaged] of Object.entries({ 'cut off': content.subarray(0, 60), 'empty': Buffer.alloc(0), 'changed': Buffer.from(flipped(content.toString(), file.endsWith('.key') ? 50 : undefined)) })) {
      await writeFile(path, damaged)
      await t.rejects(Keystore.open(dir, clock), { code: 'bad-state', message: new RegExp(file === '1/device.pem' || file === '1/server.pem' || file === '1/ca.pem' ? `${dir}/1` : path) }, `${file} ${what}`)
    }
    await writeFile(path, await readFile(join(other, file)))
    await t.rejects(Keystore.open(dir, clock), { code: 'bad-state' }, `${file} of another device`)
    await unlink(path)
    if (file !== '1/ca.key') await t.rejects(Keystore.open(dir, clock), { code: 'bad-state', message: `${path} is missing` }, `${file} missing`)
    else t.equal((await Keystore.open(dir, clock)).identity.hasCaKey, false, 'a device without the CA key runs')
    await writeFile(path, content, { mode: 0o600 })
  }
  for (const folder of [dir, join(dir, '1')]) {
    await chmod(folder, 0o750)
    await t.rejects(Keystore.open(dir, clock), { code: 'unsafe-mode' })
    await chmod(folder, 0o700)
  }
  await unlink(join(dir, 'current'))
  await symlink('../other/1', join(dir, 'current'))
  await t.rejects(Keystore.open(dir, clock), { code: 'bad-state', message: /outside/ })
  await rm(join(dir, 'current'))
  await symlink('1', join(dir, 'current'))
  t.ok((await Keystore.open(dir, clock)).identity)
})

await t.test('a device becomes another user\'s own, by files', async t => {
  const home = t.testdir({})
  const holder = await Keystore.create(join(home, 'holder'), clock)
  const joiner = await Keystore.create(join(home, 'joiner'), clock)
  const third = await Keystore.create(join(home, 'third'), clock)
  const before = joiner.identity
  const issued = await holder.issue(await joiner.request())
  const [device, server, ca] = decodePem(issued).map(({ label, der }) => encodePem(label, der)) as [string, string, string]
  const foreign = decodePem(await third.issue(await joiner.request())).map(({ label, der }) => encodePem(label, der)) as [string, string, string]
  const serverFor = async (device: DeviceId, store: Keystore): Promise<string> => {
    const spki = spkiOf(privateKeyFromPem(await store.serverKey()))
    return await holder.withCaKey(async (caKey, ca) => await issueServer({ ca, caKey, spki, device, now: NOW }))
  }
  for (const [what, pem] of Object.entries({
    'for another device': await holder.issue(await third.request()),
    'without the server certificate': device + ca,
    'a server certificate over another server\'s key': device + await serverFor(before.device, third) + ca,
    'a device certificate of another device, over our server key': decodePem(await holder.issue(await third.request())).map(({ label, der }) => encodePem(label, der))[0]! + await serverFor(third.identity.device, joiner) + ca,
    'the device certificate twice': device + device + ca,
    'the server certificate twice': server + server + ca,
    'another CA': device + server + foreign[2],
    'a server certificate of another CA': device + foreign[1] + ca,
    'empty': '',
  })) {
    await t.rejects(joiner.installIssued(pem), { code: 'bad-certificate' }, what)
    t.equal(joiner.identity, before, 'and nothing changed')
  }
  const late = await Keystore.open(join(home, 'joiner'), { ...clock, now: () => NOW + 2 * YEAR_MS })
  await t.rejects(late.installIssued(issued), { code: 'bad-certificate' }, 'out of its dates')
  t.equal(await readlink(join(home, 'joiner', 'current')), '1')

  const after = await joiner.installIssued(issued)
  t.match(after, { device: before.device, user: holder.identity.user, userCa: holder.identity.userCa, hasCaKey: false })
  t.equal(joiner.identity, after)
  t.strictSame((await Keystore.open(join(home, 'joiner'), clock)).identity, after)
  t.ok(await readFile(join(home, 'joiner', '1', 'ca.key')), 'the old CA is kept')
  await t.rejects(joiner.withCaKey(async () => 1), { code: 'no-ca-key' })
  await t.rejects(joiner.issue(await third.request()), { code: 'no-ca-key' })
  await t.rejects(joiner.renew(), { code: 'no-ca-key' })
  const request = await joiner.request()
  const [first, second] = decodePem(request).map(({ label, der }) => encodePem(label, der)) as [string, string]
  t.equal(codeOf(() => parseRequest(first + first)), 'bad-certificate', 'one key for both')
  t.equal(codeOf(() => parseRequest(first)), 'bad-certificate')
  t.ok(parseRequest(first + second))
  t.equal(codeOf(() => parseIssue(issued, NOW + 2 * YEAR_MS)), 'bad-certificate')
  const trust = buildTrust({ userCa: holder.identity.userCa, whitelist: [], revoked: [], grants: DEFAULT_GRANTS })
  t.match(admitClient(trust, readLeaf(decodeOnePem(after.deviceCertificate, 'CERTIFICATE')), NOW), { relation: 'own' })
})

await t.test('whitelist and grants are read whole or not at all', async t => {
  const home = t.testdir({})
  const ca = mintCa('friend', NOW).pem
  const device = idOf(randomBytes(9)) as DeviceId
  t.strictSame(await readWhitelist(home), [])
  t.strictSame(await readGrants(home), DEFAULT_GRANTS)
  const entry = { name: 'anna', device, ca, notAfter: '2031-01-01T00:00:00Z', grant: 'friend' }
  const grant = { databases: { 'a-1': 'read' }, files: 'referenced' }
  const raw = async (file: string, content: unknown): Promise<void> => { await writeFile(join(home, file), typeof content === 'string' ? content : JSON.stringify(content), { mode: 0o600 }) }
  for (const [content, field] of [
    ['{', /whitelist\.json is not JSON/], ['[]', /whitelist\.json/], [{ version: 2, entries: [] }, /version/], [{ version: 1 }, /entries/],
    [{ version: 1, entries: [{ ...entry, device: 'x' }] }, /entries\.0\.device/], [{ version: 1, entries: [{ ...entry, ca: 'x' }] }, /entries\.0\.ca/],
    [{ version: 1, entries: [{ ...entry, notafter: '' }] }, /entries\.0/], [{ version: 1, entries: [{ ...entry, notAfter: 'soon' }] }, /entries\.0\.notAfter/],
    [{ version: 1, entries: [{ name: 'a', grant: 'x' }] }, /entries\.0: give it/],
  ] as const) {
    await raw('whitelist.json', content)
    await t.rejects(readWhitelist(home), { code: 'bad-state', message: field }, JSON.stringify(content).slice(0, 60))
  }
  await writeWhitelist(home, [entry, { name: 'b', ca, grant: 'friend' }])
  t.strictSame(await readWhitelist(home), [entry, { name: 'b', ca, grant: 'friend' }])
  await t.rejects(writeWhitelist(home, [{ name: '', device, grant: 'x' }]), { code: 'bad-state' })
  t.equal((await readWhitelist(home)).length, 2, 'the old one is kept')

  for (const [content, field] of [
    ['', /not JSON/], [{ version: 1, grants: { a: { databases: {} } } }, /grants\.a\.files/], [{ version: 1, grants: { a: { ...grant, databases: { x: 'admin' } } } }, /grants\.a\.databases\.x/],
    [{ version: 1, grants: { a: { ...grant, databases: { '*': 'read' } } } }, /grants\.a\.databases\.\*/], [{ version: 1, grants: { own: { ...grant, databases: { 'a*b*': 'read' } } } }, /grants\.own/],
    [{ version: 1, grants: { own: { ...grant, databases: { '_*': 'read' } } } }, /grants\.own/],
  ] as const) {
    await raw('grants.json', content)
    await t.rejects(readGrants(home), { code: 'bad-state', message: field }, JSON.stringify(content).slice(0, 60))
  }
  await writeGrants(home, { own: { databases: { '*': 'write', 'a-*': 'read' }, files: 'all' }, friend: { databases: { 'a-1': 'read' }, files: 'referenced' } })
  t.strictSame(await readGrants(home), { own: { databases: { '*': 'write', 'a-*': 'read' }, files: 'all' }, friend: grant })
  await chmod(join(home, 'grants.json'), 0o644)
  await t.rejects(readGrants(home), { code: 'unsafe-mode' })
})

await t.test('a missing revoked.json is never read as empty', async t => {
  const home = t.testdir({})
  await t.rejects(Revocations.open(home), { code: 'bad-state', message: /revoked\.json is missing/ })
  const store = await Keystore.create(join(home, 'identity'), clock, { alongside: async () => { await Revocations.create(home) } })
  const revocations = await Revocations.open(home)
  const ca = store.identity.user
  const record: Revocation = { ca, device: idOf(randomBytes(4)) as DeviceId, issuedAt: NOW, reason: REASON.keyCompromise, decided: 'here' }
  const signed = await store.withCaKey(async key => signRevocation(record, key))
  t.equal(await revocations.add([record]), true)
  t.equal(await revocations.add([record]), false)
  t.equal(await revocations.add([{ ...record, signed }]), true, 'signed later')
  t.equal(await revocations.add([record]), false, 'and it stays signed')
  await Revocations.create(home)
  t.strictSame((await Revocations.open(home)).records, [{ ...record, signed }], 'making it again keeps what is there')
  const many = Array.from({ length: 20 }, (_, index): Revocation => ({ ...record, device: idOf(Buffer.of(index)) as DeviceId }))
  await Promise.all(many.map(async one => await revocations.add([one])))
  t.equal((await Revocations.open(home)).records.length, 21, 'writes at one time lose nothing')
  const path = join(home, 'revoked.json')
  const content = await readFile(path, 'utf8')
  for (const damaged of ['', '{}', content.slice(0, -10), content.replace(`"issuedAt": ${NOW}`, `"issuedAt": ${NOW + 1}`), content.replace('"version": 1', '"version": 2')]) {
    await writeFile(path, damaged)
    await t.rejects(Revocations.open(home), { code: 'bad-state' }, damaged.slice(0, 30))
  }
  await rm(path)
  await mkdir(path)
  await t.rejects(revocations.add([{ ...record, device: idOf(Buffer.of(99)) as DeviceId }]), PatchcordError)
  t.equal(revocations.records.length, 22, 'what could not be written counts all the same')
  await rm(path, { recursive: true })
  t.equal(await revocations.add([record]), false)
  t.equal((await Revocations.open(home)).records.length, 22, 'and is written with the next')
})

await t.test('revocations merge to one set, whatever the order', async t => {
  const [a, b] = [idOf(Buffer.of(1)) as UserId, idOf(Buffer.of(2)) as UserId]
  const record = fc.record({
    ca: fc.constantFrom(a, b), device: fc.constantFrom(...[3, 4, 5].map(byte => idOf(Buffer.of(byte)) as DeviceId)), issuedAt: fc.nat(3), reason: fc.nat(2), decided: fc.constantFrom('here' as const, 'there' as const),
  }, { noNullPrototype: true }).chain(body => fc.constantFrom<Revocation>(body, { ...body, signed: { v: 1, body: 'b', sig: 'x' } }, { ...body, signed: { v: 1, body: 'b', sig: 'y' } }))
  const sorted = (set: Map<string, Revocation>): unknown => [...set].toSorted(([one], [other]) => one < other ? -1 : 1)
  t.doesNotThrow(() => { fc.assert(fc.property(fc.array(record, { maxLength: 12 }), fc.nat(12), fc.nat(1000), (records, cutAt, seed) => {
    const all = sorted(mergeRevocations([], records))
    const shuffled = records.map((one, index) => [((index + 1) * (seed + 7) * 2_654_435_761) % 1009, one] as const).toSorted(([one], [other]) => one - other).map(([, one]) => one)
    const parts = mergeRevocations(mergeRevocations([], shuffled.slice(0, cutAt)).values(), mergeRevocations([], shuffled.slice(cutAt)).values())
    const twice = mergeRevocations(parts.values(), shuffled)
    return JSON.stringify(sorted(parts)) === JSON.stringify(all) && JSON.stringify(sorted(twice)) === JSON.stringify(all)
  }), { numRuns: 2000 }) })
})

await t.test('a friend\'s CA takes away only what it gave', async t => {
  const [own, friend, another] = [mintCa('own', NOW), mintCa('friend', NOW), mintCa('another', NOW)]
  const id = (byte: number): DeviceId => idOf(Buffer.of(byte)) as DeviceId
  const [laptop, theirs, anothers, alone, unlisted] = [id(1), id(2), id(3), id(4), id(5)] as [DeviceId, DeviceId, DeviceId, DeviceId, DeviceId]
  const trust = buildTrust({
    userCa: own.pem,
    whitelist: [{ name: 'f', ca: friend.pem, grant: 'g' }, { name: 'f1', device: theirs, ca: friend.pem, grant: 'g' }, { name: 'a', device: anothers, ca: another.pem, grant: 'g' }, { name: 'x', device: alone, grant: 'g' }],
    revoked: [], grants: { g: { databases: {}, files: 'referenced' } },
  })
  const by = (ca: { spki: Buffer }, device: DeviceId, decided: 'here' | 'there' = 'there'): boolean => effectiveRevocations([{ ca: userIdOf(ca.spki), device, issuedAt: 0, reason: 0, decided }], trust, new Set([laptop])).includes(device)
  t.notOk(by(friend, laptop), 'not our laptop')
  t.notOk(by(friend, anothers), 'not another friend\'s device')
  t.notOk(by(friend, alone), 'not a device that is listed without a CA')
  t.notOk(by(another, unlisted), 'not a device that its CA does not let in')
  t.notOk(by(mintCa('stranger', NOW), theirs))
  t.ok(by(friend, theirs))
  t.ok(by(friend, unlisted), 'any device that comes in by its CA')
  for (const device of [laptop, theirs, anothers, alone, unlisted]) {
    t.ok(by(own, device), 'our own CA')
    t.ok(by(mintCa('former', NOW), device, 'here'), 'what this user decided under an earlier CA')
  }
})

await t.test('a revocation record has one spelling and one signer', async t => {
  const { privateKey } = await generateKey()
  const ca = readAuthority(await createUserCa(privateKey, NOW))
  const body: RevocationBody = { ca: ca.user, device: idOf(Buffer.of(1)) as DeviceId, issuedAt: NOW, reason: REASON.keyCompromise }
  const record = signRevocation(body, privateKey)
  const other = await generateKey()
  t.equal(codeOf(() => signRevocation(body, other.privateKey)), 'bad-certificate')
  t.equal(codeOf(() => verifyRevocation(record, readAuthority(mintCa('x', NOW).pem))), 'verification', 'another CA')
  const inAnothersName = encodeBody({ ...body, ca: userIdOf(spkiOf(other.privateKey)) })
  t.equal(codeOf(() => verifyRevocation({ v: 1, body: inAnothersName.toString('base64url'), sig: sign('sha256', inAnothersName, { key: privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64url') }, ca)), 'verification', 'well signed, in the name of another CA')
  const bytes = Buffer.from(record.body, 'base64url')
  for (let at = 0; at < bytes.length; at++) {
    const changed = Buffer.from(bytes)
    changed[at] = changed[at]! ^ 1
    if (codeOf(() => verifyRevocation({ ...record, body: changed.toString('base64url') }, ca)) !== 'verification') t.fail(`byte ${at} can be changed`)
  }
  for (const [what, bad] of Object.entries({
    nothing: undefined, text: 'x', version: { ...record, v: 2 }, more: { ...record, x: 1 }, padded: { ...record, body: `${record.body}=` }, longer: { ...record, body: Buffer.concat([bytes, Buffer.of(0)]).toString('base64url') },
    'not canonical base64url': { ...record, sig: record.sig.slice(0, -1) + String.fromCharCode(record.sig.charCodeAt(85) + 1) }, 'another signature': { ...record, sig: Buffer.alloc(64, 1).toString('base64url') },
  })) t.equal(codeOf(() => verifyRevocation(bad, ca)), 'verification', what)
  t.strictSame(verifyRevocation(JSON.parse(JSON.stringify(record)), ca), body)
  t.equal(bytes.toString('hex'), `16${Buffer.from('patchcord-revocation/1').toString('hex')}20${idHex(ca.user)}20${idHex(body.device)}08${NOW.toString(16).padStart(16, '0')}0101`)
})

function idHex (id: string): string {
  let value = 0n
  for (const character of id) value = value << 5n | BigInt('abcdefghijklmnopqrstuvwxyz234567'.indexOf(character))
  return (value >> 4n).toString(16).padStart(64, '0')
}

await t.test('lv_cat', async t => {
  // draft-irtf-cfrg-cpace, "lv_cat" test vector.
  t.equal(lvCat(Buffer.from('1234'), Buffer.from('5'), Buffer.alloc(0), Buffer.from('678')).toString('hex'), '04313233340135000336 3738'.replace(' ', ''))
  t.equal(lvCat(Buffer.alloc(128)).subarray(0, 2).toString('hex'), '8001')
  fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 300 })), parts => JSON.stringify(splitLvCat(lvCat(...parts))) === JSON.stringify(parts.map(part => Buffer.from(part)))))
  fc.assert(fc.property(fc.uint8Array({ maxLength: 40 }), bytes => { const parts = splitLvCat(bytes); return parts === undefined || lvCat(...parts).equals(bytes) }), { numRuns: 5000 })
  for (const bad of ['01', '8000', '818000', '80808080', 'ffffffff7f']) t.equal(splitLvCat(Buffer.from(bad, 'hex')), undefined, bad)
})

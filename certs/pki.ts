import { createHash, type KeyObject } from 'node:crypto'
import { encodeBase32 } from '../src/core/base32.js'
import type { RefusalRule } from '../src/identity/admission.js'
import {
  authorityKeyId, basicConstraints, der, ed25519Key, EKU, explicitP256Key, extendedKeyUsage, keyUsage, mint, mintCa, mintLeaf, nameOf, oid, p256Key, p384Key, respellP256, rsaKey, sequence, set, uris, YEAR_MS,
  type Extension, type MintedCa, type MintedKey, type Minting,
} from './mint.js'

// One throw-away PKI with the certificates that must come in, those that must not, and which rule refuses
// each. test/admission.test.ts holds the rules against admission; certs/make-pki.ts writes the files.

/** Who presents the certificate to whom. */
export type End = 'client' | 'server'

export interface PkiCase {
  /** Also the name of its files. */
  readonly name: string
  readonly end: End
  readonly der: Buffer
  /** What to send after it, where a chain is part of the attack. */
  readonly chain: readonly Buffer[]
  readonly key: KeyObject
  /** undefined where it is admitted; `bad-certificate` where it cannot even be read. */
  readonly refusedBy: RefusalRule | 'bad-certificate' | undefined
  readonly why: string
}

export interface Pki {
  readonly now: number
  readonly user: MintedCa
  readonly friend: MintedCa
  readonly stranger: MintedCa
  /** The device of the user: its key, its ID and the key of its server. */
  readonly device: MintedKey
  readonly deviceId: string
  readonly server: MintedKey
  /** Device IDs that the whitelist names alone. */
  readonly listedRsa: string
  readonly revokedId: string
  readonly cases: readonly PkiCase[]
}

export const idOf = (spki: Uint8Array): string => encodeBase32(createHash('sha256').update(spki).digest())

const leafExtensions = (...purposes: string[]): Extension[] => [basicConstraints(false), keyUsage(0), extendedKeyUsage(...purposes)]

/** All of it, around this moment. Takes a second or two, for the RSA keys. */
export function makePki (now: number): Pki {
  const user = mintCa('user', now)
  const friend = mintCa('friend', now)
  const stranger = mintCa('stranger', now)
  const device = p256Key()
  const server = p256Key()
  const deviceId = idOf(device.spki)
  const rsa = rsaKey(3072)
  const revoked = p256Key()
  const cases: PkiCase[] = []

  const client = (name: string, refusedBy: PkiCase['refusedBy'], why: string, changes: Partial<Minting> = {}, options: { ca?: MintedCa, key?: MintedKey, chain?: Buffer[] } = {}): void => {
    const key = options.key ?? p256Key()
    cases.push({ name, end: 'client', der: mintLeaf(options.ca ?? user, changes.spki === undefined ? key.spki : Buffer.from(changes.spki), now, changes), chain: options.chain ?? [], key: key.privateKey, refusedBy, why })
  }
  const serve = (name: string, refusedBy: PkiCase['refusedBy'], why: string, changes: Partial<Minting> = {}, options: { ca?: MintedCa, key?: MintedKey } = {}): void => {
    const key = options.key ?? server
    cases.push({ name, end: 'server', der: mintLeaf(options.ca ?? user, key.spki, now, { extensions: [...leafExtensions(EKU.serverAuth), uris(`urn:patchcord:${deviceId}`)], ...changes }), chain: [], key: key.privateKey, refusedBy, why })
  }

  client('good-own', undefined, 'a device of this user', {}, { key: device })
  client('good-friend', undefined, 'a device of a CA that the whitelist names', {}, { ca: friend })
  client('good-listed-rsa', undefined, 'RSA-3072, listed by its device ID', {}, { key: rsa })
  client('good-no-key-usage', undefined, 'no keyUsage and no basicConstraints: RFC 5280 restricts nothing then', { extensions: [extendedKeyUsage(EKU.clientAuth)] })
  client('good-no-hints', undefined, 'names and key identifiers that say nothing: only the signature counts', { issuer: nameOf('nobody'), extensions: leafExtensions(EKU.clientAuth) })
  client('good-sha384', undefined, 'signed with another SHA-2', { hash: 'sha384' })
  client('revoked', 'revoked', 'its device ID is revoked', {}, { key: revoked })
  client('revoked-friend', 'revoked', 'revoked by device ID, whoever certified it', {}, { ca: friend, key: revoked })
  client('stranger', 'unknown', 'a CA that nobody listed', {}, { ca: stranger })
  client('forged-issuer', 'unknown', 'names our CA as its issuer, by name and by key identifier', { issuer: user.name, extensions: [...leafExtensions(EKU.clientAuth), authorityKeyId(user.keyId)] }, { ca: stranger })
  const self = p256Key()
  client('self-signed', 'unknown', 'signed by its own key', { signer: self.privateKey }, { key: self })
  client('expired', 'expired', 'ended yesterday: it may fetch its renewal', { notBefore: now - YEAR_MS, notAfter: now - 86_400_000 })
  client('expired-long-ago', 'expired', 'ended more than a year ago', { notBefore: now - 3 * YEAR_MS, notAfter: now - YEAR_MS - 86_400_000 })
  client('not-yet-valid', 'not-yet-valid', 'begins tomorrow', { notBefore: now + 86_400_000 })
  client('ca-true', 'not-a-leaf', 'basicConstraints CA:TRUE with clientAuth', { extensions: [basicConstraints(true), keyUsage(0), extendedKeyUsage(EKU.clientAuth)] })
  client('key-cert-sign', 'not-a-leaf', 'keyUsage keyCertSign without CA:TRUE', { extensions: [basicConstraints(false), keyUsage(0, 5), extendedKeyUsage(EKU.clientAuth)] })
  cases.push({ name: 'the-ca-itself', end: 'client', der: user.der, chain: [], key: user.key, refusedBy: 'not-a-leaf', why: 'the user CA presents itself' })
  client('server-as-client', 'wrong-usage', 'a server certificate at the client end', { extensions: [...leafExtensions(EKU.serverAuth), uris(`urn:patchcord:${deviceId}`)] }, { key: server })
  client('no-eku', 'wrong-usage', 'no extendedKeyUsage, which OpenSSL takes for every usage', { extensions: [basicConstraints(false), keyUsage(0)] })
  client('any-eku', 'wrong-usage', 'anyExtendedKeyUsage', { extensions: leafExtensions(EKU.any) })
  client('code-signing', 'wrong-usage', 'another usage', { extensions: leafExtensions(EKU.codeSigning) })
  client('no-digital-signature', 'wrong-usage', 'keyUsage without digitalSignature', { extensions: [basicConstraints(false), keyUsage(4), extendedKeyUsage(EKU.clientAuth)] })
  client('version-1', 'wrong-usage', 'X.509 version 1, which has no extensions', { version: 1, extensions: [] })
  client('unknown-critical', 'unknown-critical', 'a critical extension that nobody knows', { extensions: [...leafExtensions(EKU.clientAuth), { id: '1.2.3.4.5', critical: true, value: sequence() }] })
  client('critical-name-constraints', 'unknown-critical', 'nameConstraints belong in a CA', { extensions: [...leafExtensions(EKU.clientAuth), { id: '2.5.29.30', critical: true, value: sequence() }] })
  const spelled = p256Key()
  client('compressed-point', 'key-form', 'P-256 with a compressed point: a second spelling of one key', { spki: respellP256(spelled.spki, 'compressed') }, { key: spelled })
  client('hybrid-point', 'key-form', 'P-256 with a hybrid point', { spki: respellP256(spelled.spki, 'hybrid') }, { key: spelled })
  client('off-curve', 'key-form', 'a point that is not on the curve', { spki: offCurve(spelled.spki) }, { key: spelled })
  client('explicit-curve', 'key-form', 'the curve spelled out instead of named (CVE-2020-0601)', {}, { key: explicitP256Key() })
  client('p384', 'key-form', 'another curve', {}, { key: p384Key() })
  client('ed25519', 'key-form', 'another algorithm', {}, { key: ed25519Key() })
  client('rsa-2048', 'key-form', 'RSA that is too short', {}, { key: rsaKey(2048) })
  client('rsa-e-3', 'key-form', 'RSA-3072 with e = 3', {}, { key: rsaKey(3072, 3) })
  client('rsa-not-listed', 'key-form', 'RSA-3072 by the CA alone', {}, { key: rsaKey(3072) })

  const between = p256Key()
  const intermediate = mint({ subject: nameOf('between'), issuer: user.name, notBefore: now - 300_000, notAfter: now + YEAR_MS, spki: between.spki, signer: user.key, extensions: [basicConstraints(true, 0), keyUsage(5)] })
  client('by-intermediate', 'unknown', 'signed by a CA that our CA signed', { issuer: nameOf('between'), signer: between.privateKey }, { chain: [intermediate] })
  const leafCa = mintLeaf(user, between.spki, now)
  client('by-device', 'unknown', 'signed by a device certificate of ours', { issuer: nameOf('device'), signer: between.privateKey }, { chain: [leafCa] })

  client('sha1', 'unknown', 'signed by our CA with SHA-1', { hash: 'sha1' })
  client('two-algorithms', 'bad-certificate', 'the algorithm outside differs from the one inside', { outerAlgorithm: sequence(oid('1.2.840.10045.4.3.4')) })
  client('duplicate-eku', 'bad-certificate', 'the same extension twice', { extensions: [...leafExtensions(EKU.serverAuth), extendedKeyUsage(EKU.clientAuth)] })
  client('version-2', 'bad-certificate', 'version 2', { version: 2 })
  client('extensions-in-version-1', 'bad-certificate', 'extensions where version 1 has none', { version: 1 })
  client('critical-false', 'bad-certificate', 'a default spelled out, which DER forbids', { extensions: [...leafExtensions(EKU.clientAuth), { id: '1.2.3', critical: 'no', value: sequence() }] })
  client('non-canonical-inside', 'bad-certificate', 'CA:FALSE spelled out in basicConstraints', { extensions: [{ id: '2.5.29.19', critical: true, value: Buffer.from('3003010100', 'hex') }, extendedKeyUsage(EKU.clientAuth)] })
  client('huge-oid', 'bad-certificate', 'an object identifier of 20 KiB', { extensions: [...leafExtensions(EKU.clientAuth), { id: '2.5.29.32', value: der(0x06, Buffer.alloc(20_000, 0x81), Buffer.of(1)) }] })
  client('deep', 'bad-certificate', 'a name of 40 sequences in each other', { subject: nest(40) })

  serve('good-server', undefined, 'the server of the device that was meant')
  serve('server-revoked-key', 'revoked', 'the server key itself is revoked', {}, { key: revoked })
  serve('server-of-stranger', 'bad-signature', 'the right name under the wrong CA', {}, { ca: stranger })
  serve('server-of-friend', 'bad-signature', 'a CA that we know, but not the one pinned for this device', {}, { ca: friend })
  serve('server-forged-san', 'wrong-device', 'another device of the same user', { extensions: [...leafExtensions(EKU.serverAuth), uris(`urn:patchcord:${idOf(revoked.spki)}`)] })
  serve('server-two-sans', 'wrong-device', 'names two devices', { extensions: [...leafExtensions(EKU.serverAuth), uris(`urn:patchcord:${deviceId}`, `urn:patchcord:${idOf(revoked.spki)}`)] })
  serve('server-no-san', 'wrong-device', 'names no device', { extensions: leafExtensions(EKU.serverAuth) })
  serve('device-as-server', 'wrong-usage', 'the device\'s own client certificate at the server end', { extensions: [...leafExtensions(EKU.clientAuth), uris(`urn:patchcord:${deviceId}`)] }, { key: device })
  serve('server-no-eku', 'wrong-usage', 'no extendedKeyUsage', { extensions: [basicConstraints(false), keyUsage(0), uris(`urn:patchcord:${deviceId}`)] })
  serve('server-any-eku', 'wrong-usage', 'anyExtendedKeyUsage', { extensions: [...leafExtensions(EKU.any), uris(`urn:patchcord:${deviceId}`)] })
  serve('server-ca-true', 'not-a-leaf', 'CA:TRUE', { extensions: [basicConstraints(true), keyUsage(0), extendedKeyUsage(EKU.serverAuth), uris(`urn:patchcord:${deviceId}`)] })
  serve('server-rsa', 'key-form', 'RSA at the server end', {}, { key: rsa })
  serve('server-expired', 'expired', 'ended yesterday', { notBefore: now - YEAR_MS, notAfter: now - 86_400_000 })
  serve('server-not-yet-valid', 'not-yet-valid', 'begins tomorrow', { notBefore: now + 86_400_000 })

  return { now, user, friend, stranger, device, deviceId, server, listedRsa: idOf(rsa.spki), revokedId: idOf(revoked.spki), cases }
}

function offCurve (spki: Buffer): Buffer {
  const moved = Buffer.from(spki)
  moved[90] = moved[90]! ^ 1
  return moved
}

function nest (depth: number): Buffer {
  let value = sequence()
  for (let count = 0; count < depth; count++) value = count % 2 === 0 ? set(value) : sequence(value)
  return sequence(value)
}

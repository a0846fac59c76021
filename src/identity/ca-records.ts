import { createHash, sign, verify, type KeyObject } from 'node:crypto'
import * as v from 'valibot'
import { decodeBase32, encodeBase32 } from '../core/base32.js'
import { PatchcordError } from '../core/errors.js'
import type { UserId } from '../core/ids.js'
import { lvCat, splitLvCat } from '../core/lv-cat.js'
import { readAuthority, readAuthorityDer } from './authority.js'
import { isSignedBy, readLeaf } from './leaf.js'
import { keyFormOf } from './key-form.js'
import { publicKeyFromSpki, spkiOf, userIdOf } from './keys.js'
import { decodeOnePem, encodePem } from './pem.js'
import { parseSigned, SignedRecordShape, type SignedRecord } from './revocation.js'

// The end of a user CA. A signature by a key that may be stolen takes trust away, never gives it: the CA may
// end itself, and only its recovery key, which lies in a kit and nowhere else, names the CA that follows.
//
//   retire   lv_cat("patchcord-ca-retire/1", oldCaId, issuedAt u64 BE), signed by that CA
//            {"v":1,"body":base64url,"sig":base64url of 64 bytes}
//   succeed  lv_cat("patchcord-ca-succeed/1", oldCaId, newCaId, SHA-256(newCa DER), nextRecoveryKeyId,
//            seq u32 BE, issuedAt u64 BE), signed by the recovery key and by the new CA
//            {"v":1,"body":…,"sig":base64url of 64 + 64 bytes,"key":recovery key,"ca":new CA,"next":next key}
//
// What follows `sig` is not signed: the body names each by its hash (`key` by what the reader pinned).

/** The identity of a recovery key: SHA-256 of its SubjectPublicKeyInfo, base32. */
export type RecoveryKeyId = string

export interface Retirement {
  readonly kind: 'retire'
  readonly ca: UserId
  /** Milliseconds since 1970, informative. */
  readonly issuedAt: number
  readonly record: SignedRecord
}

export interface Succession {
  readonly kind: 'succeed'
  readonly ca: UserId
  readonly newCa: UserId
  readonly newCaPem: string
  /** The key that signed, and the one that will sign for the new CA: canonical SubjectPublicKeyInfo. */
  readonly recoveryKey: Buffer
  readonly nextRecoveryKey: Buffer
  readonly seq: number
  readonly issuedAt: number
  readonly record: SuccessionRecord
}

export interface SuccessionRecord {
  readonly v: 1
  readonly body: string
  readonly sig: string
  readonly key: string
  readonly ca: string
  readonly next: string
}

export type CaRecord = Retirement | Succession

const base64url = (most: number): v.GenericSchema<string> => v.pipe(v.string(), v.maxLength(most), v.regex(/^[A-Za-z0-9_-]+$/, 'not base64url'))

export const SuccessionRecordShape = v.strictObject({
  v: v.literal(1),
  body: base64url(400),
  sig: v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{171}$/, 'not the base64url of 128 bytes')),
  key: base64url(122),
  ca: base64url(4096),
  next: base64url(122),
})

/** Either record, as it crosses the wire and lies on disk. */
export const CaRecordShape = v.union([SuccessionRecordShape, SignedRecordShape])
export type WireCaRecord = v.InferOutput<typeof CaRecordShape>

const RETIRE = Buffer.from('patchcord-ca-retire/1')
const SUCCEED = Buffer.from('patchcord-ca-succeed/1')
const MOST_SEQ = 0xffffffff

export const recoveryKeyId = (spki: Uint8Array): RecoveryKeyId => encodeBase32(sha256(spki))

/** Ends the CA of this key, for good. */
export function signRetirement (caKey: KeyObject, issuedAt: number): SignedRecord {
  const body = lvCat(RETIRE, decodeBase32(userIdOf(spkiOf(caKey))), u64(issuedAt))
  return { v: 1, body: body.toString('base64url'), sig: signRaw(body, caKey).toString('base64url') }
}

export interface Succeeding {
  readonly ca: UserId
  readonly recoveryKey: KeyObject
  /** PEM of the new CA, and its key. */
  readonly newCa: string
  readonly newCaKey: KeyObject
  /** The public half of the key that will be the new CA's recovery key. */
  readonly nextRecoveryKey: Buffer
  /** 1 or more; above that of the record that made `ca`. */
  readonly seq: number
  readonly issuedAt: number
}

/** Names the CA that follows. Throws `bad-certificate` where `newCaKey` is not that of `newCa`. */
export function signSuccession ({ ca, recoveryKey, newCa, newCaKey, nextRecoveryKey, seq, issuedAt }: Succeeding): SuccessionRecord {
  const authority = readAuthority(newCa)
  if (userIdOf(spkiOf(newCaKey)) !== authority.user) throw new PatchcordError('bad-certificate', 'the CA key does not belong to the CA certificate')
  const der = decodeOnePem(newCa, 'CERTIFICATE')
  const body = successionBody({ ca, newCa: authority.user, der, next: sha256(nextRecoveryKey), seq, issuedAt })
  return {
    v: 1,
    body: body.toString('base64url'),
    sig: Buffer.concat([signRaw(body, recoveryKey), signRaw(body, newCaKey)]).toString('base64url'),
    key: spkiOf(recoveryKey).toString('base64url'),
    ca: der.toString('base64url'),
    next: nextRecoveryKey.toString('base64url'),
  }
}

/** What a retirement says, after the CA given was found to have signed it. Throws `verification`. */
export function verifyRetirement (record: unknown, ca: { readonly user: UserId, readonly publicKey: KeyObject }): Retirement {
  const retirement = readRetirement(record)
  if (retirement.ca !== ca.user) throw bad('it names another CA')
  if (!verifyRaw(canonical(retirement.record.body), ca.publicKey, canonical(retirement.record.sig))) throw bad('its CA did not sign it')
  return retirement
}

/** What a retirement says, without asking who signed. Throws `verification`. */
export function readRetirement (record: unknown): Retirement {
  const parsed = parseSigned(record)
  const bytes = canonical(parsed.body)
  const [label, ca, issuedAt, ...more] = splitLvCat(bytes) ?? []
  if (label === undefined || !label.equals(RETIRE) || ca?.length !== 32 || issuedAt?.length !== 8 || more.length > 0) throw bad('its body is not a retirement')
  const time = Number(issuedAt.readBigUInt64BE())
  if (!Number.isSafeInteger(time) || !lvCat(RETIRE, ca, u64(time)).equals(bytes)) throw bad('its body is not canonical')
  return { kind: 'retire', ca: encodeBase32(ca) as UserId, issuedAt: time, record: parsed }
}

/** What a succession says, after both signatures were found good and everything it carries to be what the
 * body names. Whether `recoveryKey` is the one that was pinned is for the lineage to ask. Throws
 * `verification`. */
export function verifySuccession (record: unknown): Succession {
  const parsed = v.safeParse(SuccessionRecordShape, record)
  if (!parsed.success) throw bad(parsed.issues[0].message)
  const { body, sig, key, ca: caDer, next } = parsed.output
  const bytes = canonical(body)
  const [label, ca, newCa, caHash, nextId, seq, issuedAt, ...more] = splitLvCat(bytes) ?? []
  if (label === undefined || !label.equals(SUCCEED) || ca?.length !== 32 || newCa?.length !== 32 || caHash?.length !== 32 || nextId?.length !== 32 || seq?.length !== 4 || issuedAt?.length !== 8 || more.length > 0) throw bad('its body is not a succession')
  const time = Number(issuedAt.readBigUInt64BE())
  const number = seq.readUInt32BE()
  const der = canonical(caDer)
  const recoveryKey = canonical(key)
  const nextRecoveryKey = canonical(next)
  if (!Number.isSafeInteger(time) || number === 0) throw bad('its body is not canonical')
  if (!sha256(der).equals(caHash) || !sha256(nextRecoveryKey).equals(nextId)) throw bad('what it carries is not what its body names')
  if (ca.equals(newCa)) throw bad('a CA cannot follow itself')
  const authority = believe(() => readAuthorityDer(der))
  if (!newCa.equals(decodeBase32(authority.user))) throw bad('the CA it carries is not the one it names')
  if (!successionBody({ ca: encodeBase32(ca) as UserId, newCa: authority.user, der, next: nextId, seq: number, issuedAt: time }).equals(bytes)) throw bad('its body is not canonical')
  if (keyFormOf(recoveryKey) !== 'p256' || keyFormOf(nextRecoveryKey) !== 'p256') throw bad('a recovery key is P-256')
  if (!believe(() => isSignedBy(readLeaf(der), authority))) throw bad('the new CA is damaged: its own signature does not hold')
  const signatures = canonical(sig)
  if (!verifyRaw(bytes, publicKeyFromSpki(recoveryKey), signatures.subarray(0, 64))) throw bad('its recovery key did not sign it')
  if (!verifyRaw(bytes, authority.publicKey, signatures.subarray(64))) throw bad('the new CA did not sign it')
  return Object.freeze({
    kind: 'succeed', ca: encodeBase32(ca) as UserId, newCa: authority.user, newCaPem: encodePem('CERTIFICATE', der),
    recoveryKey, nextRecoveryKey, seq: number, issuedAt: time, record: parsed.output,
  })
}

function successionBody ({ ca, newCa, der, next, seq, issuedAt }: { ca: UserId, newCa: UserId, der: Uint8Array, next: Uint8Array, seq: number, issuedAt: number }): Buffer {
  if (!Number.isInteger(seq) || seq < 1 || seq > MOST_SEQ) throw new RangeError(`a succession's number is 1 to ${MOST_SEQ}`)
  const number = Buffer.alloc(4)
  number.writeUInt32BE(seq)
  return lvCat(SUCCEED, decodeBase32(ca), decodeBase32(newCa), sha256(der), next, number, u64(issuedAt))
}

function u64 (value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

function canonical (text: string): Buffer {
  const bytes = Buffer.from(text, 'base64url')
  if (bytes.toString('base64url') !== text) throw bad('its base64url is not canonical')
  return bytes
}

function believe<Result> (read: () => Result): Result {
  try {
    return read()
  } catch (error) {
    throw new PatchcordError('verification', 'a CA record is not believed: the CA it carries cannot be read', { hint: HINT, cause: error })
  }
}

const sha256 = (bytes: Uint8Array): Buffer => createHash('sha256').update(bytes).digest()
const signRaw = (bytes: Buffer, key: KeyObject): Buffer => sign('sha256', bytes, { key, dsaEncoding: 'ieee-p1363' })
const verifyRaw = (bytes: Buffer, key: KeyObject, sig: Buffer): boolean => verify('sha256', bytes, { key, dsaEncoding: 'ieee-p1363' }, sig)

const HINT = 'the device that sent it is damaged or lies; nothing was changed'
const bad = (problem: string): PatchcordError => new PatchcordError('verification', `a CA record is not believed: ${problem}`, { hint: HINT })

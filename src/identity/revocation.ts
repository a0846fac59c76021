import { sign, verify, type KeyObject } from 'node:crypto'
import * as v from 'valibot'
import { decodeBase32, encodeBase32 } from '../core/base32.js'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { lvCat, splitLvCat } from '../core/lv-cat.js'
import type { Authority } from './authority.js'
import { spkiOf, userIdOf } from './keys.js'

// A revocation record ends the trust in one device, by its ID, for everybody who trusts it through the CA
// that signed. It takes trust away and gives none, so a stolen CA key gains nothing by it.
//
//   body = lv_cat("patchcord-revocation/1", caId, deviceId, issuedAt u64 BE, reason u8)
//   on the wire {"v":1,"body":base64url,"sig":base64url}, sig = raw 64 bytes of P-256 with SHA-256

/** Why, as RFC 5280 section 5.3.1 counts. Informative: every reason revokes alike. */
export const REASON = { unspecified: 0, keyCompromise: 1, superseded: 4, cessationOfOperation: 5 } as const

/** What a record says. `issuedAt` is milliseconds since 1970 and informative. */
export interface RevocationBody {
  readonly ca: UserId
  readonly device: DeviceId
  readonly issuedAt: number
  /** 0 to 255. */
  readonly reason: number
}

/** A record as it crosses the wire. */
export interface SignedRecord {
  readonly v: 1
  readonly body: string
  readonly sig: string
}

export const SignedRecordShape = v.strictObject({
  v: v.literal(1),
  body: v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{1,400}$/, 'not base64url')),
  sig: v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{86}$/, 'not the base64url of 64 bytes')),
})

const LABEL = Buffer.from('patchcord-revocation/1')

/** Signs a record with the key of the CA that it names; `caKey` must be that key (`bad-certificate`). */
export function signRevocation (body: RevocationBody, caKey: KeyObject): SignedRecord {
  if (userIdOf(spkiOf(caKey)) !== body.ca) throw new PatchcordError('bad-certificate', 'the CA key does not belong to the CA that the record names')
  const bytes = encodeBody(body)
  return { v: 1, body: bytes.toString('base64url'), sig: sign('sha256', bytes, { key: caKey, dsaEncoding: 'ieee-p1363' }).toString('base64url') }
}

/** What a record from the wire says, after its signature was found to be that of `authority`, which it
 * names. Throws `verification` for anything else, and for every spelling but the canonical one. */
export function verifyRevocation (record: unknown, authority: Authority): RevocationBody {
  const signed = parseSigned(record)
  const body = parseBody(signed)
  if (body.ca !== authority.user) throw bad('it names another CA')
  const sig = fromBase64url(signed.sig)
  if (!verify('sha256', encodeBody(body), { key: authority.publicKey, dsaEncoding: 'ieee-p1363' }, sig)) throw bad('its CA did not sign it')
  return body
}

/** A record of the wire's form, not looked into. Throws `verification`. */
export function parseSigned (record: unknown): SignedRecord {
  const parsed = v.safeParse(SignedRecordShape, record)
  if (!parsed.success) throw bad(parsed.issues[0].message)
  return parsed.output
}

/** What a record says, without asking who signed. Throws `verification`. */
export function parseBody ({ body }: SignedRecord): RevocationBody {
  const bytes = fromBase64url(body)
  const [label, ca, device, issuedAt, reason, ...more] = splitLvCat(bytes) ?? []
  if (label === undefined || !label.equals(LABEL) || ca?.length !== 32 || device?.length !== 32 || issuedAt?.length !== 8 || reason?.length !== 1 || more.length > 0) throw bad('its body is not a revocation')
  const parsed: RevocationBody = {
    ca: encodeBase32(ca) as UserId,
    device: encodeBase32(device) as DeviceId,
    issuedAt: Number(issuedAt.readBigUInt64BE()),
    reason: reason[0]!,
  }
  // One body has one spelling; a time that a number cannot hold exactly has none here.
  if (!Number.isSafeInteger(parsed.issuedAt) || !encodeBody(parsed).equals(bytes)) throw bad('its body is not canonical')
  return parsed
}

/** The bytes that are signed. */
export function encodeBody ({ ca, device, issuedAt, reason }: RevocationBody): Buffer {
  const time = Buffer.alloc(8)
  time.writeBigUInt64BE(BigInt(issuedAt))
  return lvCat(LABEL, decodeBase32(ca), decodeBase32(device), time, Buffer.of(reason))
}

function fromBase64url (text: string): Buffer {
  const bytes = Buffer.from(text, 'base64url')
  if (bytes.toString('base64url') !== text) throw bad('its base64url is not canonical')
  return bytes
}

const bad = (problem: string): PatchcordError => new PatchcordError('verification', `a revocation record is not believed: ${problem}`, { hint: 'the device that sent it is damaged or lies; nothing was changed' })

import { isDatabaseName, type DatabaseName } from '../core/ids.js'
import { lvCat, splitLvCat } from '../core/lv-cat.js'
import { SHARE_BYTES } from './cpace.js'
import { encodeFrame, MESSAGE, RECORD_LIMIT, splitFields } from './frames.js'
import { TAG_BYTES } from './proof.js'

// The fields of M1 to M9. A parser gives undefined for every body but the one that its encoder writes: it
// reads, encodes again and compares. Nothing is believed here; tags and certificates are judged by the
// machines.

/** Which secret the initiator typed or scanned. */
export type SecretKind = 'code' | 'link'
export type Role = 'I' | 'R'
/** What the two become: devices of one person, or of two. */
export type Relation = 'own' | 'peer'
export type Access = 'read' | 'write'

/** What a side says of itself. Certificates and signing requests are DER. */
export interface PartyRecord {
  readonly role: Role
  readonly relation: Relation
  /** The other's own words: 1 to 100 characters of anything. It is shown escaped, and decides nothing. */
  readonly name: string
  readonly deviceCertificate: Buffer
  readonly userCa: Buffer
  /** The public half of the recovery key (SubjectPublicKeyInfo), where there is one. */
  readonly recoveryKey?: Buffer
  /** Of the device key and of the server key: in the initiator's record, and for `own` alone. */
  readonly requests: readonly Buffer[]
  /** Where the open port is, 1 to 65535, where it listens. */
  readonly port?: number
  /** What is offered to the other: each database once, in the order of its name. */
  readonly databases: ReadonlyMap<DatabaseName, Access>
}

/** Why one side ends the exchange, as it crosses the wire. */
export const REFUSALS = ['wait', 'ended', 'version', 'proof', 'garbled', 'record', 'relation', 'declined', 'revoked', 'refused', 'slow', 'failed'] as const
export type Refusal = typeof REFUSALS[number]

const VERSION = 1
const CERTIFICATE_LIMIT = 4096
const REQUEST_LIMIT = 8192
/** Code units, as the whitelist's names have it. */
export const NAME_LIMIT = 100
const MOST_DATABASES = 64
const RECOVERY_KEY_BYTES = 91

const ascii = (text: string): Buffer => Buffer.from(text, 'latin1')

/** M1. */
export const encodeHello = (kind: SecretKind, share: Uint8Array): Buffer => encodeFrame(MESSAGE.hello, Buffer.of(VERSION), ascii(kind), share)

/** M1, or `version` where it speaks another than ours. */
export function parseHello (body: Buffer): { readonly kind: SecretKind, readonly share: Buffer } | 'version' | undefined {
  const fields = splitFields(body, 3)
  if (fields === undefined) return undefined
  const [version, kindBytes, share] = fields as [Buffer, Buffer, Buffer]
  if (version.length === 1 && version[0] !== VERSION) return 'version'
  const kind = kindBytes.toString('latin1')
  if (version.length !== 1 || (kind !== 'code' && kind !== 'link') || share.length !== SHARE_BYTES) return undefined
  return { kind, share }
}

/** M2. */
export const encodeShare = (share: Uint8Array): Buffer => encodeFrame(MESSAGE.share, share)
export const parseShare = (body: Buffer): Buffer | undefined => sized(body, SHARE_BYTES)

/** M3, M4, M7 and M9 hold a tag and nothing else. */
export const encodeTag = (number: typeof MESSAGE.tagI | typeof MESSAGE.tagR | typeof MESSAGE.accept | typeof MESSAGE.done, tag: Uint8Array): Buffer => encodeFrame(number, tag)
export const parseTag = (body: Buffer): Buffer | undefined => sized(body, TAG_BYTES)

/** M5 and M6: the record as it is tagged, and its tag. */
export const encodeSignedRecord = (role: Role, record: Uint8Array, tag: Uint8Array): Buffer => encodeFrame(role === 'I' ? MESSAGE.recordI : MESSAGE.recordR, record, tag)
export function parseSignedRecord (body: Buffer): { readonly record: Buffer, readonly tag: Buffer } | undefined {
  const [record, tag] = splitFields(body, 2) ?? []
  return record === undefined || tag?.length !== TAG_BYTES || record.length > RECORD_LIMIT ? undefined : { record, tag }
}

/** M8: what the tag covers besides what came before, and the message. Certificates are DER: the device's and
 * the server's for `own`, none for `peer`. */
export const encodeCertificates = (certificates: readonly Uint8Array[]): Buffer => lvCat(...certificates)
export const encodeCommit = (certificates: Uint8Array, tag: Uint8Array): Buffer => encodeFrame(MESSAGE.commit, certificates, tag)
export function parseCommit (body: Buffer): { readonly signed: Buffer, readonly certificates: readonly Buffer[], readonly tag: Buffer } | undefined {
  const [signed, tag] = splitFields(body, 2) ?? []
  if (signed === undefined || tag?.length !== TAG_BYTES) return undefined
  const certificates = signed.length === 0 ? [] : splitFields(signed, 2)
  if (certificates === undefined || !certificates.every(one => one.length > 0 && one.length <= CERTIFICATE_LIMIT)) return undefined
  return { signed, certificates, tag }
}

/** In place of any message. */
export const encodeRefusal = (reason: Refusal): Buffer => encodeFrame(MESSAGE.refuse, ascii(reason))
export function parseRefusal (body: Buffer): Refusal | undefined {
  const [word] = splitFields(body, 1) ?? []
  return REFUSALS.find(reason => word?.equals(ascii(reason)))
}

/** A record as it is tagged: lv_cat(role, relation, name, deviceCert, userCa, recoveryKey or empty, csr or
 * empty, grants), where csr is the lv_cat of the two requests and grants the lv_cat of the port (two bytes,
 * or empty) and of each database and its access. Throws RangeError for one that its parser would refuse:
 * a defect of ours, or a setting too long. */
export function encodeRecord (record: PartyRecord): Buffer {
  const encoded = spell(record)
  if (parseRecord(encoded) === undefined) throw new RangeError(`a record of ${encoded.length} bytes is not one that the other device would read: look at the name, the certificates and the databases`)
  return encoded
}

/** Reads such a record; undefined for every other bytes. */
export function parseRecord (bytes: Buffer): PartyRecord | undefined {
  if (bytes.length > RECORD_LIMIT) return undefined
  const fields = splitFields(bytes, 8)
  if (fields === undefined) return undefined
  const [roleBytes, relationBytes, nameBytes, deviceCertificate, userCa, recoveryKey, csr, grants] = fields as [Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer, Buffer]
  const role = roleBytes.toString('latin1')
  const relation = relationBytes.toString('latin1')
  const name = readName(nameBytes)
  if ((role !== 'I' && role !== 'R') || (relation !== 'own' && relation !== 'peer') || name === undefined) return undefined
  if (![deviceCertificate, userCa].every(one => one.length > 0 && one.length <= CERTIFICATE_LIMIT)) return undefined
  if (recoveryKey.length !== 0 && recoveryKey.length !== RECOVERY_KEY_BYTES) return undefined
  const requests = role === 'I' && relation === 'own' ? splitFields(csr, 2) : splitFields(csr, 0)
  if (requests === undefined || !requests.every(one => one.length > 0 && one.length <= REQUEST_LIMIT)) return undefined
  const offered = readOffers(grants)
  if (offered === undefined) return undefined
  const record: PartyRecord = { role, relation, name, deviceCertificate, userCa, ...(recoveryKey.length === 0 ? {} : { recoveryKey }), requests, ...offered }
  return spell(record).equals(bytes) ? record : undefined
}

function spell ({ role, relation, name, deviceCertificate, userCa, recoveryKey, requests, port, databases }: PartyRecord): Buffer {
  const grants = [...databases].toSorted(([one], [other]) => one < other ? -1 : 1).flatMap(([database, access]) => [ascii(database), ascii(access)])
  return lvCat(ascii(role), ascii(relation), Buffer.from(name), deviceCertificate, userCa, recoveryKey ?? NOTHING, lvCat(...requests), lvCat(port === undefined ? NOTHING : Buffer.of(port >> 8, port & 255), ...grants))
}

function readName (bytes: Buffer): string | undefined {
  try {
    const name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    return name.length > 0 && name.length <= NAME_LIMIT ? name : undefined
  } catch {
    return undefined
  }
}

function readOffers (grants: Buffer): Pick<PartyRecord, 'port' | 'databases'> | undefined {
  const [portBytes, ...pairs] = splitLvCat(grants) ?? []
  if (portBytes === undefined || pairs.length % 2 !== 0 || pairs.length > 2 * MOST_DATABASES) return undefined
  const port = portBytes.length === 2 ? portBytes.readUInt16BE() : undefined
  if (portBytes.length !== 0 && (port === undefined || port === 0)) return undefined
  const databases = new Map<DatabaseName, Access>()
  for (let at = 0; at < pairs.length; at += 2) {
    const database = pairs[at]!.toString('latin1')
    const access = pairs[at + 1]!.toString('latin1')
    if (!isDatabaseName(database) || (access !== 'read' && access !== 'write')) return undefined
    databases.set(database, access)
  }
  return { ...(port === undefined ? {} : { port }), databases }
}

const NOTHING = Buffer.alloc(0)

function sized (body: Buffer, length: number): Buffer | undefined {
  const [field] = splitFields(body, 1) ?? []
  return field?.length === length ? field : undefined
}

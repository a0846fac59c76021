import { createHash, createHmac, hkdfSync, timingSafeEqual } from 'node:crypto'
import { decodeBase32 } from '../core/base32.js'
import type { DeviceId } from '../core/ids.js'
import { lvCat } from '../core/lv-cat.js'
import { deriveIsk, makeShare, type OwnShare, type Sent, type Terms } from './cpace.js'
import type { Role, SecretKind } from './messages.js'

// Everything that is computed from the secret: the terms of CPace, the two tags, and the key under which
// records and confirmations cross. One file, because both ends must compute the same.

/** The length of every tag, in bytes: HMAC-SHA-512. */
export const TAG_BYTES = 64
/** The label under which both ends take sid from TLS, and its length in bytes (RFC 8446 section 7.5). */
export const EXPORTER_LABEL = 'EXPORTER-patchcord-pair-1'
export const SID_BYTES = 32

/** What TLS says of a connection: the channel's own identifier, and who is at its other end. */
export interface Channel {
  readonly sid: Buffer
  readonly other: DeviceId
  /** 32 bytes that were never used before. */
  readonly random: Buffer
}

/** Whose secret it is and who are at the two ends. */
export interface Binding {
  readonly kind: SecretKind
  /** Six ASCII digits, or 16 bytes. */
  readonly secret: Uint8Array
  readonly sid: Uint8Array
  readonly initiator: DeviceId
  readonly responder: DeviceId
}

/** What both sides must have in common for their tags to be equal. */
export function termsOf ({ kind, secret, sid, initiator, responder }: Binding): Terms {
  const kindBytes = Buffer.from(kind)
  return {
    prs: lvCat(kindBytes, secret),
    ci: lvCat(Buffer.from('patchcord-pair/1'), kindBytes, decodeBase32(initiator), decodeBase32(responder)),
    sid,
  }
}

/** Our share under these terms. */
export const shareOf = (binding: Binding, random: Uint8Array): OwnShare => makeShare(termsOf(binding), random)

/** What both shares give: the tag of each side, and K. */
export interface Keys {
  readonly tags: Readonly<Record<Role, Buffer>>
  /** HKDF-SHA-512, 64 bytes. */
  readonly records: Buffer
}

/** The keys of a session, seen from `role`. undefined where the other's share is not to be used. */
export function keysOf (binding: Binding, role: Role, own: OwnShare, other: Uint8Array): Keys | undefined {
  const sent: Record<Role, Sent> = {
    I: { share: role === 'I' ? own.share : other, ad: AD.I },
    R: { share: role === 'R' ? own.share : other, ad: AD.R },
  }
  const isk = deriveIsk(termsOf(binding), own, other, { initiator: sent.I, responder: sent.R })
  if (isk === undefined) return undefined
  // The draft's own confirmation, section 9.4 ("Key confirmation").
  const macKey = createHash('sha512').update('CPaceMac').update(binding.sid).update(isk).digest()
  const tag = ({ share, ad }: Sent): Buffer => hmac(macKey, lvCat(share, ad))
  return {
    tags: { I: tag(sent.I), R: tag(sent.R) },
    records: Buffer.from(hkdfSync('sha512', isk, binding.sid, 'patchcord-pair/1 records', 64)),
  }
}

const AD: Readonly<Record<Role, Buffer>> = { I: Buffer.from('I'), R: Buffer.from('R') }

/** H over the frames that crossed, in order. A frame says its own length, so their sequence has one
 * spelling. */
export const hashOf = (transcript: Uint8Array): Buffer => createHash('sha512').update(transcript).digest()

/** The tag of M5 or M6: over the role, M1 to M4 and the record. */
export const recordTag = ({ records }: Keys, role: Role, transcript: Uint8Array, record: Uint8Array): Buffer =>
  hmac(records, lvCat(AD[role], hashOf(transcript), record))

/** The tag of M7, M8 or M9: over all before it, which for M8 ends with the certificates beside it. */
export const confirmationTag = ({ records }: Keys, label: 'accept' | 'commit' | 'done', transcript: Uint8Array, beside: Uint8Array = new Uint8Array(0)): Buffer =>
  hmac(records, lvCat(Buffer.from(label), hashOf(Buffer.concat([transcript, beside]))))

/** Whether two tags are equal, in a time that does not depend on where they differ. */
export const isSameTag = (one: Buffer, other: Buffer): boolean => one.length === other.length && timingSafeEqual(one, other)

const hmac = (key: Uint8Array, data: Uint8Array): Buffer => createHmac('sha512', key).update(data).digest()

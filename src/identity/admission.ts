import { createHash } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { encodeBase32 } from '../core/base32.js'
import type { DeviceId, UserId } from '../core/ids.js'
import type { Principal } from '../policy/principal.js'
import { readAuthority, type Authority } from './authority.js'
import { isSignedBy, type Leaf } from './leaf.js'
import { OWN_GRANT, type AuthorityEntry, type Trust, type TrustedEntry } from './trust.js'

// The one predicate of trust, for both ends of every connection. It refuses unless everything holds: what
// cannot be read, found, dated or verified is not admitted. Revocation is asked first and by device ID, so
// that no way in survives it. Then the most specific entry decides alone: the device's, else that of its
// CA, else our own CA. An entry that refuses is never made good by a more general one.

export { buildTrust, type Trust, type TrustParts, type WhitelistEntry } from './trust.js'

/** Which rule refused. */
export type RefusalRule =
  | 'revoked'
  /** CA:TRUE, or a key that may sign certificates. */
  | 'not-a-leaf'
  | 'unknown-critical'
  /** extendedKeyUsage does not name what the certificate is used for, or the key may not authenticate. */
  | 'wrong-usage'
  | 'key-form'
  /** The CA that has to have signed did not. */
  | 'bad-signature'
  /** No entry knows this device or its CA. */
  | 'unknown'
  /** Our own CA signed, and no grant is called `own`. */
  | 'no-grant'
  /** A server other than the one that was meant. */
  | 'wrong-device'
  /** The CA is outside its own dates. */
  | 'ca-dates'
  /** The whitelist entry ended. */
  | 'entry-ended'
  | 'not-yet-valid'
  | 'expired'

export interface Refusal {
  readonly refused: RefusalRule
  /** For the log and for `explain`: lower case, nothing secret. */
  readonly reason: string
  /** Who it would be, had the certificate not ended: set only with `expired`, at most a year after the end
   * and where everything else holds. It opens `GET /mail` and nothing else. */
  readonly renewable?: Principal
}

/** Whether admission refused. */
export const isRefusal = (result: object): result is Refusal => 'refused' in result

/** How long after its end a certificate may still fetch its renewal, in milliseconds. */
export const RENEWABLE_MS = 365 * 24 * 60 * 60 * 1000

/** The most signatures checked for one certificate among the CAs of the whitelist. */
export const MOST_SIGNATURE_CHECKS = 8

/** Who this client is, or why not. Pure but for the cache of signatures: ask again for every request. */
export function admitClient (trust: Trust, leaf: Leaf, now: number): Principal | Refusal {
  const { deviceId } = leaf
  if (trust.revoked.has(deviceId)) return refuse('revoked', `device ${deviceId} is revoked`)
  const form = refuseForm(leaf) ?? (leaf.clientAuth ? undefined : refuse('wrong-usage', 'the certificate is not for clients (extendedKeyUsage lacks clientAuth)'))
  if (form !== undefined) return form
  const standing = standingOf(trust, leaf)
  if ('refused' in standing) return standing
  const { entry, principal } = standing
  const ended = refuseEntryDates(entry, now)
  if (ended !== undefined) return ended
  const dates = refuseDates(leaf, now)
  if (dates?.refused === 'expired' && now - leaf.notAfter <= RENEWABLE_MS) return Object.freeze({ ...dates, renewable: principal })
  return dates ?? principal
}

/** What of the answer depends on neither the time nor on who is revoked. Trust never changes, nor does a leaf: it
 * is found once, and asked for again when there is another trust. */
function standingOf (trust: Trust, leaf: Leaf): Standing | Refusal {
  const known = standings.get(leaf)
  if (known?.trust === trust) return known
  const entry = entryOf(trust, leaf)
  if ('refused' in entry) return entry
  const standing = { trust, entry, principal: principalOf(leaf.deviceId, entry, leaf.notAfter) }
  standings.set(leaf, standing)
  return standing
}

interface Standing {
  readonly trust: Trust
  readonly entry: Decider
  readonly principal: Principal
}

const standings = new WeakMap<Leaf, Standing>()

/** Who a device would be with a good certificate of its CA, or why not: for `explain`, which has none at
 * hand. It admits nobody. */
export function expectPrincipal (trust: Trust, { device, user }: { readonly device: DeviceId, readonly user: UserId }, now: number): Principal | Refusal {
  if (trust.revoked.has(device)) return refuse('revoked', `device ${device} is revoked`)
  const entry = expectedEntry(trust, device, user)
  if ('refused' in entry) return entry
  return refuseEntryDates(entry, now) ?? principalOf(device, entry, Infinity)
}

function expectedEntry (trust: Trust, device: DeviceId, user: UserId): Decider | Refusal {
  const listed = trust.devices.get(device)
  if (listed !== undefined) {
    if (listed.authority !== undefined && listed.authority.user !== user) return refuse('bad-signature', `device ${device} is listed with another CA`)
    return { ...listed, key: `device:${device}` }
  }
  const authority = trust.authorities.get(user)
  if (authority !== undefined) return { ...authority, key: `ca:${user}` }
  return user === trust.user ? ownEntry(trust, device) : refuse('unknown', `neither device ${device} nor its CA is known here`)
}

function principalOf (device: DeviceId, entry: Decider, notAfter: number): Principal {
  return Object.freeze({
    device,
    user: entry.authority?.user,
    relation: entry.relation,
    entry: entry.key,
    name: entry.name,
    grantName: entry.grantName,
    grant: entry.grant,
    checkpoints: checkpointsOf(device),
    endsAt: Math.min(notAfter, entry.endsAt, entry.authority?.notAfter ?? Infinity),
  })
}

export interface ExpectedServer {
  /** The device that is meant. */
  readonly device: DeviceId
  /** The CA that was pinned for it, as PEM or as read. Without one nothing can prove a server, because its
   * key is not the device's: it is refused. */
  readonly ca: string | Authority | undefined
  readonly revoked: { has (device: DeviceId): boolean }
}

export interface AdmittedServer {
  readonly admitted: true
  readonly device: DeviceId
  /** When the certificate or its CA ends, milliseconds since 1970. */
  readonly endsAt: number
}

/** The SAN URI that names a device's server. */
export const serverUri = (device: DeviceId): string => `urn:patchcord:${device}`

/** Whether this server speaks for the device that was meant. The certificate names exactly that device,
 * is for servers, and was signed by the CA pinned for it. Throws `bad-certificate` for a `ca` that is not
 * a user CA. */
export function admitServer ({ device, ca, revoked }: ExpectedServer, leaf: Leaf, now: number): AdmittedServer | Refusal {
  if (revoked.has(device) || revoked.has(leaf.deviceId)) return refuse('revoked', `device ${device} is revoked`)
  const form = refuseForm(leaf) ?? (leaf.serverAuth ? undefined : refuse('wrong-usage', 'the certificate is not for servers (extendedKeyUsage lacks serverAuth)'))
  if (form !== undefined) return form
  if (leaf.keyForm !== 'p256') return refuse('key-form', 'a server has a P-256 key')
  const named = leaf.uris.filter(uri => uri.toLowerCase().startsWith('urn:patchcord:'))
  if (named.length !== 1 || named[0] !== serverUri(device)) return refuse('wrong-device', `the certificate does not name device ${device}`)
  if (ca === undefined) return refuse('unknown', `no CA is known for device ${device}`)
  const authority = typeof ca === 'string' ? readAuthority(ca) : ca
  if (!isSignedBy(leaf, authority)) return refuse('bad-signature', `the CA known for device ${device} did not sign this certificate`)
  return refuseAuthorityDates(authority, now) ?? refuseDates(leaf, now) ?? Object.freeze({ admitted: true, device, endsAt: Math.min(leaf.notAfter, authority.notAfter) })
}

type Decider = TrustedEntry & { readonly key: string }

function entryOf (trust: Trust, leaf: Leaf): Decider | Refusal {
  const { deviceId } = leaf
  const listed = trust.devices.get(deviceId)
  if (listed !== undefined) {
    if (listed.authority !== undefined && !isSignedBy(leaf, listed.authority)) return refuse('bad-signature', `the CA listed with device ${deviceId} did not sign this certificate`)
    return { ...listed, key: `device:${deviceId}` }
  }
  if (leaf.keyForm !== 'p256') return refuse('key-form', 'RSA is for clients that are listed by device ID')
  // Our own CA's signature is checked first, but an entry that lists our CA still decides before it. First,
  // because ECDSA lets anybody craft a key under which a given signature verifies: a listed CA made so
  // could otherwise claim our own devices.
  const signer = isSignedBy(leaf, trust.own) ? trust.authorities.get(trust.user) : candidatesFor(trust, leaf).find(({ authority }) => isSignedBy(leaf, authority))
  if (signer !== undefined) return { ...signer, key: `ca:${signer.authority.user}` }
  if (!isSignedBy(leaf, trust.own)) return refuse('unknown', `neither device ${deviceId} nor the CA of its certificate is known here`)
  return ownEntry(trust, deviceId)
}

function ownEntry (trust: Trust, device: DeviceId): Decider | Refusal {
  if (trust.ownGrant === undefined) return refuse('no-grant', 'no grant is called "own"')
  return { name: device, authority: trust.own, endsAt: Infinity, grantName: OWN_GRANT, grant: trust.ownGrant, relation: 'own', key: `own:${device}` }
}

/** Where a signature is worth checking. Names are the sender's own words: they may cost it its admission,
 * never gain it one, and never cost us more than a bounded number of checks. */
function candidatesFor (trust: Trust, leaf: Leaf): readonly AuthorityEntry[] {
  if (trust.authorities.size <= MOST_SIGNATURE_CHECKS) return [...trust.authorities.values()]
  const byKeyId = leaf.authorityKeyId === undefined ? [] : trust.byKeyId.get(leaf.authorityKeyId.toString('hex')) ?? []
  const bySubject = trust.bySubject.get(leaf.issuer.toString('hex')) ?? []
  return [...new Set([...byKeyId.slice(0, MOST_SIGNATURE_CHECKS), ...bySubject.slice(0, MOST_SIGNATURE_CHECKS)])].slice(0, MOST_SIGNATURE_CHECKS)
}

/** What no entry can make good. */
function refuseForm (leaf: Leaf): Refusal | undefined {
  if (leaf.isCa || leaf.canSignCertificates) return refuse('not-a-leaf', 'a CA certificate identifies no device')
  if (leaf.unknownCritical) return refuse('unknown-critical', 'the certificate has a critical extension that patchcord does not know')
  if (!leaf.canAuthenticate) return refuse('wrong-usage', 'keyUsage lacks digitalSignature')
  if (leaf.keyForm === 'other') return refuse('key-form', 'the key is neither P-256 nor RSA-3072 in canonical form')
  return undefined
}

function refuseEntryDates ({ name, endsAt, authority }: TrustedEntry, now: number): Refusal | undefined {
  return !(now <= endsAt) ? refuse('entry-ended', `the whitelist entry "${name}" ended ${instant(endsAt)}`) : refuseAuthorityDates(authority, now)
}

function refuseAuthorityDates (authority: Authority | undefined, now: number): Refusal | undefined {
  if (authority === undefined || (now >= authority.notBefore && now <= authority.notAfter)) return undefined
  return refuse('ca-dates', `the CA ${authority.user} is valid from ${instant(authority.notBefore)} to ${instant(authority.notAfter)}`)
}

// Written so that a clock that gives NaN refuses.
function refuseDates ({ notBefore, notAfter }: Leaf, now: number): Refusal | undefined {
  if (!(now >= notBefore)) return refuse('not-yet-valid', `the certificate begins ${instant(notBefore)}`)
  if (!(now <= notAfter)) return refuse('expired', `the certificate ended ${instant(notAfter)}`)
  return undefined
}

const refuse = (refused: RefusalRule, reason: string): Refusal => Object.freeze({ refused, reason })

const instant = (time: number): string => Number.isFinite(time) ? new Date(time).toISOString() : String(time)

/** 130 bits of a hash of the device ID: enough to keep devices apart, short enough for document IDs. */
function checkpointsOf (device: DeviceId): string {
  let prefix = checkpoints.get(device)
  if (prefix === undefined) {
    prefix = encodeBase32(createHash('sha256').update(`patchcord-checkpoints/1${device}`).digest()).slice(0, 26)
    checkpoints.set(device, prefix)
  }
  return prefix
}

const checkpoints = new LRUCache<DeviceId, string>({ max: 4096 })

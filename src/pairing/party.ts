import { messageOf } from '../core/errors.js'
import { cut, type DeviceId, type UserId } from '../core/ids.js'
import { NAME_LIMIT, type PartyRecord, type Relation, type Role } from './messages.js'
import type { Failure } from './failures.js'

// The two parties: what this device brings to an exchange, and what it believes of the other one once its
// record is proved to come from the other end of the channel.

/** The certificate functions, handed in. Each throws for what is not in its one canonical form, and depends
 * on its arguments alone. Certificates and requests are DER. */
export interface Certificates {
  /** The device whose P-256 key this certificate shows, whoever signed it. */
  deviceOf (certificate: Buffer): DeviceId
  /** Who a device certificate and a user CA speak of. Throws unless the CA signed the certificate and would
   * be admitted to do so. */
  identify (deviceCertificate: Buffer, userCa: Buffer): { readonly device: DeviceId, readonly user: UserId }
  /** Whose device key the first of the two requests is over. Throws unless each is signed by the key it
   * names and the keys differ. */
  deviceOfRequests (requests: readonly Buffer[]): DeviceId
  /** Whom a device certificate and a server certificate, both signed by this CA, were issued to. */
  deviceOfIssue (certificates: readonly Buffer[], userCa: Buffer): DeviceId
}

/** What we tell of ourselves, besides the role and the relation. */
export type OwnRecord = Omit<PartyRecord, 'role' | 'relation'>

/** This device, as both machines need it. */
export interface Self {
  readonly device: DeviceId
  readonly user: UserId
  readonly record: OwnRecord
  readonly certificates: Certificates
  /** A revoked device ID cannot pair. Asked at its first message, and again before anything is kept. */
  readonly isRevoked: (device: DeviceId) => boolean
  /** Why this one cannot be paired with in this way, lower case, for the person: its CA is known under
   * another name, this device cannot issue, it has peers and would change its user. */
  readonly objection: (other: Other) => string | undefined
}

/** The other device, after its record was found to fit the key that TLS proved. */
export interface Other extends Omit<PartyRecord, 'role'> {
  readonly device: DeviceId
  readonly user: UserId
  /** Its own words, escaped: no control or bidirectional characters are left. */
  readonly name: string
}

/** A pair as it is written down: by the responder at its commit, by the initiator when that arrived. */
export interface Pair {
  /** Which role this device had. */
  readonly role: Role
  readonly relation: Relation
  readonly other: Other
  /** For `own`, the device's and the server's certificate: those we issued, or those we were given. */
  readonly certificates: readonly Buffer[]
}

/** The other party, or why its record is not to be believed. `device` is who TLS proved is there. */
export function meet (self: Self, record: PartyRecord, device: DeviceId): Other | Failure {
  let found: { readonly device: DeviceId, readonly user: UserId }
  try {
    found = self.certificates.identify(record.deviceCertificate, record.userCa)
    if (record.requests.length > 0 && self.certificates.deviceOfRequests(record.requests) !== device) return unfit('its signing request is over another key than its connection')
  } catch (error) {
    return unfit(messageOf(error))
  }
  if (found.device !== device) return unfit('its certificate is over another key than its connection')
  // A device of ours that pairs again as ours mends a broken end; as a peer it would be two things at once.
  if (found.user === self.user && record.relation === 'peer') return { reason: 'refused', by: 'us', detail: 'it is a device of your own already' }
  if (self.isRevoked(device)) return { reason: 'revoked', by: 'us' }
  const { role: _role, ...rest } = record
  // Only these two: what is handed in may give more, and must not replace what was proved.
  const other: Other = { ...rest, device: found.device, user: found.user, name: cut(record.name, NAME_LIMIT) }
  const objection = self.objection(other)
  return objection === undefined ? other : { reason: 'refused', by: 'us', detail: objection }
}

const unfit = (detail: string): Failure => ({ reason: 'record', by: 'us', detail })

/** Whether `meet` refused. */
export const isFailure = (met: Other | Failure): met is Failure => 'reason' in met

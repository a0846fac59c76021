import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { cut } from '../core/ids.js'
import type { Grant } from '../policy/principal.js'
import { readAuthority, type Authority } from './authority.js'

/** One line of the whitelist, as `docs/contracts` has it. With `device` and `ca` a certificate needs both;
 * `device` alone ends at `notAfter`, where given; `ca` alone admits every device of that CA. */
export interface WhitelistEntry {
  readonly name: string
  readonly device?: DeviceId
  /** PEM of a user CA. */
  readonly ca?: string
  /** ISO 8601 with a zone. */
  readonly notAfter?: string
  readonly grant: string
}

/** An entry after its certificate, date and grant were looked up. */
export interface TrustedEntry {
  readonly name: string
  readonly authority: Authority | undefined
  /** Milliseconds since 1970; Infinity where the entry has no end of its own. */
  readonly endsAt: number
  readonly grantName: string
  readonly grant: Grant
  readonly relation: 'own' | 'peer'
}

/** Everything that admission decides by, at one moment. It never changes; an update builds another one. */
export interface Trust {
  readonly own: Authority
  readonly user: UserId
  /** undefined where no grant is called `own`: then no device is admitted for its CA alone. */
  readonly ownGrant: Grant | undefined
  readonly revoked: ReadonlySet<DeviceId>
  readonly devices: ReadonlyMap<DeviceId, TrustedEntry>
  /** Entries that name a CA alone, by the ID of its key, by its key identifier and by its raw name. */
  readonly authorities: ReadonlyMap<UserId, AuthorityEntry>
  readonly byKeyId: ReadonlyMap<string, readonly AuthorityEntry[]>
  readonly bySubject: ReadonlyMap<string, readonly AuthorityEntry[]>
}

export type AuthorityEntry = TrustedEntry & { readonly authority: Authority }

export interface TrustParts {
  /** PEM of this user's CA. */
  readonly userCa: string
  readonly whitelist: readonly WhitelistEntry[]
  readonly revoked: Iterable<DeviceId>
  readonly grants: Readonly<Record<string, Grant>>
}

/** The grant of devices that this user's own CA certified. */
export const OWN_GRANT = 'own'

/** Looks everything up once, so that admission need not. Throws `bad-env` naming the field, and builds
 * nothing, where a CA cannot be read, an entry names a grant that does not exist, names neither device nor
 * CA, or names what an earlier entry names. Linear in the whitelist. */
export function buildTrust ({ userCa, whitelist, revoked, grants }: TrustParts): Trust {
  // One person's CA stands in the entry of each of their devices; it is read once.
  const read = new Map<string, Authority>()
  const authorityOf = (pem: string, field: string): Authority => {
    let authority = read.get(pem)
    if (authority === undefined) {
      authority = at(field, () => readAuthority(pem))
      read.set(pem, authority)
    }
    return authority
  }
  const own = authorityOf(userCa, 'identity.userCa')
  const frozen = new Map<string, Grant>()
  for (const [name, grant] of Object.entries(grants)) frozen.set(name, freezeGrant(grant))

  const devices = new Map<DeviceId, TrustedEntry>()
  const authorities = new Map<UserId, AuthorityEntry>()
  const byKeyId = new Map<string, AuthorityEntry[]>()
  const bySubject = new Map<string, AuthorityEntry[]>()
  for (const [index, { name, device, ca, notAfter, grant: grantName }] of whitelist.entries()) {
    const field = `whitelist[${index}]`
    const grant = frozen.get(grantName)
    if (grant === undefined) throw bad(`${field}.grant`, `there is no grant "${cut(grantName)}"`, 'name one of `grants`')
    const authority = ca === undefined ? undefined : authorityOf(ca, `${field}.ca`)
    const relation = grantName === OWN_GRANT ? 'own' : 'peer'
    // `own` may hold a `*`: it is for devices of this user, which this user's CA says they are.
    if (relation === 'own' && authority?.user !== own.user) throw bad(`${field}.grant`, '"own" is for devices that this user\'s CA certified', 'give it a grant of its own')
    const entry: TrustedEntry = Object.freeze({
      name, authority, relation, grantName, grant, endsAt: notAfter === undefined ? Infinity : parseInstant(notAfter, `${field}.notAfter`),
    })
    if (device !== undefined) {
      if (devices.has(device)) throw bad(`${field}.device`, `${device} is listed twice`, 'one entry decides for a device, so keep one')
      devices.set(device, entry)
    } else if (hasAuthority(entry)) {
      if (authorities.has(entry.authority.user)) throw bad(`${field}.ca`, `${entry.authority.user} is listed twice`, 'one entry decides for a CA, so keep one')
      authorities.set(entry.authority.user, entry)
      if (entry.authority.subjectKeyId !== undefined) push(byKeyId, entry.authority.subjectKeyId.toString('hex'), entry)
      push(bySubject, entry.authority.subject.toString('hex'), entry)
    } else {
      throw bad(field, 'it names neither a device nor a CA', 'give it `device`, `ca` or both')
    }
  }
  return Object.freeze({ own, user: own.user, ownGrant: frozen.get(OWN_GRANT), revoked: new Set(revoked), devices, authorities, byKeyId, bySubject })
}

const INSTANT = /^\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:\d\d)$/

/** Milliseconds since 1970 of an ISO 8601 date and time with a zone. Throws `bad-env` naming the field. */
export function parseInstant (text: string, field: string): number {
  const instant = INSTANT.test(text) ? Date.parse(text) : NaN
  if (Number.isNaN(instant)) throw bad(field, `"${cut(text)}" is not a date`, 'write it as 2027-01-31T12:00:00Z')
  return instant
}

const hasAuthority = (entry: TrustedEntry): entry is AuthorityEntry => entry.authority !== undefined

const freezeGrant = ({ databases, files }: Grant): Grant => Object.freeze({ databases: Object.freeze({ ...databases }), files })

function push (index: Map<string, AuthorityEntry[]>, key: string, entry: AuthorityEntry): void {
  const list = index.get(key)
  if (list === undefined) index.set(key, [entry])
  else list.push(entry)
}

function at<Result> (field: string, read: () => Result): Result {
  try {
    return read()
  } catch (error) {
    throw new PatchcordError('bad-env', `${field}: ${error instanceof Error ? error.message : String(error)}`, { hint: 'give the PEM of a user CA as patchcord makes it: P-256, CA:TRUE', cause: error })
  }
}

const bad = (field: string, problem: string, hint: string): PatchcordError => new PatchcordError('bad-env', `${field}: ${problem}`, { hint })

import { join } from 'node:path'
import * as v from 'valibot'
import { parseAddress, type Address } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import { cut, type DatabaseName, type DeviceId, type UserId } from '../core/ids.js'
import { databaseName, deviceId, userId } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'
import { readAuthority } from '../identity/authority.js'
import { buildTrust, type Trust, type WhitelistEntry } from '../identity/admission.js'
import { DEFAULT_GRANTS, readGrants, writeGrants } from '../identity/grants.js'
import { effectiveRevocations, Revocations, type Revocation } from '../identity/revocations.js'
import { OWN_GRANT } from '../identity/trust.js'
import { readWhitelist, writeWhitelist } from '../identity/whitelist.js'
import type { Grant } from '../policy/principal.js'

/** A device that this one knows: listed in the whitelist, or an own device. */
export interface KnownDevice {
  readonly device: DeviceId
  /** The CA that certifies it. */
  readonly user: UserId
  readonly name: string
  /** `client`: a certificate that `export` made for something that cannot run patchcord. It only reads. */
  readonly relation: 'own' | 'peer' | 'client'
  /** PEM of that CA. */
  readonly ca: string
  readonly addresses: readonly string[]
  readonly certificate: { readonly notBefore: number, readonly notAfter: number } | undefined
}

/** A database of a peer that is pulled into a local one. */
export interface Accepted {
  readonly peer: DeviceId
  readonly database: DatabaseName
  readonly as: DatabaseName
  readonly access: 'read' | 'write'
}

const name = v.pipe(v.string(), v.minLength(1), v.maxLength(100))
const Known = v.strictObject({
  device: deviceId, user: userId, name, relation: v.picklist(['own', 'peer', 'client']), ca: v.string(), addresses: v.array(v.string()),
  certificate: v.optional(v.strictObject({ notBefore: v.number(), notAfter: v.number() })),
})
const AcceptedShape = v.strictObject({ peer: deviceId, database: databaseName, as: databaseName, access: v.picklist(['read', 'write']) })
const PeersShape = v.strictObject({ version: v.literal(1), devices: v.array(Known), accepted: v.array(AcceptedShape) })

/** What became of CAs, laid over what is written down (agent/trust-life.ts works it out). */
export interface Overlay {
  /** Whether nothing that this CA certifies counts: it is retired or frozen, or another one followed. */
  readonly isOver: (ca: UserId) => boolean
  /** The CA that counts for this one now. */
  readonly heir: (ca: UserId) => UserId
  /** Own devices between two CAs: by their key alone they may fetch their mail. */
  readonly bridged: ReadonlySet<DeviceId>
  /** Peers that are listed and have no rights now. */
  readonly suspended: ReadonlySet<DeviceId>
}

const NO_OVERLAY: Overlay = { isOver: () => false, heir: ca => ca, bridged: new Set(), suspended: new Set() }

/** The grant of own devices between two CAs. No device ID is spelt so. */
export const BRIDGE_GRANT = 'bridge'

/** The most addresses remembered for one device; the oldest goes first. */
export const MOST_ADDRESSES = 8

/** Whom this device trusts and with what, in memory and on disk. Every change is on disk before it counts;
 * one that cannot be written changes nothing. */
export class TrustBook {
  readonly #root: string
  readonly #revocations: Revocations
  #whitelist: readonly WhitelistEntry[]
  #grants: Readonly<Record<string, Grant>>
  #known: ReadonlyMap<DeviceId, KnownDevice>
  #accepted: readonly Accepted[]
  #overlay: { readonly own: UserId, readonly of: Overlay } | undefined

  private constructor (root: string, revocations: Revocations, whitelist: readonly WhitelistEntry[], grants: Readonly<Record<string, Grant>>, peers: v.InferOutput<typeof PeersShape>) {
    this.#root = root
    this.#revocations = revocations
    this.#whitelist = whitelist
    this.#grants = grants
    this.#known = new Map(peers.devices.map(known => [known.device, { ...known, certificate: known.certificate }]))
    this.#accepted = peers.accepted
  }

  /** Throws `bad-state` naming the file and the field, and where `revoked.json` is missing. */
  static async open (root: string): Promise<TrustBook> {
    const peers = await readState(join(root, 'peers.json'), PeersShape) ?? { version: 1 as const, devices: [], accepted: [] }
    return new TrustBook(root, await Revocations.open(root), await readWhitelist(root), await readGrants(root), peers)
  }

  /** The whitelist as it counts now: without entries whose CA is over, with those of bridged devices. */
  get whitelist (): readonly WhitelistEntry[] {
    const overlay = this.#overlay?.of
    if (overlay === undefined) return this.#whitelist
    const bridged = [...overlay.bridged].map(device => ({ name: this.#known.get(device)?.name ?? device, device, grant: BRIDGE_GRANT }))
    return [...this.#whitelist.filter(({ device, ca }) => !(device !== undefined && (overlay.bridged.has(device) || overlay.suspended.has(device))) && !(ca !== undefined && overlay.isOver(readAuthority(ca).user))), ...bridged]
  }

  /** The grants as they count now: no `own` while this user's CA is over. */
  get grants (): Readonly<Record<string, Grant>> {
    if (this.#overlay === undefined) return this.#grants
    const { own, of: overlay } = this.#overlay
    const { [OWN_GRANT]: ownGrant, ...others } = this.#grants
    return { ...overlay.bridged.size > 0 ? { [BRIDGE_GRANT]: NO_GRANT } : {}, ...others, ...ownGrant === undefined || overlay.isOver(own) ? {} : { [OWN_GRANT]: ownGrant } }
  }

  get known (): ReadonlyMap<DeviceId, KnownDevice> { return this.#known }
  /** Whether it is known, and of this person. */
  isOwn (device: DeviceId): boolean { return this.#known.get(device)?.relation === 'own' }
  get accepted (): readonly Accepted[] { return this.#accepted }

  /** The devices that are refused, under the user CA that is ours now. */
  revoked (userCa: string): DeviceId[] {
    const own = new Set([...this.#known.values()].filter(({ relation }) => relation === 'own').map(({ device }) => device))
    const heir = this.#overlay?.of.heir ?? NO_OVERLAY.heir
    // What a CA took away stays taken away when another one followed it.
    const records = this.#revocations.records.map(record => ({ ...record, ca: heir(record.ca) }))
    return effectiveRevocations(records, this.trust(userCa, []), own)
  }

  get revocations (): readonly Revocation[] { return this.#revocations.records }

  /** Lays what became of CAs over the book, for the user whose CA this is. Nothing is written. */
  overlay (own: UserId, overlay: Overlay): void {
    this.#overlay = { own, of: overlay }
  }

  /** Writes down that another CA followed: whoever was known with the old one is known with the new one. */
  async replaceCa (from: UserId, to: UserId, pem: string): Promise<void> {
    const isOld = (ca: string | undefined): boolean => ca !== undefined && readAuthority(ca).user === from
    if (this.#whitelist.some(({ ca }) => isOld(ca))) await this.#writeWhitelist(this.#whitelist.map(entry => isOld(entry.ca) ? { ...entry, ca: pem } : entry))
    const known = new Map([...this.#known].map(([device, one]) => [device, one.user === from ? { ...one, user: to, ca: pem } : one]))
    await this.#writePeers(known, this.#accepted)
  }

  /** Drops devices altogether, with what they were granted. */
  async forget (devices: ReadonlySet<DeviceId>): Promise<void> {
    await this.#writeWhitelist(this.#whitelist.filter(({ device }) => device === undefined || !devices.has(device)))
    await this.#writeGrants(Object.fromEntries(Object.entries(this.#grants).filter(([name]) => !devices.has(name as DeviceId))))
    await this.#writePeers(new Map([...this.#known].filter(([device]) => !devices.has(device))), this.#accepted.filter(({ peer }) => !devices.has(peer)))
  }

  /** What admission decides by. `revoked` is worked out from it unless given. */
  trust (userCa: string, revoked: readonly DeviceId[] = this.revoked(userCa)): Trust {
    return buildTrust({ userCa, whitelist: this.whitelist, revoked, grants: this.grants })
  }

  /** The device that a person means: its ID, the start of one (6 characters or more), or its name. Throws
   * `not-found`, or `usage` where several fit. */
  find (text: string): KnownDevice {
    const all = [...this.#known.values()]
    const exact = all.find(({ device }) => device === text) ?? all.find(known => known.name === text)
    if (exact !== undefined) return exact
    const starting = text.length >= 6 ? all.filter(({ device }) => device.startsWith(text)) : []
    if (starting.length > 1) throw new PatchcordError('usage', `"${cut(text)}" is the start of ${starting.length} device IDs`, { hint: 'write more of it' })
    if (starting[0] === undefined) throw new PatchcordError('not-found', `no device is known as "${cut(text)}"`, { hint: '`patchcord devices` lists them' })
    return starting[0]
  }

  /** The devices that a grant goes to: one, or all that are listed of one user. */
  findAll (text: string): KnownDevice[] {
    const ofUser = [...this.#known.values()].filter(({ user }) => user === text)
    return ofUser.length > 0 ? ofUser : [this.find(text)]
  }

  /** The grant of a peer device: its own, named after it. */
  grantOf ({ device, relation }: KnownDevice): Grant {
    return (relation === 'own' ? this.#grants['own'] : this.#grants[device]) ?? NO_GRANT
  }

  /** Remembers a device, or what is new about one. A name that another device has is refused. */
  async remember (known: KnownDevice): Promise<void> {
    const { device, name } = known
    if ([...this.#known.values()].some(other => other.name === name && other.device !== device)) {
      throw new PatchcordError('usage', `another device is called "${cut(name)}" already`, { hint: 'choose another name' })
    }
    await this.#writePeers(new Map(this.#known).set(device, known), this.#accepted)
  }

  /** Lists a peer in the whitelist with a grant of its own, whose databases are added to what it has. */
  async trustPeer (known: KnownDevice, databases: Readonly<Record<string, 'read' | 'write'>>): Promise<void> {
    await this.remember(known)
    const before = this.grantOf(known)
    await this.#writeGrants({ ...this.#grants, [known.device]: { ...before, databases: { ...before.databases, ...databases } } })
    const entry: WhitelistEntry = { name: known.name, device: known.device, ca: known.ca, grant: known.device }
    await this.#writeWhitelist([...this.#whitelist.filter(({ device }) => device !== known.device), entry])
  }

  /** `access` undefined takes the database away. */
  async grant (known: KnownDevice, database: DatabaseName, access: 'read' | 'write' | undefined): Promise<Grant> {
    if (known.relation === 'own') throw new PatchcordError('usage', `${known.name} is your own device: it has every database already`, { hint: 'share with devices of other people' })
    if (known.relation === 'client' && access === 'write') throw new PatchcordError('usage', `${known.name} is a client: it only reads`, { hint: 'share without --write' })
    const before = this.grantOf(known)
    const { [database]: _gone, ...others } = before.databases
    const grant: Grant = { ...before, databases: access === undefined ? others : { ...others, [database]: access } }
    await this.#writeGrants({ ...this.#grants, [known.device]: grant })
    return grant
  }

  /** Remembers an address, newest first. Throws `usage` for what is none. */
  async addAddress (known: KnownDevice, text: string): Promise<KnownDevice> {
    parseAddress(text)
    const next = { ...known, addresses: [text, ...known.addresses.filter(other => other !== text)].slice(0, MOST_ADDRESSES) }
    await this.remember(next)
    return next
  }

  addressesOf (device: DeviceId): Address[] {
    return (this.#known.get(device)?.addresses ?? []).map(parseAddress)
  }

  async accept (accepted: Accepted): Promise<void> {
    const others = this.#accepted.filter(({ peer, database }) => peer !== accepted.peer || database !== accepted.database)
    await this.#writePeers(this.#known, [...others, accepted])
  }

  /** Forgets acceptances of a peer: all, or those of one database. */
  async forgetAccepted (device: DeviceId, of?: DatabaseName): Promise<void> {
    await this.#writePeers(this.#known, this.#accepted.filter(({ peer, database }) => peer !== device || (of !== undefined && database !== of)))
  }

  /** Drops every device, grant and acceptance: this device becomes another user's, whose trust is its own.
   * Revocations stay. */
  async forgetEverybody (): Promise<void> {
    await this.#writeWhitelist([])
    await this.#writeGrants(DEFAULT_GRANTS)
    await this.#writePeers(new Map(), [])
  }

  async revoke (revocation: Revocation): Promise<void> {
    await this.#revocations.add([revocation])
  }

  /** Takes verified records in; whether any was new. */
  async addRevocations (records: readonly Revocation[]): Promise<boolean> {
    return await this.#revocations.add(records)
  }

  async #writePeers (known: ReadonlyMap<DeviceId, KnownDevice>, accepted: readonly Accepted[]): Promise<void> {
    await writeState(join(this.#root, 'peers.json'), PeersShape, { version: 1, devices: [...known.values()].map(one => ({ ...one, addresses: [...one.addresses] })), accepted: [...accepted] })
    this.#known = known
    this.#accepted = accepted
  }

  async #writeGrants (grants: Readonly<Record<string, Grant>>): Promise<void> {
    await writeGrants(this.#root, grants)
    this.#grants = grants
  }

  async #writeWhitelist (entries: readonly WhitelistEntry[]): Promise<void> {
    await writeWhitelist(this.#root, entries)
    this.#whitelist = entries
  }
}

const NO_GRANT: Grant = Object.freeze({ databases: Object.freeze({}), files: 'referenced' })

/** Parses `db`, `db:read` or `db:write` of `--share`. Throws `usage`. */
export function parseShare (text: string, parseName: (name: string) => DatabaseName): [DatabaseName, 'read' | 'write'] {
  const [name = '', access = 'read', ...rest] = text.split(':')
  if ((access !== 'read' && access !== 'write') || rest.length > 0) throw new PatchcordError('usage', `"${cut(text)}" is not a share`, { hint: 'write <database>, <database>:read or <database>:write' })
  return [parseName(name), access]
}

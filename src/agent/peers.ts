import type { Agent as HttpAgent } from 'node:http'
import { formatAddress, type Address } from '../core/address.js'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf } from '../core/errors.js'
import type { DatabaseName, DeviceId, UserId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import type { PeerStatus } from '../control/operations.js'
import type { PeerCredentials } from '../sync/peer-agent.js'
import { PeerLink } from '../sync/peer-link.js'
import type { MailOrigin } from '../sync/restricted-mail.js'
import { Pull } from '../sync/pull.js'
import type { CouchReplicator } from './couch-replication.js'
import { NO_MAIL, parseMail, type PeerMail } from './mail.js'
import { Receiving, type Wanted } from './receiving.js'
import type { KnownDevice, TrustBook } from './trust-book.js'

export interface PeersOptions {
  readonly book: TrustBook
  readonly isRevoked: (device: DeviceId) => boolean
  /** Whether the CA of a device counts for nothing: then only statements about it are fetched. */
  readonly isOver: (known: KnownDevice) => boolean
  readonly credentials: (known: KnownDevice) => Promise<PeerCredentials>
  readonly couch: { readonly url: string, readonly agent: HttpAgent }
  /** The login that may write what is pulled from a device. */
  readonly syncLogin: (known: KnownDevice) => { username: string, password: string }
  /** Makes a local database where it is missing. */
  readonly createDatabase: (name: DatabaseName) => Promise<void>
  /** CouchDB's own scheduler, where that pulls instead of this process. */
  readonly replicator?: CouchReplicator | undefined
  readonly clock: Clock
  readonly logger: Logger
  /** Throws `disk-full` where there is no room for so many bytes more from a device. */
  readonly checkRoom: (device: DeviceId, bytes: number) => Promise<void>
  /** Documents of a local database that are in conflict. */
  readonly conflicts: (database: DatabaseName) => number
  readonly emit: (event: object) => void
  /** Called with every mail, for what it says about trust; `user` is the CA that the link was proved by. */
  readonly onTrustMail: (device: DeviceId, mail: unknown, origin: MailOrigin, user: UserId) => void
  readonly onMail: (device: DeviceId, mail: PeerMail) => void
}

/** The devices this one keeps in touch with: a link each, and a pull for every database that is received
 * from it. `reconcile` makes what runs match what is trusted. */
export class Peers {
  readonly #options: PeersOptions
  readonly #peers = new Map<DeviceId, Peer>()
  #isStopping = false

  constructor (options: PeersOptions) {
    this.#options = options
  }

  /** Starts links to devices that are new, ends those of devices that are gone or revoked, and tries again
   * where an address is new. Resolves when what had to end has ended. */
  async reconcile (): Promise<void> {
    if (this.#isStopping) return
    const { book, isRevoked, isOver } = this.#options
    const gone = [...this.#peers.values()].filter(({ device, user, isOver: was }) => {
      const known = book.known.get(device)
      // What an earlier CA proved is no proof under the one that followed: such a link begins anew.
      return known === undefined || isRevoked(device) || known.user !== user || isOver(known) !== was
    })
    for (const { device } of gone) this.#peers.delete(device)
    await Promise.all(gone.map(peer => peer.stop()))
    const reconciled: Array<Promise<void>> = []
    for (const known of book.known.values()) {
      // A client runs no patchcord: there is nothing to reach.
      if (isRevoked(known.device) || known.relation === 'client') continue
      const peer = this.#peers.get(known.device)
      if (peer === undefined) this.#peers.set(known.device, new Peer(known.device, this.#options))
      else reconciled.push(peer.reconcile())
    }
    await Promise.all(reconciled)
  }

  peer (device: DeviceId): Peer | undefined { return this.#peers.get(device) }

  /** The devices that are kept in touch with. */
  get devices (): DeviceId[] { return [...this.#peers.keys()] }

  /** Where discovery says that a device may be now. */
  found (device: DeviceId, addresses: readonly Address[]): void { this.#peers.get(device)?.found(addresses) }

  /** Follows the interfaces of this machine and their link-local addresses: a connection from one that is gone is
   * dropped instead of waiting for TCP to give up, and where one is ready every device that is not connected is
   * tried again. */
  linksAre (ready: ReadonlyMap<string, readonly string[]>): void {
    for (const { link } of this.#peers.values()) {
      if (link.connected) link.ownAddresses(ready)
      else if (ready.size > 0) link.retry()
    }
  }

  /** The machine slept: connections may be dead, and devices that were tried in vain may be near. */
  woke (): void {
    for (const { link } of this.#peers.values()) {
      if (link.connected) link.check()
      else link.retry()
    }
  }

  /** Every device, those with a live link first. One that was forgotten a moment ago is none, though its link still
   * ends. */
  all (): Peer[] {
    const { book } = this.#options
    return [...this.#peers.values()].filter(({ device }) => book.known.has(device)).toSorted((a, b) => Number(b.link.connected) - Number(a.link.connected))
  }

  async stop (): Promise<void> {
    this.#isStopping = true
    await Promise.all([...this.#peers.values()].map(peer => peer.stop()))
    this.#peers.clear()
  }
}

/** How long after a new address was heard of the old one is looked at once more. */
const MOVED_MS = 4_000

/** One device: its link, its newest mail, and what is pulled from it. */
export class Peer {
  readonly device: DeviceId
  readonly link: PeerLink
  /** The CA that certified it when the link began, and whether that counted for nothing. */
  readonly user: UserId
  readonly isOver: boolean
  readonly #options: PeersOptions
  readonly #receiving: Receiving
  #candidates: readonly Address[] = []
  #mail: PeerMail = NO_MAIL
  #isStopped = false
  #wasConnected = false
  #again: Timer | undefined

  constructor (device: DeviceId, options: PeersOptions) {
    this.device = device
    this.#options = options
    const { clock, logger, credentials, createDatabase, conflicts, emit } = options
    this.user = this.#known().user
    this.isOver = options.isOver(this.#known())
    this.#receiving = new Receiving({
      device, clock, logger, emit, createDatabase, conflicts,
      wanted: () => this.#wanted(),
      accepted: () => options.book.accepted.filter(({ peer }) => peer === device),
      isConnected: () => this.link.connected,
      // Its feed has a heartbeat, so it is the first to notice a connection that died without a word.
      onFailed: () => { this.link.check() },
      begin: ({ database, as }, listeners) => options.replicator?.begin(device, { database, as }, options.syncLogin(this.#known()), () => options.checkRoom(device, 0), listeners) ?? new Pull({
        source: { device, database, agent: this.link.agent },
        target: { url: options.couch.url, database: as, agent: options.couch.agent, ...options.syncLogin(this.#known()) },
        checkRoom: bytes => options.checkRoom(device, bytes),
        clock, logger, ...listeners,
      }),
    })
    this.link = new PeerLink({
      device, clock, logger, isOver: this.isOver,
      credentials: () => credentials(this.#known()),
      addresses: () => this.#addresses(),
      onMail: async mail => {
        await this.#received(mail)
        options.onTrustMail(device, mail, 'admitted', this.user)
      },
      onRestrictedMail: (mail, origin) => { options.onTrustMail(device, mail, origin, this.user) },
      onChange: () => { this.#linkChanged() },
    })
  }

  get mail (): PeerMail { return this.#mail }
  get relation (): KnownDevice['relation'] { return this.#known().relation }

  /** The local databases that are received from it now, or would be if it were connected. */
  received (): DatabaseName[] { return this.#wanted().map(({ as }) => as) }

  /** The names that it has for the databases that are received from it into a local one. */
  accounts (local: DatabaseName): DatabaseName[] { return this.#wanted().flatMap(({ database, as }) => as === local ? [database] : []) }

  /** Replaces what discovery knows of its addresses, and tries again where it is not connected. Where it is, the
   * device may have moved from under the connection: that is looked into, and nothing cut on a hint alone. It is
   * looked into twice, since the new address is heard of before the old one is gone. */
  found (addresses: readonly Address[]): void {
    this.#candidates = addresses
    if (this.link.connected) {
      this.link.check()
      this.#again?.cancel()
      this.#again = this.#options.clock.after(MOVED_MS, () => { this.link.check() })
    } else if (addresses.length > 0) this.link.retry()
  }

  /** Starts and ends pulls so that they match what is shared and accepted now. Resolves when nothing more of what
   * ended is written. */
  async reconcile (): Promise<void> {
    if (this.#isStopped) return
    if (!this.link.connected) this.link.retry()
    else await this.#receiving.reconcile()
  }

  /** Tries at once what failed or had no room. */
  retryReceiving (): void { this.#receiving.retry() }
  async stop (): Promise<void> {
    this.#isStopped = true
    this.#again?.cancel()
    await this.#receiving.stop()
    await this.link.stop()
  }

  status (): PeerStatus {
    const { user, name, relation: known } = this.#known()
    const relation = known === 'own' ? known : 'peer'
    const { connected, address, since, problem } = this.link
    return {
      device: this.device, user, name, relation, connected,
      address: address === undefined ? null : formatAddress(address),
      since: since === undefined ? null : new Date(since).toISOString(),
      problem: problem ?? null,
      databases: this.#receiving.status(),
      files: { missing: 0 },
    }
  }

  /** Those heard of now first: what is remembered may be long gone. Who floods the link with hints takes none of
   * their turns away, since all are raced. */
  #addresses (): Address[] {
    const texts = new Set(this.#candidates.map(formatAddress))
    return [...this.#candidates, ...this.#options.book.addressesOf(this.device).filter(address => !texts.has(formatAddress(address)))]
  }

  #known (): KnownDevice {
    const known = this.#options.book.known.get(this.device)
    if (known === undefined) throw new Error(`device ${this.device} is no longer known`)
    return known
  }

  #wanted (): Wanted[] {
    const known = this.#known()
    if (known.relation === 'own') return this.#mail.databases.map(database => ({ database, as: database }))
    const { book } = this.#options
    const shared = new Set(this.#mail.shares.map(({ database }) => database))
    const wanted: Wanted[] = book.accepted
      .filter(({ peer, database }) => peer === this.device && shared.has(database))
      .map(({ database, as }) => ({ database, as }))
    // Who accepted a share of ours with write access writes into a database of its own, which comes back.
    const { databases } = book.grantOf(known)
    for (const { database, as } of this.#mail.accepted) {
      if (Object.hasOwn(databases, database) && databases[database] === 'write') wanted.push({ database: as, as: database })
    }
    return wanted
  }

  async #received (mail: unknown): Promise<void> {
    const parsed = parseMail(mail)
    if (parsed === undefined) {
      this.#options.logger.warn({ device: this.device }, 'the mail of a device is not of the known form')
      return
    }
    const before = new Set(this.#mail.shares.map(({ database }) => database))
    this.#mail = parsed
    for (const share of parsed.shares) {
      if (!before.has(share.database)) this.#options.emit({ event: 'share-offered', device: this.device, ...share })
    }
    this.#options.onMail(this.device, parsed)
    await this.reconcile()
  }

  #linkChanged (): void {
    const { connected, address, problem } = this.link
    if (connected === this.#wasConnected) return
    this.#wasConnected = connected
    if (connected) {
      this.#options.emit({ event: 'connected', device: this.device, address: address === undefined ? null : formatAddress(address) })
      return
    }
    this.#options.emit({ event: 'disconnected', device: this.device, reason: problem ?? null })
    this.#receiving.lost().catch((error: unknown) => { this.#options.logger.warn({ reason: messageOf(error) }, 'what was received did not end cleanly') })
  }
}

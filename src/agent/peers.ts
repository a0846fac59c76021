import type { Agent as HttpAgent } from 'node:http'
import { formatAddress } from '../core/address.js'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import type { PeerStatus } from '../control/operations.js'
import type { PeerCredentials } from '../sync/peer-agent.js'
import { PeerLink } from '../sync/peer-link.js'
import { Pull } from '../sync/pull.js'
import { NO_MAIL, parseMail, type PeerMail } from './mail.js'
import type { KnownDevice, TrustBook } from './trust-book.js'

export interface PeersOptions {
  readonly book: TrustBook
  readonly isRevoked: (device: DeviceId) => boolean
  readonly credentials: (known: KnownDevice) => Promise<PeerCredentials>
  readonly couch: { readonly url: string, readonly agent: HttpAgent }
  /** The login that may write what is pulled from a device. */
  readonly syncLogin: (known: KnownDevice) => { username: string, password: string }
  /** Makes a local database where it is missing. */
  readonly createDatabase: (name: DatabaseName) => Promise<void>
  readonly clock: Clock
  readonly logger: Logger
  readonly emit: (event: object) => void
  readonly onMail: (device: DeviceId, mail: PeerMail) => void
}

const FIRST_RETRY_MS = 1_000
const LONGEST_RETRY_MS = 60_000

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
    const { book, isRevoked } = this.#options
    const gone = [...this.#peers.values()].filter(({ device }) => !book.known.has(device) || isRevoked(device))
    for (const { device } of gone) this.#peers.delete(device)
    await Promise.all(gone.map(peer => peer.stop()))
    for (const known of book.known.values()) {
      if (isRevoked(known.device)) continue
      const peer = this.#peers.get(known.device)
      if (peer === undefined) this.#peers.set(known.device, new Peer(known.device, this.#options))
      else peer.reconcile()
    }
  }

  peer (device: DeviceId): Peer | undefined { return this.#peers.get(device) }

  /** Every device, those with a live link first. */
  all (): Peer[] {
    return [...this.#peers.values()].toSorted((a, b) => Number(b.link.connected) - Number(a.link.connected))
  }

  async stop (): Promise<void> {
    this.#isStopping = true
    await Promise.all([...this.#peers.values()].map(peer => peer.stop()))
    this.#peers.clear()
  }
}

interface Wanted { readonly database: DatabaseName, readonly as: DatabaseName }

/** One device: its link, its newest mail, and what is pulled from it. */
export class Peer {
  readonly device: DeviceId
  readonly link: PeerLink
  readonly #options: PeersOptions
  readonly #pulls = new Map<string, Pull>()
  readonly #retries = new Map<string, { readonly timer: Timer, readonly delay: number }>()
  /** How long the next failure of a pull waits (ms). */
  readonly #delays = new Map<string, number>()
  readonly #starting = new Set<DatabaseName>()
  #mail: PeerMail = NO_MAIL
  #isStopped = false
  #wasConnected = false

  constructor (device: DeviceId, options: PeersOptions) {
    this.device = device
    this.#options = options
    const { book, clock, logger, credentials } = options
    this.link = new PeerLink({
      device, clock, logger,
      credentials: () => credentials(this.#known()),
      addresses: () => book.addressesOf(device),
      onMail: mail => { this.#received(mail) },
      onChange: () => { this.#linkChanged() },
    })
  }

  get mail (): PeerMail { return this.#mail }
  get relation (): KnownDevice['relation'] { return this.#known().relation }

  /** The local databases that are received from it now, or would be if it were connected. */
  received (): DatabaseName[] { return this.#wanted().map(({ as }) => as) }

  /** Starts and ends pulls so that they match what is shared and accepted now. */
  reconcile (): void {
    if (this.#isStopped) return
    if (!this.link.connected) {
      this.link.retry()
      return
    }
    const wanted = new Map(this.#wanted().map(one => [one.database, one]))
    for (const [database, pull] of this.#pulls) {
      const as = wanted.get(database as DatabaseName)?.as
      if (as !== pull.target.database) this.#end(database)
    }
    for (const one of wanted.values()) {
      if (!this.#pulls.has(one.database) && !this.#retries.has(one.database) && !this.#starting.has(one.database)) void this.#begin(one)
    }
  }

  async stop (): Promise<void> {
    this.#isStopped = true
    for (const database of [...this.#retries.keys()]) this.#dropRetry(database)
    await Promise.all([...this.#pulls.values()].map(pull => pull.stop()))
    this.#pulls.clear()
    await this.link.stop()
  }

  status (): PeerStatus {
    const { user, name, relation } = this.#known()
    const { connected, address, since, problem } = this.link
    return {
      device: this.device, user, name, relation, connected,
      address: address === undefined ? null : formatAddress(address),
      since: since === undefined ? null : new Date(since).toISOString(),
      problem: problem ?? null,
      databases: [...this.#pulls.values()].map(pull => ({ name: pull.target.database, remote: pull.source.database, direction: 'pull' as const, lag: pull.lag ?? null, state: pull.problem === undefined ? pull.state : `${pull.state}: ${pull.problem}` })),
      files: { missing: 0 },
    }
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

  async #begin ({ database, as }: Wanted): Promise<void> {
    const { couch, syncLogin, createDatabase, logger, emit } = this.#options
    this.#starting.add(database)
    try {
      await createDatabase(as)
      if (this.#isStopped || !this.link.connected || this.#pulls.has(database)) return
      const pull = new Pull({
        source: { device: this.device, database, agent: this.link.agent },
        target: { url: couch.url, database: as, agent: couch.agent, ...syncLogin(this.#known()) },
        logger,
        onChange: () => { emit({ event: 'replication', device: this.device, database: as, state: pull.state, lag: pull.lag ?? null }) },
        onEnd: () => {
          if (pull.state === 'failed') logger.warn({ device: this.device, database, reason: pull.problem }, 'a pull failed')
          this.#retry(database)
        },
      })
      this.#pulls.set(database, pull)
    } catch (error) {
      logger.warn({ device: this.device, database, reason: messageOf(error) }, 'a pull did not start')
      this.#retry(database)
    } finally {
      this.#starting.delete(database)
    }
  }

  #retry (database: string): void {
    const before = this.#pulls.get(database)
    this.#pulls.delete(database)
    if (this.#isStopped || !this.link.connected) return
    const delay = before?.lag === 0 ? FIRST_RETRY_MS : this.#delays.get(database) ?? FIRST_RETRY_MS
    this.#delays.set(database, Math.min(delay * 2, LONGEST_RETRY_MS))
    const timer = this.#options.clock.after(delay, () => {
      this.#retries.delete(database)
      this.reconcile()
    })
    this.#retries.set(database, { timer, delay })
  }

  #dropRetry (database: string): void {
    this.#retries.get(database)?.timer.cancel()
    this.#retries.delete(database)
  }

  #end (database: string): void {
    const pull = this.#pulls.get(database)
    this.#pulls.delete(database)
    this.#dropRetry(database)
    pull?.stop().catch((error: unknown) => { this.#options.logger.warn({ err: error }, 'a pull did not stop cleanly') })
  }

  #received (mail: unknown): void {
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
    this.reconcile()
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
    for (const database of [...this.#retries.keys()]) this.#dropRetry(database)
    for (const database of [...this.#pulls.keys()]) this.#end(database)
  }
}

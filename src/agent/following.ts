import { setMaxListeners } from 'node:events'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId, DatabaseName, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { LEAF_BYTES } from '../files/content-id.js'
import { giverOf, type Giver } from '../files/giver.js'
import type { FileStore } from '../files/store.js'
import { askRecords, type Source } from '../sync/ask-file.js'
import type { Downloads } from '../sync/downloads.js'
import { prove } from '../sync/prove.js'
import type { Conflicts } from './conflicts.js'
import type { CouchClient } from './couch-client.js'
import { FileFeed, type FileChange } from './file-feed.js'
import { FileRecords } from './file-records.js'
import { sourceOf, sourcesOn } from './file-sources.js'
import { fetches, type FollowPolicies, type FollowPolicy } from './follow-policies.js'
import type { Peer, Peers } from './peers.js'

export interface FollowingOptions {
  readonly store: FileStore
  readonly peers: Peers
  readonly downloads: Downloads
  readonly policies: FollowPolicies
  readonly couch: CouchClient
  readonly conflicts: Conflicts
  /** Whether any other person's device may read the database here, so that a record would serve somebody. */
  readonly isShared: (database: DatabaseName) => boolean
  readonly clock: Clock
  readonly logger: Logger
  readonly emit: (event: object) => void
}

/** Files of one leaf, and larger ones, that are fetched at once. */
const SMALL_AT_ONCE = 16
const LARGE_AT_ONCE = 2
const FIRST_RETRY_MS = 2_000
const LONGEST_RETRY_MS = 300_000

interface Wanted {
  readonly size: number
  notBefore: number
  failures: number
  isRunning: boolean
  /** Whether the bytes are what is wanted: else it is here, and only a record may be gained. */
  isMissing: boolean
}

interface Followed {
  readonly feed: FileFeed
  readonly wanted: Map<ContentId, Wanted>
}

/**
 * Fetches the files that documents refer to, and keeps the records of who may read them.
 *
 * A record says that peers who may read a database may read a file. No document makes one: a peer writes whatever it
 * likes into a database that it may write, and what it plants in its own copy comes here by replication. So
 * while following, a record for a database is made in two cases only: one device of that database gave every byte of
 * the file on account of it (or gives it whole once more, as though it were not here), or an own device says that it
 * recorded the file for it. On account of: the device that is asked is told which database it is for, and gives the
 * file only if it recorded it for that one; what it would give us for another reason is not for others of this one to
 * have. The record goes when the document goes.
 */
export class Following {
  readonly #options: FollowingOptions
  readonly #followed = new Map<DatabaseName, Followed>()
  readonly #records: FileRecords
  readonly #abort = new AbortController()
  readonly #tasks = new Set<Promise<void>>()
  #small = 0
  #large = 0
  #timer: Timer | undefined

  constructor (options: FollowingOptions) {
    this.#options = options
    // Each file that is on its way listens.
    setMaxListeners(0, this.#abort.signal)
    this.#records = new FileRecords(options.store, options.couch, this.#abort.signal)
  }

  /** Follows exactly these local databases. */
  async reconcile (databases: readonly DatabaseName[]): Promise<void> {
    if (this.#abort.signal.aborted) return
    const gone = [...this.#followed].filter(([database]) => !databases.includes(database))
    for (const [database] of gone) {
      this.#followed.delete(database)
      this.#options.conflicts.forget(database)
    }
    for (const database of databases) if (!this.#followed.has(database)) this.#follow(database)
    await Promise.all(gone.map(([, { feed }]) => feed.stop()))
    this.retry()
  }

  policy (database: DatabaseName): FollowPolicy {
    const chosen = this.#options.policies.of(database)
    if (chosen !== undefined) return chosen
    return { fetch: this.#peersOf(database).some(({ relation }) => relation === 'peer') ? 'on-demand' : 'all' }
  }

  /** Puts another policy in force. What runs already is not ended. */
  async choose (database: DatabaseName, policy: FollowPolicy): Promise<void> {
    await this.#options.policies.choose(database, policy)
    const followed = this.#followed.get(database)
    if (followed === undefined) return
    this.#followed.delete(database)
    await followed.feed.stop()
    this.#follow(database)
  }

  /** How many files a policy wants that are not here, of the databases given. */
  missing (databases: readonly DatabaseName[]): number {
    const ids = new Set<ContentId>()
    for (const database of databases) {
      const policy = this.policy(database)
      for (const [id, { size, isMissing }] of this.#followed.get(database)?.wanted ?? []) if (isMissing && fetches(policy, size)) ids.add(id)
    }
    return ids.size
  }

  /** Tries again now: a device came, or trust changed. */
  retry (): void {
    for (const { wanted } of this.#followed.values()) {
      for (const one of wanted.values()) one.notBefore = 0
    }
    this.#pump()
  }

  /** As `FileRecords.making`. */
  making<Result> (database: DatabaseName, ids: readonly ContentId[], task: () => Promise<Result>): Promise<Result> {
    return this.#records.making(database, ids, task)
  }

  /** A file was fetched because somebody asked for it: records it where following would have. */
  async fetched (id: ContentId, givers: ReadonlySet<Giver>): Promise<void> {
    for (const database of this.#followed.keys()) {
      if (this.#isGivenFor(database, givers)) await this.#records.record(database, id)
    }
  }

  async stop (): Promise<void> {
    this.#abort.abort(new PatchcordError('stopped', 'the service is stopping'))
    this.#timer?.cancel()
    await Promise.all([...this.#followed.values()].map(({ feed }) => feed.stop()))
    await Promise.all(this.#tasks)
  }

  #follow (database: DatabaseName): void {
    const { couch, conflicts, clock, logger } = this.#options
    const wanted = new Map<ContentId, Wanted>()
    const feed = new FileFeed({
      couch, database, clock, logger,
      onConflicts: losers => { conflicts.changed(database, losers) },
      onChanges: async changes => { await this.#changed(database, wanted, changes) },
      onCaughtUp: async () => { await this.#records.sweep(database) },
    })
    this.#followed.set(database, { feed, wanted })
  }

  async #changed (database: DatabaseName, wanted: Map<ContentId, Wanted>, changes: readonly FileChange[]): Promise<void> {
    const { store } = this.#options
    await Promise.all(changes.map(async ({ id, size }) => {
      if (size === undefined) {
        wanted.delete(id)
        await this.#records.forget(database, id)
        return
      }
      const isHere = await store.has(id)
      if (isHere && (await store.records(id)).includes(database)) wanted.delete(id)
      else wanted.set(id, { size, notBefore: 0, failures: 0, isRunning: false, isMissing: !isHere })
    }))
    this.#pump()
  }

  /** The devices that a database is received from. */
  #peersOf (database: DatabaseName): Peer[] {
    return this.#options.peers.all().filter(peer => peer.received().includes(database))
  }

  /** Whether one device of the database, and nobody else, gave every byte on account of it. */
  #isGivenFor (database: DatabaseName, givers: ReadonlySet<Giver>): boolean {
    const [giver, another] = givers
    if (giver === undefined || another !== undefined) return false
    return this.#peersOf(database).some(peer => peer.relation === 'peer' && peer.accounts(database).some(account => giverOf(peer.device, account) === giver))
  }

  /** Starts what may be started, and looks again when the next may. */
  #pump (): void {
    if (this.#abort.signal.aborted) return
    const now = this.#options.clock.monotonic()
    let next = Infinity
    for (const [database, { wanted }] of this.#followed) {
      const policy = this.policy(database)
      const isShared = this.#options.isShared(database)
      if (!this.#peersOf(database).some(({ link }) => link.connected)) continue
      for (const [id, one] of wanted) {
        if (one.isRunning || !fetches(policy, one.size) || (!one.isMissing && !isShared)) continue
        if (one.notBefore > now) {
          next = Math.min(next, one.notBefore)
          continue
        }
        const isSmall = one.size <= LEAF_BYTES
        if (isSmall ? this.#small >= SMALL_AT_ONCE : this.#large >= LARGE_AT_ONCE) continue
        this.#run(database, wanted, id, one, isSmall)
      }
    }
    this.#timer?.cancel()
    if (next < Infinity) this.#timer = this.#options.clock.after(Math.max(100, next - now), () => { this.#pump() })
  }

  #run (database: DatabaseName, wanted: Map<ContentId, Wanted>, id: ContentId, one: Wanted, isSmall: boolean): void {
    const count = (by: number): void => {
      if (isSmall) this.#small += by
      else this.#large += by
    }
    one.isRunning = true
    count(1)
    const task = this.#obtain(database, id, one).then(isSettled => {
      if (isSettled && wanted.get(id) === one) wanted.delete(id)
      else this.#later(one)
    }, (error: unknown) => {
      if (!this.#abort.signal.aborted) this.#options.logger.debug({ database, id, reason: messageOf(error) }, 'a file was not fetched')
      this.#later(one)
    }).finally(() => {
      one.isRunning = false
      count(-1)
      this.#tasks.delete(task)
      this.#pump()
    })
    this.#tasks.add(task)
  }

  #later (one: Wanted): void {
    one.notBefore = this.#options.clock.monotonic() + Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** one.failures)
    one.failures += 1
  }

  /** Fetches the file if it is not here, and makes the record if that is right; whether nothing is left to do. */
  async #obtain (database: DatabaseName, id: ContentId, one: Wanted): Promise<boolean> {
    const { store, downloads, emit } = this.#options
    const { signal } = this.#abort
    const own = this.#options.peers.all().filter(({ relation, link }) => relation === 'own' && link.connected)
    const recorded = new Set<DeviceId>()
    for (const peer of own) {
      const databases: readonly DatabaseName[] = await askRecords(sourceOf(peer), id, signal).catch(() => [])
      if (databases.includes(database)) recorded.add(peer.device)
    }
    const peers = (): Peer[] => this.#peersOf(database).filter(({ relation, link }) => relation === 'peer' && link.connected)
    // Those whose giving it may be recorded: peers on account of the database, and own devices that recorded it.
    const sources = (): Source[] => [
      ...own.filter(({ device, link }) => recorded.has(device) && link.connected).map(sourceOf),
      ...peers().flatMap(peer => sourcesOn(peer, [database])),
    ]
    if (!await store.has(id)) {
      let givers: ReadonlySet<Giver> = new Set()
      try {
        givers = (await downloads.fetch(id, { size: one.size, sources, signal, waitMs: 1_000 })).givers
      } catch (error) {
        // Own devices give everything; what came from them without a record of theirs makes none here.
        this.#options.logger.debug({ database, id, reason: messageOf(error) }, 'a file was not given on account of a database')
        if (own.length === 0 || signal.aborted || (error instanceof PatchcordError && error.code === 'disk-full')) throw error
        await downloads.fetch(id, { size: one.size, sources: () => own.filter(({ link }) => link.connected).map(sourceOf), signal, waitMs: 1_000 })
      }
      one.isMissing = false
      emit({ event: 'fetched', id, size: one.size, database })
      if (this.#isGivenFor(database, givers)) return await this.#records.record(database, id) || true
    }
    one.isMissing = false
    if ((await store.records(id)).includes(database)) return true
    if (recorded.size > 0) return await this.#records.record(database, id) || true
    // It is here, from elsewhere or from several. Peers of the database gain it only where one of them gives it whole.
    if (!this.#options.isShared(database)) return false
    let problem: unknown
    for (const source of peers().flatMap(peer => sourcesOn(peer, [database]))) {
      if (downloads.distrust.of(source.device) !== undefined) continue
      try {
        await prove(store.hashes, source, id, one.size, signal)
        return await this.#records.record(database, id) || true
      } catch (error) {
        signal.throwIfAborted()
        if (error instanceof PatchcordError && error.code === 'verification') downloads.distrust.add(source.device, { id, reason: error.message })
        problem = error
      }
    }
    if (problem !== undefined) throw problem
    return false
  }
}

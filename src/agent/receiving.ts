import type { Clock, Timer } from '../core/clock.js'
import { messageOf } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import type { DatabaseStatus } from '../control/operations.js'
import type { PullState } from '../sync/pull.js'

/** A database of a peer, and the local one that it is received into. */
export interface Wanted { readonly database: DatabaseName, readonly as: DatabaseName }

/** What receives one database, whichever engine does it: it runs from when it was made until `stop`, or until it
 * says by `onEnd` that it ended by itself. */
export interface Receiver {
  readonly as: DatabaseName
  readonly state: PullState
  readonly lag: number | undefined
  readonly rate: number
  readonly problem: string | undefined
  /** Nothing more of it is written when this resolves. */
  stop (): Promise<void>
}

/** Told by a receiver: that something of its status changed, and, once, that it ended by itself. */
export interface ReceiverListeners {
  readonly onChange: () => void
  readonly onEnd: () => void
}

export interface ReceivingOptions {
  readonly device: DeviceId
  readonly begin: (wanted: Wanted, listeners: ReceiverListeners) => Receiver
  /** Makes a local database where it is missing. */
  readonly createDatabase: (name: DatabaseName) => Promise<void>
  /** What is wanted now, and what was accepted and is not offered any more. */
  readonly wanted: () => readonly Wanted[]
  readonly accepted: () => readonly Wanted[]
  readonly isConnected: () => boolean
  /** Called where a receiver failed though the device is connected. */
  readonly onFailed: () => void
  readonly conflicts: (database: DatabaseName) => number
  readonly clock: Clock
  readonly logger: Logger
  readonly emit: (event: object) => void
}

const FIRST_RETRY_MS = 1_000
const LONGEST_RETRY_MS = 60_000
/** How soon room is looked for again. */
const ROOM_RETRY_MS = 5_000

/** The databases that are received from one device: one receiver each while it is connected, begun again where one
 * failed or had no room. */
export class Receiving {
  readonly #options: ReceivingOptions
  readonly #receivers = new Map<DatabaseName, Receiver>()
  readonly #retries = new Map<DatabaseName, Timer>()
  /** How long the next failure waits (ms). */
  readonly #delays = new Map<DatabaseName, number>()
  readonly #starting = new Set<DatabaseName>()
  /** Why the last receiver of a database ended, until the next one moves. */
  readonly #problems = new Map<DatabaseName, string>()
  #isStopped = false

  constructor (options: ReceivingOptions) {
    this.#options = options
  }

  /** Begins and ends receivers so that they match what is wanted now. Resolves when nothing more is written of what
   * is not. */
  async reconcile (): Promise<void> {
    if (this.#isStopped || !this.#options.isConnected()) return
    const wanted = new Map(this.#options.wanted().map(one => [one.database, one]))
    const ends: Array<Promise<void>> = []
    for (const database of new Set([...this.#receivers.keys(), ...this.#retries.keys()])) {
      const receiver = this.#receivers.get(database)
      const as = wanted.get(database)?.as
      if (as === undefined || (receiver !== undefined && receiver.as !== as)) ends.push(this.#end(database))
    }
    for (const one of wanted.values()) {
      if (!this.#receivers.has(one.database) && !this.#retries.has(one.database) && !this.#starting.has(one.database)) void this.#begin(one)
    }
    await Promise.all(ends)
  }

  /** The device is not connected any more: nothing can be received. */
  async lost (): Promise<void> {
    this.#problems.clear()
    // What failed on a connection that was dying says nothing of the next one.
    this.#delays.clear()
    await Promise.all([...new Set([...this.#receivers.keys(), ...this.#retries.keys()])].map(database => this.#end(database)))
    // Of a device that is forgotten nothing is expected.
    if (!this.#isStopped) for (const one of this.#expected()) this.#tell(one)
  }

  /** Tries at once what failed or had no room. */
  retry (): void {
    for (const timer of this.#retries.values()) timer.cancel()
    this.#retries.clear()
    this.#reconcileLater()
  }

  async stop (): Promise<void> {
    this.#isStopped = true
    await this.lost()
  }

  status (): DatabaseStatus[] { return this.#expected().map(one => this.#statusOf(one)) }

  /** What is received, and what was accepted and is not: then its status says why. */
  #expected (): Wanted[] {
    const wanted = this.#options.wanted()
    return [...wanted, ...this.#options.accepted().filter(({ database }) => !wanted.some(one => one.database === database))]
  }

  #statusOf ({ database, as }: Wanted): DatabaseStatus {
    const receiver = this.#receivers.get(database)
    const rate = receiver?.rate ?? 0
    const lag = receiver?.lag ?? null
    return {
      name: as, remote: database, direction: 'pull', connected: receiver !== undefined, lag, rate,
      secondsLeft: lag !== null && lag > 0 && rate > 0 ? Math.ceil(lag / rate) : null,
      conflicts: this.#options.conflicts(as),
      state: this.#stateOf(database, receiver),
    }
  }

  #stateOf (database: DatabaseName, receiver: Receiver | undefined): string {
    if (!this.#options.isConnected()) return 'not connected'
    if (!this.#options.wanted().some(one => one.database === database)) return 'not offered any more'
    return this.#problems.get(database) ?? receiver?.state ?? 'starting'
  }

  async #begin (one: Wanted): Promise<void> {
    const { database, as } = one
    const { createDatabase, begin, isConnected } = this.#options
    this.#starting.add(database)
    try {
      await createDatabase(as)
      if (this.#isStopped || !isConnected() || this.#receivers.has(database)) return
      const receiver = begin(one, {
        onChange: () => {
          if (receiver.state === 'in sync' || receiver.state === 'active') this.#problems.delete(database)
          this.#tell(one)
        },
        onEnd: () => {
          this.#receivers.delete(database)
          this.#failed(one, receiver.state === 'paused' ? 'paused' : 'failed', receiver.problem ?? 'it ended', receiver.lag === 0 || receiver.rate > 0)
        },
      })
      this.#receivers.set(database, receiver)
    } catch (error) {
      this.#failed(one, 'failed', messageOf(error))
    } finally {
      this.#starting.delete(database)
    }
  }

  /** `wasWell`: it was in sync, or documents came in until now, so that it is not the same failure over and over. */
  #failed (one: Wanted, state: 'failed' | 'paused', reason: string, wasWell = false): void {
    const { device, clock, logger, isConnected } = this.#options
    if (this.#isStopped || !isConnected()) return
    const { database } = one
    this.#problems.set(database, `${state}: ${reason}`)
    logger.warn({ device, database, reason }, state === 'paused' ? 'a pull has no room' : 'a pull failed')
    this.#tell(one)
    const delay = state === 'paused' ? ROOM_RETRY_MS : wasWell ? FIRST_RETRY_MS : this.#delays.get(database) ?? FIRST_RETRY_MS
    if (state === 'failed') {
      this.#delays.set(database, Math.min(delay * 2, LONGEST_RETRY_MS))
      this.#options.onFailed()
    }
    this.#retries.set(database, clock.after(delay, () => {
      this.#retries.delete(database)
      this.#reconcileLater()
    }))
  }

  #reconcileLater (): void {
    this.reconcile().catch((error: unknown) => { this.#options.logger.warn({ reason: messageOf(error) }, 'what is received was not brought in step') })
  }

  async #end (database: DatabaseName): Promise<void> {
    const receiver = this.#receivers.get(database)
    this.#receivers.delete(database)
    this.#retries.get(database)?.cancel()
    this.#retries.delete(database)
    this.#problems.delete(database)
    await receiver?.stop().catch((error: unknown) => { this.#options.logger.warn({ reason: messageOf(error) }, 'a pull did not stop cleanly') })
  }

  #tell (one: Wanted): void {
    const { name, remote, ...figures } = this.#statusOf(one)
    this.#options.emit({ event: 'replication', device: this.#options.device, database: name, remote, ...figures })
  }
}

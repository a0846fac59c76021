import { setMaxListeners } from 'node:events'
import type { Agent } from 'node:http'
import type { Clock } from '../core/clock.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { Logger } from '../core/log.js'
import { guardTarget } from './guarded-target.js'
import { peerHost } from './peer-agent.js'
import { openHttpDatabase, replicate, type PouchDatabase, type Replication } from './pouch.js'
import { Rate } from './rate.js'

export interface PullOptions {
  readonly source: { readonly device: DeviceId, readonly database: DatabaseName, readonly agent: Agent }
  /** The local CouchDB, with credentials that may write this one database. */
  readonly target: { readonly url: string, readonly database: DatabaseName, readonly agent: Agent, readonly username: string, readonly password: string }
  /** Throws `disk-full` where so many bytes more must not be written: the pull then ends as `paused`. */
  readonly checkRoom: (bytes: number) => Promise<void>
  readonly clock: Clock
  readonly logger: Logger
  /** Called whenever `state` or `lag` changed. */
  readonly onChange?: () => void
  /** Called once when the pull ended by itself: its state then says why. */
  readonly onEnd?: () => void
}

export type PullState = 'starting' | 'active' | 'in sync' | 'paused' | 'failed' | 'stopped'

const BATCH = 100
const HEARTBEAT_MS = 10_000

/** One database of one peer, pulled continuously into a local one. It starts at once, goes on from its
 * checkpoint, and ends by `stop` or at the first failure; who made it starts another one. */
export class Pull {
  readonly source: PullOptions['source']
  readonly target: PullOptions['target']
  #state: PullState = 'starting'
  #lag: number | undefined
  #problem: string | undefined
  #written = 0
  readonly #rate: Rate
  readonly #options: PullOptions
  readonly #abort = new AbortController()
  readonly #writes = new Set<Promise<unknown>>()
  readonly #databases: PouchDatabase[]
  readonly #replication: Replication

  constructor (options: PullOptions) {
    this.source = options.source
    this.target = options.target
    this.#options = options
    // As many listen as there are requests.
    setMaxListeners(0, this.#abort.signal)
    this.#rate = new Rate(options.clock)
    const { source, target, logger } = options
    // Both are named without address or port, so that checkpoints outlive a new one.
    const remote = openHttpDatabase(`${source.device}-${source.database}`, `http://${peerHost(source.device)}/couch/${encodeURIComponent(source.database)}`, { agent: source.agent, signal: this.#abort.signal })
    const local = guardTarget(openHttpDatabase(`local-${target.database}`, `${target.url}/${encodeURIComponent(target.database)}`, { agent: target.agent, auth: target }), {
      onDropped: id => { logger.warn({ device: source.device, database: source.database, id: id.slice(0, 80) }, 'a document that was not asked for was dropped') },
      write: (bytes, run) => this.#write(bytes, run),
    })
    this.#databases = [remote, local]
    this.#replication = replicate(remote, local, { live: true, batch_size: BATCH, heartbeat: HEARTBEAT_MS })
    this.#replication.on('active', () => { this.#become('active') })
    this.#replication.on('paused', (error?: unknown) => { if (error === undefined || error === null) this.#become('in sync', 0) })
    this.#replication.on('change', (info: { pending?: number, docs_written: number }) => {
      this.#rate.add(info.docs_written - this.#written)
      this.#written = info.docs_written
      this.#become('active', info.pending)
    })
    this.#replication.on('denied', (error: unknown) => { logger.warn({ database: target.database, reason: messageOf(error) }, 'a document was refused by the local database') })
    this.#replication.on('error', (error: unknown) => { this.#fail(error) })
    this.#replication.on('complete', (result: { errors?: unknown[] }) => { this.#fail(result.errors?.[0] ?? new Error('the feed ended')) })
  }

  get state (): PullState { return this.#state }
  /** Changes that are still to come, where the source tells. */
  get lag (): number | undefined { return this.#lag }
  /** Documents a second over the last seconds. */
  get rate (): number { return this.#rate.perSecond }
  get problem (): string | undefined { return this.#problem }

  get as (): DatabaseName { return this.target.database }

  /** Cuts what is asked of the peer. Nothing more is written when it resolves. */
  async stop (): Promise<void> {
    if (!this.#isOver) this.#state = 'stopped'
    this.#replication.cancel()
    this.#abort.abort()
    await Promise.allSettled(this.#writes)
    await this.#close()
  }

  get #isOver (): boolean { return this.#state === 'stopped' || this.#state === 'failed' || this.#state === 'paused' }

  /** Every write of documents comes by here. */
  async #write<Result> (bytes: number, run: () => Promise<Result>): Promise<Result> {
    const writing = this.#options.checkRoom(bytes).then(() => {
      if (this.#isOver) throw new PatchcordError('stopped', 'the pull has ended')
      return run()
    })
    this.#writes.add(writing)
    try {
      return await writing
    } catch (error) {
      if (error instanceof PatchcordError && error.code === 'disk-full') this.#fail(error, 'paused')
      throw error
    } finally {
      this.#writes.delete(writing)
    }
  }

  #become (state: PullState, lag?: number): void {
    if (this.#isOver) return
    this.#state = state
    if (lag !== undefined) this.#lag = lag
    this.#options.onChange?.()
  }

  #fail (error: unknown, state: 'failed' | 'paused' = 'failed'): void {
    if (this.#isOver) return
    this.#state = state
    this.#replication.cancel()
    this.#abort.abort()
    this.#problem = (error as { reason?: unknown }).reason === undefined ? messageOf(error) : String((error as { reason?: unknown }).reason)
    this.#options.onChange?.()
    this.#close().catch((closing: unknown) => { this.#options.logger.warn({ err: closing }, 'a replication did not close') }).finally(() => { this.#options.onEnd?.() })
  }

  async #close (): Promise<void> {
    await Promise.all(this.#databases.splice(0).map(database => database.close()))
  }
}

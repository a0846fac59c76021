import { randomBytes } from 'node:crypto'
import * as v from 'valibot'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { BRIDGE_USER } from '../sync/bridge-tokens.js'
import type { BridgeToken } from '../sync/bridge.js'
import type { PullState } from '../sync/pull.js'
import { Rate } from '../sync/rate.js'
import { CouchClient, type CouchLogin } from './couch-client.js'
import type { Receiver, ReceiverListeners, Wanted } from './receiving.js'

// The other engine: CouchDB's own scheduler pulls, told so by a document in `_replicator` whose source is the bridge.
// It is there while the peer is, and its checkpoints outlive it, since the bridge keeps its URL.
//
// What CouchDB writes does not pass by guarded-target.ts. It comes in with a login that CouchDB itself lets write no
// design document and no other database: without such a login this engine refuses to run.

/** What all of them share. */
export interface ReplicatorOptions {
  /** An administrator's client: nobody else may write `_replicator`. */
  readonly couch: () => CouchClient
  readonly bridgeUrl: () => string
  /** Puts the tokens of the replications in force, beside that of `patchcord bridge`. */
  readonly setTokens: (tokens: readonly BridgeToken[]) => void
  readonly clock: Clock
  readonly logger: Logger
}

const LOOK_MS = 2_000
/** How often what moves nothing is looked at. */
const LOOK_QUIET_MS = 10_000
/** It tells what is left to do when it writes a checkpoint, and writes none where nothing moved. */
const CHECKPOINT_MS = 5_000
/** What was asked for is cut at once; its last writes are waited for at most so long. */
const END_MS = 10_000

const Session = v.object({ userCtx: v.object({ name: v.nullable(v.string()), roles: v.array(v.string()) }) })
const Scheduled = v.object({
  state: v.nullable(v.string()),
  info: v.nullish(v.object({ error: v.nullish(v.string()), docs_written: v.nullish(v.number()), changes_pending: v.nullish(v.number()) })),
})
const Row = v.object({ id: v.string(), value: v.object({ rev: v.string() }) })

/** Pulls by CouchDB's own scheduler, all those of one service. */
export class CouchReplicator {
  readonly #options: ReplicatorOptions
  readonly #prefix: string
  readonly #tokens = new Set<BridgeToken>()

  /** `device` is this one: several may share a CouchDB. */
  constructor (device: DeviceId, options: ReplicatorOptions) {
    this.#prefix = `patchcord-${device.slice(0, 12)}-`
    this.#options = options
  }

  /** Takes away what an earlier run left. Throws `refused` where the login may not write `_replicator`. */
  async clear (): Promise<void> {
    const { couch } = this.#options
    const key = (text: string): string => encodeURIComponent(JSON.stringify(text))
    await couch().ask('PUT', '/_replicator')
    const { status, value } = await couch().ask('GET', `/_replicator/_all_docs?startkey=${key(this.#prefix)}&endkey=${key(`${this.#prefix}\ufff0`)}`)
    const parsed = v.safeParse(v.object({ rows: v.array(Row) }), value)
    if (status !== 200 || !parsed.success) throw new PatchcordError('refused', `CouchDB answered ${status} for its _replicator database`, { hint: '--replication couchdb needs the login of an administrator: patchcord couch setup' })
    for (const { id, value: { rev } } of parsed.output.rows) await couch().ask('DELETE', `/_replicator/${encodeURIComponent(id)}?rev=${rev}`)
  }

  begin (device: DeviceId, { database, as }: Wanted, login: CouchLogin, checkRoom: () => Promise<void>, listeners: ReceiverListeners): Receiver {
    const token: BridgeToken = { token: randomBytes(24).toString('base64url'), program: `replication of ${database}`, scope: { device, database, mode: 'read' } }
    return new CouchReplication({
      ...this.#options, as, login, checkRoom, listeners,
      id: `${this.#prefix}${device.slice(0, 12)}-${database}`,
      source: { url: `${this.#options.bridgeUrl()}/peer/${device}/couch/${encodeURIComponent(database)}`, auth: { basic: { username: BRIDGE_USER, password: token.token } } },
      allow: isAllowed => {
        if (isAllowed) this.#tokens.add(token)
        else this.#tokens.delete(token)
        this.#options.setTokens([...this.#tokens])
      },
    })
  }
}

interface CouchReplicationOptions extends ReplicatorOptions {
  readonly id: string
  readonly as: DatabaseName
  readonly login: CouchLogin
  readonly source: object
  /** Lets the replication use the bridge, or cuts it off. */
  readonly allow: (isAllowed: boolean) => void
  readonly checkRoom: () => Promise<void>
  readonly listeners: ReceiverListeners
}

class CouchReplication implements Receiver {
  readonly as: DatabaseName
  readonly #options: CouchReplicationOptions
  readonly #rate: Rate
  readonly #path: string
  #state: PullState = 'starting'
  #lag: number | undefined
  #problem: string | undefined
  #written = 0
  #timer: Timer | undefined
  #running: Promise<void>

  constructor (options: CouchReplicationOptions) {
    this.#options = options
    this.as = options.as
    this.#rate = new Rate(options.clock)
    this.#path = `/_replicator/${encodeURIComponent(options.id)}`
    this.#running = this.#step(() => this.#create())
  }

  get state (): PullState { return this.#state }
  get lag (): number | undefined { return this.#lag }
  get rate (): number { return this.#rate.perSecond }
  get problem (): string | undefined { return this.#problem }

  async stop (): Promise<void> {
    if (!this.#isOver) this.#state = 'stopped'
    this.#timer?.cancel()
    await this.#running
    await this.#remove()
  }

  get #isOver (): boolean { return this.#state === 'stopped' || this.#state === 'failed' || this.#state === 'paused' }

  async #create (): Promise<void> {
    const { couch, login, as, source, allow, checkRoom } = this.#options
    await checkRoom()
    await this.#checkLogin()
    allow(true)
    const { status: found, value } = await couch().ask('GET', this.#path)
    const rev = found === 200 ? { _rev: (value as { _rev: string })._rev } : {}
    const { status } = await couch().ask('PUT', this.#path, {
      ...rev, source, continuous: true, create_target: false, checkpoint_interval: CHECKPOINT_MS,
      target: { url: `${couch().url}/${encodeURIComponent(as)}`, auth: { basic: { username: login.username, password: login.password } } },
    })
    if (status !== 201 && status !== 202) throw new PatchcordError('upstream-down', `CouchDB answered ${status} for a document in _replicator`)
  }

  /** Fails where the login could write a design document. */
  async #checkLogin (): Promise<void> {
    const { couch, login } = this.#options
    const asUser = new CouchClient(couch().url, login)
    const { status, value } = await asUser.ask('GET', '/_session').finally(() => { asUser.close() })
    const parsed = v.safeParse(Session, value)
    if (status !== 200 || !parsed.success || parsed.output.userCtx.name !== login.username) throw new PatchcordError('refused', `CouchDB does not know the user ${login.username}`)
    if (parsed.output.userCtx.roles.includes('_admin')) throw new PatchcordError('refused', 'the login for what is received is an administrator\'s: CouchDB would let a peer write design documents', { hint: 'patchcord couch setup makes limited users' })
  }

  async #look (): Promise<void> {
    const { couch, id, checkRoom } = this.#options
    await checkRoom()
    const { status, value } = await couch().ask('GET', `/_scheduler/docs/_replicator/${encodeURIComponent(id)}`)
    const parsed = v.safeParse(Scheduled, value)
    // It takes the scheduler a moment to know of a new document.
    if (status === 404) return
    if (status !== 200 || !parsed.success) throw new PatchcordError('upstream-down', `CouchDB answered ${status} for a replication`)
    const { state, info } = parsed.output
    if (state === 'failed' || state === 'crashing' || state === 'error') throw new PatchcordError('upstream-down', info?.error ?? `CouchDB calls it ${state}`)
    if (state !== 'running') return
    const written = info?.docs_written ?? 0
    if (written > this.#written) this.#rate.add(written - this.#written)
    this.#written = written
    this.#become(info?.changes_pending === 0 ? 'in sync' : 'active', info?.changes_pending ?? undefined)
  }

  async #step (work: () => Promise<void>): Promise<void> {
    try {
      await work()
      if (this.#isOver) return
      this.#timer = this.#options.clock.after(this.#state === 'in sync' ? LOOK_QUIET_MS : LOOK_MS, () => { this.#running = this.#step(() => this.#look()) })
    } catch (error) {
      if (this.#isOver) return
      this.#state = error instanceof PatchcordError && error.code === 'disk-full' ? 'paused' : 'failed'
      this.#problem = messageOf(error)
      await this.#remove()
      this.#options.listeners.onEnd()
    }
  }

  /** Cuts it off the bridge first: then nothing can follow but what CouchDB holds already, and that is waited for. */
  async #remove (): Promise<void> {
    const { couch, id, allow, logger } = this.#options
    allow(false)
    try {
      const { status, value } = await couch().ask('GET', this.#path)
      if (status !== 200) return
      await couch().ask('DELETE', `${this.#path}?rev=${(value as { _rev: string })._rev}`)
      const deadline = performance.now() + END_MS
      while ((await couch().ask('GET', `/_scheduler/docs/_replicator/${encodeURIComponent(id)}`)).status === 200 && performance.now() < deadline) await new Promise(resolve => { setTimeout(resolve, 50) })
    } catch (error) {
      logger.warn({ id, reason: messageOf(error) }, 'a document in _replicator was not removed')
    }
  }

  #become (state: PullState, lag: number | undefined): void {
    if (this.#isOver || (state === this.#state && lag === this.#lag)) return
    this.#state = state
    this.#lag = lag
    this.#options.listeners.onChange()
  }
}

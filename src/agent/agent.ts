import { EventEmitter } from 'node:events'
import { formatAddress, hostOf, reachableAddresses, type Address } from '../core/address.js'
import { systemClock, type Clock } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { Home } from '../core/home.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { Resources } from '../core/lifecycle.js'
import type { Limits } from '../core/limits.js'
import { LogTail, type Logger, type LogLevel } from '../core/log.js'
import { makeFolders } from '../core/make-folders.js'
import type { ListenInfo, Status } from '../control/operations.js'
import { ControlServer } from '../control/server.js'
import { checkSocketPath } from '../control/socket-path.js'
import { FileStore } from '../files/store.js'
import { confinementOf } from '../machine/confinement.js'
import { Keystore } from '../identity/keystore.js'
import { Revocations } from '../identity/revocations.js'
import type { ServerCounts } from '../server/counts.js'
import { Downloads } from '../sync/downloads.js'
import { AccountBook } from './accounts.js'
import { CaBook } from './ca-book.js'
import { Conflicts } from './conflicts.js'
import { chooseCouch, type NamedCouch } from './couch-choice.js'
import { CouchClient, type CouchLogin } from './couch-client.js'
import type { CouchHost } from './couch-host.js'
import { CouchReplicator } from './couch-replication.js'
import { BRIDGE_USER } from '../sync/bridge-tokens.js'
import { startBridge, type Bridge, type BridgeToken } from '../sync/bridge.js'
import { takeLock } from './lock.js'
import { Looking } from './looking.js'
import { renderMetrics } from './metrics.js'
import { Offers } from './offers.js'
import { openPort } from './open-port.js'
import { operationsOf } from './operations.js'
import { Pairing } from './pairing.js'
import { FileSources } from './file-sources.js'
import { FollowPolicies } from './follow-policies.js'
import { Following } from './following.js'
import { watchForGaps } from './gap-watch.js'
import { Peers } from './peers.js'
import { PATIENCE_MS, patiently } from './ports.js'
import { haltedHost, type ServerHost } from './server-host.js'
import { Room } from './room.js'
import { migrate } from './state-version.js'
import { ServerEnv } from './server-env.js'
import { KeptSettings } from './settings.js'
import { TrustBook } from './trust-book.js'
import { TrustLife } from './trust-life.js'

export interface AgentOptions {
  readonly home: Home
  /** Where the open port listens; by default `[::]` at 4984, or at a free port that is then kept. */
  readonly listen?: Address
  /** A CouchDB to use instead of the embedded one, and the file with its login. */
  readonly couch?: NamedCouch
  /** Who pulls: this process, or the CouchDB named by `couch`. */
  readonly replication?: 'agent' | 'couchdb'
  readonly name?: string
  readonly allowRouted?: boolean
  readonly limits?: Partial<Limits>
  readonly logLevel?: LogLevel
  /** False looks for no devices on the network and announces none. */
  readonly discovery?: boolean
  /** Server and database in this process instead of children, for `Lab`. */
  readonly inProcess?: boolean
}

export interface AgentCollaborators {
  readonly logger: Logger
  /** Where the logger's lines, and the server's, are kept for `patchcord logs`; empty unless given. */
  readonly log?: LogTail
  readonly clock?: Clock
}

/** What `taking` names: trust that is taken away reaches the server before anything else. */
type Change = 'giving' | 'taking'

/**
 * The service of one user on one device: everything that needs a key, the user or the disk. It composes the
 * rooms, starts and mends the children, and keeps what runs in step with what is trusted.
 */
export class Agent {
  readonly home: Home
  readonly clock: Clock
  readonly logger: Logger
  readonly log: LogTail
  /** Lines of the server's log that are about to be passed on. */
  readonly #said: string[] = []
  readonly events = new EventEmitter()
  readonly keystore: Keystore
  readonly book: TrustBook
  readonly cas: CaBook
  readonly life: TrustLife
  readonly store: FileStore
  readonly peers: Peers
  readonly room: Room
  readonly sources: FileSources
  readonly downloads: Downloads
  readonly looking: Looking
  readonly conflicts = new Conflicts((database, conflicts) => { this.emit({ event: 'conflicts', database, conflicts }) })
  /** Imports under way: what they added may not be recorded yet. */
  importing = 0
  readonly #options: AgentOptions
  readonly #settings: KeptSettings
  readonly #env: ServerEnv
  readonly #accounts: AccountBook
  readonly #resources: Resources
  #replicator: CouchReplicator | undefined
  #couch!: CouchHost
  #server!: ServerHost
  #pairing!: Pairing
  #bridge!: Bridge
  #following!: Following
  #offers!: Offers
  #databases: DatabaseName[] = []
  #serial: Promise<unknown> = Promise.resolve()
  #revoked: ReadonlySet<DeviceId> = new Set()
  #halted: { readonly reason: string, readonly hint: string } | undefined

  private constructor (options: AgentOptions, { logger, log = new LogTail(), clock = systemClock }: AgentCollaborators, resources: Resources, keystore: Keystore, book: TrustBook, cas: CaBook, store: FileStore, settings: KeptSettings, downloads: Downloads) {
    this.home = options.home
    this.#options = options
    this.logger = logger
    this.log = log
    this.clock = clock
    this.#resources = resources
    this.keystore = keystore
    this.book = book
    this.cas = cas
    this.store = store
    this.downloads = downloads
    this.#settings = settings
    this.#accounts = new AccountBook(settings.now.programPassword)
    this.events.setMaxListeners(0)
    const couch = (): CouchHost => this.#couch
    const replicator = options.replication === 'couchdb'
      ? new CouchReplicator(keystore.identity.device, {
        clock, logger,
        couch: () => this.#couch.client,
        bridgeUrl: () => this.#bridge.url,
        setTokens: tokens => { this.#bridge.setTokens([this.#bridgeToken, ...tokens]) },
      })
      : undefined
    this.#replicator = replicator
    this.peers = new Peers({
      book, clock, logger, replicator,
      conflicts: database => this.conflicts.count(database),
      checkRoom: (device, bytes) => this.room.check(device, bytes),
      isRevoked: device => this.#revoked.has(device),
      isOver: known => cas.isOver(known.user),
      credentials: async known => ({ key: await keystore.deviceKey(), certificate: keystore.identity.deviceCertificate, ca: known.ca, revoked: this.#revoked }),
      couch: { get url () { return couch().url }, get agent () { return couch().client.agent } },
      syncLogin: known => this.#couch.loginOf(this.#accounts.sync(book, known)),
      createDatabase: name => this.createDatabase(name),
      emit: event => {
        this.emit(event)
        const { event: what, device } = event as { event?: unknown, device?: DeviceId }
        if (what !== 'connected' || device === undefined) return
        this.#following?.retry()
        this.#pairing?.mending.reached(device)
      },
      onMail: (device, mail) => {
        this.#offers.mailCame(device, mail).catch((error: unknown) => { logger.warn({ device, reason: messageOf(error) }, 'offers in the mail of a device were not taken in') })
      },
      onTrustMail: (device, mail, origin, user) => { this.life.received(device, mail, origin, user) },
    })
    this.looking = new Looking({ peers: this.peers, mending: () => this.#pairing?.mending, emit: event => { this.emit(event) } })
    this.room = new Room({
      folder: this.home.root,
      couch: () => this.#couch.client,
      settings,
      isOwn: device => book.isOwn(device),
      received: device => this.peers.peer(device)?.received() ?? [],
    })
    this.life = new TrustLife({
      keystore, book, cas, clock, logger,
      revoked: () => this.#revoked,
      serially: change => this.serially(change),
      apply: change => this.apply(change),
      tellMail: () => this.#tellMail(),
      mending: {
        bridged: () => this.#pairing?.mending.bridged ?? new Set(),
        suspended: () => this.#pairing?.mending.suspended ?? new Set(),
        certificatesFor: device => this.#pairing?.mending.certificatesFor(device),
      },
      halt: (reason, hint) => this.halt(reason, hint),
      retryLinks: () => { for (const { link } of this.peers.all()) if (!link.connected) link.retry() },
      emit: event => { this.emit(event) },
    })
    this.#env = new ServerEnv(options, {
      keystore, book, accounts: this.#accounts, life: this.life, couch,
      revoked: () => this.#revoked,
      databases: () => this.#databases,
      offers: () => this.#offers,
    })
    this.sources = new FileSources(this.peers, () => this.#couch.client, logger)
  }

  /** Starts the service. The first run makes an identity. Throws, with nothing left running, where the home
   * is in use or damaged, a port is taken, or CouchDB is down or refuses the password. */
  static async start (options: AgentOptions, collaborators: AgentCollaborators): Promise<Agent> {
    const { home } = options
    const clock = collaborators.clock ?? systemClock
    const resources = new Resources()
    try {
      checkSocketPath(home.socket)
      await makeFolders(home.root, 0o700)
      const lock = await takeLock(home.lock)
      resources.add(() => lock.release())
      const { from, to } = await migrate(home.root)
      if (from !== to) collaborators.logger.info({ from, to }, 'the state was brought to this version; a copy of what it was is kept')
      const keystore = await Keystore.openOrCreate(home.identity, clock, { alongside: () => Revocations.create(home.root) })
      const book = await TrustBook.open(home.root)
      const cas = await CaBook.open(home.root)
      const store = await FileStore.open(home.files)
      resources.add(() => store.close())
      const settings = await KeptSettings.open(home.root, options.name)
      const downloads = await Downloads.open(home.root, store, { clock, logger: collaborators.logger }, event => { agent.emit(event) })
      const agent: Agent = new Agent(options, collaborators, resources, keystore, book, cas, store, settings, downloads)
      await agent.#start(lock.wasLeftBehind ? PATIENCE_MS : 0)
      return agent
    } catch (error) {
      await resources.close().catch((closing: unknown) => { collaborators.logger.error({ err: closing }, 'what was started did not close') })
      throw error
    }
  }

  get name (): string { return this.#settings.now.name }
  get couch (): CouchHost { return this.#couch }
  get allowRouted (): boolean { return this.#options.allowRouted ?? false }
  get pairing (): Pairing { return this.#pairing }
  /** Where the bridge is, and its login for any database of any peer. */
  get bridgeLogin (): { url: string, username: string, token: string } { return { url: this.#bridge.url, username: BRIDGE_USER, token: this.#settings.now.bridgeToken } }
  get following (): Following { return this.#following }
  get offers (): Offers { return this.#offers }
  get databases (): readonly DatabaseName[] { return this.#databases }
  get revoked (): ReadonlySet<DeviceId> { return this.#revoked }
  get addresses (): readonly Address[] { return this.#server.addresses }
  /** The login of the person's own programs. */
  get programLogin (): CouchLogin {
    const { username, password } = this.#couch.loginOf(this.#accounts.program)
    return { username, password }
  }

  get listen (): ListenInfo[] {
    return this.#server.addresses.map(address => ({ host: hostOf(address), port: address.port }))
  }

  get #bridgeToken (): BridgeToken { return { token: this.#settings.now.bridgeToken, program: 'patchcord bridge', scope: 'general' } }

  emit (event: object): void {
    this.events.emit('event', event)
  }

  status (): Status {
    const { device, user } = this.keystore.identity
    return {
      device, user, name: this.name,
      listen: this.listen,
      addresses: this.#server.addresses.flatMap(reachableAddresses).map(formatAddress),
      bridge: this.#bridge.url,
      couch: { url: this.#couch.url, kind: this.#couch.kind },
      server: { pid: this.#server.pid ?? null, confined: confinementOf(this.#server.pid ?? 'self') },
      stopped: this.#halted ?? null,
      notices: [...this.life.notices, ...this.#pairing.mending.notices],
      peers: this.peers.all().map(peer => ({ ...peer.status(), files: { missing: this.#following.missing(peer.received()) } })),
    }
  }

  /** What the server counted since it started; undefined where none answers. */
  serverCounts (): Promise<ServerCounts | undefined> { return this.#server.counts() }

  /** The server's log is this service's. */
  #serverSaid (line: string): void {
    this.log.add(line)
    this.#said.push(line)
    // What came together goes on together.
    if (this.#said.length === 1) setImmediate(() => { process.stderr.write(`${this.#said.splice(0).join('\n')}\n`) })
  }

  /** Runs changes of trust one after the other, each with the book as the one before left it. */
  serially<Result> (change: () => Promise<Result>): Promise<Result> {
    const done = this.#serial.then(change)
    this.#serial = done.catch(() => undefined)
    return done
  }

  /** Brings server, accounts and links in step with the book; how many connections that cut. */
  async apply (change: Change): Promise<number> {
    this.#revoked = new Set(this.book.revoked(this.keystore.identity.userCa))
    const toServer = async (): Promise<number> => (await this.#server.update(await this.#env.parts())).cut
    let cut: number
    if (change === 'taking') {
      // Who is revoked is not let in again, so its last mail, which tells it, goes out before it is cut.
      await this.#tellMail()
      cut = await toServer()
      await this.#couch.setAccounts(this.#accounts.all(this.book, this.#revoked))
    } else {
      await this.#couch.setAccounts(this.#accounts.all(this.book, this.#revoked))
      cut = await toServer()
    }
    await this.peers.reconcile()
    this.looking.lookForKnown()
    this.#following.retry()
    return cut
  }

  /** Ends the open port and every link, for a reason that `status` tells from then on. The control socket and
   * the person's own database stay. Only a new `up` serves again, where the reason is gone. */
  async halt (reason: string, hint: string): Promise<void> {
    this.#halted = { reason, hint }
    const server = this.#server
    this.#server = haltedHost
    this.life.stop()
    this.logger.error({ reason }, 'the service stops serving')
    this.emit({ event: 'stopped', reason, hint })
    await Promise.all([server?.stop(), this.peers.stop()])
  }

  /** Makes a local database where it is missing, and tells the server. */
  async createDatabase (name: DatabaseName): Promise<void> {
    if (this.#databases.includes(name)) return
    await this.#couch.createDatabase(name)
    await this.#databasesAre(await this.#couch.databases())
  }

  /** Tells the server what others are offered now, and lent: thousands of files, it may be, and so only where others are. */
  async mailChanged (isLent: boolean): Promise<void> {
    // Before the server runs there is nobody to tell: its env will have them.
    if (this.#server !== undefined) await this.#server.update({ mail: this.#env.mail(), ...isLent ? { lent: this.#env.lent() } : {} })
  }

  /** To be called as soon as the service is told to end: a signal to the whole group of processes ends the children too, before
   * they are stopped in order. */
  letEnd (): void {
    this.#server.letEnd()
    this.#couch.letEnd()
  }

  async stop (): Promise<void> {
    this.letEnd()
    await this.#resources.close()
  }

  async #start (patience: number): Promise<void> {
    const { clock, logger } = this
    const { inProcess = false, home, listen } = this.#options
    await this.life.start()
    this.#resources.add(() => { this.life.stop() })
    this.#revoked = new Set(this.book.revoked(this.keystore.identity.userCa))
    const onDatabases = (names: DatabaseName[]): void => {
      this.#databasesAre(names).catch((error: unknown) => { logger.error({ reason: messageOf(error) }, 'the server was not told of a database') })
    }
    this.#couch = await chooseCouch({
      home, patience, inProcess, clock, logger, onDatabases,
      named: this.#options.couch,
      device: this.keystore.identity.device,
      accounts: this.#accounts.all(this.book, this.#revoked),
      owner: this.#accounts.owner,
    }, this.#settings)
    this.#resources.add(() => this.#couch.stop())
    this.#databases = await this.#couch.databases()

    this.#offers = await Offers.open(this)
    const isHalted = await this.life.haltIfRevoked()
    if (!isHalted) {
      this.#server = await openPort({
        listen, patience, inProcess, clock, logger,
        folders: { data: home.files, folder: home.root },
        env: port => this.#env.whole(port),
        onLogLine: line => { this.#serverSaid(line) },
        onRestart: () => { this.emit({ event: 'server-restarted', pid: this.#server.pid ?? null }) },
      }, this.#settings)
    }
    this.#resources.add(() => this.#server.stop())
    if (!isHalted && listen === undefined) await this.#settings.keep({ port: this.#server.addresses[0]!.port })

    if (this.#replicator !== undefined && this.#couch.kind === 'embedded') throw new PatchcordError('usage', 'the embedded database has no scheduler of its own', { hint: 'name a CouchDB with --couch, or leave --replication out' })
    await this.#replicator?.clear()
    this.#bridge = await patiently(patience, () => startBridge({
      port: this.#settings.now.bridgePort ?? 0, logger, clock,
      tokens: [this.#bridgeToken],
      peerAgent: device => this.peers.peer(device)?.link.agent,
    }))
    this.#resources.add(() => this.#bridge.stop())
    await this.#settings.keep({ bridgePort: Number(new URL(this.#bridge.url).port) })
    await this.#startFollowing()
    this.#resources.add(() => this.peers.stop())
    const gaps = watchForGaps(clock, () => { this.peers.woke() })
    this.#resources.add(() => { gaps.cancel() })
    await this.peers.reconcile()
    if (this.#options.discovery !== false) {
      await this.looking.start({ device: this.keystore.identity.device, port: this.#server.addresses[0]?.port ?? 0, clock, logger })
      this.#resources.add(() => this.looking.stop())
    }
    this.#pairing = await Pairing.open(this)
    this.#resources.add(() => this.#pairing.stop())
    await this.#pairing.mending.start()
    this.looking.lookForKnown()
    this.downloads.goOn(id => this.sources.later(id), (id, { givers }) => this.#following.fetched(id, givers))
    const control = new ControlServer(home.socket, operationsOf(this), logger, { metrics: () => renderMetrics(this) })
    await control.listen()
    this.#resources.add(() => control.close())
    this.life.wake()
    // Before the control socket: a `get` that ends because the service does stays on the list of downloads.
    this.#resources.add(() => this.downloads.stop())
    this.#resources.add(() => { this.offers.stop() })
  }

  async #startFollowing (): Promise<void> {
    // A client of its own: a feed for each database must not keep others waiting for a connection.
    const couch = new CouchClient(this.#couch.url, this.#couch.loginOf(this.#accounts.owner), Infinity)
    this.#resources.add(() => { couch.close() })
    this.#following = new Following({
      store: this.store, peers: this.peers, downloads: this.downloads, couch, conflicts: this.conflicts, clock: this.clock, logger: this.logger,
      policies: await FollowPolicies.open(this.home.root),
      isShared: database => [...this.book.known.values()].some(known => known.relation === 'peer' && Object.hasOwn(this.book.grantOf(known).databases, database)),
      emit: event => { this.emit(event) },
    })
    this.#resources.add(() => this.#following.stop())
    await this.#following.reconcile(this.#databases)
  }

  async #databasesAre (names: readonly DatabaseName[]): Promise<void> {
    if (names.toSorted().join(' ') === this.#databases.join(' ')) return
    this.#databases = names.toSorted()
    this.emit({ event: 'databases', databases: this.#databases })
    // Before the server runs there is nobody to tell: its env will have them.
    if (this.#server !== undefined) await this.#server.update({ couch: this.#env.couch(), mail: this.#env.mail() })
    await this.#following?.reconcile(this.#databases)
  }

  async #tellMail (): Promise<void> {
    await this.#server.update({ mail: this.#env.mail() })
  }
}

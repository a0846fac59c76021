import type { IncomingMessage, Server as HttpServer, ServerResponse } from 'node:http'
import type { AddressInfo, Server } from 'node:net'
import { formatAddress, type Address } from '../core/address.js'
import { PatchcordError, systemCode } from '../core/errors.js'
import { parseDatabaseName, type DatabaseName } from '../core/ids.js'
import { silentLogger, type Logger } from '../core/log.js'
import { localServer } from '../core/strict-server.js'
import { canonicaliseLoopback, type CanonicalRequest } from '../policy/canonical.js'
import { decide, type Decision } from '../policy/decide.js'
import { databaseAccess } from '../policy/principal.js'
import { routeCouch, type CouchAction } from '../policy/route.js'
import { Accounts, type Account, type Caller } from './accounts.js'
import { Bodies } from './bodies.js'
import { Databases } from './databases.js'
import { Exchange } from './exchange.js'
import { EMBEDDED_LIMITS, type EmbeddedLimits } from './limits.js'
import { badRequest, missing, noDatabase, Problem, problemOf } from './problem.js'
import { HANDLERS } from './rows.js'
import type { Store } from './store.js'

/*
 * The embedded database: a CouchDB-compatible front of our own over PouchDB and LevelDB, on loopback.
 *
 * It answers exactly the rows of policy/surface.ts, decided by the same `decide` as the open port, and to
 * owners `PUT /db`. Names and passwords reach it from the agent. Who is not known learns nothing; who is
 * known finds a database it may not read as absent as one that is not there. No design code runs in it,
 * and nothing that a request says may end its process.
 *
 *   PUT /notes HTTP/1.1          →  201 {"ok":true}
 *   Host: [::1]:5984
 *   Authorization: Basic …
 */

export interface EmbeddedOptions {
  /** Where the databases live. Made with mode 0700 where it is not there. */
  readonly dir: string
  readonly accounts: readonly Account[]
  /** A loopback address, or something of Node's that listens (or is bound) already. */
  readonly listen: Pick<Address, 'host' | 'port'> | Listening
  readonly limits?: Partial<EmbeddedLimits>
  readonly logger?: Logger
}

/** A `net.Server` that listens, or the handle of one as it comes over IPC. */
export type Listening = Server | { readonly fd: number }

export interface Embedded {
  /** `http://[::1]:<port>`, without a slash at the end. */
  readonly url: string
  /** Replaces all accounts at once, and resolves when they are in force. Requests and feeds that are no
   * longer allowed are cut off. In this process it is done when the call returns. */
  setAccounts (accounts: readonly Account[]): Promise<void>
  /** Makes an empty database. Throws `usage` for its name, `already-exists`. */
  createDatabase (name: string): Promise<void>
  /** Deletes a database and ends its feeds. Throws `not-found`. */
  deleteDatabase (name: string): Promise<void>
  /** In the order of their names. */
  databases (): Promise<DatabaseName[]>
  /** Calls `changed` whenever a database is made or deleted, until the returned function is called. */
  onDatabases (changed: (names: DatabaseName[]) => void): () => void
  /** Ends feeds at once and other requests within the drain limit, and closes every database. */
  stop (): Promise<void>
}

/** Starts the embedded database in this process. Throws `port-in-use`, and file errors of `dir`. */
export async function startEmbedded (options: EmbeddedOptions): Promise<Embedded> {
  const databases = await Databases.take(options.dir)
  const front = new Front(databases, options)
  const { host, port } = await front.listen(options.listen)
  const listeners = new Set<(names: DatabaseName[]) => void>()
  databases.onList = names => { for (const listener of listeners) listener(names) }
  return {
    url: `http://${formatAddress({ host, port })}`,
    setAccounts: async accounts => { front.setAccounts(accounts) },
    createDatabase: async name => { await databases.create(parseDatabaseName(name)) },
    deleteDatabase: async name => { await databases.remove(parseDatabaseName(name)) },
    databases: async () => databases.names(),
    onDatabases (changed) {
      listeners.add(changed)
      return () => { listeners.delete(changed) }
    },
    async stop () {
      await front.stop()
      await databases.close()
    },
  }
}

/** How often connections are looked for that do not end their head. */
const HEAD_CHECK_MS = 5_000

interface Running {
  readonly credential: Uint8Array
  readonly exchange: Exchange
  readonly isFeed: boolean
}

class Front {
  readonly #databases: Databases
  readonly #accounts: Accounts
  readonly #limits: EmbeddedLimits
  readonly #logger: Logger
  readonly #bodies: Bodies
  readonly #http: HttpServer
  readonly #running = new Set<Running>()
  #stopping = false
  #idle: () => void = () => undefined

  constructor (databases: Databases, { accounts, limits, logger }: EmbeddedOptions) {
    this.#databases = databases
    this.#accounts = new Accounts(accounts)
    this.#limits = Object.freeze({ ...EMBEDDED_LIMITS, ...limits })
    this.#logger = logger ?? silentLogger()
    this.#bodies = new Bodies(this.#limits)
    this.#http = localServer(this.#limits, (incoming, response) => {
      this.#take(incoming, response).catch((error: unknown) => {
        this.#logger.error({ err: error }, 'a request could not even be refused')
        response.destroy()
      })
    }, HEAD_CHECK_MS)
  }

  async listen (listen: EmbeddedOptions['listen']): Promise<{ host: string, port: number }> {
    await new Promise<void>((resolve, reject) => {
      this.#http.once('error', reject)
      if ('port' in listen) this.#http.listen({ host: listen.host, port: listen.port, ipv6Only: true }, resolve)
      else this.#http.listen(listen, resolve)
    }).catch((error: unknown) => {
      if (systemCode(error) === 'EADDRINUSE') throw new PatchcordError('port-in-use', 'the embedded database\'s port is taken', { cause: error })
      throw error
    })
    this.#http.on('error', error => { this.#logger.error({ err: error }, 'the embedded database cannot accept') })
    const { address, port } = this.#http.address() as AddressInfo
    return { host: address, port }
  }

  setAccounts (accounts: readonly Account[]): void {
    this.#accounts.replace(accounts)
    for (const { credential, exchange } of [...this.#running]) {
      const caller = this.#accounts.find(credential)
      if (caller === undefined || !decide(caller.principal, exchange.action, Date.now()).allowed) exchange.cut()
    }
  }

  async stop (): Promise<void> {
    this.#stopping = true
    const closed = new Promise<void>(resolve => { this.#http.close(() => { resolve() }) })
    for (const { exchange, isFeed } of [...this.#running]) {
      if (isFeed) exchange.cut()
    }
    this.#http.closeIdleConnections()
    if (this.#running.size > 0) {
      let timer: NodeJS.Timeout | undefined
      await new Promise<void>(resolve => {
        this.#idle = resolve
        timer = setTimeout(resolve, this.#limits.drainMs)
      })
      clearTimeout(timer)
    }
    this.#http.closeAllConnections()
    await closed
  }

  async #take (incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const from = performance.now()
    // A client that goes while it is being answered is no failure of ours.
    incoming.on('error', () => undefined)
    response.on('error', () => undefined)
    let line: Record<string, unknown> = { method: incoming.method }
    try {
      const { request, caller, credential } = this.#admit(incoming)
      line = { ...line, account: caller.username }
      const answer = this.#route(request, caller)
      if ('create' in answer) {
        await this.#create(answer.create, request, response)
      } else {
        line = { ...line, rule: answer.decision.rule, database: answer.action.target.database }
        await this.#answer({ request, action: answer.action, caller }, credential, incoming, response)
      }
    } catch (error) {
      const problem = problemOf(error)
      if (problem.status >= 500 && problem.error !== 'stopped') this.#logger.error({ ...line, err: problem.cause ?? error }, problem.reason)
      refuse(response, problem)
    }
    this.#logger.debug({ ...line, status: response.statusCode, ms: Math.round(performance.now() - from) }, 'request')
  }

  #admit (incoming: IncomingMessage): { request: CanonicalRequest, caller: Caller, credential: Uint8Array } {
    if (incoming.rawHeaders.length > 2 * this.#limits.headers) throw badRequest('the request has too many headers')
    const canonical = canonicaliseLoopback({
      method: incoming.method ?? '', target: incoming.url ?? '', httpVersion: incoming.httpVersion, rawHeaders: incoming.rawHeaders,
    })
    if ('refusal' in canonical) {
      const { code, reason } = canonical.refusal
      throw code === 'foreign-origin' ? new Problem(403, 'forbidden', reason) : badRequest(reason)
    }
    const { request } = canonical
    const credential = this.#accounts.credential(request.headers.get('authorization'))
    const caller = credential === undefined ? undefined : this.#accounts.find(credential)
    if (credential === undefined || caller === undefined) throw new Problem(401, 'unauthorized', 'Name or password is incorrect.')
    if (this.#stopping) throw new Problem(503, 'stopped', 'the embedded database is stopping')
    return { request, caller, credential }
  }

  #route (request: CanonicalRequest, caller: Caller): { create: DatabaseName } | { action: CouchAction, decision: Decision } {
    const { method, segments, trailingSlash, query } = request
    if (method === 'PUT' && segments.length === 1 && caller.mayCreate && query.size === 0) {
      const [name] = segments as [string]
      try {
        return { create: parseDatabaseName(name) }
      } catch (error) {
        throw new Problem(400, 'illegal_database_name', 'Only lowercase characters (a-z), digits (0-9), and any of the characters _, $, (, ), +, -, and / are allowed. Must begin with a letter.', { cause: error })
      }
    }
    const action = routeCouch(method, segments, trailingSlash, query)
    if (action === undefined) throw missing()
    const decision = decide(caller.principal, action, Date.now())
    if (decision.allowed) return { action, decision }
    if (decision.status === 404) throw noDatabase()
    throw decision.status === 403 ? new Problem(403, 'forbidden', decision.reason) : badRequest(decision.reason)
  }

  async #create (name: DatabaseName, request: CanonicalRequest, response: ServerResponse): Promise<void> {
    // PouchDB says `Content-Type: application/json` and sends nothing; CouchDB ignores what is sent.
    if (request.body?.length !== 0) throw badRequest('PUT of a database takes no body')
    try {
      await this.#databases.create(name)
    } catch (error) {
      if (!(error instanceof PatchcordError && error.code === 'already-exists')) throw error
      throw new Problem(412, 'file_exists', 'The database could not be created, the file already exists.')
    }
    this.#logger.info({ database: name }, 'made a database')
    send(response, 201, { ok: true })
  }

  async #answer (head: { request: CanonicalRequest, action: CouchAction, caller: Caller }, credential: Uint8Array, incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const exchange = new Exchange(head, { incoming, response, bodies: this.#bodies, limits: this.#limits })
    const running = { credential, exchange, isFeed: head.action.target.endpoint === '_changes' }
    if (running.isFeed && this.#feedsOf(head.caller) >= this.#limits.feedsPerAccount) throw new Problem(429, 'too_many_requests', 'too many feeds')
    this.#running.add(running)
    try {
      await this.#handle(exchange)
    } catch (error) {
      if (!exchange.started) throw error
      // The status is out: only a cut connection says that the rest is missing.
      exchange.cut()
      if (!(error instanceof Problem && error.error === 'stopped')) throw error
    } finally {
      exchange.releaseBody()
      this.#running.delete(running)
      if (this.#running.size === 0) this.#idle()
    }
  }

  #feedsOf ({ username }: Caller): number {
    let feeds = 0
    for (const { exchange, isFeed } of this.#running) if (isFeed && exchange.caller.username === username) feeds++
    return feeds
  }

  async #handle (exchange: Exchange): Promise<void> {
    const { row, target } = exchange.action
    if (row.id === 'welcome') return exchange.json(200, { couchdb: 'Welcome', version: '3.3.3', vendor: { name: 'patchcord' } })
    if (row.id === 'list databases') return exchange.json(200, this.#visible(exchange.caller))
    const store = await this.#store(target.database!)
    await HANDLERS[row.id]!(exchange, store)
  }

  #visible ({ principal }: Caller): DatabaseName[] {
    return this.#databases.names().filter(name => databaseAccess(principal, name) !== 'none')
  }

  async #store (name: DatabaseName): Promise<Store> {
    const store = await this.#databases.store(name)
    if (store === undefined) throw noDatabase()
    return store
  }
}

function refuse (response: ServerResponse, { status, error, reason }: Problem): void {
  if (response.headersSent || response.destroyed) return void response.destroy()
  // What was sent with a refused request is not read: the connection cannot carry another one.
  if (!response.req.complete || status === 401) response.setHeader('Connection', 'close')
  if (status === 401) response.setHeader('WWW-Authenticate', 'Basic realm="patchcord"')
  send(response, status, { error, reason })
}

function send (response: ServerResponse, status: number, value: object): void {
  const body = Buffer.from(`${JSON.stringify(value)}\n`)
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': body.length, 'Cache-Control': 'must-revalidate', 'X-Content-Type-Options': 'nosniff' })
  response.end(response.req.method === 'HEAD' ? undefined : body)
}

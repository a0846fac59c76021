import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import type { Answering } from '../core/answering.js'
import { formatAddress, isLoopback } from '../core/address.js'
import { systemClock, type Clock } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import { DEFAULT_LIMITS, type Limits } from '../core/limits.js'
import { silentLogger, type Logger } from '../core/log.js'
import { Patrol } from '../core/patrol.js'
import type { CanonicalRequest } from '../policy/canonical.js'
import type { Principal } from '../policy/principal.js'
import { couchPath, type CouchAction } from '../policy/route.js'
import { UpstreamPools } from './agents.js'
import { createBodyCheck } from './body-check.js'
import { Checkpoints } from './checkpoints.js'
import { boundedFeedQuery, isFeed } from '../policy/feed.js'
import { requestHeaders } from '../policy/couch-headers.js'
import { Transfer, type Forwarded, type TransferContext } from './transfer.js'
import type { UpstreamTarget } from './upstream.js'

// The couch room: what stands between a decided request and a CouchDB on loopback.
//
// It promises: upstream gets a path, headers and credentials that were written anew, and never a complete
// body that the check refused; the client gets headers of an allow-list, and 401, 403 and 404 of our own.
// It must never: decide (policy does), read a client's raw headers or URL, or hold admin credentials.
//
//   GET /couch/db/_changes?feed=longpoll          GET /db/_changes?feed=longpoll&heartbeat=20000 HTTP/1.1
//   Authorization: Basic whatever            →    host: [::1]:5984
//   Cookie: AuthSession=…                         authorization: Basic <credentials of the grant>

/** The credentials that requests of a grant are forwarded with. */
export interface CouchCredentials {
  readonly username: string
  readonly password: string
}

/** One request that the policy allowed. */
export interface CouchExchange {
  readonly action: CouchAction
  readonly request: CanonicalRequest
  readonly principal: Principal
  readonly credentials: CouchCredentials
  /** Read for its body alone; absent where there is none for sure. */
  readonly body?: IncomingMessage | undefined
  readonly response: Answering
}

export interface CouchProxyOptions {
  /** `http://` and a literal loopback address. */
  readonly url: string
  /** What is not given has its default. */
  readonly limits?: Partial<Limits>
  readonly logger?: Logger
  readonly clock?: Clock
}

export class CouchProxy {
  readonly #target: UpstreamTarget
  readonly #limits: Limits
  readonly #host: string
  readonly #context: TransferContext
  readonly #pools: UpstreamPools
  readonly #checkpoints: Checkpoints
  #closed = false

  /** Throws `bad-env` for a URL that is not one of a literal loopback address. Opens nothing. */
  constructor ({ url, limits = {}, logger = silentLogger(), clock = systemClock }: CouchProxyOptions) {
    this.#target = parseCouchUrl(url)
    this.#limits = Object.freeze({ ...DEFAULT_LIMITS, ...limits })
    this.#host = formatAddress(this.#target)
    const { stallMs, upstreamMs, heartbeatMs } = this.#limits
    this.#context = { limits: this.#limits, logger, patrol: new Patrol<Transfer>(clock, Math.min(stallMs, upstreamMs, heartbeatMs)) }
    this.#pools = new UpstreamPools(this.#target, this.#limits.feedsPerEntry, clock)
    this.#checkpoints = new Checkpoints(this.#limits.checkpoints)
  }

  /** Forwards one request and relays its answer. Rejects with PatchcordError while the response is not
   * begun: what the body check refused, `unsupported-media`, `too-many` checkpoints, `upstream-down`, `upstream-slow`, `refused`
   * (CouchDB's own no), `stopped`. Once it is begun a failure destroys the client's connection, and the
   * promise says so in `cut`. A 404 of CouchDB's is answered here, in the gate's own bytes. */
  forward (exchange: CouchExchange): Promise<Forwarded> {
    try {
      return this.#forward(exchange)
    } catch (error) {
      return Promise.reject(error as Error)
    }
  }

  #forward ({ action, request, principal, credentials, body, response }: CouchExchange): Promise<Forwarded> {
    if (this.#closed) throw new PatchcordError('stopped', 'the proxy is closed')
    const { row } = action
    if (row.needs === 'nothing') throw new PatchcordError('internal', `"${row.id}" is answered here, never by CouchDB`)
    const most = row.body === 'checkpoint' ? this.#limits.checkpointBytes : this.#limits.bodyBytes
    if ((request.body?.length ?? 0) > most) throw new PatchcordError('too-large', `the body is larger than ${most} bytes`)
    // A body goes up where the row has one; whatever came with a DELETE stays here.
    const mayHaveBody = row.body !== 'none' && (request.method === 'PUT' || request.method === 'POST')
    if (mayHaveBody && body === undefined) throw new PatchcordError('internal', 'a body goes up that nobody reads')
    const feed = isFeed(action)
    const query = feed ? boundedFeedQuery(action.query, this.#limits.heartbeatMs) : action.query
    const headers = requestHeaders(request.headers, {
      host: this.#host,
      authorization: basicAuthorization(credentials),
      bodyForm: mayHaveBody ? row.body : 'none',
    })
    const path = couchPath(action, query, principal.checkpoints)
    const counted = mayHaveBody && row.body === 'checkpoint' ? this.#checkpoints.take(principal.entry, action.target.database ?? '', path) : undefined
    const transfer = new Transfer({
      target: this.#target,
      method: request.method,
      path,
      headers,
      pools: this.#pools.acquire(principal.entry),
      pathForm: row.path,
      isFeed: feed,
      check: mayHaveBody ? createBodyCheck(row.body, this.#limits, principal.relation) : undefined,
    }, body, response, this.#context)
    if (counted === undefined) return transfer.done
    // What was cut may have been written; what was refused was not.
    return transfer.done.then(forwarded => {
      counted(forwarded.status < 400 || forwarded.status >= 499)
      return forwarded
    }, (error: unknown) => {
      counted(!(error instanceof PatchcordError) || error.status >= 500)
      throw error
    })
  }

  /** Ends every running transfer and connection, and resolves when all of them are told. */
  async close (): Promise<void> {
    this.#closed = true
    const running = this.#context.patrol.all()
    for (const transfer of running) transfer.close()
    await Promise.allSettled(running.map(transfer => transfer.done))
    this.#pools.close()
  }
}

const COUCH_URL = /^http:\/\/(?:\[(::1)\]|(127\.\d{1,3}\.\d{1,3}\.\d{1,3}))(?::(\d{1,5}))?\/?$/

/** Parses `http://[::1]:5984`. Not by URL: it takes `127.1`, `0x7f000001` and names for addresses. */
export function parseCouchUrl (url: string): UpstreamTarget {
  const parts = COUCH_URL.exec(url)
  const host = parts?.[1] ?? parts?.[2] ?? ''
  const port = Number(parts?.[3] ?? 80)
  if (isIP(host) === 0 || !isLoopback(host) || port < 1 || port > 65535) {
    // The URL is not told: it may hold a password.
    throw new PatchcordError('bad-env', 'couch.url is not a literal loopback address', { hint: 'write http://[::1]:5984 or http://127.0.0.1:5984, without a path or credentials' })
  }
  return { host, port }
}

/** Written once for as long as an env holds them. */
const authorizations = new WeakMap<CouchCredentials, string>()

function basicAuthorization (credentials: CouchCredentials): string {
  const { username, password } = credentials
  const known = authorizations.get(credentials)
  if (known !== undefined) return known
  if (username.includes(':')) throw new PatchcordError('bad-env', 'the CouchDB user name of a grant holds a colon')
  const value = `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  authorizations.set(credentials, value)
  return value
}

import type { Agent, ClientRequest, IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import type { PathForm } from '../policy/surface.js'
import type { BodyCheck } from './body-check.js'
import { checkedBody } from './checked-body.js'
import { MISSING, sendCouchError } from '../core/couch-answers.js'
import { isDelimited, responseHeaders } from '../policy/couch-headers.js'
import { sendUpstream, type UpstreamCall, type UpstreamTarget } from './quiet-http-proxy.js'

/** What became of a forwarded request. */
export interface Forwarded {
  /** The status that the client got; 499 where it left before there was one. */
  readonly status: number
  /** Bytes of the body towards the client. */
  readonly bytes: number
  /** Who ended it before its end, where somebody did: the client's connection is destroyed then. */
  readonly cut?: 'client' | 'upstream' | 'stalled' | 'closed'
}

export interface TransferPlan {
  readonly target: UpstreamTarget
  readonly method: string
  readonly path: string
  readonly headers: OutgoingHttpHeaders
  readonly agent: Agent
  readonly pathForm: PathForm
  readonly isFeed: boolean
  /** Undefined where no body goes up, whatever the client sends. */
  readonly check: BodyCheck | undefined
}

export interface TransferContext {
  readonly limits: Pick<Limits, 'stallMs' | 'upstreamMs' | 'heartbeatMs'>
  readonly clock: Clock
  readonly logger: Logger
}

/** Of an answer that is replaced by ours, at most so much is read to keep the connection. */
const DRAINED = 65_536
const CLIENT_LEFT = 499

/**
 * One request on its way to CouchDB and its answer back. Whoever leaves, the other side's connection
 * goes at once; nothing that was cut ever looks complete to either.
 */
export class Transfer {
  /** Rejects with PatchcordError while no answer was begun; resolves in every other case. */
  readonly done: Promise<Forwarded>
  readonly #plan: TransferPlan
  readonly #source: IncomingMessage
  readonly #response: ServerResponse
  readonly #context: TransferContext
  readonly #body: Readable
  #resolve!: (outcome: Forwarded) => void
  #reject!: (error: PatchcordError) => void
  #call: UpstreamCall | undefined
  #request: ClientRequest | undefined
  #answer: IncomingMessage | undefined
  #timer: Timer | undefined
  #movedAt = 0
  #bytes = 0
  #retried = false
  #settled = false
  readonly #onClientClose = (): void => { this.#leave('client') }

  constructor (plan: TransferPlan, source: IncomingMessage, response: ServerResponse, context: TransferContext) {
    this.#plan = plan
    this.#source = source
    this.#response = response
    this.#context = context
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.#body = plan.check === undefined ? noBody() : checkedBody(source, plan.check)
    this.#start()
  }

  /** Ends both sides now. */
  close (): void {
    if (this.#response.headersSent) this.#leave('closed')
    else this.#fail(new PatchcordError('stopped', 'the proxy is closing'))
  }

  #start (): void {
    if (this.#response.destroyed) return this.#leave('client')
    this.#response.once('close', this.#onClientClose)
    this.#body.on('error', error => {
      if (error instanceof PatchcordError) this.#fail(error)
      else this.#leave('client')
    })
    this.#body.once('end', () => { this.#awaitHead() })
    this.#watch(this.#context.limits.stallMs)
    this.#send()
    // After http-proxy has piped it: a listener for data alone would start it flowing.
    this.#body.on('data', () => { this.#moved() })
  }

  #send (): void {
    const { target, method, path, headers, agent } = this.#plan
    let current = true
    const isCurrent = (): boolean => current && !this.#settled
    const call = sendUpstream(target, { method, path, headers, agent, body: this.#body }, {
      connected: request => {
        if (!isCurrent()) return
        this.#request = request
        if (request.path !== path || request.method !== method) this.#fail(new PatchcordError('internal', 'http-proxy changed the request line'))
      },
      answered: answer => {
        answer.on('error', () => { /* its close follows, and tells more */ })
        if (!isCurrent()) return void answer.destroy()
        try {
          this.#answered(answer)
        } catch (error) {
          // Thrown into an event of a socket's, it would end the process.
          this.#fail(new PatchcordError('internal', 'the answer could not be relayed', { cause: error }))
        }
      },
      failed: error => {
        if (!isCurrent() || this.#answer !== undefined) return
        current = false
        if (this.#mayRetry(error)) {
          this.#retried = true
          this.#send()
        } else this.#fail(new PatchcordError('upstream-down', `CouchDB at ${target.host}:${target.port} did not answer: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
      },
    })
    if (isCurrent()) this.#call = call
    else if (this.#settled) call.abort()
  }

  /** A kept connection that the upstream closed just as it was used: RFC 9110 section 9.2.2 lets what
   * changes nothing be sent again. */
  #mayRetry (error: Error): boolean {
    return !this.#retried && this.#plan.check === undefined && this.#plan.method !== 'DELETE' &&
      this.#request?.reusedSocket === true && systemCode(error) === 'ECONNRESET'
  }

  // ---- the answer

  #answered (answer: IncomingMessage): void {
    this.#answer = answer
    const status = answer.statusCode ?? 0
    switch (status) {
      case 401:
        this.#context.logger.error({ upstream: this.#plan.target }, 'CouchDB refused the credentials that the server forwards with')
        return this.#fail(new PatchcordError('upstream-down', 'CouchDB refused the credentials of this grant', { hint: 'the device\'s owner has to set CouchDB up again' }))
      case 403:
        return this.#fail(new PatchcordError('refused', 'CouchDB refused it'))
      case 404:
        return this.#notFound()
    }
    // 407 speaks of a proxy's credentials; browsers would ask the person for them.
    if (status < 200 || status > 599 || status === 407) return this.#broken(`status ${status}`)
    if (!isDelimited(answer, this.#plan.method)) return this.#broken('an answer without a length')
    this.#relay(answer, status)
  }

  #relay (answer: IncomingMessage, status: number): void {
    const response = this.#response
    // The reason phrase is Node's own: upstream's may hold what no status line may.
    response.writeHead(status, responseHeaders(answer.headers, this.#plan.pathForm))
    if (this.#plan.isFeed) response.flushHeaders()
    const { stallMs, heartbeatMs } = this.#context.limits
    // A feed rests between its heartbeats; the stall begins where one stays away.
    this.#watch(this.#plan.isFeed ? heartbeatMs + stallMs : stallMs)
    answer.once('close', () => { if (!answer.readableEnded) this.#leave('upstream') })
    response.once('finish', () => { this.#settle(() => { this.#resolve({ status, bytes: this.#bytes }) }) })
    answer.pipe(response)
    answer.on('data', (chunk: Buffer) => {
      this.#bytes += chunk.length
      this.#moved()
    })
  }

  #notFound (): void {
    this.#settle(() => {
      this.#closeAfterUnreadBody()
      const bytes = sendCouchError(this.#response, 404, 'not_found', MISSING)
      this.#resolve({ status: 404, bytes })
    })
  }

  #broken (what: string): void {
    this.#fail(new PatchcordError('upstream-down', `CouchDB sent ${what}`))
  }

  // ---- time

  #moved (): void {
    this.#movedAt = this.#context.clock.monotonic()
  }

  /** Cuts the transfer once nothing moved for `limit`. Movement writes down the time alone: a timer per
   * chunk would cost more than the chunk. */
  #watch (limit: number): void {
    this.#moved()
    const check = (): void => {
      const left = this.#movedAt + limit - this.#context.clock.monotonic()
      if (left > 0) this.#timer = this.#context.clock.after(left, check)
      else this.#stalled()
    }
    this.#timer?.cancel()
    this.#timer = this.#context.clock.after(limit, check)
  }

  #stalled (): void {
    const upstreamReadsNothing = this.#answer === undefined && (this.#request === undefined || this.#request.writableNeedDrain)
    if (upstreamReadsNothing) this.#fail(new PatchcordError('upstream-slow', 'CouchDB did not take the request'))
    else this.#leave('stalled')
  }

  #awaitHead (): void {
    if (this.#settled || this.#answer !== undefined) return
    this.#timer?.cancel()
    if (this.#plan.isFeed) return
    this.#timer = this.#context.clock.after(this.#context.limits.upstreamMs, () => {
      this.#fail(new PatchcordError('upstream-slow', 'CouchDB did not answer in time'))
    })
  }

  // ---- ends

  /** Ends it with an error for the server to answer with; cuts where an answer has begun. */
  #fail (error: PatchcordError): void {
    if (this.#response.headersSent) return this.#leave('upstream')
    this.#settle(() => {
      this.#closeAfterUnreadBody()
      this.#reject(error)
    })
  }

  /** Cuts both sides. */
  #leave (cut: NonNullable<Forwarded['cut']>): void {
    this.#settle(() => {
      const status = this.#response.headersSent ? this.#response.statusCode : CLIENT_LEFT
      this.#response.destroy()
      this.#resolve({ status, bytes: this.#bytes, cut })
    })
  }

  /** The rest of the body is read and thrown away until the connection is closed after the answer: a
   * client that still writes would otherwise get a reset in place of the answer. */
  #closeAfterUnreadBody (): void {
    if (this.#plan.check === undefined || this.#source.readableEnded || this.#response.headersSent) return
    this.#response.setHeader('connection', 'close')
    this.#source.unpipe()
    this.#source.resume()
  }

  #settle (outcome: () => void): void {
    if (this.#settled) return
    this.#settled = true
    this.#timer?.cancel()
    this.#response.off('close', this.#onClientClose)
    this.#endUpstream()
    outcome()
    if (!this.#body.destroyed) this.#body.destroy()
  }

  /** Leaves a connection that did its work to the pool, and destroys every other one. */
  #endUpstream (): void {
    const answer = this.#answer
    const sentAll = this.#body.readableEnded
    if (answer?.complete === true && sentAll) return
    const short = answer !== undefined && sentAll && !this.#plan.isFeed && !this.#response.headersSent && Number(answer.headers['content-length'] ?? DRAINED + 1) <= DRAINED
    if (short) answer.resume()
    else this.#call?.abort()
  }
}

/** Readable.from([]) would do, at the price of an asynchronous iterator per request. */
function noBody (): Readable {
  return new Readable({ read () { this.push(null) } })
}

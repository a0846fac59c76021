import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import type { Answering } from '../core/answering.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import type { Patrol, Watched } from '../core/patrol.js'
import type { PathForm } from '../policy/surface.js'
import type { Pools } from './agents.js'
import type { BodyCheck } from './body-check.js'
import { checkedBody } from './checked-body.js'
import { MISSING, sendCouchError } from '../core/couch-answers.js'
import { answerFault, responseHeaders } from '../policy/couch-headers.js'
import { sendUpstream } from './quiet-http-proxy.js'
import type { UpstreamAnswer, UpstreamCall, UpstreamHead, UpstreamListener, UpstreamTarget } from './upstream.js'

/** What became of a forwarded request. */
export interface Forwarded {
  /** The status that the client got; 499 where it left before there was one. */
  readonly status: number
  /** Bytes of the body towards the client. */
  readonly bytes: number
  /** Who ended it before its end, where somebody did: the client's connection is destroyed then. */
  readonly cut?: 'client' | 'upstream' | 'stalled' | 'closed'
}

export interface TransferPlan extends UpstreamHead {
  readonly target: UpstreamTarget
  readonly pools: Pools
  readonly pathForm: PathForm
  readonly isFeed: boolean
  /** Undefined where no body goes up, whatever the client sends. */
  readonly check: BodyCheck | undefined
}

export interface TransferContext {
  readonly limits: Pick<Limits, 'stallMs' | 'upstreamMs' | 'heartbeatMs'>
  readonly patrol: Patrol<Transfer>
  readonly logger: Logger
}

/** Of an answer that is replaced by ours, at most so much is read to keep the connection. */
const DRAINED = 65_536
/** What came at once goes out at once, up to so many bytes: CouchDB sends each row of a list in a chunk of its own. */
const MOST_HELD = 65_536
/** What is larger is not worth being put together with anything. */
const LARGE = 16_384
const LINE_END = 0x0a
const CLIENT_LEFT = 499

/**
 * One request on its way to CouchDB and its answer back. Whoever leaves, the other side's connection
 * goes at once; nothing that was cut ever looks complete to either.
 */
export class Transfer implements UpstreamListener, Watched {
  place = -1
  /** Rejects with PatchcordError while no answer was begun; resolves in every other case. */
  readonly done: Promise<Forwarded>
  readonly #plan: TransferPlan
  readonly #source: IncomingMessage | undefined
  readonly #response: Answering
  readonly #context: TransferContext
  readonly #body: Readable | undefined
  #resolve!: (outcome: Forwarded) => void
  #reject!: (error: PatchcordError) => void
  #call: UpstreamCall | undefined
  #answer: UpstreamAnswer | undefined
  /** What came and was not written yet, as text in which each character is a byte: Node puts it behind the head and
   * writes both at once. */
  #held = ''
  #hasAll = false
  #isPaused = false
  /** The stall that cuts it, or the wait for a head. */
  #phase: 'moving' | 'head' = 'moving'
  #mayRest: number
  #movedAt: number
  /** When the feed was last heard of by its client; undefined where nothing can be put into it. */
  #beatAt: number | undefined
  #isMidLine = false
  #bytes = 0
  #settled = false
  readonly #onClientClose = (): void => { this.#leave('client') }
  readonly #onFinish = (): void => {
    if (this.#settle()) this.#end({ status: this.#response.statusCode, bytes: this.#bytes })
  }

  constructor (plan: TransferPlan, source: IncomingMessage | undefined, response: Answering, context: TransferContext) {
    this.#plan = plan
    this.#source = source
    this.#response = response
    this.#context = context
    this.#mayRest = context.limits.stallMs
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    context.patrol.add(this)
    this.#movedAt = context.patrol.now
    this.#body = plan.check === undefined || source === undefined ? undefined : checkedBody(source, plan.check)
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
    const { target, pools, isFeed } = this.#plan
    const body = this.#body
    if (body === undefined) {
      this.#awaitHead()
      this.#took((isFeed ? pools.kept.feeds : pools.kept.documents).send(this.#plan, this))
      return
    }
    body.on('error', error => {
      if (error instanceof PatchcordError) this.#fail(error)
      else this.#leave('client')
    })
    body.once('end', () => { this.#awaitHead() })
    this.#took(sendUpstream(target, this.#plan, { body, agent: isFeed ? pools.agents.feeds : pools.agents.documents }, this))
    // After http-proxy has piped it: a listener for data alone would start it flowing.
    body.on('data', () => { this.#moved() })
  }

  #took (call: UpstreamCall): void {
    this.#call = call
    if (this.#settled) call.abort()
  }

  // ---- the answer

  answered (answer: UpstreamAnswer): void {
    if (this.#settled) return
    try { this.#answered(answer) } catch (error) { this.#notRelayed(error) }
  }

  data (bytes: Buffer, from: number, to: number): void {
    if (this.#settled) return
    try { this.#data(bytes, from, to) } catch (error) { this.#notRelayed(error) }
  }

  caughtUp (): void {
    if (this.#settled) return
    try { this.#writeHeld() } catch (error) { this.#notRelayed(error) }
  }

  ended (): void {
    if (this.#settled) return
    try { this.#ended() } catch (error) { this.#notRelayed(error) }
  }

  failed (error: Error): void {
    if (this.#settled) return
    if (this.#response.headersSent) return this.#leave('upstream')
    const { host, port } = this.#plan.target
    this.#fail(error instanceof PatchcordError ? error : new PatchcordError('upstream-down', `CouchDB at ${host}:${port} did not answer: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
  }

  /** Thrown into an event of a socket's, it would end the process. */
  #notRelayed (error: unknown): void {
    this.#fail(new PatchcordError('internal', 'the answer could not be relayed', { cause: error }))
  }

  #answered (answer: UpstreamAnswer): void {
    this.#answer = answer
    const { status } = answer
    switch (status) {
      case 401:
        this.#context.logger.error({ upstream: this.#plan.target }, 'CouchDB refused the credentials that the server forwards with')
        return this.#fail(new PatchcordError('upstream-down', 'CouchDB refused the credentials of this grant', { hint: 'the device\'s owner has to set CouchDB up again' }))
      case 403:
        return this.#fail(new PatchcordError('refused', 'CouchDB refused it'))
      case 404:
        return this.#notFound()
    }
    const fault = answerFault(answer, this.#plan.method)
    if (fault !== undefined) return this.#fail(new PatchcordError('upstream-down', `CouchDB sent ${fault}`))
    const { stallMs, heartbeatMs } = this.#context.limits
    // A feed rests between its heartbeats; the stall begins where one stays away.
    this.#mayRest = this.#plan.isFeed ? heartbeatMs + stallMs : stallMs
    this.#phase = 'moving'
    this.#moved()
    if (!this.#plan.isFeed) return
    this.#writeHead()
    this.#response.flushHeaders()
    // An empty line may stand before and between the lines of a feed, unless it was counted or wrapped.
    const { headers } = answer
    if (status === 200 && headers['content-length'] === undefined && headers['content-encoding'] === undefined) this.#beatAt = this.#movedAt
  }

  #data (bytes: Buffer, from: number, to: number): void {
    const length = to - from
    this.#bytes += length
    this.#moved()
    if (this.#plan.isFeed) this.#isMidLine = bytes[to - 1] !== LINE_END
    if (length <= LARGE && this.#held.length + length <= MOST_HELD) {
      this.#held += bytes.toString('latin1', from, to)
      return
    }
    this.#writeHeld()
    this.#write(Buffer.from(bytes.subarray(from, to)))
  }

  #ended (): void {
    this.#hasAll = true
    const response = this.#response
    response.once('finish', this.#onFinish)
    if (!response.headersSent) this.#writeHead(this.#bytes > 0 ? this.#bytes : undefined)
    response.end(this.#held, 'latin1')
    this.#held = ''
    // That it leaves, and does not stall, is then seen to by whoever asked.
    if (response.mayBeFollowed === true) this.#onFinish()
  }

  /** `length` where the whole body is known and upstream did not say how long it is. */
  #writeHead (length?: number): void {
    const { status, headers } = this.#answer!
    const outgoing = responseHeaders(headers, this.#plan.pathForm)
    if (length !== undefined) outgoing['content-length'] ??= String(length)
    // The reason phrase is Node's own: upstream's may hold what no status line may.
    this.#response.writeHead(status, outgoing)
  }

  #writeHeld (): void {
    if (this.#held === '') return
    const held = this.#held
    this.#held = ''
    this.#write(held)
  }

  #write (chunk: Buffer | string): void {
    const response = this.#response
    if (!response.headersSent) this.#writeHead()
    const takesMore = typeof chunk === 'string' ? response.write(chunk, 'latin1') : response.write(chunk)
    if (takesMore || this.#isPaused) return
    this.#isPaused = true
    this.#call?.pause()
    response.once('drain', () => {
      this.#isPaused = false
      if (!this.#settled) this.#call?.resume()
    })
  }

  #notFound (): void {
    if (!this.#settle()) return
    this.#closeAfterUnreadBody()
    this.#end({ status: 404, bytes: sendCouchError(this.#response, 404, 'not_found', MISSING) })
  }

  // ---- time

  /** Movement writes down the time alone: a timer per chunk would cost more than the chunk. */
  #moved (): void {
    this.#movedAt = this.#context.patrol.now
    if (this.#beatAt !== undefined) this.#beatAt = this.#movedAt
  }

  #awaitHead (): void {
    if (this.#settled || this.#answer !== undefined) return
    this.#moved()
    const { upstreamMs, heartbeatMs, stallMs } = this.#context.limits
    // CouchDB sends the head of a feed with its first line or heartbeat.
    this.#mayRest = this.#plan.isFeed ? Math.max(upstreamMs, heartbeatMs + stallMs) : upstreamMs
    this.#phase = 'head'
  }

  look (now: number): void {
    const { patrol } = this.#context
    if (now - this.#movedAt <= this.#mayRest + patrol.period) return this.#beat(now)
    if (this.#phase === 'head') return this.#fail(new PatchcordError('upstream-slow', 'CouchDB did not answer in time'))
    const upstreamReadsNothing = this.#answer === undefined && (this.#call?.isBacklogged ?? true)
    if (upstreamReadsNothing) this.#fail(new PatchcordError('upstream-slow', 'CouchDB did not take the request'))
    else this.#leave('stalled')
  }

  /** The heartbeat that upstream owes: a client hears of its feed for as long as that may still come. */
  #beat (now: number): void {
    const { patrol, limits } = this.#context
    if (this.#beatAt === undefined || this.#isMidLine || this.#isPaused || this.#hasAll || now - this.#beatAt < limits.heartbeatMs - patrol.period) return
    this.#beatAt = now
    this.#bytes += 1
    this.#write('\n')
  }

  // ---- ends

  /** Ends it with an error for the server to answer with; cuts where an answer has begun. */
  #fail (error: PatchcordError): void {
    if (this.#response.headersSent) return this.#leave('upstream')
    if (!this.#settle()) return
    this.#closeAfterUnreadBody()
    this.#reject(error)
    this.#endBody()
  }

  /** Cuts both sides. */
  #leave (cut: NonNullable<Forwarded['cut']>): void {
    if (!this.#settle()) return
    const status = this.#response.headersSent ? this.#response.statusCode : CLIENT_LEFT
    this.#response.destroy()
    this.#end({ status, bytes: this.#bytes, cut })
  }

  /** The rest of the body is read and thrown away until the connection is closed after the answer: a
   * client that still writes would otherwise get a reset in place of the answer. */
  #closeAfterUnreadBody (): void {
    const source = this.#source
    if (this.#body === undefined || source === undefined || source.readableEnded || this.#response.headersSent) return
    this.#response.shouldKeepAlive = false
    source.unpipe()
    source.resume()
  }

  /** Leaves both sides alone from now on. False where that was done before. */
  #settle (): boolean {
    if (this.#settled) return false
    this.#settled = true
    this.#context.patrol.delete(this)
    this.#response.off('close', this.#onClientClose)
    this.#endUpstream()
    this.#plan.pools.release()
    return true
  }

  #end (forwarded: Forwarded): void {
    this.#resolve(forwarded)
    this.#endBody()
  }

  #endBody (): void {
    if (this.#body?.destroyed === false) this.#body.destroy()
  }

  /** Leaves a connection that did its work to the pool, and destroys every other one. */
  #endUpstream (): void {
    const sentAll = this.#body?.readableEnded ?? true
    if (this.#hasAll && sentAll) return
    const length = Number(this.#answer?.headers['content-length'] ?? DRAINED + 1)
    const isShort = this.#answer !== undefined && sentAll && !this.#plan.isFeed && !this.#response.headersSent && length <= DRAINED
    if (isShort) this.#call?.discard()
    else this.#call?.abort()
  }
}

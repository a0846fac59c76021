import { request as sendRequest, type Agent, type ClientRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Clock, Timer } from '../core/clock.js'
import { MISSING, sendCouchError } from '../core/couch-answers.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { Limits } from '../core/limits.js'
import { answerFault, responseHeaders, type OutgoingFields } from '../policy/couch-headers.js'
import type { PathForm } from '../policy/surface.js'
import { peerHost } from './peer-agent.js'

export interface BridgePlan {
  readonly device: DeviceId
  readonly agent: Agent
  readonly method: string
  readonly path: string
  readonly headers: OutgoingFields
  readonly pathForm: PathForm
  readonly isFeed: boolean
  /** Whether the request's body goes to the peer. */
  readonly hasBody: boolean
}

export interface BridgeOutcome {
  /** The status that the program got; 499 where it left before there was one. */
  readonly status: number
  readonly bytes: number
  /** Who ended it before its end, where somebody did. */
  readonly cut?: 'program' | 'peer' | 'stalled' | 'closed'
}

const PROGRAM_LEFT = 499
/** 1xx answers of one request: RFC 9110 knows of two. */
const MOST_INFORMATION = 8

/**
 * One request of a local program on its way to a peer, and the answer back. The peer is not trusted with
 * more than its database: its status, its headers and its time are bounded here. Whoever leaves, the other
 * side is cut at once; what was cut never looks complete.
 */
export class BridgeTransfer {
  /** Rejects with PatchcordError while no answer was begun: `unreachable`, `verification`, `refused`,
   * `upstream-down` for an answer that no gate may pass on, `upstream-slow`, `stopped`. */
  readonly done: Promise<BridgeOutcome>
  readonly #plan: BridgePlan
  readonly #source: IncomingMessage
  readonly #response: ServerResponse
  readonly #limits: Limits
  readonly #clock: Clock
  #resolve!: (outcome: BridgeOutcome) => void
  #reject!: (error: PatchcordError) => void
  #request: ClientRequest | undefined
  #answer: IncomingMessage | undefined
  #timer: Timer | undefined
  #movedAt = 0
  #bytes = 0
  #retried = false
  #settled = false
  readonly #onProgramClosed = (): void => { this.#leave('program') }

  constructor (plan: BridgePlan, source: IncomingMessage, response: ServerResponse, limits: Limits, clock: Clock) {
    this.#plan = plan
    this.#source = source
    this.#response = response
    this.#limits = limits
    this.#clock = clock
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    if (response.destroyed) {
      this.#leave('program')
      return
    }
    response.once('close', this.#onProgramClosed)
    this.#send()
    if (plan.hasBody) {
      source.on('data', () => { this.#moved() })
      source.once('end', () => { this.#awaitHead() })
    } else this.#awaitHead()
  }

  /** Ends both sides now: what allowed it is gone. */
  close (): void {
    if (this.#response.headersSent) this.#leave('closed')
    else this.#fail(new PatchcordError('stopped', 'the bridge ended this request'))
  }

  #send (): void {
    const { agent, device, method, path, headers, hasBody } = this.#plan
    this.#watch(this.#limits.stallMs)
    const request = sendRequest({ agent, host: peerHost(device), method, path, headers, maxHeaderSize: this.#limits.headBytes })
    this.#request = request
    let information = 0
    request.maxHeadersCount = this.#limits.headers
    request.on('information', () => { if (++information > MOST_INFORMATION) this.#broken('one preliminary answer after the other') })
    // Nobody asked for another protocol; without a listener Node would leave the socket to itself.
    request.on('upgrade', (_answer, socket) => {
      socket.destroy()
      this.#broken('another protocol')
    })
    request.on('response', answer => {
      answer.on('error', () => { /* its close follows, and tells more */ })
      if (this.#settled || this.#request !== request) return void answer.destroy()
      this.#answered(answer)
    })
    request.on('error', error => {
      if (this.#settled || this.#answer !== undefined || this.#request !== request) return
      if (this.#mayRetry(request, error)) {
        this.#retried = true
        this.#send()
      } else this.#fail(error instanceof PatchcordError ? error : new PatchcordError('unreachable', `device ${device} went away: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
    })
    if (hasBody) this.#source.pipe(request)
    else request.end()
  }

  /** A kept connection that the peer closed just as it was used: RFC 9110 section 9.2.2 lets what changes
   * nothing be sent again. */
  #mayRetry (request: ClientRequest, error: Error): boolean {
    return !this.#retried && !this.#plan.hasBody && this.#plan.method !== 'DELETE' && request.reusedSocket && systemCode(error) === 'ECONNRESET'
  }

  #answered (answer: IncomingMessage): void {
    this.#answer = answer
    const status = answer.statusCode ?? 0
    if (status === 403) return this.#fail(new PatchcordError('refused', 'the peer does not allow it'))
    if (status === 404) return this.#notFound()
    const fault = answerFault({ status, headers: answer.headers }, this.#plan.method)
    if (fault !== undefined) return this.#broken(fault)
    this.#relay(answer, status)
  }

  #relay (answer: IncomingMessage, status: number): void {
    const response = this.#response
    response.writeHead(status, responseHeaders(answer.headers, this.#plan.pathForm))
    if (this.#plan.isFeed) response.flushHeaders()
    const { stallMs, heartbeatMs } = this.#limits
    this.#watch(this.#plan.isFeed ? heartbeatMs + stallMs : stallMs)
    answer.once('close', () => { if (!answer.readableEnded) this.#leave('peer') })
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
      this.#resolve({ status: 404, bytes: sendCouchError(this.#response, 404, 'not_found', MISSING) })
    })
  }

  #broken (what: string): void { this.#fail(new PatchcordError('upstream-down', `the peer sent ${what}`, { hint: 'the peer does not speak as patchcord does' })) }

  // ---- time

  #moved (): void { this.#movedAt = this.#clock.monotonic() }

  #watch (limit: number): void {
    this.#moved()
    const check = (): void => {
      const left = this.#movedAt + limit - this.#clock.monotonic()
      if (left > 0) this.#timer = this.#clock.after(left, check)
      else if (this.#answer === undefined) this.#fail(new PatchcordError('upstream-slow', 'the peer did not take the request', { hint: 'it may be asleep, or the link too slow' }))
      else this.#leave('stalled')
    }
    this.#timer?.cancel()
    this.#timer = this.#clock.after(limit, check)
  }

  #awaitHead (): void {
    if (this.#settled || this.#answer !== undefined) return
    const { upstreamMs, heartbeatMs, stallMs } = this.#limits
    // A peer of ours sends the head of a feed at once; CouchDB behind it may think for as long as a beat.
    const limit = this.#plan.isFeed ? Math.max(upstreamMs, heartbeatMs + stallMs) : upstreamMs
    this.#timer?.cancel()
    this.#timer = this.#clock.after(limit, () => { this.#fail(new PatchcordError('upstream-slow', 'the peer did not answer in time', { hint: 'it may be asleep, or the link too slow' })) })
  }

  // ---- ends

  #fail (error: PatchcordError): void {
    if (this.#response.headersSent) return this.#leave('peer')
    this.#settle(() => {
      this.#closeAfterUnreadBody()
      this.#reject(error)
    })
  }

  #leave (cut: NonNullable<BridgeOutcome['cut']>): void {
    this.#settle(() => {
      const status = this.#response.headersSent ? this.#response.statusCode : PROGRAM_LEFT
      this.#response.destroy()
      this.#resolve({ status, bytes: this.#bytes, cut })
    })
  }

  #closeAfterUnreadBody (): void {
    if (this.#source.complete || this.#response.headersSent) return
    this.#response.setHeader('connection', 'close')
    this.#source.unpipe()
    this.#source.resume()
  }

  #settle (outcome: () => void): void {
    if (this.#settled) return
    this.#settled = true
    this.#timer?.cancel()
    this.#response.off('close', this.#onProgramClosed)
    // A connection goes back to the pool by itself when its answer was read to the end; any other one is
    // destroyed, and nothing more is read of a body that nobody wants.
    if (this.#answer?.complete !== true || this.#request?.writableFinished !== true) this.#request?.destroy()
    outcome()
  }
}

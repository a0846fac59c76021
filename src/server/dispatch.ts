import type { IncomingMessage } from 'node:http'
import type { Answering } from '../core/answering.js'
import type { Clock, Timer } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName } from '../core/ids.js'
import type { Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import { queuedIn, watchForStall } from '../core/stall.js'
import { admitClient, isRefusal, type Refusal } from '../identity/admission.js'
import type { Leaf } from '../identity/leaf.js'
import { canonicalise, type CanonicalRequest, type RawHead } from '../policy/canonical.js'
import { isFeed as isCouchFeed } from '../policy/feed.js'
import { decide, needsFacts, type Decision } from '../policy/decide.js'
import type { Principal } from '../policy/principal.js'
import { route, type Action, type FileAction } from '../policy/route.js'
import { answerError, endsConnection, failureOf } from './answers.js'
import type { Connection, Connections, Counted, Running } from './connections.js'
import { Answered } from './counts.js'
import { Permit } from './permit.js'
import { lentUntil, type ServerState } from './state.js'

/** Reads which databases a file is recorded for. */
export type ReadRecords = (action: FileAction) => Promise<readonly DatabaseName[]>

/** A request as it came in, by Node's HTTP server or by the plain lane, and where its answer goes. */
export interface Asked extends RawHead {
  /** For its body alone; absent where there is none for sure. */
  readonly message: IncomingMessage | undefined
  readonly response: Answering
  /** Tells a client that waits for it to send the body. */
  readonly askForBody: (() => void) | undefined
}

/** Does what was allowed and resolves when the answer has ended, with what the log says of it. What it
 * throws before the head of its answer becomes an error answer. */
export type Handle = (permit: Permit, request: CanonicalRequest, asked: Asked) => Promise<Outcome> | Outcome

export interface Outcome {
  readonly status: number
  readonly bytes: number
}

export interface DispatchOptions {
  readonly state: () => ServerState
  readonly connections: Connections
  readonly limits: Limits
  readonly clock: Clock
  readonly logger: Logger
  readonly readRecords: ReadRecords
  readonly handle: Handle
  /** Called where a request failed for want of a descriptor, in words. */
  readonly onShortage: (what: string) => void
}

/** A file is refused so long after it was asked for (ms). Records are on the disk only where the file is: how long it took to
 * read them would tell who may not have the file that it is here. */
const REFUSED_FILE_MS = 10

/**
 * The way of a request, station by station: canonical form, identity, action, decision, handler. Each
 * refuses by itself, and nothing passes two of them in another order.
 */
export class Dispatch {
  readonly answered = new Answered()
  readonly #options: DispatchOptions

  constructor (options: DispatchOptions) {
    this.#options = options
  }

  /** Takes a request in. What is pipelined on one connection is answered one after the other, and Node reads
   * on meanwhile: who sends more than may ever run is cut, before memory is. */
  request (connection: Connection, asked: Asked): void {
    const { limits, connections, logger } = this.#options
    if (connection.refused) {
      // The answer that ends the connection may be on its way, and good ones before it.
      if (connection.waiting === 0) asked.response.destroy()
      return
    }
    if (connection.waiting >= limits.requestsPerEntry) {
      logger.warn({ connection: connection.id, device: connection.leaf.deviceId }, 'more requests are pipelined than requestsPerEntry')
      void connections.cut([connection])
      return
    }
    connection.waiting += 1
    // The one before it ended, where nothing waits.
    connection.last = connection.waiting === 1 ? this.#serve(connection, asked) : connection.last.then(() => this.#serve(connection, asked))
  }

  /** Who the certificate stands for now, or why for nobody. An expired one that may still fetch its renewal
   * stands for somebody whose time is over: `decide` knows. */
  identify (leaf: Leaf): Principal | Refusal {
    const admitted = admitClient(this.#options.state().trust, leaf, this.#options.clock.now())
    return isRefusal(admitted) ? admitted.renewable ?? admitted : admitted
  }

  /** Whether the connection, and everything that runs on it, would still be allowed. Notes when it ends. */
  mayGoOn (connection: Connection): boolean {
    const principal = this.identify(connection.leaf)
    if (isRefusal(principal) || principal.entry !== connection.entry) return false
    // Whose certificate ended meanwhile comes in again for its renewal.
    if (this.#options.clock.now() > principal.endsAt && !connection.isRenewal) return false
    connection.endsAt = principal.endsAt
    for (const { action, records } of connection.running) if (!this.#decide(principal, action, records).allowed) return false
    return true
  }

  /** With the loans of this moment: one that was withdrawn or has ended counts for nothing that runs. */
  #decide (principal: Principal, action: Action, records: readonly DatabaseName[] | undefined): Decision {
    const { clock, state } = this.#options
    const facts = action.kind === 'file' && records !== undefined ? { records, lentUntil: lentUntil(state(), principal.device, action.id, clock) } : undefined
    return decide(principal, action, clock.now(), facts)
  }

  /** Resolves when the next one on the connection may be answered. */
  async #serve (connection: Connection, asked: Asked): Promise<void> {
    const { response } = asked
    // Without a socket it cannot be answered: the answer before it ended the connection, or its client is gone, which an answer of
    // Node's learns a moment late.
    if (!connection.refused && !connection.socket.destroyed && !response.destroyed && response.socket !== null) return await this.#serveInTurn(connection, asked)
    response.destroy()
    this.#ended(connection)
  }

  #ended (connection: Connection): void {
    connection.waiting -= 1
    if (connection.waiting === 0) connection.onRest?.()
  }

  async #serveInTurn (connection: Connection, asked: Asked): Promise<void> {
    const { message, response } = asked
    const { clock, logger, limits, readRecords, handle } = this.#options
    const line: LogLine = { connection: connection.id, device: connection.leaf.deviceId, action: undefined, decision: 'none', status: 0, bytes: 0, ms: 0 }
    const started = clock.monotonic()
    const held: Counted[] = []
    let running: Running | undefined
    let refusable: { readonly time: Promise<void>, cancel (): void } | undefined
    try {
      const request = this.#canonical(asked, line)
      this.#hold(connection, 'requestsPerEntry', held)
      let principal = this.#identifyOrCut(connection)
      const action = route(request)
      if (action === undefined) {
        line.decision = 'no action'
        throw new PatchcordError('not-found', 'missing')
      }
      let records: readonly DatabaseName[] | undefined
      if (needsFacts(principal, action)) {
        refusable = this.#later()
        records = await readRecords(action)
        // Trust may have been taken away while the records were read.
        principal = this.#identifyOrCut(connection)
      }
      const permit = this.#permit(principal, action, records, line)
      if (permit instanceof PatchcordError) {
        await refusable?.time
        throw permit
      }
      refusable?.cancel()
      if (isFeed(action)) this.#hold(connection, 'feedsPerEntry', held)
      // A device that pulls many databases at once asks each with a small one.
      if (request.body !== undefined && (request.body.length ?? Infinity) > limits.smallBodyBytes) this.#hold(connection, 'bodies', held)
      asked.askForBody?.()
      running = { action, records }
      connection.running.add(running)
      const outcome = await handle(permit, request, asked)
      line.status = outcome.status
      line.bytes = outcome.bytes
      // Two numbers: an answer of 206 says that it was understood.
      if (outcome.status === 206) line.range = request.headers.get('range')
      this.#release(connection, held)
    } catch (error) {
      refusable?.cancel()
      this.#release(connection, held)
      line.bytes = this.#fail(connection, asked, error, line)
    }
    if (message?.complete === false && !isRead(message) && !response.destroyed) await discard(message, response, limits, clock)
    const ended = (): void => {
      if (running !== undefined) connection.running.delete(running)
      line.ms = Math.round((clock.monotonic() - started) * 10) / 10
      this.answered.add(line.status, line.bytes)
      logger.info(line, 'request')
      this.#ended(connection)
    }
    if (response.writableFinished || response.destroyed) return ended()
    const ending = sent(response, limits, clock, () => waitingIn(connection)).then(ended)
    if (response.mayBeFollowed !== true) await ending
  }

  #canonical (asked: Asked, line: LogLine): CanonicalRequest {
    if (asked.rawHeaders.length > 2 * this.#options.limits.headers) throw new PatchcordError('not-canonical', 'the request has too many headers')
    const canonical = canonicalise(asked, this.#options.state().env.identity.device)
    if (!('refusal' in canonical)) return canonical.request
    line.decision = canonical.refusal.rule
    throw new PatchcordError(canonical.refusal.code, canonical.refusal.reason)
  }

  /** What the decision makes: a permit, or why there is none. */
  #permit (principal: Principal, action: Action, records: readonly DatabaseName[] | undefined, line: LogLine): Permit | PatchcordError {
    const decision = this.#decide(principal, action, records)
    line.action = nameOf(action)
    line.decision = decision.rule
    const permit = Permit.from(decision, principal, action)
    if (permit !== undefined) return permit
    const code = decision.status === 404 ? 'not-found' : decision.status === 400 ? 'not-canonical' : 'refused'
    return new PatchcordError(code, decision.reason)
  }

  /** Answers with the error, and returns the bytes of its body. */
  #fail (connection: Connection, { message, response }: Asked, error: unknown, line: LogLine): number {
    const { logger } = this.#options
    const failure = failureOf(error)
    line.status = failure.status
    if (failure.code === 'internal') logger.error({ ...line, err: error }, 'request failed')
    else if (failure.code === 'no-handles') this.#options.onShortage(failure.message)
    if (failure.code !== 'internal') line.problem = failure.status < 429 ? failure.code : failure.message
    if (endsConnection(failure)) connection.refused = true
    return answerError(message === undefined || isRead(message), response, failure)
  }

  #hold (connection: Connection, what: Counted, held: Counted[]): void {
    if (!this.#options.connections.take(connection.entry, what)) throw new PatchcordError('too-many', `the limit ${what} is reached`)
    held.push(what)
  }

  /** What was allowed was answered. */
  #release (connection: Connection, held: readonly Counted[]): void {
    for (const what of held) this.#options.connections.give(connection.entry, what)
  }

  /** When a file may be refused. Set before anything is read: a timer that is set afterwards keeps, by its rounding, some of the
   * time that it took. */
  #later (): { readonly time: Promise<void>, cancel (): void } {
    let timer!: Timer
    const time = new Promise<void>(resolve => { timer = this.#options.clock.after(REFUSED_FILE_MS, resolve) })
    return { time, cancel: () => { timer.cancel() } }
  }

  #identifyOrCut (connection: Connection): Principal {
    const principal = this.identify(connection.leaf)
    // Another entry decides now than the one that limits were counted by: the client comes again.
    if (!isRefusal(principal) && principal.entry === connection.entry) return principal
    void this.#options.connections.cut([connection])
    throw new PatchcordError('not-admitted', 'the certificate no longer admits to anything')
  }
}

interface LogLine {
  readonly connection: number
  readonly device: string
  action: string | undefined
  decision: string
  /** Of what is wrong with the request the code alone: the message may quote a parameter or a body. */
  problem?: string
  status: number
  /** What part of a file was asked for. */
  range?: string | undefined
  bytes: number
  ms: number
}

/** What a log line says of an action: never a document's name or content. */
function nameOf (action: Action): string {
  switch (action.kind) {
    case 'couch': return action.target.database === undefined ? action.row.id : `${action.row.id} in ${action.target.database}`
    case 'file': return `${action.part === 'content' ? 'file' : action.part} ${action.id}`
    default: return action.kind
  }
}

/** Whether the answer stays open for what is still to happen. */
export function isFeed (action: Action): boolean {
  return action.kind === 'mail' || (action.kind === 'couch' && isCouchFeed(action))
}

/** Whether nothing of a request is left to be read. Of one without a body its head says so: Node marks it complete only after it has
 * told of it. */
function isRead ({ readableEnded, headers }: IncomingMessage): boolean {
  return readableEnded || (headers['transfer-encoding'] === undefined && /^0*$/.test(headers['content-length'] ?? ''))
}

/** How much of a refused body is read so that its sender gets to see the answer. */
const MOST_DISCARDED = 1024 * 1024

/** Reads on a little, so that closing with unread bytes does not reset the connection under the answer;
 * then the connection is cut. */
async function discard (message: IncomingMessage, response: Answering, { headMs }: Limits, clock: Clock): Promise<void> {
  let bytes = 0
  await new Promise<void>(resolve => {
    const timer = clock.after(Math.min(2_000, headMs), () => { message.destroy() })
    message.on('data', (chunk: Buffer) => {
      bytes += chunk.length
      if (bytes > MOST_DISCARDED) message.destroy()
    })
    const done = (): void => {
      timer.cancel()
      resolve()
    }
    message.once('close', done)
    message.once('end', done)
    if (message.destroyed || response.destroyed) done()
  })
}

/** What the system has not taken, or its client not from it: it changes as long as anything moves. */
const waitingIn = ({ socket, transport }: Connection): number => socket.writableLength + queuedIn(transport)

/** Resolves when the system took the whole answer, or its connection is gone. The next one on the connection
 * has its socket then, and learns when that closes. A client that takes nothing for `stallMs`, of this answer or of those before it, is cut: no
 * other clock runs while an answer is on its way. `waiting` tells what is on its way. */
export function sent (response: Answering, { stallMs }: Pick<Limits, 'stallMs'>, clock: Clock, waiting: () => number): Promise<void> {
  return new Promise(resolve => {
    let seen: number | undefined
    const hasMoved = (): boolean => {
      const before = seen
      seen = waiting()
      return seen !== before
    }
    const timer = watchForStall(clock, stallMs, hasMoved, () => { response.destroy() })
    const done = (): void => {
      timer.cancel()
      resolve()
    }
    response.once('finish', done)
    response.once('close', done)
  })
}

import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Clock } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import type { Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import { isFeed as isCouchFeed } from '../policy/feed.js'
import { admitClient, isRefusal } from '../identity/admission.js'
import type { Leaf } from '../identity/leaf.js'
import { canonicalise, type CanonicalRequest } from '../policy/canonical.js'
import { decide, needsFacts, type FileFacts } from '../policy/decide.js'
import type { Principal } from '../policy/principal.js'
import { route, type Action } from '../policy/route.js'
import { answerError, endsConnection, failureOf } from './answers.js'
import type { Connection, Connections, Counted } from './connections.js'
import { Permit } from './permit.js'
import type { ServerState } from './state.js'

/** Reads what the decision about a file needs to know. */
export type ReadFacts = (action: Action, principal: Principal) => Promise<FileFacts>

/** Does what was allowed and resolves when the answer has ended, with what the log says of it. What it
 * throws before the head of its answer becomes an error answer. */
export type Handle = (permit: Permit, request: CanonicalRequest, message: IncomingMessage, response: ServerResponse) => Promise<Outcome>

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
  readonly readFacts: ReadFacts
  readonly handle: Handle
}

/**
 * The way of a request, station by station: canonical form, identity, action, decision, handler. Each
 * refuses by itself, and nothing passes two of them in another order.
 */
export class Dispatch {
  readonly #options: DispatchOptions

  constructor (options: DispatchOptions) {
    this.#options = options
  }

  /** Takes a request in. What is pipelined on one connection is answered one after the other. */
  request (connection: Connection, message: IncomingMessage, response: ServerResponse, expectsContinue: boolean): void {
    connection.last = connection.last.then(() => this.#serve(connection, message, response, expectsContinue))
  }

  /** Who the certificate stands for now, or undefined where it no longer admits to anything. */
  identify (leaf: Leaf): Principal | undefined {
    const admitted = admitClient(this.#options.state().trust, leaf, this.#options.clock.now())
    return isRefusal(admitted) ? admitted.renewable : admitted
  }

  /** Whether everything that runs on the connection would still be allowed. */
  mayGoOn (connection: Connection): boolean {
    const principal = this.identify(connection.leaf)
    if (principal === undefined || principal.entry !== connection.entry) return false
    const now = this.#options.clock.now()
    for (const { action, facts } of connection.running) {
      if (!decide(principal, action, now, facts).allowed) return false
    }
    return true
  }

  async #serve (connection: Connection, message: IncomingMessage, response: ServerResponse, expectsContinue: boolean): Promise<void> {
    if (connection.refused || response.destroyed) {
      response.destroy()
      return
    }
    const { clock, logger, limits } = this.#options
    const line: LogLine = { connection: connection.id, device: connection.leaf.deviceId, action: undefined, decision: 'none', status: 0, bytes: 0, ms: 0 }
    const started = clock.monotonic()
    try {
      const outcome = await this.#answer(connection, message, response, expectsContinue, line)
      line.status = outcome.status
      line.bytes = outcome.bytes
    } catch (error) {
      const failure = failureOf(error)
      line.status = failure.status
      if (failure.code === 'internal') logger.error({ ...line, err: error }, 'request failed')
      else line.problem = failure.message
      if (endsConnection(failure)) connection.refused = true
      line.bytes = answerError(message, response, failure)
    }
    if (!message.complete && !response.destroyed) await discard(message, response, limits)
    line.ms = Math.round((clock.monotonic() - started) * 10) / 10
    logger.info(line, 'request')
  }

  async #answer (connection: Connection, message: IncomingMessage, response: ServerResponse, expectsContinue: boolean, line: LogLine): Promise<Outcome> {
    const { state, clock, connections, limits, readFacts, handle } = this.#options
    const head = { method: message.method ?? '', target: message.url ?? '', httpVersion: message.httpVersion, rawHeaders: message.rawHeaders }
    if (head.rawHeaders.length > 2 * limits.headers) throw new PatchcordError('not-canonical', 'the request has too many headers')
    const canonical = canonicalise(head, state().env.identity.device)
    if ('refusal' in canonical) {
      line.decision = canonical.refusal.rule
      throw new PatchcordError(canonical.refusal.code, canonical.refusal.reason)
    }
    const { request } = canonical
    const held: Array<() => void> = []
    const hold = (what: Counted): void => {
      const release = connections.take(connection.entry, what)
      if (release === undefined) throw new PatchcordError('too-many', `the limit ${what} is reached`)
      held.push(release)
    }
    try {
      hold('requestsPerEntry')
      let principal = this.#identifyOrCut(connection)
      const action = route(request)
      if (action === undefined) {
        line.decision = 'no action'
        throw new PatchcordError('not-found', 'missing')
      }
      let facts: FileFacts | undefined
      if (needsFacts(principal, action)) {
        facts = await readFacts(action, principal)
        // Trust may have been taken away while the records were read.
        principal = this.#identifyOrCut(connection)
      }
      const decision = decide(principal, action, clock.now(), facts)
      line.action = nameOf(action)
      line.decision = decision.rule
      const permit = Permit.from(decision, principal, action, facts)
      if (permit === undefined) {
        const code = decision.status === 404 ? 'not-found' : decision.status === 400 ? 'not-canonical' : 'refused'
        throw new PatchcordError(code, decision.reason)
      }
      if (isFeed(action)) hold('feedsPerEntry')
      if (request.body !== undefined && request.body.length !== 0) hold('bodies')
      if (expectsContinue) response.writeContinue()
      const running = { action, facts, response }
      connection.running.add(running)
      try {
        return await handle(permit, request, message, response)
      } finally {
        connection.running.delete(running)
      }
    } finally {
      for (const release of held) release()
    }
  }

  #identifyOrCut (connection: Connection): Principal {
    const principal = this.identify(connection.leaf)
    // Another entry decides now than the one that limits were counted by: the client comes again.
    if (principal !== undefined && principal.entry === connection.entry) return principal
    connection.refused = true
    connection.socket.destroy()
    throw new PatchcordError('not-admitted', 'the certificate no longer admits to anything')
  }
}

interface LogLine {
  readonly connection: number
  readonly device: string
  action: string | undefined
  decision: string
  problem?: string
  status: number
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

/** How much of a refused body is read so that its sender gets to see the answer. */
const MOST_DISCARDED = 1024 * 1024

/** Reads on a little, so that closing with unread bytes does not reset the connection under the answer;
 * then the connection is cut. */
async function discard (message: IncomingMessage, response: ServerResponse, { headMs }: Limits): Promise<void> {
  let bytes = 0
  await new Promise<void>(resolve => {
    const timer = setTimeout(() => { message.destroy() }, Math.min(2_000, headMs))
    message.on('data', (chunk: Buffer) => {
      bytes += chunk.length
      if (bytes > MOST_DISCARDED) message.destroy()
    })
    const done = (): void => {
      clearTimeout(timer)
      resolve()
    }
    message.once('close', done)
    message.once('end', done)
    if (message.destroyed || response.destroyed) done()
  })
}

import type { Clock } from '../core/clock.js'
import { sendCouchJson } from '../core/couch-answers.js'
import { PatchcordError } from '../core/errors.js'
import type { Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import type { CouchProxy } from '../couch/proxy.js'
import { COUCH_WELCOME, visibleDatabases } from '../couch/welcome.js'
import type { FileReader } from '../files/reader.js'
import { serveFile } from '../files/serve.js'
import type { CanonicalRequest } from '../policy/canonical.js'
import type { Principal } from '../policy/principal.js'
import type { Action, CouchAction } from '../policy/route.js'
import { answerJson } from './answers.js'
import type { Asked, Outcome } from './dispatch.js'
import type { Mail } from './mail.js'
import type { Permit } from './permit.js'
import type { ServerState } from './state.js'

export interface HandlersOptions {
  /** What is in force now. */
  readonly state: () => ServerState
  /** The way to the CouchDB of that state; undefined where it has none. */
  readonly couch: () => CouchProxy | undefined
  readonly files: FileReader | undefined
  readonly mail: Mail
  readonly limits: Limits
  readonly clock: Clock
  readonly logger: Logger
}

/** What each action that was allowed is answered with. */
export class Handlers {
  readonly #options: HandlersOptions

  constructor (options: HandlersOptions) {
    this.#options = options
  }

  /** Answers, and says what with. Throws, or rejects with, PatchcordError for `Dispatch` to answer with. */
  handle (permit: Permit, request: CanonicalRequest, asked: Asked): Promise<Outcome> | Outcome {
    // Without a promise of its own: nearly all requests are of this kind.
    const { principal, action } = permit
    return action.kind === 'couch' ? this.#handleCouch(principal, action, request, asked) : this.#handleOwn(principal, action, request, asked)
  }

  #handleCouch (principal: Principal, action: CouchAction, request: CanonicalRequest, { message, response }: Asked): Promise<Outcome> | Outcome {
    const state = this.#options.state()
    if (action.row.path === 'welcome') return { status: 200, bytes: sendCouchJson(response, 200, COUCH_WELCOME) }
    if (action.row.path === 'all-dbs') return { status: 200, bytes: sendCouchJson(response, 200, visibleDatabases(principal, state.databases)) }
    const all = state.env.couch?.credentials ?? {}
    const credentials = Object.hasOwn(all, principal.grantName) ? all[principal.grantName] : undefined
    const couch = this.#options.couch()
    if (couch === undefined || credentials === undefined) throw new PatchcordError('upstream-down', 'no CouchDB is configured for this grant')
    return couch.forward({ action, request, principal, credentials, body: message, response })
  }

  async #handleOwn (principal: Principal, action: Exclude<Action, CouchAction>, request: CanonicalRequest, { response }: Asked): Promise<Outcome> {
    const { files, mail, limits, clock, logger } = this.#options
    const state = this.#options.state()
    switch (action.kind) {
      case 'self':
        return { status: 200, bytes: answerJson(response, { patchcord: 1, device: state.env.identity.device, user: state.trust.user, you: { device: principal.device, relation: principal.relation } }) }
      case 'mail':
        return { status: 200, bytes: await mail.answer(response, principal.device, request.headers.get('if-none-match')) }
      case 'file': {
        if (files === undefined) throw new PatchcordError('not-found', 'missing')
        if (action.part === 'records') return { status: 200, bytes: answerJson(response, { databases: await files.records(action.id) }) }
        const method = request.method === 'HEAD' ? 'HEAD' : 'GET'
        const served = await serveFile(files, { id: action.id, part: action.part, method, headers: request.headers, account: action.account }, response, limits, clock)
        if (served.ending === 'cut') logger.error({ id: action.id, part: action.part, bytes: served.bytes }, 'a file of the store ended before its size, or its disk failed; the transfer was cut. `patchcord verify` tells what is damaged')
        return served
      }
    }
  }
}

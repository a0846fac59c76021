import type { Decision } from '../policy/decide.js'
import type { Principal } from '../policy/principal.js'
import type { Action } from '../policy/route.js'

/** What a handler works with. Only a positive decision makes one, so no handler can run without. */
export class Permit<Allowed extends Action = Action> {
  readonly principal: Principal
  readonly action: Allowed

  private constructor (principal: Principal, action: Allowed) {
    this.principal = principal
    this.action = action
  }

  static from<Allowed extends Action> (decision: Decision, principal: Principal, action: Allowed): Permit<Allowed> | undefined {
    return decision.allowed ? new Permit(principal, action) : undefined
  }
}

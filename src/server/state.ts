import type { Clock } from '../core/clock.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { buildTrust, type Trust } from '../identity/admission.js'
import type { Loan } from '../policy/decide.js'
import type { ServerEnv } from './env.js'

/** Everything that an update may change, looked up once and frozen. An update builds another one and swaps
 * it in whole, so that no request sees half of it. */
export interface ServerState {
  readonly env: ServerEnv
  readonly trust: Trust
  readonly databases: readonly DatabaseName[]
  readonly loans: ReadonlyMap<DeviceId, readonly Loan[]>
}

/** Throws `bad-env` naming the field; nothing is in force then. */
export function buildState (env: ServerEnv): ServerState {
  const loans = new Map<DeviceId, Loan[]>()
  for (const { device, files, until } of env.lent) {
    const loan = { device, files: new Set<string>(files), until: Date.parse(until) }
    loans.set(device, [...loans.get(device) ?? [], loan])
  }
  return Object.freeze({
    env,
    trust: buildTrust({ userCa: env.identity.userCa, whitelist: env.whitelist, revoked: env.revoked, grants: env.grants }),
    databases: env.couch?.databases ?? [],
    loans,
  })
}

/** Until when a file is lent to a device (ms since 1970), or undefined. */
export function lentUntil ({ loans }: ServerState, device: DeviceId, file: string, clock: Clock): number | undefined {
  const now = clock.now()
  let until: number | undefined
  for (const loan of loans.get(device) ?? []) {
    if (loan.until > now && loan.files.has(file)) until = Math.max(until ?? 0, loan.until)
  }
  return until
}

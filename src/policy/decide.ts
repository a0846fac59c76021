import type { DatabaseName, DeviceId } from '../core/ids.js'
import { databaseAccess, type Principal } from './principal.js'
import type { Action, CouchAction, FileAction } from './route.js'

// The policy room: what a request means and whether it is allowed. Pure: no time, no disk, no network.
//
// It promises one reading of a request (canonical.ts), one table of what there is (surface.ts, route.ts), and one
// answer for a principal, an action and an instant (here), which every place that enforces it reads: the open
// port, the embedded database, `explain`. It must never look at a raw target or header again after
// canonicalise, allow what no rule allows, or tell a database that was not granted from one that is not there.
//
//   GET /couch/notes/_changes ─► canonicalise ─► route ─► decide(principal, action, now) ─► couchPath
//                                  400             404       403 or 404                       /notes/_changes

export type Decision = Allowed | Refused

export interface Allowed {
  readonly allowed: true
  readonly status: 200
  readonly rule: string
  readonly reason: string
}

export interface Refused {
  readonly allowed: false
  readonly status: 400 | 403 | 404
  readonly rule: string
  readonly reason: string
}

/** What the decision about a file needs to know besides the request. Who reads every file needs none of it. */
export interface FileFacts {
  /** The databases that this device recorded the file for. */
  readonly records: readonly DatabaseName[]
  /** Until when the file is lent to the device that asks (ms since 1970), if it is. */
  readonly lentUntil?: number | undefined
}

/** A file offered to one device for a time. */
export interface Loan {
  readonly device: DeviceId
  readonly files: ReadonlySet<string>
  readonly until: number
}

const NO_FACTS: FileFacts = Object.freeze({ records: [] })

/** Says allowed or refused, and which rule decided. Pure, and the only place that decides. `facts` are
 * read where `needsFacts` says so; without them such a request is refused. */
export function decide (principal: Principal, action: Action, now: number, facts: FileFacts = NO_FACTS): Decision {
  // So written that an end or a clock that is no number ends it.
  if (!(now < principal.endsAt)) {
    // Admission bounds for how long an expired certificate gets as far as this.
    return action.kind === 'mail' ? allowed('mail: renewal', 'an expired certificate may fetch its renewal') : refused(403, 'ended', 'the certificate has expired; only /mail answers, for its renewal')
  }
  switch (action.kind) {
    case 'self': return allowed('self', 'every admitted client may ask who this is')
    case 'mail': return allowed('mail', 'every admitted client may fetch its own mail')
    case 'file': return decideFile(principal, action, now, facts)
    case 'couch': return decideCouch(principal, action)
  }
}

/** Whether `decide` needs the records of the file, so that they are read only then. */
export function needsFacts (principal: Principal, action: Action): action is FileAction {
  return action.kind === 'file' && (action.account !== undefined || !readsEveryFile(principal))
}

function readsEveryFile (principal: Principal): boolean {
  return principal.relation === 'own' && principal.grant.files === 'all'
}

function decideFile (principal: Principal, { part, account }: FileAction, now: number, { records, lentUntil }: FileFacts): Decision {
  // Who asks so will let others of that database have the file: that it may be read for another reason is none here.
  if (account !== undefined) {
    if (records.includes(account) && databaseAccess(principal, account) !== 'none') return allowed('file: account', `the file is recorded for ${account}, which ${principal.grantName} may read`)
    return refused(404, 'file: account', `the file is not there, or not recorded for ${account}, or the caller may not read that`)
  }
  if (readsEveryFile(principal)) return allowed('file: own device', 'own devices read every file')
  if (part === 'records') return refused(404, 'file: records', 'which databases a file is recorded for is told to own devices alone')
  for (const database of records) {
    if (databaseAccess(principal, database) !== 'none') return allowed('file: record', `the file is recorded for ${database}, which ${principal.grantName} may read`)
  }
  if (lentUntil !== undefined && now < lentUntil) return allowed('file: lent', 'the file is lent to this device')
  return refused(404, 'file: no record', 'the file is not there, or recorded for no database that the caller may read')
}

function decideCouch (principal: Principal, { row, target, query }: CouchAction): Decision {
  const rule = `couch: ${row.id}`
  if (row.needs !== 'nothing') {
    const access = databaseAccess(principal, target.database!)
    if (access === 'none') return refused(404, 'couch: database', `${target.database} is absent or not granted`)
    if (row.who === 'own' && principal.relation !== 'own') return refused(403, rule, 'this is for own devices alone')
    if (row.needs === 'write' && access !== 'write') return refused(403, rule, `${target.database} is shared read-only`)
  }
  for (const [name, value] of query) {
    const check = Object.hasOwn(row.query, name) ? row.query[name] : undefined
    if (check === undefined) return refused(400, `${rule}: parameter`, `the query parameter ${JSON.stringify(name.slice(0, 40))} is not taken here`)
    const problem = check(value)
    if (problem !== undefined) return refused(400, `${rule}: parameter`, `the query parameter ${name} ${problem}`)
  }
  return allowed(rule, row.needs === 'nothing' ? 'every admitted client may' : `${principal.grantName} has ${row.needs} access to ${target.database}`)
}

function allowed (rule: string, reason: string): Allowed {
  return { allowed: true, status: 200, rule, reason }
}

function refused (status: Refused['status'], rule: string, reason: string): Refused {
  return { allowed: false, status, rule, reason }
}

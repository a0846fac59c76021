import { isDeepStrictEqual } from 'node:util'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { parseShape } from '../core/shape.js'
import type { Account, AccountScope } from '../embedded/accounts.js'
import type { CouchClient, CouchLogin } from './couch-client.js'

/** What own devices and the person's programs are in every database that is not public. */
export const OWN_ROLE = 'patchcord-own'
/** All users that any device made in a CouchDB. */
export const ANY_USER = 'patchcord-'

/** The users of one device in a CouchDB. Several devices may share a CouchDB, each with users of its own. */
export const userPrefix = (device: DeviceId): string => `${ANY_USER}${device.slice(0, 12)}-`

const Names = v.looseObject({ names: v.optional(v.array(v.string()), []), roles: v.optional(v.array(v.string()), []) })
const SecurityShape = v.looseObject({ admins: v.optional(Names, {}), members: v.optional(Names, {}) })
export type Security = v.InferOutput<typeof SecurityShape>

/** CouchDB lets everybody with a login, or without, into a database that names no member. */
export const isPublic = ({ members }: Security): boolean => members.names.length === 0 && members.roles.length === 0

export async function readSecurity (client: CouchClient, database: DatabaseName): Promise<Security | undefined> {
  const { status, value } = await client.ask('GET', `/${encodeURIComponent(database)}/_security`)
  if (status === 404) return undefined
  if (status !== 200) throw unexpected(status, `who may use ${database} was asked for`)
  return parseShape(SecurityShape, value, `_security of ${database}`, 'upstream-down')
}

export async function writeSecurity (client: CouchClient, database: DatabaseName, security: Security): Promise<void> {
  const { status } = await client.ask('PUT', `/${encodeURIComponent(database)}/_security`, security)
  // One that was deleted in between has no members to keep.
  if (status !== 200 && status !== 201 && status !== 404) throw unexpected(status, `who may use ${database} was written`)
}

/** The users whose names begin with `prefix`, with the revisions of their documents. */
export async function listUsers (client: CouchClient, prefix: string): Promise<Map<string, string>> {
  const key = (name: string): string => encodeURIComponent(JSON.stringify(`org.couchdb.user:${name}`))
  const { status, value } = await client.ask('GET', `/_users/_all_docs?startkey=${key(prefix)}&endkey=${key(`${prefix}\ufff0`)}`)
  if (status !== 200) throw unexpected(status, 'its users were listed')
  const { rows } = parseShape(Listed, value, '_users', 'upstream-down')
  return new Map(rows.map(({ id, value: { rev } }) => [id.slice('org.couchdb.user:'.length), rev]))
}

const Listed = v.looseObject({ rows: v.array(v.looseObject({ id: v.string(), value: v.looseObject({ rev: v.string() }) })) })

export async function deleteUser (client: CouchClient, name: string, rev: string): Promise<void> {
  const { status } = await client.ask('DELETE', `/_users/${encodeURIComponent(`org.couchdb.user:${name}`)}?rev=${encodeURIComponent(rev)}`)
  if (status !== 200 && status !== 202 && status !== 404) throw unexpected(status, `its user ${name} was deleted`)
}

/**
 * Limited credentials in a CouchDB: a user for each account, who is a member of exactly the databases that the
 * account may use. It works as an administrator and keeps to what is its own: users of its prefix, their names
 * in `_security`, and the role of own devices. A database that is public stays public; that one is closed by
 * `patchcord couch setup --close-public` alone.
 *
 * Members can write: that a grant is read-only is the gate's doing.
 */
export class CouchUsers {
  readonly #client: CouchClient
  readonly #prefix: string
  #accounts: readonly Account[] = []
  #databases: readonly DatabaseName[] = []
  /** What was put in force in this run; everything is looked at once, and then again where it changes. */
  readonly #users = new Map<string, string>()
  readonly #members = new Map<DatabaseName, string>()
  #isSwept = false
  #serial: Promise<unknown> = Promise.resolve()

  constructor (client: CouchClient, device: DeviceId) {
    this.#client = client
    this.#prefix = userPrefix(device)
  }

  loginOf ({ username, password }: Account): CouchLogin {
    return { username: this.#prefix + username, password }
  }

  /** Puts these accounts in force. Throws `upstream-down` or `upstream-slow`; what was not done then is done by the
   * next call. */
  async setAccounts (accounts: readonly Account[]): Promise<void> {
    this.#accounts = accounts
    await this.#reconcile()
  }

  async setDatabases (databases: readonly DatabaseName[]): Promise<void> {
    this.#databases = databases
    await this.#reconcile()
  }

  #reconcile (): Promise<void> {
    const done = this.#serial.then(() => this.#inStep())
    this.#serial = done.catch(() => undefined)
    return done
  }

  async #inStep (): Promise<void> {
    // Who is no longer a member loses the database first; then users go, then users come.
    for (const database of this.#databases) await this.#keepMembers(database)
    for (const database of this.#members.keys()) if (!this.#databases.includes(database)) this.#members.delete(database)
    const wanted = new Map(this.#accounts.map(account => [this.#prefix + account.username, account]))
    if (!this.#isSwept || [...this.#users.keys()].some(name => !wanted.has(name))) {
      for (const [name, rev] of await listUsers(this.#client, this.#prefix)) {
        if (!wanted.has(name)) await deleteUser(this.#client, name, rev)
        if (!wanted.has(name)) this.#users.delete(name)
      }
      this.#isSwept = true
    }
    for (const [name, account] of wanted) await this.#keepUser(name, account)
  }

  async #keepMembers (database: DatabaseName): Promise<void> {
    const names = this.#accounts.filter(({ scope }) => !hasAll(scope) && Object.hasOwn(databasesOf(scope), database)).map(({ username }) => this.#prefix + username).toSorted()
    const text = names.join(' ')
    if (this.#members.get(database) === text) return
    const security = await readSecurity(this.#client, database)
    if (security === undefined) return
    if (!isPublic(security)) {
      const { members } = security
      const next = {
        ...members,
        names: [...members.names.filter(name => !name.startsWith(this.#prefix)), ...names],
        roles: members.roles.includes(OWN_ROLE) ? members.roles : [...members.roles, OWN_ROLE],
      }
      if (!isDeepStrictEqual(next, members)) await writeSecurity(this.#client, database, { ...security, members: next })
    }
    this.#members.set(database, text)
  }

  async #keepUser (name: string, { password, scope }: Account): Promise<void> {
    const roles = hasAll(scope) ? [OWN_ROLE] : []
    const text = JSON.stringify([password, roles])
    if (this.#users.get(name) === text) return
    const path = `/_users/${encodeURIComponent(`org.couchdb.user:${name}`)}`
    for (let attempt = 1; ; attempt++) {
      const { status, value } = await this.#client.ask('GET', path)
      if (status !== 200 && status !== 404) throw unexpected(status, `its user ${name} was read`)
      const rev = status === 200 ? (value as { _rev?: unknown })._rev : undefined
      const written = await this.#client.ask('PUT', path, { _id: `org.couchdb.user:${name}`, ...typeof rev === 'string' ? { _rev: rev } : {}, name, type: 'user', roles, password })
      if (written.status === 201 || written.status === 202) break
      if (written.status !== 409 || attempt === 3) throw unexpected(written.status, `its user ${name} was written`)
    }
    this.#users.set(name, text)
  }
}

/** Takes what every device of this prefix is out of a database's members. Where nobody is left, administrators
 * alone keep it: without a member it would be open to everybody. */
export function withoutUsers (security: Security, prefix: string, keepRole: boolean): Security {
  const { members } = security
  const names = members.names.filter(name => !name.startsWith(prefix))
  const roles = members.roles.filter(role => keepRole || role !== OWN_ROLE)
  if (names.length === members.names.length && roles.length === members.roles.length) return security
  return { ...security, members: { ...members, names, roles: names.length + roles.length === 0 ? ['_admin'] : roles } }
}

function databasesOf (scope: AccountScope): Readonly<Record<string, 'read' | 'write'>> {
  return scope.kind === 'owner' ? { '*': 'write' } : scope.databases
}

/** A prefix pattern of an own grant counts as all: the gate, which knows patterns, decides before CouchDB is asked. */
function hasAll (scope: AccountScope): boolean {
  return scope.kind !== 'peer' && Object.keys(databasesOf(scope)).some(name => name.endsWith('*'))
}

export function unexpected (status: number, when: string): PatchcordError {
  if (status === 401 || status === 403) return new PatchcordError('refused', `CouchDB answered ${status} when ${when}`, { hint: 'the login must be that of a CouchDB administrator' })
  return new PatchcordError('upstream-down', `CouchDB answered ${status} when ${when}`)
}

import * as v from 'valibot'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { parseShape } from '../core/shape.js'
import type { Account } from '../embedded/accounts.js'
import { CouchClient, type CouchLogin } from './couch-client.js'
import type { CouchHost } from './couch-host.js'
import { CouchUpdates } from './couch-updates.js'
import { CouchUsers } from './couch-users.js'

export interface CouchOptions {
  readonly url: string
  /** An administrator's: each account then has a user of its own. Anybody else's is used for everything. */
  readonly login: CouchLogin
  readonly device: DeviceId
  readonly accounts: readonly Account[]
  /** The account that is the agent itself; it goes by `login`. */
  readonly owner: Account
  readonly clock: Clock
  readonly logger: Logger
  readonly onDatabases: (names: DatabaseName[]) => void
}

/** How long after a failure the users are looked at again. */
const MEND_MS = 5_000

/** Uses a CouchDB that runs already. Throws where it is down or refuses the login. */
export async function useCouch ({ url, login, device, accounts, owner, clock, logger, onDatabases }: CouchOptions): Promise<CouchHost> {
  const client = new CouchClient(url, login)
  try {
    const users = await isAdministrator(client) ? new CouchUsers(client, device) : undefined
    if (users === undefined) logger.warn({ url: client.url }, 'the login of CouchDB is no administrator\'s: it serves for every grant; `patchcord couch setup` makes a user for each')
    const host = new OwnCouch(client, login, owner, users, clock, logger, onDatabases)
    await host.start(accounts)
    return host
  } catch (error) {
    client.close()
    throw error
  }
}

const Session = v.looseObject({ userCtx: v.looseObject({ roles: v.array(v.string()) }) })

/** Whether the login is an administrator's. Throws `refused` for a wrong password. */
export async function isAdministrator (client: CouchClient): Promise<boolean> {
  const { status, value } = await client.ask('GET', '/_session')
  if (status === 401) throw new PatchcordError('refused', `CouchDB at ${client.url} refuses the user name or password`, { hint: 'check the file with its login' })
  if (status >= 500) throw new PatchcordError('upstream-down', `CouchDB at ${client.url} answered ${status} when its login was asked about`)
  // What has no sessions has no administrators either: its list of databases says whether the login is right.
  return status === 200 && parseShape(Session, value, '_session', 'upstream-down').userCtx.roles.includes('_admin')
}

class OwnCouch implements CouchHost {
  readonly kind = 'couchdb'
  readonly client: CouchClient
  readonly #login: CouchLogin
  readonly #owner: Account
  readonly #users: CouchUsers | undefined
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #onDatabases: (names: DatabaseName[]) => void
  #updates: CouchUpdates | undefined
  #known: string | undefined
  #accounts: readonly Account[] = []
  #mending: Timer | undefined
  #isReleased = false

  constructor (client: CouchClient, login: CouchLogin, owner: Account, users: CouchUsers | undefined, clock: Clock, logger: Logger, onDatabases: (names: DatabaseName[]) => void) {
    this.client = client
    this.#login = login
    this.#owner = owner
    this.#users = users
    this.#clock = clock
    this.#logger = logger
    this.#onDatabases = onDatabases
  }

  get url (): string { return this.client.url }
  get isLimited (): boolean { return this.#users !== undefined }

  async start (accounts: readonly Account[]): Promise<void> {
    this.#accounts = this.#withUser(accounts)
    const names = await this.client.databases()
    this.#known = listed(names)
    await this.#users?.setDatabases(names)
    await this.#users?.setAccounts(this.#accounts)
    this.#updates = new CouchUpdates(this.client, () => this.databases(), this.#clock, this.#logger)
  }

  loginOf (account: Account): CouchLogin {
    return this.#users === undefined || account.username === this.#owner.username ? this.#login : this.#users.loginOf(account)
  }

  /** A CouchDB that is down does not undo what the gate has decided already: the users follow when it is back. */
  async setAccounts (accounts: readonly Account[]): Promise<void> {
    this.#accounts = this.#withUser(accounts)
    await this.#mend(users => users.setAccounts(this.#accounts))
  }

  async databases (): Promise<DatabaseName[]> {
    const names = await this.client.databases()
    if (listed(names) === this.#known) return names
    await this.#mend(users => users.setDatabases(names))
    this.#known = listed(names)
    this.#onDatabases(names)
    return names
  }

  async createDatabase (name: DatabaseName): Promise<void> {
    if (!(await this.client.databases()).includes(name)) await this.client.createDatabase(name)
    await this.databases()
  }

  async release (): Promise<void> {
    this.#isReleased = true
    this.#mending?.cancel()
    await this.#updates?.stop()
  }

  /** It is nobody's child. */
  letEnd (): void { return undefined }

  async stop (): Promise<void> {
    await this.release()
    this.client.close()
  }

  async #mend (step: (users: CouchUsers) => Promise<void>): Promise<void> {
    if (this.#isReleased || this.#users === undefined) return
    this.#mending?.cancel()
    try {
      await step(this.#users)
    } catch (error) {
      this.#logger.error({ reason: messageOf(error), again: MEND_MS }, 'the users in CouchDB are not what was shared')
      this.#mending = this.#clock.after(MEND_MS, () => { void this.#mend(users => users.setAccounts(this.#accounts)) })
    }
  }

  /** The agent goes by the login it has. */
  #withUser (accounts: readonly Account[]): Account[] {
    return accounts.filter(({ username }) => username !== this.#owner.username)
  }
}

const listed = (names: readonly DatabaseName[]): string => names.toSorted().join(' ')

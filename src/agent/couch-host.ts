import type { Logger } from '../core/log.js'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName } from '../core/ids.js'
import type { Account } from '../embedded/accounts.js'
import type { Embedded } from '../embedded/front.js'
import { startEmbeddedChild, type EmbeddedChild } from '../embedded/supervise.js'
import { CouchClient, type CouchLogin } from './couch-client.js'

/** The CouchDB of this device, as the agent sees it. */
export interface CouchHost {
  readonly kind: 'embedded' | 'couchdb'
  readonly url: string
  readonly client: CouchClient
  /** Puts the accounts in force that a grant, a pull or a program logs in with. */
  setAccounts (accounts: readonly Account[]): Promise<void>
  /** The login to use where `account` would be used: the account itself, or the one that was configured. */
  loginOf (account: Account): CouchLogin
  databases (): Promise<DatabaseName[]>
  createDatabase (name: DatabaseName): Promise<void>
  /** Changes nothing in it from now on: neither users nor who may use a database. */
  release (): Promise<void>
  /** As of the server (`ServerHost`): what ends from now on was told to. */
  letEnd (): void
  stop (): Promise<void>
}

export interface EmbeddedHostOptions {
  readonly dir: string
  readonly port: number
  readonly accounts: readonly Account[]
  readonly owner: Account
  /** In this process instead of a child, for `Lab`. */
  readonly inProcess: boolean
  readonly logger: Logger
  readonly onDatabases: (names: DatabaseName[]) => void
}

/** Starts the embedded database on `[::1]`. Throws `port-in-use`, and what is wrong with `dir`. */
export async function hostEmbedded ({ dir, port, accounts, owner, inProcess, logger, onDatabases }: EmbeddedHostOptions): Promise<CouchHost> {
  const listen = { host: '::1', port }
  const embedded: Embedded & Partial<Pick<EmbeddedChild, 'letEnd'>> = inProcess
    ? await (await import('../embedded/front.js')).startEmbedded({ dir, accounts, listen, logger })
    : await startEmbeddedChild({
      dir, accounts, listen, logger,
      onEvent: event => {
        if (event.kind === 'exit') logger.error({ code: event.code, signal: event.signal }, 'the embedded database ended; it is started again')
        else logger.info({ pid: event.pid }, 'the embedded database runs again')
      },
    })
  embedded.onDatabases(onDatabases)
  const client = new CouchClient(embedded.url, owner)
  return {
    kind: 'embedded', url: embedded.url, client,
    setAccounts: async accounts => { await embedded.setAccounts(accounts) },
    loginOf: account => account,
    databases: () => embedded.databases(),
    createDatabase: async name => {
      try {
        await embedded.createDatabase(name)
      } catch (error) {
        if (!(error instanceof PatchcordError) || error.code !== 'already-exists') throw error
      }
    },
    release: () => Promise.resolve(),
    letEnd: () => { embedded.letEnd?.() },
    stop: async () => {
      client.close()
      await embedded.stop()
    },
  }
}

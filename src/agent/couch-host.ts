import { Agent, request } from 'node:http'
import * as v from 'valibot'
import type { Clock, Timer } from '../core/clock.js'
import { readPrivate } from '../core/durable-file.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import { isDatabaseName, type DatabaseName } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { parseJson } from '../core/shape.js'
import { parseCouchUrl } from '../couch/proxy.js'
import type { Account } from '../embedded/accounts.js'
import { startEmbedded } from '../embedded/front.js'
import { startEmbeddedChild } from '../embedded/supervise.js'

export interface CouchLogin {
  readonly username: string
  readonly password: string
}

const Login = v.strictObject({ username: v.pipe(v.string(), v.minLength(1), v.excludes(':', 'must hold no colon')), password: v.string() })

/** Reads `--couch-credentials-file`. Throws `unsafe-mode` where others can read it, `bad-state` for what is
 * not `{"username","password"}`. */
export async function readLogin (path: string): Promise<CouchLogin> {
  const bytes = await readPrivate(path)
  if (bytes === undefined) throw new PatchcordError('unreadable', `${path} does not exist`)
  return parseJson(Login, bytes.toString('utf8'), path, 'bad-state')
}

const MOST_ANSWER_BYTES = 16 * 1024 * 1024
const ANSWER_MS = 10_000

/** A small client of the local CouchDB, for what the agent itself asks of it. */
export class CouchClient {
  readonly url: string
  readonly agent: Agent
  readonly #login: CouchLogin
  readonly #target: { host: string, port: number }

  /** Throws `bad-env` for a URL that is not one of a literal loopback address. */
  constructor (url: string, login: CouchLogin, maxSockets = 16) {
    this.#target = parseCouchUrl(url)
    this.url = url.replace(/\/$/, '')
    this.#login = login
    this.agent = new Agent({ keepAlive: true, maxSockets })
  }

  /** One request with a JSON answer, whatever its status. Throws `upstream-down` or `upstream-slow`. */
  ask (method: string, path: string, body?: unknown): Promise<{ status: number, value: unknown }> {
    return this.askAs(this.#login, method, path, body)
  }

  /** The same with another login. */
  async askAs ({ username, password }: CouchLogin, method: string, path: string, body?: unknown): Promise<{ status: number, value: unknown }> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    return await new Promise((resolve, reject) => {
      const sent = request({
        ...this.#target, agent: this.agent, method, path, auth: `${username}:${password}`, timeout: ANSWER_MS,
        headers: { Accept: 'application/json', ...text === undefined ? {} : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) } },
      }, answer => {
        const chunks: Buffer[] = []
        let size = 0
        answer.on('data', (chunk: Buffer) => {
          size += chunk.length
          if (size > MOST_ANSWER_BYTES) answer.destroy(new PatchcordError('upstream-down', `${this.url} answered more than ${MOST_ANSWER_BYTES} bytes`))
          else chunks.push(chunk)
        })
        answer.on('error', reject)
        answer.on('end', () => {
          try {
            resolve({ status: answer.statusCode ?? 0, value: JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown })
          } catch {
            reject(new PatchcordError('upstream-down', `what listens at ${this.url} answers no JSON: it is no CouchDB`))
          }
        })
      })
      sent.on('timeout', () => { sent.destroy(new PatchcordError('upstream-slow', `${this.url} did not answer within ${ANSWER_MS / 1000} s`)) })
      sent.on('error', error => {
        reject(error instanceof PatchcordError ? error : new PatchcordError('upstream-down', `CouchDB at ${this.url} does not answer: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
      })
      sent.end(text)
    })
  }

  /** The databases that the login sees. Throws `refused` where the password is wrong. */
  async databases (): Promise<DatabaseName[]> {
    const { status, value } = await this.ask('GET', '/_all_dbs')
    if (status === 401) throw new PatchcordError('refused', `CouchDB at ${this.url} refuses the user name or password`, { hint: 'check the file given with --couch-credentials-file' })
    if (status === 403) throw new PatchcordError('refused', `CouchDB at ${this.url} does not tell this user its databases`, { hint: 'give the login of a user that may read /_all_dbs' })
    if (status !== 200 || !Array.isArray(value)) throw new PatchcordError('upstream-down', `CouchDB at ${this.url} answered ${status} for /_all_dbs`)
    return value.filter((name): name is DatabaseName => typeof name === 'string' && isDatabaseName(name))
  }

  /** Makes a database; one that is there stays as it is. */
  async createDatabase (name: DatabaseName): Promise<void> {
    const { status } = await this.ask('PUT', `/${encodeURIComponent(name)}`)
    if (status === 401 || status === 403) throw new PatchcordError('refused', `CouchDB at ${this.url} does not let this user create ${name}`, { hint: 'create it as an administrator, or give another login' })
    if (status !== 201 && status !== 202 && status !== 412) throw new PatchcordError('upstream-down', `CouchDB at ${this.url} answered ${status} when ${name} was created`)
  }

  close (): void { this.agent.destroy() }
}

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
  const embedded = inProcess
    ? await startEmbedded({ dir, accounts, listen, logger })
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
    stop: async () => {
      client.close()
      await embedded.stop()
    },
  }
}

/** How often a CouchDB is asked whether its list of databases changed (ms). */
const LIST_EVERY_MS = 10_000

/** Uses a CouchDB that runs already, with one login for everything. Throws where it is down or refuses the
 * password. */
export async function useCouch (url: string, login: CouchLogin, clock: Clock, logger: Logger, onDatabases: (names: DatabaseName[]) => void): Promise<CouchHost> {
  const client = new CouchClient(url, login)
  let known = ''
  let timer: Timer | undefined
  const look = async (): Promise<DatabaseName[]> => {
    const names = await client.databases()
    const text = names.toSorted().join(' ')
    if (text !== known) {
      known = text
      onDatabases(names)
    }
    return names
  }
  const lookAgain = (): void => {
    timer = clock.after(LIST_EVERY_MS, () => {
      look().catch((error: unknown) => { logger.warn({ reason: messageOf(error) }, 'CouchDB does not tell its databases') }).finally(lookAgain)
    })
  }
  try {
    known = (await client.databases()).toSorted().join(' ')
  } catch (error) {
    client.close()
    throw error
  }
  lookAgain()
  return {
    kind: 'couchdb', url: client.url, client,
    setAccounts: () => Promise.resolve(),
    loginOf: () => login,
    databases: look,
    createDatabase: async name => {
      if (!(await client.databases()).includes(name)) await client.createDatabase(name)
      await look()
    },
    stop: () => {
      timer?.cancel()
      client.close()
      return Promise.resolve()
    },
  }
}

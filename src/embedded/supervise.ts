import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { formatAddress, type Address } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName } from '../core/ids.js'
import { silentLogger, type Logger, type LogLevel } from '../core/log.js'
import { limitAnswer } from '../machine/answer-limit.js'
import { PROFILES, startHeldTo } from '../machine/confinement.js'
import type { Account } from './accounts.js'
import { bindSocket, type BoundSocket } from './bound-socket.js'
import type { Embedded } from './front.js'
import type { FromChild, SentError, ToChild } from './messages.js'

/** From Node 24 on, unless told otherwise, who handles what a callback of LevelDB's threw is not told in which context that
 * was, and so not which database is damaged (store.ts). */
const FLAGS = process.allowedNodeEnvironmentFlags.has('--async-context-frame') ? ['--no-async-context-frame'] : []

export interface EmbeddedChildOptions {
  readonly dir: string
  readonly accounts: readonly Account[]
  /** A loopback address; port 0 takes any that is free. */
  readonly listen: Pick<Address, 'host' | 'port'>
  readonly logger?: Logger
  /** Told when the process ended without being asked to, and when the next one answers. */
  readonly onEvent?: (event: EmbeddedEvent) => void
}

export type EmbeddedEvent =
  | { readonly kind: 'exit', readonly code: number | null, readonly signal: string | null }
  | { readonly kind: 'restarted', readonly pid: number }

/** The embedded database in a process of its own. It is started again when it ends; address and port stay,
 * and what connects in between waits. */
export interface EmbeddedChild extends Embedded {
  /** Of the process that runs now; undefined between two. */
  readonly pid: number | undefined
  /** It is not started again when it ends from now on, and that is no fault. */
  letEnd (): void
}

/** Starts it. Throws `port-in-use`, and what the process says about `dir`. */
export async function startEmbeddedChild (options: EmbeddedChildOptions): Promise<EmbeddedChild> {
  const socket = bindSocket(options.listen)
  const supervisor = new Supervisor(options, socket)
  try {
    await supervisor.start()
  } catch (error) {
    await supervisor.stop()
    throw error
  }
  return supervisor
}

const ANSWER_MS = 60_000
const ACCOUNTS_MS = 1000
const START_MS = 30_000
const STOP_MS = 8000
const FIRST_BACKOFF_MS = 100
const LONGEST_BACKOFF_MS = 10_000
/** A process that lived this long starts the back-off anew. */
const STEADY_MS = 30_000

interface Waiting { resolve (): void, reject (error: Error): void }

class Supervisor implements EmbeddedChild {
  readonly url: string
  readonly #options: EmbeddedChildOptions
  readonly #socket: BoundSocket
  readonly #logger: Logger
  readonly #listeners = new Set<(names: DatabaseName[]) => void>()
  readonly #waiting = new Map<number, Waiting>()
  #accounts: readonly Account[]
  #names: readonly DatabaseName[] = []
  #child: ChildProcess | undefined
  #isReady = false
  #seq = 0
  #backoff = FIRST_BACKOFF_MS
  #timer: NodeJS.Timeout | undefined
  #stopped = false

  constructor (options: EmbeddedChildOptions, socket: BoundSocket) {
    this.#options = options
    this.#socket = socket
    this.#logger = options.logger ?? silentLogger()
    this.#accounts = options.accounts
    this.url = `http://${formatAddress({ host: options.listen.host, port: socket.port })}`
  }

  get pid (): number | undefined { return this.#child?.pid }

  /** Forks the process and resolves when it answers. */
  async start (): Promise<void> {
    const since = performance.now()
    // No environment: nothing of the agent's is needed there, and nothing of it should be readable there.
    const child = startHeldTo(PROFILES.database, () => fork(fileURLToPath(new URL('child.js', import.meta.url)), [], { execArgv: FLAGS, env: {}, serialization: 'json' }))
    this.#child = child
    await new Promise<void>((resolve, reject) => {
      const endLimit = limitAnswer(child.pid, START_MS, () => { child.kill('SIGKILL') })
      const sent = this.#accounts
      child.on('message', (message: FromChild) => {
        if ('ready' in message) {
          endLimit()
          this.#isReady = true
          this.#listed(message.ready.databases)
          // They may have been replaced while it started.
          if (sent !== this.#accounts) this.setAccounts(this.#accounts).catch(() => undefined)
          resolve()
        } else if ('failed' in message) {
          reject(received(message.failed))
        } else {
          this.#receive(message)
        }
      })
      child.on('error', error => { reject(error) })
      child.once('exit', (code, signal) => {
        endLimit()
        reject(new PatchcordError('not-running', `the embedded database ended while it started (${signal ?? code})`))
        this.#ended(child, code, signal, performance.now() - since)
      })
      const logLevel = this.#logger.level as LogLevel
      this.#tell({ start: { dir: this.#options.dir, accounts: sent, logLevel } }, this.#socket)
    })
  }

  /** A process that does not say in time that it took them is killed, and the next one begins with them: a
   * right that was taken away never outlives a lost message. */
  async setAccounts (accounts: readonly Account[]): Promise<void> {
    this.#accounts = accounts
    const child = this.#child
    // The next process starts with them.
    if (child === undefined || !this.#isReady) return
    await this.#ask(seq => ({ seq, accounts }), ACCOUNTS_MS).catch((error: unknown) => {
      this.#logger.warn({ err: error }, 'the embedded database did not take its accounts and is started again')
      child.kill('SIGKILL')
    })
  }

  createDatabase (name: string): Promise<void> {
    return this.#ask(seq => ({ seq, createDatabase: name }), ANSWER_MS)
  }

  deleteDatabase (name: string): Promise<void> {
    return this.#ask(seq => ({ seq, deleteDatabase: name }), ANSWER_MS)
  }

  async databases (): Promise<DatabaseName[]> {
    return [...this.#names]
  }

  onDatabases (changed: (names: DatabaseName[]) => void): () => void {
    this.#listeners.add(changed)
    return () => { this.#listeners.delete(changed) }
  }

  letEnd (): void {
    this.#stopped = true
  }

  async stop (): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#timer)
    const child = this.#child
    if (child !== undefined) {
      const late = setTimeout(() => { child.kill('SIGKILL') }, STOP_MS)
      const exit = child.exitCode === null && child.signalCode === null ? once(child, 'exit') : undefined
      if (child.connected) child.disconnect()
      await exit
      clearTimeout(late)
    }
    this.#socket.close()
  }

  #ask (message: (seq: number) => ToChild, timeoutMs: number): Promise<void> {
    if (!this.#isReady) return Promise.reject(notRunning())
    const seq = ++this.#seq
    return new Promise<void>((resolve, reject) => {
      const endLimit = limitAnswer(this.#child?.pid, timeoutMs, () => { waiting.reject(new PatchcordError('upstream-slow', 'the embedded database does not answer')) })
      const settle = (): void => {
        endLimit()
        this.#waiting.delete(seq)
      }
      const waiting: Waiting = {
        resolve: () => { settle(); resolve() },
        reject: error => { settle(); reject(error) },
      }
      this.#waiting.set(seq, waiting)
      this.#tell(message(seq))
    })
  }

  #tell (message: ToChild, socket?: BoundSocket): void {
    // A process that is gone says so by `exit`, which rejects what waits.
    this.#child?.send(message, socket?.handle, { keepOpen: true }, () => undefined)
  }

  #receive (message: Exclude<FromChild, { ready: object } | { failed: object }>): void {
    if ('databases' in message) return this.#listed(message.databases)
    const waiting = this.#waiting.get('accountsSet' in message ? message.accountsSet : message.seq)
    if ('error' in message) waiting?.reject(received(message.error))
    else waiting?.resolve()
  }

  #listed (names: readonly DatabaseName[]): void {
    const isSame = names.length === this.#names.length && names.every((name, index) => name === this.#names[index])
    this.#names = names
    if (!isSame) for (const listener of this.#listeners) listener([...names])
  }

  #ended (child: ChildProcess, code: number | null, signal: string | null, livedMs: number): void {
    if (this.#child !== child) return
    const wasReady = this.#isReady
    this.#child = undefined
    this.#isReady = false
    for (const waiting of [...this.#waiting.values()]) waiting.reject(notRunning())
    if (this.#stopped) return
    this.#logger.error({ code, signal }, 'the embedded database ended')
    this.#options.onEvent?.({ kind: 'exit', code, signal })
    if (wasReady || this.#backoff > FIRST_BACKOFF_MS) this.#restart(livedMs)
  }

  #restart (livedMs: number): void {
    if (livedMs > STEADY_MS) this.#backoff = FIRST_BACKOFF_MS
    this.#timer = setTimeout(() => {
      this.start().then(() => {
        this.#logger.info({ pid: this.pid }, 'the embedded database runs again')
        if (this.pid !== undefined) this.#options.onEvent?.({ kind: 'restarted', pid: this.pid })
      }, (error: unknown) => {
        // Its `exit` follows, and tries again.
        this.#logger.error({ err: error }, 'the embedded database does not start')
      })
    }, this.#backoff)
    this.#backoff = Math.min(this.#backoff * 2, LONGEST_BACKOFF_MS)
  }
}

const notRunning = (): PatchcordError => new PatchcordError('not-running', 'the embedded database is being started again', { hint: 'try again in a moment' })

function received ({ code, message, hint }: SentError): PatchcordError {
  return new PatchcordError(code, message, hint === undefined ? {} : { hint })
}

import type { Socket } from 'node:net'
import { PatchcordError } from '../core/errors.js'
import { Turns } from '../core/turns.js'
import { ByteConnection, type Exchange, type OnRead } from './byte-connection.js'

/** How long a connection is kept without a request (ms): less than what the server keeps it (`idleMs`). */
const REST_MS = 50_000
const SILENT_MS = 30_000

/** Connections that requests for short answers share, and how many such requests there are on one at a time. The other side is so never without one,
 * and reads and answers many in one go. It takes 64 at once of each of its whitelist entries. */
const SHARED = 4
const SHORT_AT_ONCE = 16

/** A connection that requests for short answers share for as long as there are any. */
class Shared {
  readonly opening: Promise<ByteConnection>
  /** Resolves when nobody uses it any more. */
  readonly over: Promise<void>
  /** Once it is open. */
  connection: ByteConnection | undefined
  users = 0
  failed!: (error: unknown) => void
  #end!: () => void
  readonly #unused = new AbortController()
  #resolve!: (connection: ByteConnection) => void

  constructor () {
    this.opening = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.failed = reject
    })
    // Those who wait for it are told.
    this.opening.catch(() => undefined)
    this.over = new Promise(resolve => { this.#end = resolve })
  }

  /** Aborts when it ends: nobody waits for it to open any more. */
  get unused (): AbortSignal { return this.#unused.signal }

  end (reason: Error): void {
    this.#unused.abort(reason)
    this.#end()
  }

  opened (connection: ByteConnection): void {
    this.connection = connection
    this.#resolve(connection)
  }
}

/** Connections to one peer for the bytes of files, at most `most` at once. */
export class BytePool {
  readonly #dial: (onread: OnRead, signal: AbortSignal) => Promise<Socket>
  readonly #host: string
  readonly #who: string
  readonly #turns: Turns
  readonly #short: Turns
  readonly #sharing: number
  readonly #shared = new Set<Shared>()
  readonly #idle: ByteConnection[] = []
  readonly #busy = new Set<ByteConnection>()
  #cut = new AbortController()

  /** `dial` makes a connection that proved to be the peer's, and gives up when its signal aborts. */
  constructor (dial: (onread: OnRead, signal: AbortSignal) => Promise<Socket>, { host, who, most = 8 }: { readonly host: string, readonly who: string, readonly most?: number }) {
    this.#dial = dial
    this.#host = host
    this.#who = who
    this.#turns = new Turns(most)
    this.#sharing = Math.min(most, SHARED)
    this.#short = new Turns(this.#sharing * SHORT_AT_ONCE)
  }

  /** Sends one request, when there is a connection for it. `start` is told of the connection before, which is the request's own unless its answer is
   * short. Throws as `ByteConnection.get` does, and what the dialling says. */
  async get (exchange: Exchange, start: (connection: ByteConnection) => void = () => undefined): Promise<void> {
    if (exchange.isShort === true) await this.#short.run(() => this.#sendShort(exchange), exchange.signal)
    else await this.#turns.run(() => this.#send(exchange, start), exchange.signal)
  }

  async #send (exchange: Exchange, start: (connection: ByteConnection) => void): Promise<void> {
    const { signal } = exchange
    const cuts = this.#cut.signal
    for (;;) {
      signal.throwIfAborted()
      const connection = this.#rested() ?? await this.#open(signal)
      this.#busy.add(connection)
      start(connection)
      try {
        if (await connection.get(exchange, SILENT_MS)) return
      } finally {
        this.#rest(connection)
      }
      cuts.throwIfAborted()
    }
  }

  async #sendShort (exchange: Exchange): Promise<void> {
    const { signal } = exchange
    const cuts = this.#cut.signal
    for (;;) {
      signal.throwIfAborted()
      const shared = this.#leastUsed()
      shared.users += 1
      try {
        const connection = shared.connection ?? await within(shared.opening, signal)
        if (await connection.get(exchange, SILENT_MS)) return
      } finally {
        shared.users -= 1
        if (shared.users === 0) {
          this.#shared.delete(shared)
          shared.end(new PatchcordError('unreachable', 'nobody asks any more'))
        }
      }
      cuts.throwIfAborted()
    }
  }

  /** Of two that have nothing to do, the older; a new one only where all have something to do. */
  #leastUsed (): Shared {
    let least: Shared | undefined
    for (const shared of this.#shared) {
      if (shared.connection?.isOpen === false) this.#shared.delete(shared)
      else if (least === undefined || shared.users < least.users) least = shared
    }
    return least === undefined || (least.users > 0 && this.#shared.size < this.#sharing) ? this.#share() : least
  }

  #share (): Shared {
    const shared = new Shared()
    this.#shared.add(shared)
    this.#turns.run(async () => {
      const connection = this.#rested() ?? await this.#open(shared.unused)
      this.#busy.add(connection)
      shared.opened(connection)
      await shared.over
      this.#rest(connection)
    }, shared.unused).catch((error: unknown) => {
      this.#shared.delete(shared)
      shared.failed(error)
    })
    return shared
  }

  /** Keeps a connection that nobody uses any more, if it is of further use. */
  #rest (connection: ByteConnection): void {
    this.#busy.delete(connection)
    if (connection.isUsable) {
      connection.rest(REST_MS)
      this.#idle.push(connection)
    } else {
      connection.destroy()
    }
  }

  /** Cuts every connection, those that are being made too. The next request makes new ones. */
  destroy (): void {
    const reason = new PatchcordError('unreachable', `the connections to ${this.#who} were cut`)
    this.#cut.abort(reason)
    this.#cut = new AbortController()
    for (const shared of this.#shared) shared.end(reason)
    this.#shared.clear()
    for (const connection of [...this.#idle.splice(0), ...this.#busy]) connection.destroy()
  }

  /** The one that was used last: those that nobody needs end. */
  #rested (): ByteConnection | undefined {
    for (let connection = this.#idle.pop(); connection !== undefined; connection = this.#idle.pop()) {
      if (connection.isUsable) return connection
    }
    return undefined
  }

  async #open (signal: AbortSignal): Promise<ByteConnection> {
    signal.throwIfAborted()
    const cuts = this.#cut.signal
    const over = new AbortController()
    return await new Promise<ByteConnection>((resolve, reject) => {
      // At once, whatever the other side does of it: one that is stopped neither answers nor closes.
      const end = (event: Event): void => {
        const { reason } = event.target as AbortSignal
        over.abort(reason)
        reject(reason as Error)
      }
      for (const one of [signal, cuts]) one.addEventListener('abort', end, { once: true })
      ByteConnection.open(onread => this.#dial(onread, over.signal), this.#host, this.#who).then(connection => {
        if (over.signal.aborted) connection.destroy()
        resolve(connection)
      }, reject).finally(() => { for (const one of [signal, cuts]) one.removeEventListener('abort', end) })
    })
  }
}

/** Does as `promise` does, or rejects with the signal's reason where that aborts before. */
async function within<Result> (promise: Promise<Result>, signal: AbortSignal): Promise<Result> {
  signal.throwIfAborted()
  return await new Promise((resolve, reject) => {
    const aborted = (): void => { reject(signal.reason as Error) }
    signal.addEventListener('abort', aborted, { once: true })
    promise.then(resolve, reject).finally(() => { signal.removeEventListener('abort', aborted) })
  })
}

import type { Socket } from 'node:net'
import { PatchcordError } from '../core/errors.js'
import { Turns } from '../core/turns.js'
import { ByteConnection, type Exchange, type OnRead } from './byte-connection.js'

/** How long a connection is kept without a request (ms): less than what the server keeps it (`idleMs`). */
const REST_MS = 50_000
const SILENT_MS = 30_000

/** Connections to one peer for the bytes of files, at most `most` at once. */
export class BytePool {
  readonly #dial: (onread: OnRead, signal: AbortSignal) => Promise<Socket>
  readonly #host: string
  readonly #who: string
  readonly #turns: Turns
  readonly #idle: ByteConnection[] = []
  #busy = new Set<ByteConnection>()
  #cut = new AbortController()

  /** `dial` makes a connection that proved to be the peer's, and gives up when its signal aborts. */
  constructor (dial: (onread: OnRead, signal: AbortSignal) => Promise<Socket>, { host, who, most = 8 }: { readonly host: string, readonly who: string, readonly most?: number }) {
    this.#dial = dial
    this.#host = host
    this.#who = who
    this.#turns = new Turns(most)
  }

  /** Sends one request, when there is a connection for it. `start` is told of the connection before. Throws as `ByteConnection.get` does, and what
   * the dialling says. */
  async get (exchange: Exchange, start: (connection: ByteConnection) => void = () => undefined): Promise<void> {
    await this.#turns.run(() => this.#send(exchange, start), exchange.signal)
  }

  async #send (exchange: Exchange, start: (connection: ByteConnection) => void): Promise<void> {
    const { signal } = exchange
    for (;;) {
      signal.throwIfAborted()
      const connection = this.#rested() ?? await this.#open(signal)
      this.#busy.add(connection)
      start(connection)
      try {
        return await connection.get(exchange, SILENT_MS)
      } catch (error) {
        if (!connection.wasStale || signal.aborted || this.#cut.signal.aborted) throw error
      } finally {
        this.#busy.delete(connection)
        if (connection.isUsable) {
          connection.rest(REST_MS)
          this.#idle.push(connection)
        } else {
          connection.destroy()
        }
      }
    }
  }

  /** Cuts every connection, those that are being made too. The next request makes new ones. */
  destroy (): void {
    this.#cut.abort(new PatchcordError('unreachable', `the connections to ${this.#who} were cut`))
    this.#cut = new AbortController()
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

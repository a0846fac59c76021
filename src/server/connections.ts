import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import type { DatabaseName } from '../core/ids.js'
import type { Limits } from '../core/limits.js'
import type { Leaf } from '../identity/leaf.js'
import type { Principal } from '../policy/principal.js'
import type { Action } from '../policy/route.js'

/** An admitted connection: the certificate it proved, and what runs on it. Who that certificate is now is
 * looked up for each request; nothing of it is remembered here but the entry that limits count by. */
export interface Connection {
  readonly id: number
  readonly socket: TLSSocket
  /** What TLS runs over. */
  readonly transport: Socket
  readonly leaf: Leaf
  readonly entry: string
  /** The certificate had ended when it came in: it may fetch its renewal. */
  readonly isRenewal: boolean
  endsAt: number
  /** Set by a refusal that ends the connection: nothing that was pipelined behind it is looked at. */
  refused: boolean
  /** What was allowed, and whose answer the system has not taken whole. */
  readonly running: Set<Running>
  /** When the next request may be answered: what is pipelined waits for it. */
  last: Promise<void>
  /** How many requests were taken in and have not ended. */
  waiting: number
  /** Told when none is left. */
  onRest: (() => void) | undefined
}

/** A request that was allowed and has not ended. It is decided again on every update. */
export interface Running {
  readonly action: Action
  /** The databases that its file was recorded for, where the decision asked. */
  readonly records: readonly DatabaseName[] | undefined
}

/** Thrown when an entry uses all it may; the name is that of the limit. */
export type Counted = 'requestsPerEntry' | 'feedsPerEntry' | 'bodies'

/** All admitted connections, and what each whitelist entry uses of its limits. */
export class Connections implements Iterable<Connection> {
  readonly #limits: Limits
  readonly #all = new Set<Connection>()
  readonly #usage = new Map<string, Usage>()
  #nextId = 1

  constructor (limits: Limits) {
    this.#limits = limits
  }

  get size (): number { return this.#all.size }

  [Symbol.iterator] (): Iterator<Connection> { return this.#all.values() }

  /** Takes in an admitted socket, or returns undefined when its entry has all the connections it may. */
  add (socket: TLSSocket, transport: Socket, leaf: Leaf, { entry, endsAt }: Principal, now: number): Connection | undefined {
    const usage = this.#usageOf(entry)
    if (usage.connections >= this.#limits.connectionsPerEntry) return undefined
    usage.connections += 1
    const connection: Connection = { id: this.#nextId++, socket, transport, leaf, entry, isRenewal: now > endsAt, endsAt, refused: false, running: new Set(), last: Promise.resolve(), waiting: 0, onRest: undefined }
    this.#all.add(connection)
    socket.once('close', () => {
      this.#all.delete(connection)
      usage.connections -= 1
      this.#forget(entry, usage)
    })
    return connection
  }

  /** Counts one use, which `give` takes back. False when the entry has all it may. */
  take (entry: string, what: Counted): boolean {
    const usage = this.#usageOf(entry)
    if (usage[what] >= this.#limits[what]) return false
    usage[what] += 1
    return true
  }

  give (entry: string, what: Counted): void {
    const usage = this.#usageOf(entry)
    usage[what] -= 1
    this.#forget(entry, usage)
  }

  /** Ends these connections and resolves when the last one is closed. What the system took of their answers
   * still arrives. */
  async end (connections: readonly Connection[]): Promise<void> {
    await Promise.all(connections.map(({ socket }) => closed(socket, () => { socket.destroy() })))
  }

  /** Cuts connections whose trust is gone, and resolves when the last one is closed: nothing follows then,
   * and nothing more is taken from them. They are reset: an orderly close would still deliver what the
   * system holds for them, which for a slow reader is megabytes over minutes. Only where the end was begun already
   * does the system no longer take a reset, and finishes it. */
  async cut (connections: readonly Connection[]): Promise<void> {
    await Promise.all(connections.map(connection => {
      const { socket, transport } = connection
      connection.refused = true
      return closed(socket, () => {
        if (socket.writableEnded || transport.destroyed) socket.destroy()
        else transport.resetAndDestroy()
      })
    }))
  }

  #usageOf (entry: string): Usage {
    let usage = this.#usage.get(entry)
    if (usage === undefined) {
      usage = { connections: 0, requestsPerEntry: 0, feedsPerEntry: 0, bodies: 0 }
      this.#usage.set(entry, usage)
    }
    return usage
  }

  #forget (entry: string, usage: Usage): void {
    if (usage.connections === 0 && usage.requestsPerEntry === 0 && usage.feedsPerEntry === 0 && usage.bodies === 0) this.#usage.delete(entry)
  }
}

function closed (socket: TLSSocket, close: () => void): Promise<void> {
  return new Promise(resolve => {
    if (socket.closed) {
      resolve()
      return
    }
    socket.once('close', () => { resolve() })
    close()
  })
}

interface Usage {
  connections: number
  requestsPerEntry: number
  feedsPerEntry: number
  bodies: number
}

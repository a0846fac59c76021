import type { ServerResponse } from 'node:http'
import type { TLSSocket } from 'node:tls'
import type { Limits } from '../core/limits.js'
import type { Leaf } from '../identity/leaf.js'
import type { FileFacts } from '../policy/decide.js'
import type { Principal } from '../policy/principal.js'
import type { Action } from '../policy/route.js'

/** An admitted connection: the certificate it proved, and what runs on it. Who that certificate is now is
 * looked up for each request; nothing of it is remembered here but the entry that limits count by. */
export interface Connection {
  readonly id: number
  readonly socket: TLSSocket
  readonly leaf: Leaf
  readonly entry: string
  endsAt: number
  /** Set by a refusal that ends the connection: nothing that was pipelined behind it is looked at. */
  refused: boolean
  readonly running: Set<Running>
  /** The end of the newest request: what is pipelined waits for it. */
  last: Promise<void>
}

/** A request that was allowed and has not ended. It is decided again on every update. */
export interface Running {
  readonly action: Action
  readonly facts: FileFacts | undefined
  readonly response: ServerResponse
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
  add (socket: TLSSocket, leaf: Leaf, { entry, endsAt }: Principal): Connection | undefined {
    const usage = this.#usageOf(entry)
    if (usage.connections >= this.#limits.connectionsPerEntry) return undefined
    usage.connections += 1
    const connection: Connection = { id: this.#nextId++, socket, leaf, entry, endsAt, refused: false, running: new Set(), last: Promise.resolve() }
    this.#all.add(connection)
    socket.once('close', () => {
      this.#all.delete(connection)
      usage.connections -= 1
      this.#forget(entry, usage)
    })
    return connection
  }

  /** Counts one use; the answer gives it back, once. Undefined when the entry has all it may. */
  take (entry: string, what: Counted): (() => void) | undefined {
    const usage = this.#usageOf(entry)
    if (usage[what] >= this.#limits[what]) return undefined
    usage[what] += 1
    let isHeld = true
    return () => {
      if (!isHeld) return
      isHeld = false
      usage[what] -= 1
      this.#forget(entry, usage)
    }
  }

  /** Cuts these connections and resolves when the last one is closed: nothing follows then. */
  async cut (connections: readonly Connection[]): Promise<void> {
    await Promise.all(connections.map(({ socket }) => new Promise<void>(resolve => {
      if (socket.closed) {
        resolve()
        return
      }
      socket.once('close', () => { resolve() })
      socket.destroy()
    })))
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

interface Usage {
  connections: number
  requestsPerEntry: number
  feedsPerEntry: number
  bodies: number
}

import { Agent } from 'node:http'
import type { Clock } from '../core/clock.js'
import { KeptConnections } from './kept-connections.js'
import type { UpstreamTarget } from './upstream.js'

/** Keep-alive pools of one way to CouchDB. Feeds have one of their own, so that long-polls cannot starve the rest. */
export interface Pair<Pool> {
  readonly documents: Pool
  readonly feeds: Pool
}

export interface Pools {
  /** For requests without a body. */
  readonly kept: Pair<KeptConnections>
  /** For http-proxy, which carries those with one. */
  readonly agents: Pair<Agent>
  /** One request has ended that they were acquired for. */
  release (): void
}

const DOCUMENT_SOCKETS = 32
/** See kept-connections.ts. */
const IDLE_MS = 4000
/** Whitelist entries with open pools. Beyond it, the pools least recently used that rest are closed. */
const MOST_ENTRIES = 64

/**
 * Connections to CouchDB, pooled per whitelist entry: what one entry's requests leave behind on a
 * connection can never meet another's, and one that occupies all of its sockets starves itself alone.
 */
export class UpstreamPools {
  readonly #target: UpstreamTarget
  readonly #feedSockets: number
  readonly #clock: Clock
  readonly #pools = new Map<string, Counted>()
  /** Counts uses, in place of time. */
  #uses = 0

  /** `feedSockets` is how many feeds one entry may have. */
  constructor (target: UpstreamTarget, feedSockets: number, clock: Clock) {
    this.#target = target
    this.#feedSockets = feedSockets
    this.#clock = clock
  }

  /** The pools of an entry, in use until `release`. */
  acquire (entry: string): Pools {
    let pools = this.#pools.get(entry)
    if (pools === undefined) {
      this.#evict()
      pools = this.#make()
      this.#pools.set(entry, pools)
    }
    pools.busy++
    pools.used = ++this.#uses
    return pools
  }

  /** Ends every connection. */
  close (): void {
    for (const pools of this.#pools.values()) end(pools)
    this.#pools.clear()
  }

  #make (): Counted {
    const kept = (most: number): KeptConnections => new KeptConnections(this.#target, most, this.#clock)
    return {
      kept: { documents: kept(DOCUMENT_SOCKETS), feeds: kept(this.#feedSockets) },
      agents: { documents: agent(DOCUMENT_SOCKETS), feeds: agent(this.#feedSockets) },
      busy: 0,
      used: 0,
      release () { this.busy-- },
    }
  }

  #evict (): void {
    if (this.#pools.size < MOST_ENTRIES) return
    const [oldest] = [...this.#pools].filter(([, { busy }]) => busy === 0).toSorted(([, one], [, other]) => one.used - other.used)
    if (oldest === undefined) return
    end(oldest[1])
    this.#pools.delete(oldest[0])
  }
}

/** With how many of its requests run, and when it was used last. */
type Counted = Pools & { busy: number, used: number }

function agent (maxSockets: number): Agent {
  return new Agent({ keepAlive: true, maxSockets, maxFreeSockets: maxSockets, timeout: IDLE_MS })
}

function end ({ kept, agents }: Pools): void {
  kept.documents.close()
  kept.feeds.close()
  agents.documents.destroy()
  agents.feeds.destroy()
}

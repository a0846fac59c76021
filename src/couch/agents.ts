import { Agent } from 'node:http'

/** A pair of keep-alive pools. Feeds have one of their own, so that long-polls cannot starve the rest. */
export interface Pools {
  readonly documents: Agent
  readonly feeds: Agent
}

const DOCUMENT_SOCKETS = 32
/** Node's servers close an idle connection after 5 s; a pool that keeps it longer loses requests. */
const IDLE_MS = 4000
/** Whitelist entries with open pools. Beyond it, the pools least recently used that rest are closed. */
const MOST_ENTRIES = 64

/**
 * Connections to CouchDB, pooled per whitelist entry: what one entry's requests leave behind on a
 * connection can never meet another's, and one that occupies all of its sockets starves itself alone.
 */
export class UpstreamPools {
  readonly #feedSockets: number
  readonly #pools = new Map<string, Pools & { busy: number }>()

  /** `feedSockets` is how many feeds one entry may have. */
  constructor (feedSockets: number) {
    this.#feedSockets = feedSockets
  }

  /** The pools of an entry, in use until `release`. */
  acquire (entry: string): Pools {
    const pools = this.#pools.get(entry) ?? { documents: pool(DOCUMENT_SOCKETS), feeds: pool(this.#feedSockets), busy: 0 }
    pools.busy++
    this.#pools.delete(entry)
    this.#pools.set(entry, pools)
    this.#evict()
    return pools
  }

  release (entry: string): void {
    const pools = this.#pools.get(entry)
    if (pools !== undefined) pools.busy--
  }

  /** Ends every connection. */
  close (): void {
    for (const pools of this.#pools.values()) end(pools)
    this.#pools.clear()
  }

  #evict (): void {
    if (this.#pools.size <= MOST_ENTRIES) return
    for (const [entry, pools] of this.#pools) {
      if (pools.busy > 0) continue
      end(pools)
      this.#pools.delete(entry)
      return
    }
  }
}

function pool (maxSockets: number): Agent {
  return new Agent({ keepAlive: true, maxSockets, maxFreeSockets: maxSockets, timeout: IDLE_MS })
}

function end ({ documents, feeds }: Pools): void {
  documents.destroy()
  feeds.destroy()
}

import { BlockList, isIPv6 } from 'node:net'
import { networkInterfaces, type NetworkInterfaceInfo } from 'node:os'
import { isLinkLocal, isLoopback, splitZone } from '../core/address.js'
import { Bucket } from '../core/bucket.js'
import type { Clock } from '../core/clock.js'
import type { Limits } from '../core/limits.js'

/** Interfaces change while the service runs; they are read again after this long (ms). */
const FRESH_FOR = 2_000

/**
 * Who may knock at all. Before any TLS byte is read a source must be this machine, link-local, or in an
 * on-link prefix of an interface (unless `allowRouted`), there must be room among those not yet admitted,
 * and the interface's token bucket must hold a token.
 */
export class Sources {
  readonly #limits: Limits
  readonly #clock: Clock
  readonly #allowRouted: boolean
  readonly #buckets = new Map<string, Bucket>()
  #links: Links
  #readAt: number

  constructor (limits: Limits, allowRouted: boolean, clock: Clock) {
    this.#limits = limits
    this.#clock = clock
    this.#allowRouted = allowRouted
    this.#links = readLinks()
    this.#readAt = clock.monotonic()
  }

  /** Undefined, or why a new connection is dropped. Addresses are as the socket reports them, zone and all. */
  refusal (remote: string | undefined, local: string | undefined): string | undefined {
    if (remote === undefined || local === undefined) return 'the connection is gone'
    const source = splitZone(remote).host
    if (!this.#allowRouted && !isLoopback(source) && !isLinkLocal(source) && !this.#fresh().onLink.check(source, isIPv6(source) ? 'ipv6' : 'ipv4')) {
      return 'the source is neither on this machine nor on a link of it'
    }
    const { host, zone } = splitZone(local)
    return this.#take(zone ?? this.#fresh().names.get(host) ?? host) ? undefined : 'too many connections at once on this interface'
  }

  #fresh (): Links {
    const now = this.#clock.monotonic()
    if (now - this.#readAt > FRESH_FOR) {
      this.#links = readLinks()
      this.#readAt = now
    }
    return this.#links
  }

  #take (name: string): boolean {
    const now = this.#clock.monotonic()
    const { acceptBurst, acceptsPerSecond } = this.#limits
    const bucket = this.#buckets.get(name) ?? new Bucket(acceptsPerSecond, acceptBurst, now)
    // The names are interfaces of this machine (or its own addresses), so their number is bounded by it.
    this.#buckets.set(name, bucket)
    return bucket.take(now)
  }
}

interface Links {
  /** The prefixes of all interfaces. */
  readonly onLink: BlockList
  /** Which interface an address of this machine belongs to. */
  readonly names: ReadonlyMap<string, string>
}

function readLinks (): Links {
  const onLink = new BlockList()
  const names = new Map<string, string>()
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    for (const { address, family, cidr } of addresses ?? [] as NetworkInterfaceInfo[]) {
      names.set(address, name)
      const prefix = Number(cidr?.split('/')[1])
      if (Number.isInteger(prefix)) onLink.addSubnet(address, prefix, family === 'IPv6' ? 'ipv6' : 'ipv4')
    }
  }
  return { onLink, names }
}

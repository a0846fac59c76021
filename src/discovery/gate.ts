import { isLinkLocal, splitZone } from '../core/address.js'
import { Bucket } from '../core/bucket.js'
import { DISCOVERY_LIMITS } from './limits.js'

/** Where mDNS lives (RFC 6762 section 3). */
export const MDNS_PORT = 5353

/**
 * What of the packets on one interface is parsed at all. Everything here costs less than parsing does, and
 * its tables are bounded. Refused in this order: what is not an mDNS packet of a neighbour on this very
 * link; what has more records than ours ever have; what names nothing of ours, which is most of what a
 * busy network says; and what comes too often.
 */
export class Gate {
  readonly #zone: string
  readonly #monotonic: () => number
  readonly #all: Bucket
  /** In the order in which they were last heard. */
  readonly #sources = new Map<string, Bucket>()
  readonly #vouched = new Set<string>()
  /** Packets refused because they came too often. */
  dropped = 0

  constructor (zone: string, monotonic: () => number) {
    this.#zone = zone
    this.#monotonic = monotonic
    this.#all = new Bucket(DISCOVERY_LIMITS.packetsPerSecond, DISCOVERY_LIMITS.packetBurst, monotonic())
  }

  /** `names` are labels as they are on the wire (length first), one of which has to be in the packet. A name
   * is written out in a packet at least once, so compression cannot hide it; other cases can, and need not
   * be heard. */
  admits (packet: Buffer, source: { readonly address: string, readonly port: number }, names: readonly Buffer[]): boolean {
    if (packet.length < 12 || packet.length > DISCOVERY_LIMITS.packetBytes) return false
    // RFC 6762 section 6: what comes from another port is no answer, and nobody here asks from one.
    if (source.port !== MDNS_PORT) return false
    const { host, zone } = splitZone(source.address)
    if (zone !== this.#zone || !isLinkLocal(host)) return false
    if (records(packet) > DISCOVERY_LIMITS.packetRecords) return false
    if (!names.some(name => packet.includes(name))) return false
    const now = this.#monotonic()
    if (this.#bucketOf(host, now).take(now) && (this.#vouched.has(host) || this.#all.take(now))) return true
    this.dropped += 1
    return false
  }

  /** A known device was recognised at this source: others cannot use up its chance to be heard. */
  vouch (host: string): void {
    this.#vouched.delete(host)
    this.#vouched.add(host)
    if (this.#vouched.size > DISCOVERY_LIMITS.vouched) this.#vouched.delete(this.#vouched.keys().next().value!)
  }

  #bucketOf (host: string, now: number): Bucket {
    const bucket = this.#sources.get(host) ?? new Bucket(DISCOVERY_LIMITS.sourcePerSecond, DISCOVERY_LIMITS.sourceBurst, now)
    this.#sources.delete(host)
    this.#sources.set(host, bucket)
    if (this.#sources.size > DISCOVERY_LIMITS.sources) this.#sources.delete(this.#sources.keys().next().value!)
    return bucket
  }
}

function records (packet: Buffer): number {
  return packet.readUInt16BE(4) + packet.readUInt16BE(6) + packet.readUInt16BE(8) + packet.readUInt16BE(10)
}

/** A label of a DNS name as it is on the wire. */
export function wireLabel (label: string): Buffer {
  const bytes = Buffer.from(label)
  return Buffer.concat([Buffer.of(bytes.length), bytes])
}

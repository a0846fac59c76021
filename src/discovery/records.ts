import type { DnsRecord } from './packets.js'

export const PEER_TYPE = '_patchcord._tcp.local'
export const PAIR_TYPE = '_patchcord-pair._tcp.local'
/** RFC 6763 section 9: by it a browser lists the types of services there are. */
export const TYPES_NAME = '_services._dns-sd._udp.local'

/** RFC 6762 section 10: what names a host lives for two minutes. All of ours is announced twice in that. */
const TTL_SECONDS = 120

/** A service of ours, under names that say nothing. */
export interface Published {
  readonly type: string
  readonly instance: string
  readonly host: string
  readonly port: number
  readonly txt: readonly string[]
}

/** The records that stand for a service on a link where this machine has these addresses. bonjour-service
 * would tell every link the addresses of all others. */
export function recordsOf ({ type, instance, host, port, txt }: Published, addresses: readonly string[]): DnsRecord[] {
  const name = `${instance}.${type}`
  return [
    { name: type, type: 'PTR', ttl: TTL_SECONDS, data: name },
    { name, type: 'SRV', ttl: TTL_SECONDS, flush: true, data: { priority: 0, weight: 0, port, target: `${host}.local` } },
    // RFC 6763 section 6.1: a TXT record is there, if with one empty string.
    { name, type: 'TXT', ttl: TTL_SECONDS, flush: true, data: (txt.length === 0 ? [''] : txt).map(string => Buffer.from(string)) },
    ...addresses.map(data => ({ name: `${host}.local`, type: 'AAAA', ttl: TTL_SECONDS, flush: true, data })),
    { name: TYPES_NAME, type: 'PTR', ttl: TTL_SECONDS, data: type },
  ]
}

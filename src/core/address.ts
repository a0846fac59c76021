import { isIP, isIPv6 } from 'node:net'
import { networkInterfaces } from 'node:os'
import { PatchcordError } from './errors.js'
import { cut } from './ids.js'

/** Where something listens. `new URL()` throws on an address with a zone, so the parts travel apart. */
export interface Address {
  /** A literal IPv6 or IPv4 address, without brackets and without a zone. */
  readonly host: string
  /** The interface of a link-local address (`eth0`), absent elsewhere. */
  readonly zone?: string
  readonly port: number
}

const BRACKETED = /^\[([0-9a-fA-F:.]+)(?:%(?:25)?([A-Za-z0-9._-]{1,15}))?\]:(\d{1,5})$/
const PLAIN = /^([0-9.]+):(\d{1,5})$/

/** Parses `[::1]:4984`, `[fe80::1%eth0]:4984` or `127.0.0.1:4984`. Throws `usage` for anything else. */
export function parseAddress (text: string): Address {
  const bracketed = BRACKETED.exec(text)
  const plain = PLAIN.exec(text)
  const host = bracketed?.[1] ?? plain?.[1]
  const port = Number(bracketed?.[3] ?? plain?.[2])
  if (host === undefined || isIP(host) === 0 || port > 65535) {
    throw new PatchcordError('usage', `"${cut(text)}" is not an address`, { hint: 'write [host]:port with a literal address, such as [::1]:4984 or [fe80::1%eth0]:4984' })
  }
  const zone = bracketed?.[2]
  if (zone === undefined && isLinkLocal(host)) {
    throw new PatchcordError('usage', `"${cut(text)}" is link-local and names no interface`, { hint: `write [${host}%eth0]:${port}, with the interface it is on` })
  }
  return zone === undefined ? { host, port } : { host, zone, port }
}

/** The address as `[host%zone]:port`, or `host:port` for IPv4. */
export function formatAddress ({ host, zone, port }: Address): string {
  return isIPv6(host) ? `[${host}${zone === undefined ? '' : `%${zone}`}]:${port}` : `${host}:${port}`
}

/** The host as Node's `net` takes it: with its zone. */
export function hostOf ({ host, zone }: Pick<Address, 'host' | 'zone'>): string {
  return zone === undefined ? host : `${host}%${zone}`
}

/** Splits what the system reports (`fe80::1%eth0`) into host and zone. */
export function splitZone (text: string): { host: string, zone?: string } {
  const at = text.indexOf('%')
  return at === -1 ? { host: text } : { host: text.slice(0, at), zone: text.slice(at + 1) }
}

/** Whether a literal address is in fe80::/10 (RFC 4291 section 2.5.6). */
export function isLinkLocal (host: string): boolean {
  return /^fe[89ab][0-9a-f]:/i.test(host)
}

/** Whether a literal address is the machine itself: ::1, 127.0.0.0/8, or that mapped into IPv6. */
export function isLoopback (host: string): boolean {
  return host === '::1' || /^(?:::ffff:)?127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/i.test(host)
}

/** Where others reach what listens at `address`: for `::`, every IPv6 address of this machine's interfaces, the
 * link-local ones first and with their interface. */
export function reachableAddresses (address: Address): Address[] {
  if (address.host !== '::') return [address]
  const found: Address[] = []
  for (const [zone, infos] of Object.entries(networkInterfaces())) {
    for (const { address: host, family, internal } of infos ?? []) {
      if (family === 'IPv6' && !internal) found.push(isLinkLocal(host) ? { host, zone, port: address.port } : { host, port: address.port })
    }
  }
  return found.toSorted((a, b) => Number(isLinkLocal(b.host)) - Number(isLinkLocal(a.host)))
}

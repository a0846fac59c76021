import { readFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { isLinkLocal } from '../core/address.js'
import { DISCOVERY_LIMITS } from './limits.js'

/** An interface that runs and has a link-local address. */
export interface Link {
  /** Its name, which is the zone of addresses on it. */
  readonly name: string
  /** The kernel's number of it: an interface that was made anew has another one. */
  readonly index: number
  /** Its link-local addresses that may be used, in the order of their text. */
  readonly addresses: readonly string[]
  /** Whether an address is still under duplicate address detection (RFC 4862 section 5.4): nothing can be
   * sent from it for one to two seconds. */
  readonly tentative: boolean
}

/** The interfaces of this machine that devices can be found on, in the order of their names. Costs about
 * 0.2 ms. Netlink would tell of changes by itself, but Node has no way to it. */
export function readLinks (): Link[] {
  const notReady = readNotReady()
  const links: Link[] = []
  for (const [name, infos] of Object.entries(networkInterfaces())) {
    const own = (infos ?? []).filter(({ address, internal }) => !internal && isLinkLocal(address))
    const index = own[0]?.scopeid
    if (index === undefined) continue
    const addresses = own.map(({ address }) => address).filter(address => !notReady.has(`${index} ${expand(address)}`)).toSorted()
    links.push({ name, index, addresses, tentative: addresses.length < own.length })
  }
  return links.toSorted((one, other) => one.name < other.name ? -1 : 1).slice(0, DISCOVERY_LIMITS.links)
}

/** linux/if_addr.h: IFA_F_DADFAILED and IFA_F_TENTATIVE. */
const NOT_READY = 0x08 | 0x40

/** Addresses that are tentative or duplicate, as `<interface index> <32 hex digits>`. Empty where there is
 * no /proc: there, what cannot be sent yet is sent again a second later. */
function readNotReady (): ReadonlySet<string> {
  let table: string
  try {
    table = readFileSync('/proc/net/if_inet6', 'latin1')
  } catch {
    return new Set()
  }
  const found = new Set<string>()
  for (const line of table.split('\n')) {
    const [address, index, , , flags] = line.split(/ +/)
    if (flags !== undefined && (Number.parseInt(flags, 16) & NOT_READY) !== 0) found.add(`${Number.parseInt(index!, 16)} ${address}`)
  }
  return found
}

/** An IPv6 address without a zone as 32 hex digits. */
function expand (address: string): string {
  const [head = '', tail] = address.split('::')
  const digits = (part: string): string[] => part === '' ? [] : part.split(':').map(group => group.padStart(4, '0'))
  const first = digits(head)
  const last = tail === undefined ? [] : digits(tail)
  return [...first, ...Array<string>(8 - first.length - last.length).fill('0000'), ...last].join('')
}

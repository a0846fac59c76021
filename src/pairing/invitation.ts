import { randomBytes, randomInt } from 'node:crypto'
import { networkInterfaces } from 'node:os'
import { formatAddress, isLinkLocal, isLoopback, parseAddress, type Address } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import { isDeviceId, type DeviceId } from '../core/ids.js'

// What one person tells the other: a code to type, or a link to scan. The link is
//
//   patchcord:pair?secret=<16 bytes, base64url>&device=<52 characters>&at=[fe80::1%25eth0]:40123&at=…
//
// with one to eight addresses, in this order and spelling alone. A zone is the name of an interface of the
// device that made the link; on another device it is a hint at most (`dialable`).

export interface Link {
  /** 16 bytes. */
  readonly secret: Buffer
  readonly device: DeviceId
  readonly addresses: readonly Address[]
}

/** The secret of a link, in bytes. */
export const LINK_SECRET_BYTES = 16
/** The most addresses in a link: it still fits in a QR code that a terminal can draw. */
export const MOST_LINK_ADDRESSES = 8

const CODE = /^(\d{3})[ -]?(\d{3})$/
const LINK = /^patchcord:pair\?secret=([A-Za-z0-9_-]{22})&device=([a-z2-7]{52})((?:&at=[^&]{1,80}){1,8})$/

/** Six digits, each as likely as any other. */
export const newCode = (): string => String(randomInt(1_000_000)).padStart(6, '0')

/** A link's secret. */
export const newLinkSecret = (): Buffer => randomBytes(LINK_SECRET_BYTES)

/** The link as text. Throws RangeError without an address, with more than eight, or for another secret. */
export function formatLink ({ secret, device, addresses }: Link): string {
  if (secret.length !== LINK_SECRET_BYTES || addresses.length === 0 || addresses.length > MOST_LINK_ADDRESSES) throw new RangeError('a link has a secret of 16 bytes and one to eight addresses')
  return `patchcord:pair?secret=${secret.toString('base64url')}&device=${device}${addresses.map(address => `&at=${spell(address)}`).join('')}`
}

/** What a person typed, pasted or scanned: six digits, also as `123 456`, or a link. Throws `usage` for
 * anything else, and never quotes it: it may be half of a secret. */
export function parseInvitation (text: string): { readonly kind: 'code', readonly code: string } | { readonly kind: 'link', readonly link: Link } {
  const trimmed = text.trim()
  const [, first, second] = CODE.exec(trimmed) ?? []
  if (first !== undefined && second !== undefined) return { kind: 'code', code: first + second }
  const link = parseLink(trimmed)
  if (link === undefined) throw new PatchcordError('usage', 'that is neither a code of six digits nor a pairing link', { hint: 'type the six digits, or paste the whole link, that `patchcord pair` shows on the other device' })
  return { kind: 'link', link }
}

function parseLink (text: string): Link | undefined {
  const [, encoded = '', device = '', at = ''] = LINK.exec(text) ?? []
  const secret = Buffer.from(encoded, 'base64url')
  if (secret.length !== LINK_SECRET_BYTES || !isDeviceId(device)) return undefined
  let addresses: Address[]
  try {
    addresses = at.split('&at=').slice(1).map(parseAddress)
  } catch {
    return undefined
  }
  const link: Link = { secret, device, addresses }
  return formatLink(link) === text ? link : undefined
}

/** RFC 6874: the zone after %25. */
const spell = (address: Address): string => formatAddress(address).replace('%', '%25')

/** Where this machine can be reached on `port`: link-local addresses first, loopback only where there is
 * nothing else. */
export function ownAddresses (port: number, interfaces = networkInterfaces()): Address[] {
  const all = Object.entries(interfaces).flatMap(([zone, entries]) => (entries ?? []).filter(({ family }) => family === 'IPv6').map(({ address }): Address => isLinkLocal(address) ? { host: address, zone, port } : { host: address, port }))
  const rank = ({ host }: Address): number => isLinkLocal(host) ? 0 : isLoopback(host) ? 2 : 1
  const ranked = all.filter(({ zone }) => zone === undefined || /^[A-Za-z0-9._-]{1,15}$/.test(zone)).toSorted((one, other) => rank(one) - rank(other))
  const outward = ranked.filter(address => rank(address) < 2)
  return (outward.length > 0 ? outward : ranked).slice(0, MOST_LINK_ADDRESSES)
}

/** The addresses as this machine can dial them: a link-local one once for each interface of ours that has
 * one itself, the interface of that name first. */
export function dialable (addresses: readonly Address[], interfaces = networkInterfaces()): Address[] {
  const zones = Object.entries(interfaces).filter(([, entries]) => entries?.some(({ address }) => isLinkLocal(address))).map(([zone]) => zone)
  return addresses.flatMap(({ host, zone, port }): Address[] =>
    isLinkLocal(host) ? zones.toSorted((one, other) => Number(other === zone) - Number(one === zone)).map(own => ({ host, zone: own, port })) : [{ host, port }])
}

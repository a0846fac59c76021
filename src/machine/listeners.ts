import { join } from 'node:path'
import { textOf } from './files.js'

/** A TCP port on which something listens. */
export interface Listener {
  readonly port: number
  readonly isLoopback: boolean
  /** The user whose socket it is. */
  readonly uid: number
}

/** What listens on this machine, from /proc/net/tcp and tcp6 (proc_net_tcp in the kernel's documentation: address and
 * port in hexadecimal, each word of the address in host order; state 0A is LISTEN). */
export function listeners (root: string): Listener[] {
  return ['proc/net/tcp', 'proc/net/tcp6'].flatMap(path => (textOf(join(root, path)) ?? '').split('\n').slice(1)).flatMap(line => {
    const [, local = '', , state, , , , uid] = line.trim().split(/\s+/)
    if (state !== '0A') return []
    const [address = '', port = ''] = local.split(':')
    return [{ port: Number.parseInt(port, 16), isLoopback: isLoopbackWords(address), uid: Number(uid) }]
  })
}

function isLoopbackWords (address: string): boolean {
  if (address.length === 8) return address.endsWith('7F')
  if (address === '00000000000000000000000001000000') return true
  return address.startsWith('0000000000000000FFFF0000') && address.endsWith('7F')
}

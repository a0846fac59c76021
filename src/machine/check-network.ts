import { createSocket, type Socket } from 'node:dgram'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { networkInterfaces } from 'node:os'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { isLinkLocal } from '../core/address.js'
import { messageOf, systemCode } from '../core/errors.js'
import type { Check, Examined } from './doctor.js'
import { textOf } from './files.js'
import { listeners } from './listeners.js'

const DEFAULT_PORT = 4984

interface Link { readonly name: string, readonly hasCarrier: boolean }

/** The interfaces that could be a link to another device, from sysfs: all but loopback (type 772). */
function linksOf (root: string): Link[] {
  const folder = join(root, 'sys/class/net')
  return readdirSync(folder).filter(name => textOf(join(folder, name, 'type'))?.trim() !== '772' && textOf(join(folder, name, 'type')) !== undefined).map(name => ({ name, hasCarrier: carrierOf(join(folder, name, 'operstate')) }))
}

/** `unknown` is what bridges of virtual machines and VPNs say when they work. */
function carrierOf (path: string): boolean {
  const state = textOf(path)?.trim()
  return state === 'up' || state === 'unknown'
}

export function checkLinks ({ root }: Examined): Check {
  const links = linksOf(root)
  const up = links.filter(({ hasCarrier }) => hasCarrier).map(({ name }) => name)
  if (up.length > 0) return { name: 'link', ok: true, detail: `${up.join(', ')} ${up.length === 1 ? 'has' : 'have'} a link`, hint: '' }
  if (links.length === 0) return { name: 'link', ok: false, detail: 'this machine has no network interface', hint: 'plug in a network card, or load its driver' }
  return { name: 'link', ok: false, detail: `no interface has a link: ${links.map(({ name }) => name).join(', ')}`, hint: 'plug in the cable, or join the wireless network; the other end must be switched on' }
}

/** From /proc/net/if_inet6: address, index, prefix, scope, flags, name. Scope 20 is link-local; flag 40 is tentative, 08
 * a duplicate. */
function linkLocalOf (root: string): Array<{ name: string, isUsable: boolean }> {
  return (textOf(join(root, 'proc/net/if_inet6')) ?? '').split('\n').filter(line => line !== '').map(line => line.trim().split(/\s+/)).filter(cells => cells[3] === '20')
    .map(cells => ({ name: cells[5]!, isUsable: (Number.parseInt(cells[4]!, 16) & 0x48) === 0 }))
}

export function checkAddresses ({ root }: Examined): Check {
  if (textOf(join(root, 'proc/net/if_inet6')) === undefined) return { name: 'link-local', ok: false, detail: 'IPv6 is switched off in this kernel', hint: 'start without ipv6.disable=1; nothing else about IPv6 needs to be set up' }
  const usable = [...new Set(linkLocalOf(root).filter(({ isUsable }) => isUsable).map(({ name }) => name))]
  const without = linksOf(root).filter(({ name, hasCarrier }) => hasCarrier && !usable.includes(name)).map(({ name }) => name)
  const hint = without.length === 0 ? '' : `turn IPv6 on there: sudo sysctl net.ipv6.conf.${without[0]}.disable_ipv6=0 net.ipv6.conf.${without[0]}.addr_gen_mode=0; or in NetworkManager: IPv6 method "link-local"`
  if (usable.length > 0) return { name: 'link-local', ok: true, detail: `${usable.join(', ')} ${usable.length === 1 ? 'has' : 'have'} a link-local address${without.length === 0 ? '' : `; ${without.join(', ')} has none`}`, hint: '' }
  if (without.length > 0) return { name: 'link-local', ok: false, detail: `${without.join(', ')} has a link and no fe80:: address that can be used`, hint }
  return { name: 'link-local', ok: false, detail: 'no interface has a link-local address, for none has a link', hint: 'see the check "link"' }
}

/** Whether the port is the service's, or free for it. */
export async function checkPort ({ root, home, service }: Examined): Promise<Check> {
  if (service !== undefined) {
    const open = listeners(root)
    const missing = service.listen.filter(({ port }) => !open.some(one => one.port === port))
    if (service.listen.length === 0) return { name: 'port', ok: false, detail: 'the service listens nowhere', hint: 'see why: patchcord logs' }
    if (missing.length > 0) return { name: 'port', ok: false, detail: `nothing listens at ${missing.map(({ host, port }) => `[${host}]:${port}`).join(', ')}`, hint: 'see why: patchcord logs' }
    return { name: 'port', ok: true, detail: `open at ${service.listen.map(({ host, port }) => `[${host}]:${port}`).join(', ')}`, hint: '' }
  }
  const kept = keptPort(home.root)
  const port = kept ?? DEFAULT_PORT
  if (await isFree(port)) return { name: 'port', ok: true, detail: `port ${port} is free`, hint: '' }
  if (kept === undefined) return { name: 'port', ok: true, detail: `another program has port ${port}; the service will take a free one and keep it`, hint: '' }
  return { name: 'port', ok: false, detail: `another program listens at port ${port}, which this device's peers know it by`, hint: `find it with \`ss -ltnp 'sport = :${port}'\` and end it; or take another port: patchcord up --listen [::]:0` }
}

function keptPort (root: string): number | undefined {
  const text = textOf(join(root, 'settings.json'))
  if (text === undefined) return undefined
  const port: unknown = (JSON.parse(text) as { port?: unknown }).port
  return typeof port === 'number' && port > 0 ? port : undefined
}

async function isFree (port: number): Promise<boolean> {
  const server = createServer()
  return await new Promise((resolve, reject) => {
    server.once('error', error => {
      if (systemCode(error) === 'EADDRINUSE') resolve(false)
      else reject(error)
    })
    server.listen({ host: '::', port, ipv6Only: true }, () => { server.close(() => { resolve(true) }) })
  })
}

const GROUP = 'ff02::fb'
const MDNS_PORT = 5353
const HEAR_MS = 1_500

/** Sends a question of mDNS on every link and waits to hear it: the system loops it back through the same filters that
 * the others' packets go through. Nobody has the name that is asked for. */
export async function checkMulticast ({ root }: Examined): Promise<Check> {
  const names = [...new Set(linkLocalOf(root).filter(({ isUsable }) => isUsable).map(({ name }) => name))].filter(name => (networkInterfaces()[name] ?? []).some(({ address }) => isLinkLocal(address)))
  if (names.length === 0) return { name: 'multicast', ok: false, detail: 'there is no link to try it on', hint: 'see the checks "link" and "link-local"' }
  const results = await Promise.all(names.map(async name => ({ name, problem: await multicastOn(name) })))
  const deaf = results.filter(({ problem }) => problem !== undefined)
  if (deaf.length === 0) return { name: 'multicast', ok: true, detail: `comes through on ${names.join(', ')}`, hint: '' }
  return {
    name: 'multicast', ok: false, detail: deaf.map(({ name, problem }) => `${name}: ${problem}`).join('; '),
    hint: 'let UDP port 5353 and ICMPv6 in (`patchcord service firewall` prints the rules); without it, name addresses: patchcord connect <device> --at <host:port>',
  }
}

async function multicastOn (name: string): Promise<string | undefined> {
  let socket: Socket | undefined
  try {
    socket = createSocket({ type: 'udp6', reuseAddr: true, ipv6Only: true })
    const label = randomBytes(8).toString('hex')
    socket.bind(MDNS_PORT)
    await once(socket, 'listening')
    socket.addMembership(GROUP, `::%${name}`)
    socket.setMulticastInterface(`::%${name}`)
    socket.setMulticastLoopback(true)
    const heard = new Promise<boolean>(resolve => {
      const late = setTimeout(() => { resolve(false) }, HEAR_MS)
      socket?.on('message', packet => {
        if (!packet.includes(label)) return
        clearTimeout(late)
        resolve(true)
      })
    })
    socket.send(question(label), MDNS_PORT, GROUP)
    return await heard ? undefined : `a multicast packet did not come back within ${HEAR_MS / 1000} s: a firewall takes it`
  } catch (error) {
    return `no multicast can be sent: ${systemCode(error) ?? messageOf(error)}`
  } finally {
    socket?.close()
  }
}

/** RFC 1035, section 4: one question, PTR, IN, for `<label>.local`. */
function question (label: string): Buffer {
  const part = (text: string): Buffer => Buffer.concat([Buffer.from([text.length]), Buffer.from(text)])
  return Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]), part(label), part('local'), Buffer.from([0, 0, 12, 0, 1])])
}

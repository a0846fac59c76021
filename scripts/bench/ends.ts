import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { access, mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { ControlClient } from '../../src/control/client.js'
import { findHome } from '../../src/core/home.js'
import type { Machine } from '../../test/fixtures/network.js'
import { fill, freePort, TOP, type Materials } from './materials.js'
import type { Way } from './relay.js'
import { accepting, end, find, output, start, versionOf } from './processes.js'

// Two ends of whatever moves files from a folder here to a folder there: the sender on the contestant's cores, the
// receiver on the client's, which may be the same.

export interface Ends {
  /** The processes, for what they use up. */
  readonly pids: readonly number[]
  /** Sends all that is in `from` and resolves when it is whole and verified below `landing()`. */
  send (from: string): Promise<void>
  /** Goes on with a `send` that failed because its way was cut; left out where the program does so by itself. */
  again? (from: string): Promise<void>
  /** Where the last `send` ended up. */
  landing (): string
  stop (): Promise<void>
}

export interface EndsKind {
  readonly name: string
  readonly version: string
  readonly missing?: string
  /** `way`: what the ends reach each other through, instead of directly. */
  readonly open: (materials: Materials, way?: Way) => Promise<Ends>
}

// ---- patchcord

export interface Device { readonly pid: number, readonly id: string, readonly address: string, readonly home: string, readonly control: ControlClient, stop (): Promise<void> }

/** `patchcord up` on these cores; on a `machine` of its own it finds others by itself, and needs to. */
export async function startDevice (name: string, folder: string, cores: readonly number[], machine?: Machine): Promise<Device> {
  const home = join(folder, name)
  const up = [process.execPath, join(TOP, 'build/src/bin/patchcord.js'), 'up', '--json', '--name', name, '--home', home]
  const child = start(cores, machine === undefined ? [...up, '--listen', '[::1]:0', '--no-discovery'] : ['nsenter', '-t', String(machine.pid), '-n', ...up], { stdio: ['ignore', 'pipe', 'ignore'] })
  const ready = new Promise<{ device: string, listen: Array<{ port: number }> }>((resolve, reject) => {
    createInterface({ input: child.stdout! }).on('line', line => {
      const event = JSON.parse(line) as { event: string, device: string, listen: Array<{ port: number }> }
      if (event.event === 'ready') resolve(event)
    })
    child.once('exit', code => { reject(new Error(`patchcord up ended with ${code}`)) })
  })
  const { device, listen } = await ready
  return { pid: child.pid!, id: device, address: `[::1]:${listen[0]?.port}`, home, control: new ControlClient(findHome(home, {}).socket), stop: () => end(child) }
}

/** Makes the far device one of the near one's person. */
export async function adopt (near: Device, far: Device): Promise<void> {
  const { request } = await far.control.call('device-request', {})
  const { certificates } = await near.control.call('device-issue', { request, name: 'far' })
  await far.control.call('device-install', { certificates })
}

/** Whether both are connected to somebody. */
export async function areConnected (devices: readonly Device[]): Promise<boolean> {
  const all = await Promise.all(devices.map(({ control }) => control.call('status', {})))
  return all.every(({ peers }) => peers.some(({ connected }) => connected))
}

/** Two devices of one person that are connected. */
export async function ownDevices (materials: Materials, way?: Way): Promise<[Device, Device]> {
  const { folder, cores } = materials
  const [near, far] = await Promise.all([startDevice('near', folder, cores.contestant), startDevice('far', folder, cores.client)])
  await adopt(near, far)
  const at = async (end: 'near' | 'far', { address }: Device): Promise<string> => way === undefined ? address : `[::1]:${await way.to(end, Number(address.split(':').at(-1)))}`
  await near.control.call('connect', { device: far.id, at: await at('far', far) })
  await far.control.call('connect', { device: near.id, at: await at('near', near) })
  await waitFor('both ends being connected', () => areConnected([near, far]))
  return [near, far]
}

const patchcord: EndsKind = {
  name: 'patchcord', version: process.version,
  async open (materials, way) {
    const [near, far] = await ownDevices(materials, way)
    let turn = 0
    let landing = ''
    return {
      pids: [near.pid, far.pid],
      async send (from) {
        landing = join(materials.folder, `patchcord-landing-${turn++}`)
        await mkdir(landing)
        await far.control.call('inbox-rule', { device: near.id, rule: 'accept', to: landing })
        await near.control.call('send', { device: far.id, paths: [from], wait: true })
      },
      landing: () => landing,
      async stop () { await Promise.all([near.stop(), far.stop()]) },
    }
  },
}

// ---- Syncthing

const syncthing: EndsKind = {
  name: 'syncthing', version: find('syncthing') === undefined ? '' : versionOf('syncthing', '--version'),
  ...find('syncthing') === undefined ? { missing: 'not installed; Debian package syncthing' } : {},
  async open ({ folder, cores }, way) {
    const homes = ['near', 'far'].map(name => join(folder, `syncthing-${name}`))
    const ids = homes.map(home => {
      execFileSync(find('syncthing')!, ['generate', '--home', home, '--no-default-folder', '--skip-port-probing'], { stdio: 'ignore' })
      return execFileSync(find('syncthing')!, ['--device-id', '--home', home], { encoding: 'utf8' }).trim()
    })
    const ports = [await freePort(), await freePort()]
    const reached = way === undefined ? ports : [await way.to('near', ports[0]!), await way.to('far', ports[1]!)]
    const guis = [await freePort(), await freePort()]
    const key = randomBytes(16).toString('hex')
    const data = homes.map(home => join(home, 'data'))
    for (const at of [0, 1] as const) {
      await mkdir(join(data[at]!, '.stfolder'), { recursive: true })
      await writeFile(join(homes[at]!, 'config.xml'), await fill('syncthing.xml', { DATA: data[at]!, OWN: ids[at]!, OTHER: ids[1 - at]!, PORT: ports[at]!, OTHER_PORT: reached[1 - at]!, GUI_PORT: guis[at]!, API_KEY: key }))
    }
    const children = [0, 1].map(at => start(at === 0 ? cores.contestant : cores.client, [find('syncthing')!, 'serve', '--home', homes[at]!, '--no-browser', '--no-restart', '--no-upgrade'], { env: { ...process.env, STNOUPGRADE: '1' }, stdio: ['ignore', 'ignore', 'inherit'] }))
    const ask = async (at: number, method: string, path: string): Promise<Record<string, unknown>> => {
      const answer = await fetch(`http://[::1]:${guis[at]}/rest/${path}`, { method, headers: { 'X-API-Key': key } })
      if (!answer.ok) throw new Error(`syncthing answered ${answer.status} to ${path}`)
      const text = await answer.text()
      return text === '' ? {} : JSON.parse(text) as Record<string, unknown>
    }
    await Promise.all(guis.map(accepting))
    await waitFor('both ends being connected', async () => {
      const { connections } = await ask(0, 'GET', 'system/connections') as { connections: Record<string, { connected: boolean }> }
      return connections[ids[1]!]?.connected === true
    })
    let turn = 0
    let landing = ''
    return {
      pids: children.map(({ pid }) => pid!),
      async send (from) {
        const name = `turn-${turn++}`
        landing = join(data[1]!, name)
        // The folder is put there at once; that a scan finds it is part of the work.
        execFileSync('mv', [from, join(data[0]!, name)])
        await ask(0, 'POST', 'db/scan?folder=bench')
        const { globalBytes: wanted } = await ask(0, 'GET', 'db/status?folder=bench')
        await waitFor('the far end having it all', async () => {
          const { inSyncBytes, needTotalItems, state } = await ask(1, 'GET', 'db/status?folder=bench')
          return inSyncBytes === wanted && needTotalItems === 0 && state === 'idle'
        }, 300_000)
      },
      landing: () => landing,
      async stop () { for (const child of children) await end(child) },
    }
  },
}

// ---- rsync

async function whyNoRsync (): Promise<string | undefined> {
  if (find('rsync') === undefined) return 'not installed; Debian package rsync'
  if (find('sshd') === undefined || find('ssh') === undefined) return 'there is no ssh for it; Debian packages openssh-client openssh-server'
  try {
    await access('/run/sshd')
  } catch {
    if (process.getuid?.() === 0) return 'sshd wants the folder /run/sshd where root starts it: mkdir -m 755 /run/sshd'
  }
  return undefined
}

const noRsync = await whyNoRsync()

const rsync: EndsKind = {
  name: 'rsync', version: find('rsync') === undefined ? '' : versionOf('rsync', '--version'),
  ...noRsync === undefined ? {} : { missing: noRsync },
  async open ({ folder, cores }, way) {
    const [host, user] = ['ssh-host', 'ssh-user'].map(name => {
      const path = join(folder, name)
      execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path])
      return path
    }) as [string, string]
    const port = await freePort()
    const config = join(folder, 'sshd_config')
    await writeFile(config, await fill('sshd_config', { PORT: port, HOST_KEY: host, AUTHORIZED: `${user}.pub`, FOLDER: folder }))
    const daemon = start(cores.client, [find('sshd')!, '-D', '-e', '-f', config])
    await accepting(port)
    const shell = `ssh -q -p ${way === undefined ? port : await way.to('far', port)} -i ${user} -c aes128-gcm@openssh.com -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null`
    let turn = 0
    let landing = ''
    const copy = async (from: string, ...how: string[]): Promise<void> => {
      await output(cores.contestant, [find('rsync')!, '-a', ...how, '--fsync', '-e', shell, `${from}/`, `${userInfo().username}@[::1]:${landing}/`])
    }
    return {
      pids: [daemon.pid!],
      async send (from) {
        landing = join(folder, `rsync-landing-${turn++}`)
        await copy(from, way === undefined ? '--whole-file' : '--inplace')
      },
      again: from => copy(from, '--append-verify'),
      landing: () => landing,
      stop: () => end(daemon),
    }
  },
}

export const ENDS: readonly EndsKind[] = [patchcord, syncthing, rsync]

/** Asks every 50 ms; throws after `most` milliseconds, saying what did not come. */
export async function waitFor (what: string, holds: () => Promise<boolean>, most = 60_000): Promise<void> {
  const deadline = performance.now() + most
  while (!await holds()) {
    if (performance.now() > deadline) throw new Error(`waited ${most / 1000} s for ${what}`)
    await new Promise(resolve => { setTimeout(resolve, 50) })
  }
}

/** Throws where not all of them arrived whole. */
export async function checkLanding (landing: string, files: number, size: number): Promise<void> {
  const landed = await filesBelow(landing)
  const sizes = await Promise.all(landed.map(async path => (await stat(path)).size))
  if (landed.length !== files || sizes.some(each => each !== size)) throw new Error(`${landed.length} of ${files} files arrived`)
}

/** Plain files below a folder. */
async function filesBelow (folder: string): Promise<string[]> {
  return (await readdir(folder, { recursive: true, withFileTypes: true })).filter(entry => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name))
}

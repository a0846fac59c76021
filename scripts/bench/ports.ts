import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { DEFAULT_LIMITS } from '../../src/core/limits.js'
import { fill, freePort, TOP, type Materials } from './materials.js'
import { accepting, end, find, start, versionOf } from './processes.js'

// Who holds a mutual-TLS port: patchcord and its peers, each started as its configuration in bench/peers/ says.

/** What stands behind the port. */
export interface Behind {
  /** A patchcord store; the file of the store is served to all, at `filePath`. */
  readonly store?: { readonly root: string, readonly id: string }
  /** An upstream: its port on [::1], or its `host:port`. */
  readonly upstream?: number | string
  readonly login?: { readonly username: string, readonly password: string }
}

export interface Port {
  readonly port: number
  readonly pid: number
  /** Where the file of the store is asked for. */
  readonly filePath: string
  stop (): Promise<void>
}

export interface PortKind {
  readonly name: string
  readonly version: string
  readonly missing?: string
  readonly servesFiles: boolean
  readonly open: (materials: Materials, behind: Behind) => Promise<Port>
}

const LOGIN = { username: 'bench', password: 'bench' }
export const DATABASE = 'bench'

export const PORTS: readonly PortKind[] = [
  { name: 'patchcord', version: process.version, servesFiles: true, open: openPatchcord },
  peer('nginx', 'nginx', ['-v'], true, async (materials, values) => ['nginx', '-c', await configured(materials, 'nginx.conf', values), '-p', materials.folder]),
  peer('haproxy', 'haproxy', ['-v'], false, async (materials, values) => {
    const both = join(materials.folder, 'both.pem')
    const { server } = materials.pki
    await writeFile(both, `${await readFile(server.certificate, 'utf8')}${await readFile(server.key, 'utf8')}`, { mode: 0o600 })
    return ['haproxy', '-db', '-f', await configured(materials, 'haproxy.cfg', { ...values, BOTH: both })]
  }),
  peer('caddy', 'caddy', ['version'], true, async (materials, values) => ['caddy', 'run', '--adapter', 'caddyfile', '--config', await configured(materials, 'Caddyfile', values)]),
]

function peer (name: string, debian: string, version: string[], servesFiles: boolean, command: (materials: Materials, values: Record<string, string | number>) => Promise<string[]>): PortKind {
  const path = find(name)
  return {
    name, servesFiles,
    version: path === undefined ? '' : versionOf(name, ...version),
    ...path === undefined ? { missing: `not installed; Debian package ${debian}` } : {},
    async open (materials, { store, upstream = 9, login = LOGIN }) {
      const port = await freePort()
      const { pki: { ca, server }, folder, cores } = materials
      const [program, ...rest] = await command(materials, {
        FOLDER: folder, PORT: port, CORES: cores.contestant.length, CA: ca, CERTIFICATE: server.certificate, KEY: server.key,
        ROOT: store?.root ?? folder, UPSTREAM: addressOf(upstream),
        AUTHORIZATION: `Basic ${Buffer.from(`${login.username}:${login.password}`).toString('base64')}`,
      })
      const child = start(cores.contestant, [find(program!)!, ...rest], { env: { ...process.env, GOMAXPROCS: String(cores.contestant.length), HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder }, stdio: ['ignore', 'ignore', 'pipe'] })
      return await opened(child, port, store === undefined ? '' : `/files/${store.id.slice(0, 2)}/${store.id.slice(2)}`)
    },
  }
}

const addressOf = (upstream: number | string): string => typeof upstream === 'string' ? upstream : `[::1]:${upstream}`

async function configured ({ folder }: Materials, name: string, values: Record<string, string | number>): Promise<string> {
  const path = join(folder, `${values['PORT']}-${name}`)
  await writeFile(path, await fill(name, values), { mode: 0o600 })
  return path
}

async function opened (child: ChildProcess, port: number, filePath: string): Promise<Port> {
  let said = ''
  child.stderr?.setEncoding('utf8').on('data', (piece: string) => { said = `${said}${piece}`.slice(-2000) })
  try {
    await Promise.race([accepting(port), once(child, 'exit').then(([code]) => { throw new Error(`it ended with ${code}`) })])
  } catch (error) {
    await end(child)
    throw new Error(`${child.spawnargs.join(' ')}: ${String(error)} ${said}`, { cause: error })
  }
  return { port, pid: child.pid!, filePath, stop: () => end(child) }
}

/** The limits are the defaults but for those that exist to keep a friend from doing what a benchmark does. */
const LIMITS = {
  ...DEFAULT_LIMITS,
  handshakes: 20_000, acceptsPerSecond: 1_000_000, acceptBurst: 1_000_000, connectionsPerEntry: 20_000, requestsPerEntry: 20_000,
  // Ten thousand connections are not opened in the 75 s that the first of them may rest.
  idleMs: 3_600_000,
}

export interface PatchcordChanges { readonly whitelist?: readonly object[], readonly grants?: Readonly<Record<string, object>>, readonly limits?: Readonly<Record<string, number>> }

export async function openPatchcord (materials: Materials, { store, upstream, login = LOGIN }: Behind, changes: PatchcordChanges = {}): Promise<Port> {
  const { pki, cores } = materials
  const child = start(cores.contestant, [process.execPath, ...process.env['BENCH_NODE_OPTIONS']?.split(' ') ?? [], join(TOP, 'build/src/bin/patchcord-server.js')], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ready = new Promise<number>((resolve, reject) => {
    createInterface({ input: child.stdout! }).once('line', line => { resolve((JSON.parse(line) as { listen: Array<{ port: number }> }).listen[0]!.port) })
    child.once('exit', code => { reject(new Error(`patchcord-server ended with ${code}`)) })
  })
  child.stdin!.write(`${JSON.stringify({
    version: 1,
    listen: [{ host: '::1', port: 0 }],
    identity: { device: pki.device, key: await readFile(pki.server.key, 'utf8'), certificates: await readFile(pki.server.certificate, 'utf8'), userCa: await readFile(pki.ca, 'utf8') },
    whitelist: changes.whitelist ?? [],
    revoked: [],
    grants: { own: { databases: { '*': 'write' }, files: 'all' }, ...changes.grants },
    ...upstream === undefined ? {} : { couch: { url: `http://${addressOf(upstream)}`, databases: [DATABASE], credentials: { own: login } } },
    ...store === undefined ? {} : { files: { root: store.root } },
    limits: { ...LIMITS, ...changes.limits },
    log: { level: 'warn' },
  })}\n`)
  return { port: await ready, pid: child.pid!, filePath: store === undefined ? '' : `/files/${store.id}`, stop: () => end(child) }
}

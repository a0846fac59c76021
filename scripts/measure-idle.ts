import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { ControlClient } from '../src/control/client.js'

// What a service costs that has nothing to do: the CPU time of all its processes (agent, server, database), with three
// known peers connected, a shared database, and no traffic.
//
//   npm run build && node build/scripts/measure-idle.js [<seconds of rest> <seconds measured>]
//
// Prints a line for each process and the sum; the goal is 0.6 CPU-seconds in 120 s, after 60 s of rest.

const BIN = fileURLToPath(new URL('../src/bin/patchcord.js', import.meta.url))
const [rest = '60', measured = '120'] = process.argv.slice(2)
/** Ticks a second of /proc/<pid>/stat (USER_HZ, which is 100 on every Linux that Node runs on). */
const TICKS = 100

interface Service { readonly child: ChildProcess, readonly client: ControlClient, readonly device: string, readonly at: string }

async function up (folder: string, name: string): Promise<Service> {
  const home = join(folder, name)
  const child = spawn(process.execPath, [BIN, 'up', '--json', '--home', home, '--name', name, '--listen', '[::1]:0', '--log-level', 'error'], { stdio: ['ignore', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })
  const [line] = await once(lines, 'line') as [string]
  lines.on('line', () => undefined)
  const { device, listen } = JSON.parse(line) as { device: string, listen: Array<{ port: number }> }
  return { child, client: new ControlClient(join(home, 'control.sock')), device, at: `[::1]:${listen[0]!.port}` }
}

/** The process and all that came of it, with the CPU time that each has used (seconds). */
async function costs (root: number): Promise<Map<string, number>> {
  const parents = new Map<number, number>()
  const used = new Map<number, number>()
  const names = new Map<number, string>()
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    const stat = await readFile(`/proc/${entry}/stat`, 'latin1').catch(() => undefined)
    // One that ended in between.
    if (stat === undefined) continue
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    parents.set(Number(entry), Number(fields[1]))
    used.set(Number(entry), (Number(fields[11]) + Number(fields[12])) / TICKS)
    const command = await readFile(`/proc/${entry}/cmdline`, 'latin1').catch(() => '')
    names.set(Number(entry), /([a-z-]+)\.js/.exec(command)?.[1] ?? command.slice(0, 40))
  }
  const isOurs = (pid: number): boolean => pid === root || (parents.has(pid) && parents.get(pid) !== 0 && isOurs(parents.get(pid)!))
  return new Map([...used].filter(([pid]) => isOurs(pid)).map(([pid, seconds]) => [`${names.get(pid)} ${pid}`, seconds]))
}

const folder = await mkdtemp(join(tmpdir(), 'idle-'))
const services: Service[] = []
try {
  for (const name of ['one', 'two', 'three', 'four']) services.push(await up(folder, name))
  const [one, ...others] = services
  for (const other of others) {
    for (const [near, far] of [[one!, other], [other, one!]] as const) await near.client.call('trust', { bundle: (await far.client.call('identity', {})).bundle, name: far.device.slice(0, 8), at: far.at })
  }
  await one!.client.call('db-create', { name: 'notes' })
  for (const other of others) {
    await one!.client.call('share', { database: 'notes', with: other.device, write: true })
    while (!(await other.client.call('shares', {})).shares.some(({ database }) => database === 'notes')) await sleep(100)
    await other.client.call('accept', { peer: one!.device, database: 'notes' })
  }
  while ((await one!.client.call('status', {})).peers.filter(({ connected, databases }) => connected && databases.some(({ state }) => state === 'in sync')).length < 3) await sleep(100)
  await sleep(Number(rest) * 1_000)
  const before = await costs(one!.child.pid!)
  await sleep(Number(measured) * 1_000)
  const after = await costs(one!.child.pid!)
  const processes = Object.fromEntries([...after].map(([name, seconds]) => [name, Math.round((seconds - (before.get(name) ?? 0)) * 100) / 100]))
  const total = Math.round(Object.values(processes).reduce((sum, seconds) => sum + seconds, 0) * 100) / 100
  process.stdout.write(`${JSON.stringify({ test: 'idle', restSeconds: Number(rest), measuredSeconds: Number(measured), cpuSeconds: total, per120s: Math.round(total * 12_000 / Number(measured)) / 100, processes })}\n`)
} finally {
  for (const { child } of services) {
    const ended = once(child, 'exit')
    child.kill('SIGTERM')
    await ended
  }
  await rm(folder, { recursive: true, force: true })
}

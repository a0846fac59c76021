import { spawn, spawnSync, type ChildProcess, type StdioOptions } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createConnection } from 'node:net'
import { cpus } from 'node:os'
import { delimiter, join } from 'node:path'
import { accessSync, constants } from 'node:fs'

// Processes on cores of their own, what they used up, and their end.

/** Cores by number. The contestant has its own; the client and whatever stands behind both share the rest. */
export interface Cores { readonly contestant: readonly number[], readonly client: readonly number[] }

/** Half of the machine for the contestant, at most `most` cores, and the rest for the client. */
export function shareCores (most: number): Cores {
  const all = cpus().map((_, at) => at)
  const half = Math.max(1, Math.min(most, Math.floor(all.length / 2)))
  return { contestant: all.slice(0, half), client: all.length > half ? all.slice(half) : all }
}

/** For works whose contestant is at both ends: nobody is a client beside it. */
export function shared ({ contestant, client }: Cores): Cores {
  const all = [...new Set([...contestant, ...client])]
  return { contestant: all, client: all }
}

/** Whatever was started here and has not been seen to end. */
const running = new Set<ChildProcess>()

/** Starts a program on these cores, as the head of a process group of its own. */
export function start (cores: readonly number[], command: readonly string[], options: { readonly stdio?: StdioOptions, readonly env?: NodeJS.ProcessEnv, readonly cwd?: string } = {}): ChildProcess {
  const child = spawn('taskset', ['-c', cores.join(), ...command], { stdio: ['ignore', 'ignore', 'inherit'], detached: true, ...options })
  running.add(child)
  child.once('exit', () => { running.delete(child) })
  child.once('error', () => { running.delete(child) })
  return child
}

/** Runs it to its end and gives its stdout. Throws where it does not end with 0. */
export async function output (cores: readonly number[], command: readonly string[], options: { readonly env?: NodeJS.ProcessEnv, readonly cwd?: string } = {}): Promise<string> {
  const child = start(cores, command, { stdio: ['ignore', 'pipe', 'pipe'], ...options })
  let text = ''
  let said = ''
  child.stdout!.setEncoding('utf8').on('data', (piece: string) => { text += piece })
  child.stderr!.setEncoding('utf8').on('data', (piece: string) => { said += piece })
  const [code] = await once(child, 'close') as [number | null]
  if (code !== 0) throw new Error(`${command.join(' ')} ended with ${code}: ${said.trim().slice(-500)}`)
  return text
}

/** Ends a process and its group: SIGTERM, and SIGKILL where it has not ended after 5 s. */
export async function end (child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  signal(child.pid, 'SIGTERM')
  const guard = setTimeout(() => { signal(child.pid!, 'SIGKILL') }, 5_000)
  await exited
  clearTimeout(guard)
}

/** At the very end, or at Ctrl-C. */
export function endAll (): void {
  for (const { pid } of running) if (pid !== undefined) signal(pid, 'SIGKILL')
}

function signal (pid: number, name: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(-pid, name)
  } catch {
    // The group ended just now.
  }
}

const TICKS_PER_SECOND = 100

/** Seconds of CPU that the process and all below it have used so far, ended children included. */
export function cpuSeconds (pid: number): number {
  return family(pid).reduce((sum, { ticks }) => sum + ticks, 0) / TICKS_PER_SECOND
}

/** Bytes of memory of the process and all below it that nobody else shares in full (the kernel's Pss). */
export function memoryBytes (pid: number): number {
  let kilobytes = 0
  for (const { pid: each } of family(pid)) {
    const text = readProc(`/proc/${each}/smaps_rollup`)
    kilobytes += Number(/^Pss:\s+(\d+)/m.exec(text)?.[1] ?? 0)
  }
  return kilobytes * 1024
}

function family (head: number): Array<{ pid: number, ticks: number }> {
  const found = new Map<number, { parent: number, ticks: number }>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    // proc_pid_stat(5): the name of the program may hold anything, so what follows its last bracket counts.
    const fields = readProc(`/proc/${name}/stat`).replace(/^.*\) /s, '').split(' ')
    if (fields.length > 14) found.set(Number(name), { parent: Number(fields[1]), ticks: [11, 12, 13, 14].reduce((sum, at) => sum + Number(fields[at]), 0) })
  }
  const members: Array<{ pid: number, ticks: number }> = []
  const queue = [head]
  for (let pid = queue.pop(); pid !== undefined; pid = queue.pop()) {
    const entry = found.get(pid)
    if (entry === undefined) continue
    members.push({ pid, ticks: entry.ticks })
    for (const [child, { parent }] of found) if (parent === pid) queue.push(child)
  }
  return members
}

function readProc (path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    // It ended between the listing and the reading.
    return ''
  }
}

/** Resolves once something accepts on that port of [::1]; throws where it does not within 10 s. */
export async function accepting (port: number): Promise<void> {
  const deadline = performance.now() + 10_000
  while (!await knock(port)) {
    if (performance.now() > deadline) throw new Error(`nothing listens on [::1]:${port}`)
    await new Promise(resolve => { setTimeout(resolve, 20) })
  }
}

function knock (port: number): Promise<boolean> {
  return new Promise(resolve => {
    const socket = createConnection({ host: '::1', port })
    socket.once('connect', () => { socket.destroy(); resolve(true) })
    socket.once('error', () => { resolve(false) })
  })
}

const PLACES = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin']

/** Where a program is, or undefined. */
export function find (program: string): string | undefined {
  return PLACES.map(place => join(place, program)).find(path => {
    try {
      accessSync(path, constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/** The first number with a dot in what a program says of itself. */
export function versionOf (program: string, ...args: string[]): string {
  const { stdout, stderr } = spawnSync(find(program) ?? program, args, { encoding: 'utf8' })
  return /\d+\.\d+[\w.+~-]*/.exec(`${stdout}${stderr}`)?.[0] ?? 'unknown'
}

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { ControlClient } from '../../src/control/client.js'
import type { Status } from '../../src/control/operations.js'
import { findHome } from '../../src/core/home.js'
import { Broken, must, until } from './checks.js'

const PATCHCORD = fileURLToPath(new URL('../../src/bin/patchcord.js', import.meta.url))
const READY_MS = 20_000
const COMMAND_MS = 60_000

/** One line of a command's `--json`. */
export type Line = Readonly<Record<string, unknown>>

interface Ready { readonly device: string, readonly user: string, readonly listen: ReadonlyArray<{ host: string, port: number }> }

/** Whatever this demo started and has not seen end. */
const started = new Set<ChildProcess>()

/** A device: a home folder, a `patchcord up` in it, and the command line. */
export class Device {
  readonly name: string
  readonly home: string
  /** For what a person's own programs ask of the service, as the command line itself does. */
  readonly control: ControlClient
  readonly #up: ChildProcess
  readonly #exited: Promise<{ code: number | null, signal: string | null }>
  #ready: Ready | undefined

  /** Starts the service with its home in `folder` and its log in `logs`. */
  static async start (name: string, folder: string, logs: string): Promise<Device> {
    const device = new Device(name, join(folder, name), join(logs, `${name}.log`))
    await device.#becomeReady()
    return device
  }

  private constructor (name: string, home: string, log: string) {
    this.name = name
    this.home = home
    this.control = new ControlClient(findHome(home, {}).socket)
    // A process group of its own, so that Ctrl-C can be what it is on a terminal: a signal to all of them.
    this.#up = spawn(process.execPath, [PATCHCORD, 'up', '--json', '--listen', '[::1]:0', '--name', name, '--home', home, '--no-discovery'], { detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
    started.add(this.#up)
    this.#exited = once(this.#up, 'exit').then(([code, signal]) => {
      started.delete(this.#up)
      return { code: code as number | null, signal: signal as string | null }
    })
    this.#up.stderr!.pipe(createWriteStream(log, { flags: 'a' }))
  }

  get pid (): number { return this.#up.pid! }
  get id (): string { return this.#ready!.device }
  get user (): string { return this.#ready!.user }
  get port (): number { return this.#ready!.listen[0]!.port }
  get address (): string { return `[::1]:${this.port}` }

  /** The last line of what a command prints, which is the answer or its last event. Throws `Broken` when
   * it fails. */
  async run (...args: string[]): Promise<Line> {
    return (await this.lines(...args)).at(-1) ?? {}
  }

  /** Every line that a command prints. Throws `Broken` when it fails. */
  async lines (...args: string[]): Promise<Line[]> {
    const { code, lines } = await this.command(...args)
    must(code === 0, `\`patchcord ${args.join(' ')}\` on the ${this.name} ended with ${code}: ${JSON.stringify(lines.at(-1))}`)
    return lines
  }

  /** Runs a command to its end, whatever that is. */
  async command (...args: string[]): Promise<{ code: number | null, lines: Line[] }> {
    const lines: Line[] = []
    return { code: await this.follow(args, line => { lines.push(line) }), lines }
  }

  /** Runs a command to its end, whatever that is, with each line as it comes. Resolves with its exit code. */
  async follow (args: readonly string[], onLine: (line: Line) => void): Promise<number | null> {
    const child = spawn(process.execPath, [PATCHCORD, ...args, '--json', '--home', this.home], { stdio: ['ignore', 'pipe', 'ignore'] })
    started.add(child)
    const guard = setTimeout(() => { child.kill('SIGKILL') }, COMMAND_MS)
    const exited = once(child, 'close')
    for await (const line of createInterface({ input: child.stdout })) onLine(JSON.parse(line) as Line)
    const [code] = await exited as [number | null]
    clearTimeout(guard)
    started.delete(child)
    return code
  }

  async status (): Promise<Status> {
    return await this.control.call('status', {})
  }

  /** Resolves when this device has a live link to the other. */
  async sees (other: Device, ms = 10_000): Promise<void> {
    await until(`the ${this.name} connects to the ${other.name}`, ms, async () => (await this.status()).peers.some(peer => peer.device === other.id && peer.connected))
  }

  /** The processes that the service started and that run now. */
  async children (): Promise<Array<{ pid: number, command: string }>> {
    const found: Array<{ pid: number, command: string }> = []
    for (const name of await readdir('/proc')) {
      if (!/^\d+$/.test(name)) continue
      try {
        // proc_pid_stat(5): the name of the program may hold anything, so what follows its last bracket counts.
        const [state, parent] = (await readFile(`/proc/${name}/stat`, 'latin1')).replace(/^.*\) /s, '').split(' ')
        if (Number(parent) === this.pid && state !== 'Z') found.push({ pid: Number(name), command: (await readFile(`/proc/${name}/cmdline`, 'latin1')).replaceAll('\0', ' ') })
      } catch {
        // It ended meanwhile.
      }
    }
    return found
  }

  /** Ctrl-C: SIGINT to the whole group. Resolves with how it ended. */
  async interrupt (): Promise<{ code: number | null, signal: string | null }> {
    process.kill(-this.pid, 'SIGINT')
    return await this.#exited
  }

  async #becomeReady (): Promise<void> {
    const ready = new Promise<Ready>(resolve => {
      createInterface({ input: this.#up.stdout! }).on('line', line => {
        const event = JSON.parse(line) as { event: string } & Ready
        if (event.event === 'ready') resolve(event)
      })
    })
    const late = new Promise<never>((_resolve, reject) => {
      const timer = setTimeout(() => { reject(new Broken(`the ${this.name} was not ready within ${READY_MS / 1000} s`)) }, READY_MS)
      const clear = (): void => { clearTimeout(timer) }
      ready.then(clear, clear)
      void this.#exited.then(({ code }) => {
        clear()
        reject(new Broken(`\`patchcord up\` of the ${this.name} ended with ${code}`))
      })
    })
    late.catch(() => undefined)
    this.#ready = await Promise.race([ready, late])
  }
}

/** Whether a process with this ID runs. */
export function isRunning (pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Ends whatever runs still, by the IDs of what was started here: a service with its children (they are one
 * group), a command by itself. */
export function endAll (): void {
  for (const { pid } of started) {
    if (pid === undefined) continue
    for (const id of [-pid, pid]) {
      try {
        process.kill(id, 'SIGKILL')
      } catch {
        // A command leads no group; or it ended just now.
      }
    }
  }
}

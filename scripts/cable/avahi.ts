import { spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Machine } from '../../test/fixtures/network.js'

// The other mDNS stack that Linux machines have: avahi-daemon on a machine of ours, with a system bus of its
// own. Its run folder is a mount of its own, so that neither another machine's daemon nor the host's is met.

/** Why avahi cannot run here, or undefined where it can. */
export function whyNoAvahi (): string | undefined {
  const missing = ['avahi-daemon', 'avahi-browse', 'dbus-daemon'].filter(tool => spawnSync(tool, ['--version'], { stdio: 'ignore' }).error !== undefined)
  return missing.length === 0 ? undefined : `${missing.join(', ')} not installed: on Debian, apt-get install avahi-daemon avahi-utils dbus`
}

/** A service as avahi resolved it. */
export interface Resolved { zone: string, name: string, host: string, address: string, port: number }

export class Avahi {
  readonly #machine: Machine
  readonly #env: NodeJS.ProcessEnv
  readonly #children: readonly ChildProcess[]

  private constructor (machine: Machine, env: NodeJS.ProcessEnv, children: readonly ChildProcess[]) {
    this.#machine = machine
    this.#env = env
    this.#children = children
  }

  /** Starts bus and daemon, `name` being the machine's host name in mDNS. Throws with what
   * either printed where it does not come up. */
  static async start (machine: Machine, folder: string, name: string): Promise<Avahi> {
    const home = join(folder, `avahi-${name}`)
    await mkdir(home, { recursive: true })
    const [bus, busSettings, settings] = [join(home, 'bus'), join(home, 'bus.conf'), join(home, 'avahi.conf')]
    await writeFile(busSettings, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=${bus}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`)
    await writeFile(settings, `[server]\nhost-name=${name}\nuse-ipv4=yes\nuse-ipv6=yes\n[rlimits]\n`)
    const env = { PATH: process.env['PATH'] ?? '', DBUS_SYSTEM_BUS_ADDRESS: `unix:path=${bus}` }
    const children: ChildProcess[] = []
    const avahi = new Avahi(machine, env, children)
    try {
      const daemon = machine.spawn('dbus-daemon', [`--config-file=${busSettings}`, '--nofork', '--nopidfile'], { stdio: ['ignore', 'ignore', 'pipe'], env })
      children.push(daemon)
      let said = ''
      daemon.stderr!.setEncoding('utf8').on('data', (text: string) => { said = `${said}${text}`.slice(-20_000) })
      while (!existsSync(bus)) {
        if (daemon.exitCode !== null) throw new Error(`dbus-daemon ended with ${daemon.exitCode}: ${said.slice(-1_000)}`)
        await sleep(20)
      }
      const responder = machine.spawn('unshare', ['--mount', 'sh', '-c', 'mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && exec avahi-daemon --no-drop-root --no-chroot --no-rlimits -f "$0"', settings], { stdio: ['ignore', 'ignore', 'pipe'], env })
      children.push(responder)
      let log = ''
      await new Promise<void>((resolve, reject) => {
        responder.stderr!.setEncoding('utf8').on('data', (text: string) => {
          log = `${log}${text}`.slice(-20_000)
          if (log.includes('Server startup complete')) resolve()
        })
        responder.once('exit', code => { reject(new Error(`avahi-daemon ended with ${code}: ${log.slice(-1_000)}`)) })
      })
      return avahi
    } catch (error) {
      await avahi.stop()
      throw error
    }
  }

  /** What `avahi-browse` resolves of a service type, over IPv6. */
  async browse (type: string): Promise<Resolved[]> {
    return (await this.#ask('avahi-browse', '-rpt', type)).split('\n').map(line => line.split(';')).filter(([sign, , family]) => sign === '=' && family === 'IPv6')
      .map(([, zone, , name, , , host, address, port]) => ({ zone: zone!, name: name!, host: host!, address: address!, port: Number(port) }))
  }

  /** The IPv6 address that the daemon finds for a host name, or undefined. */
  async resolve (host: string): Promise<string | undefined> {
    return (await this.#ask('avahi-resolve', '-6', '-n', host)).split('\t')[1]?.trim().split('%')[0]
  }

  async #ask (command: string, ...args: string[]): Promise<string> {
    const child = this.#machine.spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'], env: this.#env })
    let text = ''
    child.stdout!.setEncoding('utf8').on('data', (chunk: string) => { text += chunk })
    await once(child, 'close')
    return text
  }

  async stop (): Promise<void> {
    for (const child of this.#children.toReversed()) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const ended = once(child, 'exit')
      child.kill('SIGKILL')
      await ended
    }
  }
}

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { formatAddress } from '../core/address.js'
import { silentLogger, type Logger } from '../core/log.js'
import { LabClock } from './clock.js'
import { LabDevice, type LabDeviceOptions } from './device.js'

export interface LabOptions {
  /** Silent unless given. Each line names its device as `lab`. */
  readonly logger?: Logger
  /** How long `until` waits before it says what did not happen (ms of real time): 30,000, unless the machine is busy with other
   * things. */
  readonly hangMs?: number
}

const HANG_MS = 30_000

/** Devices in one process, and the cables between them. */
export class Lab {
  readonly clock = new LabClock()
  readonly #folder: string
  readonly #logger: Logger
  readonly #hangMs: number
  readonly #devices: LabDevice[] = []
  /** How many folders were given away: devices may be started at once. */
  #folders = 0

  private constructor (folder: string, logger: Logger, hangMs: number) {
    this.#folder = folder
    this.#logger = logger
    this.#hangMs = hangMs
  }

  static async start ({ logger = silentLogger(), hangMs = HANG_MS }: LabOptions = {}): Promise<Lab> {
    // Short, because the control socket's path has a limit.
    return new Lab(await mkdtemp(join(tmpdir(), 'lab-')), logger, hangMs)
  }

  /** Starts a device. The first one of a user makes that user's CA; the others get their certificates from
   * it, as by `device request`, `issue` and `install`. */
  async device (options: LabDeviceOptions): Promise<LabDevice> {
    if (this.#devices.some(({ name }) => name === options.name)) throw new Error(`there is a device ${options.name} already`)
    const device = new LabDevice(options, join(this.#folder, String(this.#folders++)), this.clock, this.#logger.child({ lab: options.name }))
    await device.start()
    const holder = this.#devices.find(({ user }) => user === options.user)
    this.#devices.push(device)
    if (holder !== undefined) {
      const { request } = await device.call('device-request', {})
      const { certificates } = await holder.call('device-issue', { request, name: device.name })
      await device.call('device-install', { certificates })
    }
    return device
  }

  /** Lays a cable between two devices and makes them trust each other: own devices as own, others as peers
   * with nothing shared yet. Resolves when both are connected. */
  async pair (one: LabDevice, other: LabDevice): Promise<void> {
    for (const [near, far] of [[one, other], [other, one]] as const) {
      const at = formatAddress((await far.relayFrom(near)).address)
      if (one.user === other.user) {
        await near.call('connect', { device: far.device, at })
        await near.call('rename', { device: far.device, name: far.name })
      } else {
        await near.call('trust', { bundle: (await far.call('identity', {})).bundle, name: far.name, at })
      }
    }
    await this.connected(one, other)
  }

  /** Pulls the cable: connections break, and no new one is made. Resolves when both ends noticed. */
  async cut (one: LabDevice, other: LabDevice): Promise<void> {
    for (const relay of await this.#relays(one, other)) relay.cut()
    await this.until(`${one.name} and ${other.name} noticing the cut`, () => !isConnected(one, other) && !isConnected(other, one))
  }

  /** Plugs it in again. Resolves when both are connected. */
  async heal (one: LabDevice, other: LabDevice): Promise<void> {
    for (const relay of await this.#relays(one, other)) relay.heal()
    one.agent.peers.peer(other.agent.keystore.identity.device)?.link.retry()
    other.agent.peers.peer(one.agent.keystore.identity.device)?.link.retry()
    await this.connected(one, other)
  }

  /** New connections between the two carry at most so many bytes a second, each way. */
  async slow (one: LabDevice, other: LabDevice, bytesPerSecond: number): Promise<void> {
    for (const relay of await this.#relays(one, other)) relay.slow(bytesPerSecond)
  }

  async connected (one: LabDevice, other: LabDevice): Promise<void> {
    await this.until(`${one.name} and ${other.name} being connected`, () => isConnected(one, other) && isConnected(other, one))
  }

  /** Resolves when `holds` does; rejects after 30 s (`hangMs`), saying what it waited for. */
  async until (what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + this.#hangMs
    while (!await holds()) {
      if (performance.now() > deadline) throw new Error(`waited ${this.#hangMs / 1000} s for ${what}`)
      await new Promise(resolve => { setTimeout(resolve, 20) })
    }
  }

  async stop (): Promise<void> {
    try {
      await Promise.all(this.#devices.map(device => device.close()))
    } finally {
      this.clock.stop()
      await rm(this.#folder, { recursive: true, force: true })
    }
  }

  #relays (one: LabDevice, other: LabDevice): Promise<Array<Awaited<ReturnType<LabDevice['relayFrom']>>>> {
    return Promise.all([one.relayFrom(other), other.relayFrom(one)])
  }
}

function isConnected (one: LabDevice, other: LabDevice): boolean {
  return one.agent.peers.peer(other.agent.keystore.identity.device)?.link.connected ?? false
}

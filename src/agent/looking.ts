import type { Address } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import { startDiscovery, type Discovery, type DiscoveryOptions } from '../discovery/discovery.js'
import type { PairingMending } from './pairing-mending.js'
import type { Peers } from './peers.js'

export interface LookingOptions {
  readonly peers: Pick<Peers, 'devices' | 'found' | 'linksAre'>
  /** Pairs of which one side may not know; undefined until they were read. */
  readonly mending: () => Pick<PairingMending, 'wanted' | 'found'> | undefined
  readonly emit: (event: object) => void
}

/** Devices on the network: whom this one looks for there, and what it hears of them. Before `start`, and where that is never called, nobody is
 * found and nothing is announced. */
export class Looking {
  readonly #options: LookingOptions
  #discovery: Discovery | undefined

  constructor (options: LookingOptions) {
    this.#options = options
  }

  async start (options: Pick<DiscoveryOptions, 'device' | 'port' | 'clock' | 'logger'>): Promise<void> {
    const { peers, mending, emit } = this.#options
    this.#discovery = await startDiscovery({
      ...options,
      onCandidates: (device, addresses) => {
        peers.found(device, addresses)
        mending()?.found(device, addresses)
      },
      onInterfaces: links => {
        // A peer may have been heard while nothing could be sent to it yet.
        peers.linksAre(new Map(links.filter(({ state, addresses }) => state === 'ready' || addresses.length > 0).map(({ name, addresses }) => [name, addresses])))
        emit({ event: 'links', links })
      },
    })
    this.lookForKnown()
  }

  /** Tells discovery whom to look for: who is known, and who may be. */
  lookForKnown (): void {
    const { peers, mending } = this.#options
    const devices: DeviceId[] = [...peers.devices, ...mending()?.wanted ?? []]
    this.#discovery?.setKnown([...new Set(devices)])
  }

  /** Where a pairing window is announced on the network. Throws `usage` where there are several: a code is
   * not to be shown to all of them. */
  async findWindows (): Promise<Address[]> {
    const windows = await this.#discovery?.browsePairing() ?? []
    if (new Set(windows.map(({ name }) => name)).size > 1) throw new PatchcordError('usage', 'several devices are open for pairing just now', { hint: 'use the link that yours shows, or say where it is with --at' })
    return windows.map(({ address }) => address)
  }

  /** Announces a pairing window under a random name until the returned function is called. */
  announceWindow (port: number): () => void {
    return this.#discovery?.announcePairing({ port }) ?? (() => undefined)
  }

  async stop (): Promise<void> {
    await this.#discovery?.stop()
  }
}

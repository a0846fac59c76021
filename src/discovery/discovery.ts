import { randomBytes } from 'node:crypto'
import { Worker } from 'node:worker_threads'
import type { Address } from '../core/address.js'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { DISCOVERY_LIMITS } from './limits.js'
import type { FromWorker, LinkState, PairingAnnouncement, PairingWindow, ToWorker } from './messages.js'

export type { LinkState, PairingWindow }

/*
 * Discovery: mDNS on every interface that has a link-local address, in a worker thread.
 *
 * It promises: devices that know each other find each other's addresses on a link with nothing else on it,
 * within a second of there being addresses to send from; interfaces that come, go or change address are
 * followed within two. What somebody on the link can make it cost is bounded (limits.ts), and the agent's
 * own thread never parses a packet.
 *
 * It must never: trust what it heard (an address is a hint; TLS decides who is there), tell a stranger which
 * device this is, say a name of a person or a host, or end the process.
 *
 *   _patchcord._tcp.local                    PTR   <32 random hex digits>._patchcord._tcp.local
 *   <32 random hex digits>._patchcord…       SRV   4984 <32 other random hex digits>.local
 *                                            TXT   r=<16 random bytes> h=<first 8 bytes of HMAC-SHA-256(device ID, r)>
 *   <32 other random hex digits>.local       AAAA  fe80::…, those of this link alone
 *
 * While a pairing window is open, `_patchcord-pair._tcp.local` is announced under a random name, with no TXT.
 */

export interface DiscoveryOptions {
  readonly device: DeviceId
  /** The open port; 0 where it is not known yet. */
  readonly port: number
  readonly logger: Logger
  readonly clock: Clock
  /** Called with every address at which `device` may be, best first, whenever that list changed. */
  readonly onCandidates: (device: DeviceId, addresses: readonly Address[]) => void
  /** Called when an interface came, went, or is another one in what `interfaces` tells. */
  readonly onInterfaces?: (links: readonly LinkState[]) => void
}

export interface Discovery {
  /** Replaces the devices that are recognised; those already on the links are asked for again. */
  setKnown (devices: readonly DeviceId[]): void
  setPort (port: number): void
  /** The interfaces with a link-local address, as they are now. */
  interfaces (): readonly LinkState[]
  /** Announces a pairing window until the returned function is called. Without a name, under a random one. */
  announcePairing (window: { readonly port: number, readonly name?: string }): () => void
  /** The pairing windows that answer within `forMs` (1.5 s unless given), in the order heard; names are the
   * others' own words. At most 64, four of one source. */
  browsePairing (forMs?: number): Promise<readonly PairingWindow[]>
  /** Takes back what was announced and ends the worker. */
  stop (): Promise<void>
}

/** Starts discovery. It resolves when the worker runs, or could not be started for now: what goes wrong with
 * it is logged, tried again with back-off, and told by `interfaces`; it never throws. */
export async function startDiscovery (options: DiscoveryOptions): Promise<Discovery> {
  const discovery = new SupervisedDiscovery(options)
  await discovery.started
  return discovery
}

const FIRST_BACKOFF_MS = 500
const LONGEST_BACKOFF_MS = 30_000
/** A worker that ran for so long did not fail for the same reason again. */
const GOOD_RUN_MS = 60_000
const BROWSE_MS = 1_500
const STOP_MS = 1_000

class SupervisedDiscovery implements Discovery {
  readonly started: Promise<void>
  readonly #options: DiscoveryOptions
  readonly #pairing = new Set<PairingAnnouncement>()
  #known: readonly DeviceId[] = []
  #port: number
  #links: readonly LinkState[] = []
  #windows: readonly PairingWindow[] = []
  #browsers = 0
  #worker: Worker | undefined
  #backoff = FIRST_BACKOFF_MS
  #timer: Timer | undefined
  #isStopping = false
  #settled!: () => void

  constructor (options: DiscoveryOptions) {
    this.#options = options
    this.#port = options.port
    this.started = new Promise(resolve => { this.#settled = resolve })
    this.#start()
  }

  setKnown (devices: readonly DeviceId[]): void {
    this.#known = [...devices]
    this.#configure()
  }

  setPort (port: number): void {
    this.#port = port
    this.#configure()
  }

  interfaces (): readonly LinkState[] { return this.#links }

  announcePairing ({ port, name = randomBytes(16).toString('hex') }: { readonly port: number, readonly name?: string }): () => void {
    const announcement = { name, port }
    this.#pairing.add(announcement)
    this.#configure()
    return () => { if (this.#pairing.delete(announcement)) this.#configure() }
  }

  async browsePairing (forMs: number = BROWSE_MS): Promise<readonly PairingWindow[]> {
    this.#browsers += 1
    if (this.#browsers === 1) {
      this.#windows = []
      this.#send({ kind: 'browse-pairing', on: true })
    }
    await new Promise<void>(resolve => { this.#options.clock.after(forMs, resolve) })
    const found = this.#windows
    this.#browsers -= 1
    if (this.#browsers === 0) this.#send({ kind: 'browse-pairing', on: false })
    return found
  }

  async stop (): Promise<void> {
    this.#isStopping = true
    this.#timer?.cancel()
    const worker = this.#worker
    this.#settled()
    if (worker === undefined) return
    await new Promise<void>(resolve => {
      const timer = setTimeout(() => { void worker.terminate() }, STOP_MS)
      worker.once('exit', () => {
        clearTimeout(timer)
        resolve()
      })
      this.#send({ kind: 'stop' })
    })
  }

  #configure (): void { this.#send({ kind: 'settings', settings: this.#settings() }) }

  #settings (): Extract<ToWorker, { kind: 'settings' }>['settings'] {
    return { device: this.#options.device, port: this.#port, known: this.#known, pairing: [...this.#pairing] }
  }

  #send (message: ToWorker): void { this.#worker?.postMessage(message) }

  #start (): void {
    const { logger, clock } = this.#options
    const startedAt = clock.monotonic()
    const worker = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: this.#settings(),
      resourceLimits: { maxOldGenerationSizeMb: DISCOVERY_LIMITS.heapMb },
      // It prints nothing of its own, and has no use for what the process was told in its environment.
      env: {},
      stdout: true,
    })
    this.#worker = worker
    let problem = 'it ended by itself'
    worker.stdout.resume()
    worker.on('message', (message: FromWorker) => { this.#receive(message) })
    worker.on('error', error => { problem = messageOf(error) })
    worker.once('exit', () => {
      this.#worker = undefined
      this.#links = []
      this.#settled()
      if (this.#isStopping) return
      if (clock.monotonic() - startedAt > GOOD_RUN_MS) this.#backoff = FIRST_BACKOFF_MS
      logger.error({ problem, againIn: this.#backoff }, 'discovery ended; it is started again')
      this.#timer = clock.after(this.#backoff, () => { this.#start() })
      this.#backoff = Math.min(this.#backoff * 2, LONGEST_BACKOFF_MS)
    })
    if (this.#browsers > 0) this.#send({ kind: 'browse-pairing', on: true })
  }

  #receive (message: FromWorker): void {
    if (this.#isStopping) return
    const { logger, onCandidates, onInterfaces } = this.#options
    switch (message.kind) {
      case 'ready': return this.#settled()
      case 'candidates':
        // It may have been on its way while the device was forgotten.
        if (this.#known.includes(message.device)) onCandidates(message.device, message.addresses)
        return
      case 'windows':
        this.#windows = message.windows
        return
      case 'links':
        this.#logLinks(message.links)
        this.#links = message.links
        onInterfaces?.(message.links)
        return
      case 'stopped':
        logger.debug('discovery stopped')
    }
  }

  #logLinks (links: readonly LinkState[]): void {
    for (const link of links) {
      const before = this.#links.find(({ name }) => name === link.name)
      if (before?.state === link.state && before.addresses.join() === link.addresses.join()) continue
      const { name, state, addresses, problem } = link
      this.#options.logger[state === 'failed' ? 'warn' : 'info']({ interface: name, addresses, problem }, `discovery on ${name}: ${state}`)
    }
    for (const { name } of this.#links) if (!links.some(link => link.name === name)) this.#options.logger.info({ interface: name }, 'an interface is gone')
  }
}

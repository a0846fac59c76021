import { randomBytes } from 'node:crypto'
import { parentPort, workerData, type MessagePort } from 'node:worker_threads'
import type { DeviceId } from '../core/ids.js'
import { Candidates } from './candidates.js'
import { DISCOVERY_LIMITS, LOOK_AGAIN_MS, LOOK_EVERY_MS, SLEPT_MS } from './limits.js'
import { LinkSession } from './link-session.js'
import { readLinks, type Link } from './links.js'
import type { FromWorker, LinkState, PairingWindow, ToWorker, WorkerSettings } from './messages.js'
import type { Service } from './packets.js'
import { makeHint, parseHint, Recogniser } from './recognition.js'
import { PAIR_TYPE, PEER_TYPE, type Published } from './records.js'

// The worker thread: it follows the interfaces, keeps a session on each, and tells the agent's thread what
// it recognised. Whatever happens here, that thread goes on.

const monotonic = (): number => performance.now()
/** How long a session that failed rests before it is tried again. */
const RETRY_MS = 5_000
/** Changes of one device's candidates are told at once, and then at most this often. */
const TELL_EVERY_MS = 1_000

class DiscoveryWorker {
  readonly #port: MessagePort
  readonly #names = { instance: randomName(), host: randomName() }
  readonly #hint: readonly string[]
  readonly #recogniser = new Recogniser(monotonic)
  readonly #candidates = new Candidates()
  readonly #windows = new Map<string, PairingWindow & { readonly heardAt: number }>()
  readonly #sessions = new Map<string, LinkSession>()
  readonly #failed = new Map<string, { readonly reason: string, readonly retryAt: number }>()
  /** When each device's candidates were last told, and those that wait for their turn. */
  readonly #told = new Map<DeviceId, number>()
  readonly #waiting = new Set<DeviceId>()
  #settings: WorkerSettings
  #links: Link[] = []
  #browsesPairing = false
  #lastStates = ''
  #lookedAt = monotonic()
  #timer: NodeJS.Timeout | undefined

  constructor (port: MessagePort, settings: WorkerSettings) {
    this.#port = port
    this.#settings = settings
    const { r, h } = makeHint(settings.device)
    this.#hint = [`r=${r}`, `h=${h}`]
    this.#recogniser.setKnown(settings.known)
    port.on('message', (message: ToWorker) => { this.#receive(message) })
    this.#look()
    this.#tell({ kind: 'ready' })
  }

  #tell (message: FromWorker): void { this.#port.postMessage(message) }

  #receive (message: ToWorker): void {
    switch (message.kind) {
      case 'settings': return this.#configure(message.settings)
      case 'browse-pairing':
        this.#browsesPairing = message.on
        this.#windows.clear()
        return this.#offerAll()
      case 'stop':
        clearTimeout(this.#timer)
        for (const session of this.#sessions.values()) session.close()
        // The goodbyes are handed to the kernel in the meantime.
        setTimeout(() => {
          this.#tell({ kind: 'stopped' })
          this.#port.close()
        }, 20)
    }
  }

  #configure (settings: WorkerSettings): void {
    const before = this.#settings
    this.#settings = settings
    if (settings.known.join() !== before.known.join()) {
      this.#recogniser.setKnown(settings.known)
      const known = new Set(settings.known)
      this.#candidates.retain(known)
      for (const device of this.#told.keys()) if (!known.has(device)) this.#told.delete(device)
      for (const device of this.#waiting) if (!known.has(device)) this.#waiting.delete(device)
    }
    // Asking again is how a device that is known from now on is found among those that are here already.
    this.#offerAll()
  }

  // ---- interfaces

  #look (): void {
    const now = monotonic()
    const slept = now - this.#lookedAt > SLEPT_MS
    this.#lookedAt = now
    const before = this.#links
    this.#links = readLinks()
    for (const [name, { index }] of this.#sessions) {
      if (!this.#links.some(link => link.name === name && link.index === index)) this.#leave(name)
    }
    for (const link of this.#links) {
      const session = this.#sessions.get(link.name)
      const known = before.find(({ name }) => name === link.name)
      if (session === undefined) this.#join(link, now)
      else if (known?.addresses.join() !== link.addresses.join()) this.#offer(session, link)
      else if (slept) session.announce()
    }
    for (const name of this.#failed.keys()) if (!this.#links.some(link => link.name === name)) this.#failed.delete(name)
    for (const device of this.#candidates.expire(now)) this.#changed(device)
    for (const device of [...this.#waiting]) this.#changed(device)
    this.#tellStates()
    this.#timer = setTimeout(() => { this.#look() }, this.#links.some(({ tentative }) => tentative) ? LOOK_AGAIN_MS : LOOK_EVERY_MS)
  }

  #join (link: Link, now: number): void {
    const failed = this.#failed.get(link.name)
    if (failed !== undefined && now < failed.retryAt) return
    const session = new LinkSession(link, {
      onService: (type, service, host) => { this.#heard(link.name, session, type, service, host) },
      onFailed: reason => {
        this.#failed.set(link.name, { reason, retryAt: monotonic() + RETRY_MS })
        this.#leave(link.name)
      },
    })
    this.#failed.delete(link.name)
    this.#sessions.set(link.name, session)
    this.#offer(session, link)
  }

  #leave (name: string): void {
    this.#sessions.get(name)?.close()
    this.#sessions.delete(name)
    for (const device of this.#candidates.dropZone(name)) this.#changed(device)
  }

  #offerAll (): void {
    for (const link of this.#links) {
      const session = this.#sessions.get(link.name)
      if (session !== undefined) this.#offer(session, link)
    }
  }

  #offer (session: LinkSession, { addresses }: Link): void {
    const { port, pairing } = this.#settings
    const published: Published[] = pairing.map(({ name, port }) => ({ type: PAIR_TYPE, instance: name, host: this.#names.host, port, txt: [] }))
    if (port !== 0) published.push({ type: PEER_TYPE, ...this.#names, port, txt: this.#hint })
    session.offer(published, this.#browsesPairing ? [PEER_TYPE, PAIR_TYPE] : [PEER_TYPE], addresses)
  }

  #tellStates (): void {
    const links = this.#links.map(({ name, addresses }): LinkState => {
      const state = this.#sessions.get(name)?.state
      const problem = this.#failed.get(name)?.reason ?? state?.unsent
      return {
        name, addresses, dropped: state?.dropped ?? 0,
        state: this.#failed.has(name) ? 'failed' : addresses.length === 0 ? 'waiting' : 'ready',
        ...problem === undefined ? {} : { problem },
      }
    })
    const text = JSON.stringify(links)
    if (text === this.#lastStates) return
    this.#lastStates = text
    this.#tell({ kind: 'links', links })
  }

  // ---- services

  #heard (zone: string, session: LinkSession, type: string, { port, txt, instance }: Service, host: string): void {
    if (type === PAIR_TYPE) return this.#heardWindow(instance, { host, zone, port })
    const hint = parseHint(txt)
    const device = hint === undefined ? undefined : this.#recogniser.recognise(hint)
    if (device === undefined) return
    session.vouch(host)
    if (this.#candidates.hear(device, host, zone, port, monotonic())) this.#changed(device)
  }

  #heardWindow (name: string, address: PairingWindow['address']): void {
    const { host, zone, port } = address
    if (this.#settings.pairing.some(own => own.name === name)) return
    const key = `${name} ${host}%${zone} ${port}`
    const ofSource = [...this.#windows.values()].filter(window => window.address.host === host && window.address.zone === zone)
    if (!this.#windows.has(key) && (ofSource.length >= DISCOVERY_LIMITS.windowsPerSource || this.#windows.size >= DISCOVERY_LIMITS.windows)) return
    this.#windows.set(key, { name, address, heardAt: monotonic() })
    this.#tell({ kind: 'windows', windows: [...this.#windows.values()].map(window => ({ name: window.name, address: window.address })) })
  }

  /** A flood that changes a list all the time makes one message a second of it. */
  #changed (device: DeviceId): void {
    const now = monotonic()
    if (now - (this.#told.get(device) ?? -Infinity) < TELL_EVERY_MS) {
      this.#waiting.add(device)
      return
    }
    this.#waiting.delete(device)
    this.#told.set(device, now)
    this.#tell({ kind: 'candidates', device, addresses: this.#candidates.of(device) })
  }
}

/** 16 bytes that nobody can tell this machine by, as a label. */
function randomName (): string { return randomBytes(16).toString('hex') }

if (parentPort !== null) new DiscoveryWorker(parentPort, workerData as WorkerSettings)

import { Bonjour } from 'bonjour-service'
import type { RemoteInfo } from 'node:dgram'
import { splitZone } from '../core/address.js'
import { messageOf, systemCode } from '../core/errors.js'
import { Bucket } from '../core/bucket.js'
import { Gate, wireLabel } from './gate.js'
import { ANNOUNCE_AT_MS, ANNOUNCE_EVERY_MS, DISCOVERY_LIMITS } from './limits.js'
import { LinkSocket, MDNS_GROUP } from './link-socket.js'
import type { Link } from './links.js'
import { readQuestions, readServices, type DnsRecord, type Packet, type Service } from './packets.js'
import { recordsOf, type Published } from './records.js'

// Everything that knows bonjour-service 1.4 and multicast-dns 7.2. Its responder and its socket handling are
// used. Its publishing is not: it probes for names that are random here, and one spoofed answer to a probe
// cancels it in silence; it tells each link the addresses of all others. Nor is its browser: it keeps every
// service that it was ever told of, compares each with each, and says nothing when one moves.

/** The parts of a Bonjour instance that its types call private. */
interface BonjourParts {
  readonly server: {
    readonly mdns: {
      on (event: 'packet' | 'query' | 'response', listener: (packet: Packet, source: RemoteInfo) => void): void
      on (event: 'error' | 'warning', listener: (error: Error) => void): void
      removeAllListeners (event: 'query'): void
      query (questions: ReadonlyArray<{ name: string, type: string }>, done: (error?: Error | null) => void): void
      respond (records: readonly DnsRecord[], done: (error?: Error | null) => void): void
    }
    register (records: readonly DnsRecord[]): void
    unregister (records: readonly DnsRecord[]): void
    respondToQuery (query: Pick<Packet, 'questions'>): void
  }
}

export interface LinkListener {
  /** A service of a browsed type was told of, from `host` on this link. */
  onService (type: string, service: Service, host: string): void
  /** The socket cannot be used any more, or could never be. Called once. */
  onFailed (reason: string): void
}

export interface SessionState {
  readonly failed: string | undefined
  /** Why the last packet of ours was not sent, where it was not. */
  readonly unsent: string | undefined
  readonly dropped: number
  readonly thrown: number
}

/** One interface: what is announced and asked for there. */
export class LinkSession {
  readonly index: number
  readonly #zone: string
  readonly #bonjour: Bonjour
  readonly #server: BonjourParts['server']
  readonly #gate: Gate
  readonly #answers: Bucket
  readonly #listener: LinkListener
  readonly #monotonic: () => number
  #browsed: readonly string[] = []
  #addresses: readonly string[] = []
  #records: DnsRecord[] = []
  #names: Buffer[] = []
  #timers: NodeJS.Timeout[] = []
  #failed: string | undefined
  #unsent: string | undefined
  #thrown = 0
  #isClosed = false

  /** `makeSocket` is for tests, which have packets and no link. */
  constructor ({ name, index }: Link, listener: LinkListener, monotonic: () => number = () => performance.now(), makeSocket: (...args: ConstructorParameters<typeof LinkSocket>) => LinkSocket = (...args) => new LinkSocket(...args)) {
    this.index = index
    this.#zone = name
    this.#listener = listener
    this.#monotonic = monotonic
    this.#gate = new Gate(name, monotonic)
    this.#answers = new Bucket(DISCOVERY_LIMITS.answersPerSecond, DISCOVERY_LIMITS.answerBurst, monotonic())
    const socket = makeSocket(name, (packet, source) => this.#gate.admits(packet, source, this.#names), () => { this.#thrown += 1 })
    this.#bonjour = new Bonjour({ type: 'udp6', ip: MDNS_GROUP, interface: `::%${name}`, socket } as never, (error: Error) => { this.#sent(error) })
    this.#server = (this.#bonjour as unknown as BonjourParts).server
    const { mdns } = this.#server
    mdns.on('error', error => { this.#fail(error) })
    // A membership that is refused: the interface is going.
    mdns.on('warning', error => { if (systemCode(error) !== undefined) this.#unsent = messageOf(error) })
    mdns.removeAllListeners('query')
    mdns.on('query', query => {
      if (this.#records.length > 0 && this.#addresses.length > 0 && this.#answers.take(this.#monotonic())) this.#server.respondToQuery({ questions: readQuestions(query) })
    })
    mdns.on('response', (packet, source) => {
      for (const type of this.#browsed) {
        for (const service of readServices(packet, type)) this.#listener.onService(type, service, splitZone(source.address).host)
      }
    })
  }

  get state (): SessionState {
    return { failed: this.#failed, unsent: this.#unsent, dropped: this.#gate.dropped, thrown: this.#thrown }
  }

  /** Replaces what is announced, browsed and told of this machine, and announces at once where there is an
   * address to send from. */
  offer (published: readonly Published[], browsed: readonly string[], addresses: readonly string[]): void {
    if (this.#isClosed) return
    this.#browsed = browsed
    this.#addresses = addresses
    const before = this.#records
    this.#records = published.flatMap(service => recordsOf(service, addresses))
    this.#server.unregister(before)
    this.#server.register(this.#records)
    this.#goodbye(before.filter(({ name, type }) => !this.#records.some(record => record.name === name && record.type === type)))
    const labels = [...published.map(({ host }) => host), ...[...published.map(({ type }) => type), ...browsed].map(type => type.split('.')[0]!), ...published.length > 0 ? ['_services'] : []]
    this.#names = [...new Set(labels)].map(wireLabel)
    this.announce()
  }

  /** Announces and asks, now and a few times more: somebody may be new on the link, or we are. */
  announce (): void {
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers = []
    if (this.#addresses.length === 0 || this.#isClosed) return
    for (const delay of ANNOUNCE_AT_MS) this.#later(delay, () => { this.#say() })
    const goOn = (): void => {
      this.#later(ANNOUNCE_EVERY_MS * (0.8 + Math.random() / 5), () => {
        this.#tell(this.#records)
        goOn()
      })
    }
    goOn()
  }

  /** A known device was recognised at this source. */
  vouch (host: string): void { this.#gate.vouch(host) }

  /** Takes back what was announced, where that can still be sent, and closes the socket. */
  close (): void {
    if (this.#isClosed) return
    this.#isClosed = true
    for (const timer of this.#timers) clearTimeout(timer)
    // Nobody may be left to hear it; bonjour-service closes the socket after it is handed to the kernel.
    if (this.#failed === undefined && this.#addresses.length > 0) this.#goodbye(this.#records)
    setImmediate(() => { this.#bonjour.destroy() })
  }

  #later (delay: number, task: () => void): void {
    if (delay === 0) task()
    else this.#timers = [...this.#timers.slice(-ANNOUNCE_AT_MS.length), setTimeout(task, delay)]
  }

  #say (): void {
    this.#tell(this.#records)
    if (this.#browsed.length > 0) this.#server.mdns.query(this.#browsed.map(name => ({ name, type: 'PTR' })), error => { this.#sent(error) })
  }

  #tell (records: readonly DnsRecord[]): void {
    if (records.length > 0) this.#server.mdns.respond(records, error => { this.#sent(error) })
  }

  /** RFC 6762 section 10.1. The type of all types stays: others may have services too. */
  #goodbye (records: readonly DnsRecord[]): void {
    this.#tell(records.filter(({ name }) => !name.startsWith('_services.')).map(record => ({ ...record, ttl: 0 })))
  }

  #sent (error: Error | null | undefined): void {
    this.#unsent = error === null || error === undefined ? undefined : messageOf(error)
  }

  #fail (error: Error): void {
    if (this.#failed !== undefined || this.#isClosed) return
    this.#failed = systemCode(error) === 'EADDRINUSE'
      ? `another program keeps UDP port 5353 to itself on ${this.#zone}`
      : messageOf(error)
    this.#listener.onFailed(this.#failed)
  }
}

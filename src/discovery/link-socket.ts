import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { EventEmitter } from 'node:events'
import { MDNS_PORT } from './gate.js'

/** The group of mDNS on a link (RFC 6762 section 3). */
export const MDNS_GROUP = 'ff02::fb'

/**
 * The socket that multicast-dns is given: it shows it what `admits` admits and nothing else, so that
 * whatever parsing costs, what is not for us costs none of it.
 *
 * It is bound to the group on its interface, where multicast-dns would bind `::`. So other interfaces'
 * packets never reach it, unicast to port 5353 stays with whoever had it (avahi, systemd-resolved), and
 * SO_REUSEADDR lets it in beside them.
 */
export class LinkSocket extends EventEmitter {
  readonly #zone: string
  readonly #socket: Socket
  #isClosed = false

  constructor (zone: string, admits: (packet: Buffer, source: RemoteInfo) => boolean, onThrown: (error: unknown) => void) {
    super()
    this.#zone = zone
    this.#socket = createSocket({ type: 'udp6', reuseAddr: true })
    this.#socket.on('listening', () => this.emit('listening'))
    this.#socket.on('error', error => this.emit('error', error))
    this.#socket.on('message', (packet, source) => {
      // What the library throws at a packet must not end the worker: the next one would follow at once.
      try {
        if (admits(packet, source)) this.emit('message', packet, source)
      } catch (error) {
        onThrown(error)
      }
    })
  }

  bind (_port: number, _address: string, done: () => void): void {
    this.#socket.bind({ port: MDNS_PORT, address: `${MDNS_GROUP}%${this.#zone}` }, done)
  }

  address (): ReturnType<Socket['address']> { return this.#socket.address() }

  addMembership (group: string, at: string): void { this.#socket.addMembership(group, at) }

  /** Closing drops it too, and cannot fail where the interface is gone. */
  dropMembership (): void { /* see close */ }

  setMulticastInterface (at: string): void { this.#socket.setMulticastInterface(at) }

  setMulticastTTL (hops: number): void { this.#socket.setMulticastTTL(hops) }

  setMulticastLoopback (on: boolean): void { this.#socket.setMulticastLoopback(on) }

  send (packet: Buffer, offset: number, length: number, port: number, to: string, done: (error: Error | null) => void): void {
    if (this.#isClosed) done(null)
    else this.#socket.send(packet, offset, length, port, to, done)
  }

  close (done?: () => void): void {
    if (this.#isClosed) {
      done?.()
      return
    }
    this.#isClosed = true
    this.#socket.close(done)
  }
}

import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { hostOf, type Address } from '../core/address.js'

/** The cable to one device: a TCP relay on loopback that a test cuts, slows and heals. Bytes pass as they
 * are; TLS runs between the devices themselves. */
export class Relay {
  readonly #to: () => Address
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  #isCut = false
  #isFrozen = false
  #bytesPerSecond = Infinity
  /** Bytes that passed, both ways. */
  bytes = 0

  constructor (to: () => Address) {
    this.#to = to
    this.#server = createServer(socket => { this.#relay(socket) })
  }

  async listen (): Promise<void> {
    this.#server.listen({ host: '::1', port: 0 })
    await once(this.#server, 'listening')
  }

  get address (): Address { return { host: '::1', port: (this.#server.address() as AddressInfo).port } }

  /** Every connection is gone, and none is made until `heal`. */
  cut (): void {
    this.#isCut = true
    for (const socket of this.#sockets) socket.resetAndDestroy()
  }

  heal (): void { this.#isCut = false }

  /** Nothing passes any more, and neither end is told: as when the other machine was suspended. Connections stay
   * silent until `thaw`, which resets them. */
  freeze (): void {
    this.#isFrozen = true
    for (const socket of this.#sockets) socket.unpipe().pause()
  }

  thaw (): void {
    this.#isFrozen = false
    for (const socket of this.#sockets) socket.resetAndDestroy()
  }

  /** Connections made from now on carry at most this, each way. */
  slow (bytesPerSecond: number): void { this.#bytesPerSecond = bytesPerSecond }

  async close (): Promise<void> {
    this.cut()
    await new Promise<void>(resolve => { this.#server.close(() => { resolve() }) })
  }

  #relay (near: Socket): void {
    if (this.#isCut) {
      near.resetAndDestroy()
      return
    }
    if (this.#isFrozen) {
      this.#sockets.add(near)
      near.on('error', () => undefined).on('close', () => { this.#sockets.delete(near) }).pause()
      return
    }
    const far = connect({ host: hostOf(this.#to()), port: this.#to().port, noDelay: true })
    near.setNoDelay(true)
    for (const socket of [near, far]) {
      this.#sockets.add(socket)
      socket.once('close', () => {
        this.#sockets.delete(socket)
        // A cable has no half: what one end lost, the other loses too.
        near.destroy()
        far.destroy()
      })
    }
    for (const [from, to] of [[near, far], [far, near]] as const) {
      // That a connection ended, and how, both ends see for themselves.
      pipeline(from, this.#throttle(), to).catch(() => undefined)
    }
  }

  #throttle (): Transform {
    const rate = this.#bytesPerSecond
    let timer: NodeJS.Timeout | undefined
    return new Transform({
      transform: (chunk: Buffer, _encoding, done) => {
        this.bytes += chunk.length
        if (rate === Infinity) done(null, chunk)
        else timer = setTimeout(() => { done(null, chunk) }, chunk.length / rate * 1000)
      },
      destroy: (error, done) => {
        clearTimeout(timer)
        done(error)
      },
    })
  }
}

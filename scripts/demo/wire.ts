import { readFileSync } from 'node:fs'
import { createServer, connect, type AddressInfo, type Server, type Socket } from 'node:net'
import { once } from 'node:events'
import type { Device } from './device.js'

/** A wire of our own between one client and the port of a device: it passes bytes on as they are, no faster
 * than told, and knows how many there were and when it was cut. */
export class Wire {
  readonly #server: Server
  readonly #to: number
  readonly #bytesPerSecond: number
  #near: Socket | undefined
  #isOpen = false
  #cutAt: number | undefined
  #bytes = 0

  static async to (device: Device, bytesPerSecond = Infinity): Promise<Wire> {
    const wire = new Wire(device.port, bytesPerSecond)
    wire.#server.listen({ host: '::1', port: 0 })
    await once(wire.#server, 'listening')
    return wire
  }

  private constructor (to: number, bytesPerSecond: number) {
    this.#to = to
    this.#bytesPerSecond = bytesPerSecond
    this.#server = createServer(client => { this.#join(client) })
  }

  /** Where the client connects to. */
  get port (): number { return (this.#server.address() as AddressInfo).port }
  /** Bytes that came from the device, as this process read them. */
  get bytes (): number { return this.#bytes }
  /** When the device's end was gone (performance.now()). */
  get cutAt (): number | undefined { return this.#cutAt }

  /** Bytes that the system still holds on the device's side of the wire, to be sent, whoever has closed what.
   * proc_net_tcp: a socket that was closed with bytes to send stays until they are sent. */
  unsent (): number {
    const local = hexPort(this.#to)
    const remote = hexPort(this.#near?.localPort ?? 0)
    for (const line of readFileSync('/proc/net/tcp6', 'latin1').split('\n')) {
      const [, from = '', to = '', , queues = ''] = line.trim().split(/\s+/)
      if (from.endsWith(local) && to.endsWith(remote)) return parseInt(queues.split(':')[0] ?? '0', 16)
    }
    return 0
  }

  /** Reads what is left on this side as fast as it can. */
  hurry (): void {
    this.#isOpen = true
    this.#near?.resume()
  }

  close (): void {
    this.#near?.destroy()
    this.#server.close()
  }

  #join (client: Socket): void {
    const near = connect({ host: '::1', port: this.#to, noDelay: true })
    this.#near = near
    near.on('data', (chunk: Buffer) => {
      this.#bytes += chunk.length
      client.write(chunk)
      if (this.#isOpen || this.#bytesPerSecond === Infinity) return
      near.pause()
      setTimeout(() => { near.resume() }, chunk.length / this.#bytesPerSecond * 1000)
    })
    const cut = (): void => {
      this.#cutAt ??= performance.now()
      client.end()
    }
    near.on('end', cut)
    near.on('error', cut)
    near.on('close', cut)
    client.on('data', (chunk: Buffer) => { near.write(chunk) })
    client.on('end', () => { near.end() })
    client.on('error', () => { near.destroy() })
  }
}

const hexPort = (port: number): string => `:${port.toString(16).toUpperCase().padStart(4, '0')}`

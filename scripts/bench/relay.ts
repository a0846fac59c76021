import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'

// The way between two ends, as something that can be cut: each end is reached through a port of ours, which counts what
// goes to the far end.

export class Way {
  readonly #servers: Server[] = []
  readonly #sockets = new Set<Socket>()
  #isCut = false
  #bytes = 0
  #due: { readonly at: number, readonly task: () => void } | undefined

  /** Bytes that went to the far end so far, whoever opened the connection. */
  get bytes (): number { return this.#bytes }

  /** A port of [::1] that leads to `port` of [::1], behind which one of the ends listens. */
  async to (end: 'near' | 'far', port: number): Promise<number> {
    const server = createServer({ noDelay: true }, incoming => {
      if (this.#isCut) {
        incoming.destroy()
        return
      }
      const outgoing = connect({ host: '::1', port, noDelay: true })
      for (const [from, into] of [[incoming, outgoing], [outgoing, incoming]] as const) {
        this.#sockets.add(from)
        // Neither end learns more from a relay than that the connection is over.
        from.on('error', () => undefined)
        from.on('close', () => {
          this.#sockets.delete(from)
          into.destroy()
        })
        if ((end === 'far') === (from === incoming)) from.on('data', (chunk: Buffer) => { this.#count(chunk.length) })
        from.pipe(into)
      }
    })
    this.#servers.push(server)
    server.listen(0, '::1')
    await once(server, 'listening')
    return (server.address() as AddressInfo).port
  }

  /** Cuts every connection when `bytes` more went to the far end, and lets none in until `heal`. */
  cutAfter (bytes: number): Promise<void> {
    return new Promise(resolve => {
      this.#due = { at: this.#bytes + bytes, task: () => {
        this.#due = undefined
        this.#isCut = true
        for (const socket of this.#sockets) socket.destroy()
        resolve()
      } }
    })
  }

  heal (): void { this.#isCut = false }

  close (): void {
    for (const server of this.#servers) server.close()
    for (const socket of this.#sockets) socket.destroy()
  }

  #count (bytes: number): void {
    this.#bytes += bytes
    if (this.#due !== undefined && this.#bytes >= this.#due.at) this.#due.task()
  }
}

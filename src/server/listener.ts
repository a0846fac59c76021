import { constants } from 'node:crypto'
import { once } from 'node:events'
import { createServer as createTcpServer, type AddressInfo, type Server as TcpServer, type Socket } from 'node:net'
import { createServer as createTlsServer, type Server as TlsServer, type TLSSocket } from 'node:tls'
import { splitZone, type Address } from '../core/address.js'
import type { Clock } from '../core/clock.js'
import { PatchcordError, systemCode } from '../core/errors.js'
import type { Limits } from '../core/limits.js'
import type { Logger } from '../core/log.js'
import { Sources } from './sources.js'

export interface ListenerOptions {
  readonly key: string
  readonly certificates: string
  readonly allowRouted: boolean
  readonly limits: Limits
  readonly clock: Clock
  readonly logger: Logger
  /** Called with every socket whose handshake ended, and what it runs over, before one byte of HTTP is read
   * from it. */
  readonly onSecure: (socket: TLSSocket, transport: Socket) => void
  /** Called where a connection was not to be had for want of a descriptor, in words. */
  readonly onShortage: (what: string) => void
}

/**
 * The open port: TCP on IPv6, then TLS 1.3. It lets in whoever may knock (sources.ts) and proves only that
 * the client holds the key of the certificate it showed; who that is, admission decides.
 *
 * `ca` is empty and `rejectUnauthorized` false: with a CA, Node would send its name to any stranger, and
 * judge dates by the system's clock instead of ours.
 */
export class Listener {
  readonly #options: ListenerOptions
  readonly #tls: TlsServer
  readonly #tcp: TcpServer[] = []
  readonly #sources: Sources
  /** Accepted and not yet admitted, by both ends' addresses. */
  readonly #knocking = new Map<string, Socket>()

  constructor (options: ListenerOptions) {
    this.#options = options
    this.#sources = new Sources(options.limits, options.allowRouted, options.clock)
    this.#tls = createTlsServer({
      ...secureContext(options.key, options.certificates),
      requestCert: true,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
      handshakeTimeout: options.limits.handshakeMs,
    })
    this.#tls.on('secureConnection', socket => { this.#secured(socket) })
    this.#tls.on('tlsClientError', (error, socket) => {
      options.logger.debug({ error: systemCode(error) ?? error.message }, 'handshake failed')
      socket.destroy()
    })
  }

  /** Listens on one more address and says where. Throws `port-in-use`, or `unreachable` where the address
   * is none of this machine's. */
  async listen (host: string, port: number): Promise<Address> {
    const server = createTcpServer({ noDelay: true })
    server.on('connection', socket => { this.#accepted(socket) })
    try {
      server.listen({ host, port, ipv6Only: true, backlog: 511 })
      await once(server, 'listening')
    } catch (error) {
      const code = systemCode(error)
      const where = `[${host}]:${port}`
      if (code === 'EADDRINUSE') throw new PatchcordError('port-in-use', `port ${port} is in use (${where})`, { cause: error })
      if (code === 'EACCES') throw new PatchcordError('port-in-use', `port ${port} needs root`, { hint: 'choose a port above 1023 with --listen', cause: error })
      throw new PatchcordError('unreachable', `cannot listen on ${where}: ${code ?? String(error)}`, { hint: 'the address must be one of this machine\'s, with its interface where it is link-local', cause: error })
    }
    // What comes from now on is about one connection: the system lets this process have no more of them. Those that are not
    // admitted yet make room, at once: libuv asks for the next connection before anything else runs, again and again.
    server.on('error', error => {
      this.#options.onShortage(`a connection could not be accepted: ${systemCode(error) ?? error.message}`)
      for (const socket of this.#knocking.values()) socket.destroy()
    })
    this.#tcp.push(server)
    const bound = server.address() as AddressInfo
    return { ...splitZone(bound.address), ...splitZone(host), port: bound.port }
  }

  /** For new handshakes; connections that run keep what they have. Throws where key and certificate do not
   * belong together, and keeps the old ones. */
  renew (key: string, certificates: string): void {
    this.#tls.setSecureContext(secureContext(key, certificates))
  }

  /** Accepts nothing more, and ends what was not admitted. */
  async close (): Promise<void> {
    for (const socket of this.#knocking.values()) socket.destroy()
    await Promise.all(this.#tcp.map(server => new Promise<void>(resolve => { server.close(() => { resolve() }) })))
    this.#tls.removeAllListeners()
  }

  #accepted (socket: Socket): void {
    const { limits, logger } = this.#options
    const refusal = this.#knocking.size >= limits.handshakes ? 'too many connections are not yet admitted' : this.#sources.refusal(socket.remoteAddress, socket.localAddress)
    if (refusal !== undefined) {
      logger.debug({ remote: socket.remoteAddress, reason: refusal }, 'dropped')
      socket.destroy()
      return
    }
    const ends = endsOf(socket)
    this.#knocking.set(ends, socket)
    socket.once('close', () => { if (this.#knocking.get(ends) === socket) this.#knocking.delete(ends) })
    socket.on('error', error => { logger.trace({ error: systemCode(error) }, 'connection failed') })
    this.#tls.emit('connection', socket)
  }

  #secured (socket: TLSSocket): void {
    const ends = endsOf(socket)
    const transport = this.#knocking.get(ends)
    socket.on('error', error => { this.#options.logger.trace({ error: systemCode(error) }, 'connection failed') })
    if (transport === undefined) {
      // It ended just now, and has no address any more.
      socket.destroy()
      return
    }
    this.#knocking.delete(ends)
    this.#options.onSecure(socket, transport)
  }
}

function endsOf ({ remoteAddress, remotePort, localAddress, localPort }: Socket): string {
  return `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`
}

/** All suites of RFC 8446 that OpenSSL offers. First the one that it makes mandatory: 128 bits are the strength of the P-256 keys as
 * well, and it has 10 rounds where AES-256, OpenSSL's first, has 14. A client that puts ChaCha20 first, as those without AES in their
 * processor do, gets that. */
const SUITES = 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384'

/** OpenSSL still sends two tickets of its own under SSL_OP_NO_TICKET; they name a session in a cache that
 * does not exist, so nothing ever resumes. */
function secureContext (key: string, cert: string): Parameters<TlsServer['setSecureContext']>[0] & { ca: string[] } {
  return { key, cert, ca: [], minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3', ciphers: SUITES, secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_PRIORITIZE_CHACHA }
}

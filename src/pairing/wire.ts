import { constants, randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import type { SecureContextOptions, TLSSocket } from 'node:tls'
import { splitZone, type Address } from '../core/address.js'
import type { Clock } from '../core/clock.js'
import type { Logger } from '../core/log.js'
import { SCALAR_BYTES } from './cpace.js'
import { FrameReader, type Frame } from './frames.js'
import type { Certificates, Other, Pair, Self } from './party.js'
import { EXPORTER_LABEL, SID_BYTES, type Channel } from './proof.js'
import type { Relation } from './messages.js'

// One TLS connection between the two devices, as the machines see it. TLS proves here that each end has the
// key of the certificate it showed, and nothing else: whose that is, CPace decides.

/** What both drivers need. */
export interface PairingHost {
  readonly clock: Clock
  readonly logger: Logger
  readonly self: Self
  /** The device key and a certificate over it that it signed itself, as PEM. Nothing in it may name a person,
   * a host or the user CA. */
  selfSigned (): Promise<{ readonly key: string, readonly certificate: string }>
  /** Shows the person who asks for what, and gives the relation that they confirmed; undefined where they
   * refused. The question is void once `signal` aborts. */
  confirm (other: Other, signal: AbortSignal): Promise<Relation | undefined>
  /** Writes the pair durably: whole, or not at all and throws. `at` is where its open port should be. With a
   * device that is paired already it mends what is missing and changes nothing else. */
  commit (pair: Pair, at: Address | undefined): Promise<void>
}

/** Only a pairing listener speaks this, and it speaks nothing else: no other port of ours can be taken for
 * one. */
export const PAIRING_ALPN = 'patchcord-pair/1'

/** TLS 1.3 alone, and no session that could be resumed with a key that was not shown. `ca` is empty because
 * the certificates are self-signed, and because Node would send the names of CAs to a stranger. */
export const tlsOptions = ({ key, certificate }: { readonly key: string, readonly certificate: string }): SecureContextOptions & { ca: string[], rejectUnauthorized: boolean, ALPNProtocols: string[] } => ({
  key, cert: certificate, ca: [], minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3',
  rejectUnauthorized: false, secureOptions: constants.SSL_OP_NO_TICKET, ALPNProtocols: [PAIRING_ALPN],
})

/** What the connection proves, or undefined where it is not one to pair over: no certificate, not P-256 in
 * its one form, resumed, another protocol. */
export function channelOf (socket: TLSSocket, { deviceOf }: Pick<Certificates, 'deviceOf'>): Channel | undefined {
  const certificate = socket.getPeerX509Certificate()
  if (certificate === undefined || socket.isSessionReused() || socket.alpnProtocol !== PAIRING_ALPN || socket.getProtocol() !== 'TLSv1.3') return undefined
  try {
    return {
      sid: socket.exportKeyingMaterial(SID_BYTES, EXPORTER_LABEL, Buffer.alloc(0)),
      other: deviceOf(certificate.raw),
      random: randomBytes(SCALAR_BYTES),
    }
  } catch {
    return undefined
  }
}

/** Where the other device's open port should be, as seen from here. */
export function openPortOf (socket: Pick<Socket, 'remoteAddress'> | undefined, { port }: Other): Address | undefined {
  const remoteAddress = socket?.remoteAddress
  return remoteAddress === undefined || port === undefined ? undefined : { ...splitZone(remoteAddress), port }
}

/** How long a last word may take to leave. */
const LINGER_MS = 1000

/** Reads frames off a socket and writes them. */
export class Wire {
  readonly #socket: TLSSocket
  readonly #clock: Clock

  constructor (socket: TLSSocket, clock: Clock, { onFrame, onBroken, onClose }: { readonly onFrame: (frame: Frame) => void, readonly onBroken: () => void, readonly onClose: () => void }) {
    this.#socket = socket
    this.#clock = clock
    const reader = new FrameReader()
    socket.setNoDelay(true)
    socket.on('data', (chunk: Buffer) => {
      const { frames, broken } = reader.push(chunk)
      for (const frame of frames) onFrame(frame)
      if (broken) {
        socket.removeAllListeners('data')
        socket.resume()
        onBroken()
      }
    })
    socket.on('error', () => { socket.destroy() })
    socket.on('end', () => { onClose() })
    socket.on('close', () => { onClose() })
  }

  send (frame: Buffer): void {
    if (this.#socket.writable) this.#socket.write(frame)
  }

  /** What was sent still leaves. Unread input would turn the end into a reset that overtakes it. */
  close (): void {
    if (this.#socket.destroyed) return
    this.#socket.resume()
    this.#socket.end()
    const timer = this.#clock.after(LINGER_MS, () => { this.#socket.destroy() })
    this.#socket.once('close', () => { timer.cancel() })
  }
}

import { once } from 'node:events'
import { createServer as createTcpServer, type AddressInfo, type Server as TcpServer, type Socket } from 'node:net'
import { createServer as createTlsServer, type Server as TlsServer, type TLSSocket } from 'node:tls'
import type { Address } from '../core/address.js'
import type { Timer } from '../core/clock.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { Charges } from './charges.js'
import { failureError } from './failures.js'
import { formatLink, newCode, newLinkSecret, ownAddresses } from './invitation.js'
import { encodeRecord } from './messages.js'
import type { Other, Pair } from './party.js'
import { openWindow, respond, responderDeadline } from './responder.js'
import { MOST_WAITING, STEP_MS, WINDOW_MS, type ResponderEffect, type ResponderEvent, type ResponderState, type SessionId } from './responder-state.js'
import { channelOf, openPortOf, tlsOptions, Wire, type PairingHost } from './wire.js'

/** What the device that opens a window needs. */
export interface ResponderHost extends PairingHost {
  readonly charges: Charges
  /** Issues for the two requests of `other`: the device's and the server's certificate, DER. It keeps
   * nothing: `commit` is given them to write. */
  issue (other: Other): Promise<readonly Buffer[]>
  /** An attempt came to nothing. The window goes on while `attemptsLeft` is above 0, or for the link. */
  failed (error: PatchcordError, attemptsLeft: number): void
  /** Whether a source may connect at all, as for the open port; all may where this is absent. */
  readonly admits?: (socket: Socket) => boolean
}

export interface WindowOptions {
  /** Where to listen: a literal IPv6 address, with its zone where it is link-local. All by default. */
  readonly host?: string
  /** Without a code only the link works, and no back-off is waited for. */
  readonly withCode?: boolean
  /** Where others reach a port of this machine; its own addresses by default. */
  readonly addresses?: (port: number) => Address[]
}

/** What to show the person. */
export interface Invitation {
  readonly code: string | undefined
  readonly link: string
  /** Milliseconds since 1970, for showing; what ends the window is the monotonic clock. */
  readonly expiresAt: number
  readonly addresses: readonly Address[]
  readonly port: number
}

/** How a window ended. `confirmed`: the other device said that it has the pair, too. */
export interface WindowOutcome {
  readonly pair?: Pair
  readonly confirmed: boolean
}

/** A pairing window, from its opening to its end. Closing it leaves no listener, socket or timer behind. */
export class PairingWindow {
  readonly invitation: Invitation
  /** Settles when the window is over; never rejects. */
  readonly done: Promise<WindowOutcome>
  readonly #host: ResponderHost
  readonly #tls: TlsServer
  readonly #tcp: TcpServer
  readonly #sockets = new Map<SessionId, Socket>()
  readonly #wires = new Map<SessionId, Wire>()
  readonly #events: ResponderEvent[] = []
  #state: ResponderState
  #timer: Timer | undefined
  #question: AbortController | undefined
  #isTaking = false
  #sessions = 0
  #written: Promise<void> = Promise.resolve()
  #settle!: (outcome: Promise<WindowOutcome>) => void

  /** Opens a window. Throws `too-many` while codes back off, saying for how long, unless `withCode` is false;
   * `usage` for a record of ours that does not fit; `unreachable` where it cannot listen. */
  static async open (host: ResponderHost, { host: where = '::', withCode = true, addresses = ownAddresses }: WindowOptions = {}): Promise<PairingWindow> {
    const { wait } = host.charges
    if (withCode && wait > 0) {
      throw new PatchcordError('too-many', `a code failed a moment ago: the next one may be shown in ${Math.ceil(wait / 1000)} s`, { hint: 'wait, or show the link alone, which nobody can guess: patchcord pair --link-only' })
    }
    checkRecord(host)
    const tls = createTlsServer({ ...tlsOptions(await host.selfSigned()), requestCert: true, handshakeTimeout: STEP_MS })
    const tcp = createTcpServer({ noDelay: true })
    tcp.maxConnections = 2 * MOST_WAITING
    try {
      tcp.listen({ host: where, port: 0, ipv6Only: true })
      await once(tcp, 'listening')
    } catch (error) {
      throw new PatchcordError('unreachable', `cannot listen for pairing: ${systemCode(error) ?? String(error)}`, { cause: error })
    }
    const { port } = tcp.address() as AddressInfo
    const secret = newLinkSecret()
    const code = withCode ? newCode() : undefined
    const reachable = addresses(port)
    const invitation: Invitation = Object.freeze({
      code, port, addresses: reachable,
      link: formatLink({ secret, device: host.self.device, addresses: reachable }),
      expiresAt: host.clock.now() + WINDOW_MS,
    })
    return new PairingWindow(host, tls, tcp, invitation, openWindow({ self: host.self, link: secret, ...(code === undefined ? {} : { code }) }, host.clock.monotonic()))
  }

  private constructor (host: ResponderHost, tls: TlsServer, tcp: TcpServer, invitation: Invitation, state: ResponderState) {
    this.#host = host
    this.#tls = tls
    this.#tcp = tcp
    this.invitation = invitation
    this.#state = state
    this.done = new Promise(resolve => { this.#settle = resolve })
    tcp.on('connection', socket => { this.#accepted(socket) })
    tls.on('secureConnection', socket => { this.#secured(socket) })
    tls.on('tlsClientError', (_error, socket) => { socket.destroy() })
    this.#arm()
  }

  /** The person closes the window. A pair that is being written is still told of, by `done`. */
  async close (): Promise<WindowOutcome> {
    this.#take({ type: 'cancelled' })
    return await this.done
  }

  #accepted (socket: Socket): void {
    socket.on('error', () => { socket.destroy() })
    if (this.#state.phase !== 'open' || this.#host.admits?.(socket) === false) {
      socket.destroy()
      return
    }
    const session = ++this.#sessions
    this.#sockets.set(session, socket)
    socket.once('close', () => {
      this.#sockets.delete(session)
      this.#take({ type: 'closed', session })
    })
    this.#take({ type: 'accepted', session })
    if (!socket.destroyed) this.#tls.emit('connection', socket)
  }

  #secured (socket: TLSSocket): void {
    socket.on('error', () => { socket.destroy() })
    const [session] = [...this.#sockets].find(([, raw]) => isSameEnd(raw, socket)) ?? []
    const channel = channelOf(socket, this.#host.self.certificates)
    if (session === undefined || channel === undefined) {
      socket.destroy()
      return
    }
    this.#wires.set(session, new Wire(socket, this.#host.clock, {
      onFrame: frame => { this.#take({ type: 'frame', session, frame }) },
      onBroken: () => { this.#take({ type: 'broken', session }) },
      onClose: () => {
        this.#wires.delete(session)
        this.#take({ type: 'closed', session })
      },
    }))
    this.#take({ type: 'secured', session, channel })
  }

  /** Effects may bring events about at once; each event is taken whole before the next. */
  #take (event: ResponderEvent): void {
    this.#events.push(event)
    if (this.#isTaking) return
    this.#isTaking = true
    for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
      const { state, effects } = respond(this.#state, next, this.#host.clock.monotonic())
      this.#state = state
      for (const effect of effects) this.#perform(effect)
    }
    this.#isTaking = false
    this.#arm()
  }

  #perform (effect: ResponderEffect): void {
    const { charges, logger } = this.#host
    switch (effect.do) {
      case 'charge': {
        const { session } = effect
        this.#answer(charges.charge(effect.charges), () => ({ type: 'charged', session, ok: true }), { type: 'charged', session, ok: false })
        return
      }
      case 'proven':
        // Nobody else gets in; those who are in were told.
        this.#tcp.close()
        this.#written = charges.proven().catch((error: unknown) => { logger.warn({ reason: messageOf(error) }, 'the back-off of codes could not be taken back') })
        return
      case 'send':
        this.#wires.get(effect.session)?.send(effect.frame)
        return
      case 'ask': {
        const { session } = effect
        this.#question = new AbortController()
        this.#answer(this.#host.confirm(effect.other, this.#question.signal), relation => ({ type: 'answered', session, ...(relation === undefined ? {} : { relation }) }), { type: 'answered', session })
        return
      }
      case 'withdraw':
        this.#question?.abort()
        return
      case 'issue': {
        const { session } = effect
        this.#answer(this.#host.issue(effect.other), certificates => ({ type: 'issued', session, certificates }), { type: 'issued', session })
        return
      }
      case 'commit': {
        const { session, pair } = effect
        this.#answer(this.#host.commit(pair, openPortOf(this.#sockets.get(session), pair.other)), () => ({ type: 'written', session, ok: true }), { type: 'written', session, ok: false })
        return
      }
      case 'close': {
        const wire = this.#wires.get(effect.session)
        if (wire === undefined) this.#sockets.get(effect.session)?.destroy()
        else wire.close()
        return
      }
      case 'tell':
        this.#host.failed(failureError(effect.failure), effect.attemptsLeft)
        return
      case 'end':
        this.#tcp.close()
        // The next window asks the disk how long a code has to wait.
        this.#settle(this.#written.then(() => ({ ...(effect.pair === undefined ? {} : { pair: effect.pair }), confirmed: effect.confirmed })))
    }
  }

  /** What a collaborator gives, as an event. Where it throws, the event is the refusal. */
  #answer<Result> (given: Promise<Result>, toEvent: (result: Result) => ResponderEvent, refusal: ResponderEvent): void {
    given.then(toEvent, (error: unknown) => {
      this.#host.logger.warn({ reason: messageOf(error) }, 'pairing: a step failed')
      return refusal
    }).then(event => { this.#take(event) }).catch((error: unknown) => { this.#host.logger.error({ reason: messageOf(error) }, 'pairing: a defect') })
  }

  #arm (): void {
    this.#timer?.cancel()
    const due = responderDeadline(this.#state)
    const { clock } = this.#host
    this.#timer = Number.isFinite(due) ? clock.after(Math.max(0, due - clock.monotonic()), () => { this.#take({ type: 'tick' }) }) : undefined
  }
}

/** A record of ours that cannot be encoded is told now, and not in the middle of an exchange. */
export function checkRecord ({ self }: Pick<PairingHost, 'self'>): void {
  try {
    encodeRecord({ ...self.record, role: 'R', relation: 'peer', requests: [] })
  } catch (error) {
    throw new PatchcordError('usage', messageOf(error), { hint: 'the name has 1 to 100 characters; at most 64 databases can be offered at once', cause: error })
  }
}

const isSameEnd = (one: Socket, other: Socket): boolean => one.remotePort === other.remotePort && one.remoteAddress === other.remoteAddress && one.localAddress === other.localAddress

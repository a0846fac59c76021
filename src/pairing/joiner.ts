import { once } from 'node:events'
import { connect, type TLSSocket } from 'node:tls'
import { formatAddress, hostOf, type Address } from '../core/address.js'
import type { Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { SpentShares } from './charges.js'
import { failureError, type Failure } from './failures.js'
import { initiate, initiatorDeadline, startJoining, type InitiatorEffect, type InitiatorEvent, type InitiatorOptions, type InitiatorOutcome, type InitiatorState } from './initiator.js'
import type { Link } from './invitation.js'
import { checkRecord } from './listener.js'
import type { Relation } from './messages.js'
import type { Pair } from './party.js'
import type { PendingPairs } from './pending.js'
import type { Channel } from './proof.js'
import { channelOf, openPortOf, tlsOptions, Wire, type PairingHost } from './wire.js'

/** What the device that joins needs. `commit` also makes it the other's own device where that was agreed:
 * one switch of the identity. */
export interface InitiatorHost extends PairingHost {
  readonly pending: PendingPairs
  readonly spent: SpentShares
  /** Signing requests of the device key and of the server key, DER: for `own`. */
  requests (): Promise<readonly Buffer[]>
}

export interface JoinOptions {
  /** What the person typed (six digits) or scanned. */
  readonly invitation: { readonly kind: 'code', readonly code: string } | { readonly kind: 'link', readonly link: Link }
  /** The addresses of one window, as this machine can dial them. */
  readonly addresses: readonly Address[]
  readonly relation: Relation
  readonly signal?: AbortSignal
}

export type JoinOutcome =
  | { readonly result: 'paired', readonly pair: Pair }
  | { readonly result: 'failed', readonly error: PatchcordError }
  /** We said yes and heard no more. It is written down for ten minutes. */
  | { readonly result: 'pending', readonly pair: Pair, readonly error: PatchcordError }

/** How long one address may take to answer. */
const CONNECT_MS = 5000

/** Joins a window: takes the first of its addresses that answers and runs the exchange there, once. Nothing is
 * tried again by itself after a share left. Never throws but for a record of ours that does not fit
 * (`usage`). */
export async function join (host: InitiatorHost, options: JoinOptions): Promise<JoinOutcome> {
  checkRecord(host)
  const { invitation, relation, signal } = options
  const isLink = invitation.kind === 'link'
  const dialled = await dial(host, options)
  if ('reason' in dialled) return { result: 'failed', error: failureError(dialled) }
  const exchange = new Exchange(host, dialled, {
    self: host.self,
    kind: invitation.kind,
    secret: isLink ? invitation.link.secret : Buffer.from(invitation.code),
    ...(isLink ? { device: invitation.link.device } : {}),
    relation,
    requests: relation === 'own' ? await host.requests() : [],
  })
  const cancel = (): void => { exchange.cancel() }
  if (signal?.aborted === true) cancel()
  signal?.addEventListener('abort', cancel)
  try {
    const outcome = await exchange.done
    if (outcome.result === 'paired') return outcome
    return { ...outcome, error: failureError(outcome.failure) }
  } finally {
    signal?.removeEventListener('abort', cancel)
  }
}

interface Dialled { readonly socket: TLSSocket, readonly channel: Channel }

/** The first address where a pairing window answers. For a link it must be that of its device: another one
 * that answers at the same link-local address, on another interface, is passed by. */
async function dial (host: InitiatorHost, { invitation, addresses, signal }: JoinOptions): Promise<Dialled | Failure> {
  const tls = tlsOptions(await host.selfSigned())
  let failure: Failure = { reason: 'unreachable', by: 'us' }
  for (const address of addresses) {
    if (signal?.aborted === true) return { reason: 'cancelled', by: 'us' }
    const socket = connect({ ...tls, host: hostOf(address), port: address.port })
    socket.on('error', () => { socket.destroy() })
    const timer = host.clock.after(CONNECT_MS, () => { socket.destroy() })
    try {
      await Promise.race([once(socket, 'secureConnect'), once(socket, 'close').then(() => { throw new Error('no TLS connection') })])
      const channel = channelOf(socket, host.self.certificates)
      if (channel === undefined) throw new Error('no pairing window')
      if (invitation.kind !== 'link' || channel.other === invitation.link.device) return { socket, channel }
      failure = { reason: 'wrong-device', by: 'us' }
      socket.destroy()
    } catch (error) {
      host.logger.debug({ address: formatAddress(address), reason: messageOf(error) }, 'pairing: nobody answers')
      socket.destroy()
    } finally {
      timer.cancel()
    }
  }
  return failure
}

/** One machine and its socket. */
class Exchange {
  readonly done: Promise<InitiatorOutcome>
  readonly #host: InitiatorHost
  readonly #socket: TLSSocket
  readonly #wire: Wire
  readonly #secret: Uint8Array
  readonly #question = new AbortController()
  readonly #events: InitiatorEvent[] = []
  #state: InitiatorState
  #timer: Timer | undefined
  #isTaking = false
  #disk: Promise<unknown> = Promise.resolve()
  #settle!: (outcome: InitiatorOutcome) => void

  constructor (host: InitiatorHost, { socket, channel }: Dialled, options: InitiatorOptions) {
    this.#host = host
    this.#socket = socket
    this.#secret = options.secret
    this.#state = startJoining(options, host.clock.monotonic())
    this.done = new Promise(resolve => { this.#settle = resolve })
    this.#wire = new Wire(socket, host.clock, {
      onFrame: frame => { this.#take({ type: 'frame', frame }) },
      onBroken: () => { this.#take({ type: 'broken' }) },
      onClose: () => { this.#take({ type: 'closed' }) },
    })
    this.#take({ type: 'connected', channel })
    if (socket.destroyed) this.#take({ type: 'closed' })
  }

  cancel (): void {
    this.#take({ type: 'cancelled' })
  }

  #take (event: InitiatorEvent): void {
    this.#events.push(event)
    if (this.#isTaking) return
    this.#isTaking = true
    const { clock } = this.#host
    for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
      const { state, effects } = initiate(this.#state, next, clock.monotonic())
      this.#state = state
      for (const effect of effects) this.#perform(effect)
    }
    this.#isTaking = false
    this.#timer?.cancel()
    const due = initiatorDeadline(this.#state)
    this.#timer = Number.isFinite(due) ? clock.after(Math.max(0, due - clock.monotonic()), () => { this.#take({ type: 'tick' }) }) : undefined
  }

  #perform (effect: InitiatorEffect): void {
    const { pending, spent, logger } = this.#host
    switch (effect.do) {
      case 'spend':
        this.#take({ type: 'spent', ok: spent.spend(this.#secret) })
        return
      case 'send':
        this.#wire.send(effect.frame)
        return
      case 'ask':
        this.#host.confirm(effect.other, this.#question.signal)
          .catch((error: unknown) => { logger.warn({ reason: messageOf(error) }, 'pairing: no answer of the person') })
          .then(relation => { this.#take({ type: 'answered', ...(relation === undefined ? {} : { relation }) }) })
          .catch((error: unknown) => { logger.error({ reason: messageOf(error) }, 'pairing: a defect') })
        return
      case 'withdraw':
        this.#question.abort()
        return
      case 'hold':
      case 'settle': {
        const { pair } = effect
        const at = openPortOf(this.#socket, pair.other)
        this.#write(effect.do === 'hold'
          ? () => pending.hold({ other: pair.other, ...(at === undefined ? {} : { at: formatAddress(at) }) })
          : async () => {
            await this.#host.commit(pair, at)
            // The pair counts already; what is left over ends by itself.
            await pending.drop(pair.other.device).catch((error: unknown) => { logger.warn({ reason: messageOf(error) }, 'pairing: the pending record stays') })
          })
        return
      }
      case 'drop':
        this.#disk = this.#disk.then(() => pending.drop(effect.pair.other.device)).catch((error: unknown) => { logger.warn({ reason: messageOf(error) }, 'pairing: the pending record stays') })
        return
      case 'close':
        this.#wire.close()
        return
      case 'end':
        this.#disk = this.#disk.then(() => { this.#settle(effect.outcome) })
    }
  }

  /** One write after the other; `written` follows each. */
  #write (task: () => Promise<void>): void {
    this.#disk = this.#disk.then(task).then(() => true, (error: unknown) => {
      this.#host.logger.warn({ reason: messageOf(error) }, 'pairing: a write failed')
      return false
    }).then(ok => { this.#take({ type: 'written', ok }) })
  }
}

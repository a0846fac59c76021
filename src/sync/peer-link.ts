import type { IncomingMessage } from 'node:http'
import { formatAddress, type Address } from '../core/address.js'
import { Bucket } from '../core/bucket.js'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { askPeer, bytePool, PeerAgent, readBody, refusedServer, type PeerCredentials } from './peer-agent.js'
import type { BytePool } from './byte-pool.js'
import { race } from './race.js'
import { fetchRestrictedMail, restrictedOrigin, type MailOrigin } from './restricted-mail.js'

// The sync room: what this device asks of others. Links (here), pulls of databases (pull.ts), downloads of files
// (download.ts).
//
// It promises that nothing is sent before the other end proved to be the device that was meant (peer-agent.ts),
// that what a pull writes is checked by what is written and not by what was asked for (guarded-target.ts), and
// that a file is there whole and verified or not at all. It must never push, or believe more of an answer
// than its signatures and hashes say.

export interface PeerLinkOptions {
  readonly device: DeviceId
  readonly credentials: () => Promise<PeerCredentials>
  /** Where the peer may be, best first. Asked for anew before each attempt. */
  readonly addresses: () => readonly Address[]
  readonly clock: Clock
  readonly logger: Logger
  /** Called with every new mail of the peer, and awaited before the next is asked for. */
  readonly onMail: (mail: unknown) => Promise<void> | void
  /** Called with mail that came while the link cannot come up: because our own certificate ended (from an
   * admitted server), because the peer's did, or because another CA signed it. It is for what is signed. */
  readonly onRestrictedMail?: (mail: unknown, origin: MailOrigin) => Promise<void> | void
  /** Whether the pinned CA counts for nothing any more: then the link never comes up, and only looks for what
   * is signed about that. */
  readonly isOver?: boolean
  /** Called when the link comes up or goes down. */
  readonly onChange: () => void
}

/** Back-off between attempts: from a second to a minute, each shortened by up to half at random. */
const FIRST_WAIT_MS = 1_000
const LONGEST_WAIT_MS = 60_000
/** Connections for files. Small ones are asked for over all of these at once, one after the other on each. The other side
 * takes 32 for each of its whitelist entries. */
const TRANSFERS = 8
/** Mails that are read at once, and in the long run each second: an offer that is accepted, goes on and lands is several within a moment, and a peer
 * whose mail changes all the time must not keep us spinning. */
const MAIL_BURST = 16
const MAILS_PER_SECOND = 10
/** How long an address may take to prove that it is the device, and to answer. */
const ATTEMPT_MS = 10_000
/** How long a sign of life may take, and after how long other addresses are tried beside. */
const CHECK_MS = 5_000
const DOUBT_MS = 1_500
/** The server ends a long-poll of `/mail` after 60 s (`mailPollMs`): one that is silent for longer is dead. */
const SILENT_MAIL_MS = 75_000
const MOST_MAIL_BYTES = 64 * 1024 + 1

/** Keeps one paired device reached: finds an address that answers, holds a long-poll on its mail (which
 * also tells when it is gone), and tries again with back-off. Requests to the peer go through `agent`. */
export class PeerLink {
  readonly device: DeviceId
  #agent: PeerAgent
  /** For files: connections of their own, so that feeds and downloads cannot starve each other. */
  readonly transfers: BytePool
  readonly #options: PeerLinkOptions
  readonly #abort = new AbortController()
  /** How often each address failed since it last answered. */
  readonly #failures = new Map<string, number>()
  /** Of the link and not of a connection: whoever is reached anew does not begin with a full one. */
  readonly #mails: Bucket
  readonly #done: Promise<void>
  #address: Address | undefined
  #since: number | undefined
  #problem: string | undefined
  #wake: (() => void) | undefined
  #wait = FIRST_WAIT_MS
  /** Somebody asked for another attempt while one was being made: the next follows at once. */
  #isAsked = false
  #isChecking = false

  constructor (options: PeerLinkOptions) {
    this.device = options.device
    this.#options = options
    this.#mails = new Bucket(MAILS_PER_SECOND, MAIL_BURST, options.clock.monotonic())
    const peer = { device: options.device, credentials: options.credentials, address: () => this.#address, clock: options.clock }
    this.#agent = new PeerAgent(peer)
    this.transfers = bytePool(peer, TRANSFERS)
    this.#done = this.#run()
  }

  /** The connections to where it was reached last. */
  get agent (): PeerAgent { return this.#agent }
  get connected (): boolean { return this.#since !== undefined }
  /** Since when it is connected, milliseconds since 1970. */
  get since (): number | undefined { return this.#since }
  get address (): Address | undefined { return this.#address }
  /** Why it is not connected, in words. */
  get problem (): string | undefined { return this.#problem }

  /** Tries again now: an address or an interface is new. */
  retry (): void {
    this.#wait = FIRST_WAIT_MS
    if (this.#wake === undefined) this.#isAsked = true
    else this.#wake()
  }

  /** Cuts the connections, since what they go over is gone, and tries again. */
  drop (): void {
    this.#agent.destroy()
    this.transfers.destroy()
    this.retry()
  }

  /** Follows the addresses of this machine: `own` are those of each interface that is up. What came from one that
   * is gone gets no answer any more, and TCP would take minutes to say so. */
  ownAddresses (own: ReadonlyMap<string, readonly string[]>): void {
    const zone = this.#address?.zone
    if (this.#since === undefined || zone === undefined) return
    const hosts = own.get(zone)
    if (hosts === undefined || this.#agent.localHosts.some(host => !hosts.includes(host))) this.drop()
  }

  /** Asks for a sign of life where it is connected, and drops the connections where none comes; sooner where the
   * device proves to be at another address meanwhile. */
  check (): void {
    if (this.#since === undefined || this.#isChecking) return
    this.#isChecking = true
    const agent = this.#agent
    const answered = new AbortController()
    const signal = AbortSignal.any([this.#abort.signal, answered.signal])
    const doubt = this.#options.clock.after(DOUBT_MS, () => { void this.#lookElsewhere(signal) })
    this.#greet(agent, signal, CHECK_MS)
      .catch(() => { if (agent === this.#agent && !this.#abort.signal.aborted) this.drop() })
      .finally(() => {
        doubt.cancel()
        answered.abort()
        this.#isChecking = false
      })
  }

  /** Drops the connections when the device answers elsewhere before it does here. */
  async #lookElsewhere (signal: AbortSignal): Promise<void> {
    const here = this.#address === undefined ? '' : formatAddress(this.#address)
    const choices = this.#addresses().filter(address => formatAddress(address) !== here)
    if (choices.length === 0) return
    try {
      const { agent } = await race({ choices, clock: this.#options.clock, signal, attempt: (choice, lost) => this.#attempt(choice, AbortSignal.any([signal, lost])) })
      agent.destroy()
      if (this.#address !== undefined) this.#failed(this.#address)
      this.drop()
    } catch (error) {
      this.#options.logger.debug({ device: this.device, reason: messageOf(error) }, 'the device answers nowhere else')
    }
  }

  async stop (): Promise<void> {
    this.#abort.abort()
    this.#wake?.()
    this.#agent.destroy()
    this.transfers.destroy()
    await this.#done
  }

  async #run (): Promise<void> {
    while (!this.#abort.signal.aborted) {
      try {
        await this.#reach()
        this.#wait = FIRST_WAIT_MS
        await this.#follow()
      } catch (error) {
        if (this.#abort.signal.aborted) break
        this.#down(messageOf(error))
      }
      if (this.#isAsked) {
        this.#isAsked = false
        continue
      }
      const wait = this.#wait
      this.#wait = Math.min(wait * 2, LONGEST_WAIT_MS)
      await this.#sleep(wait * (0.5 + Math.random() / 2))
    }
    this.#down(undefined)
  }

  /** Races the addresses: the first that proves to be the device and answers is where it is. Throws why the best
   * one did not, when none does. */
  async #reach (): Promise<void> {
    const { device, clock, logger, onChange } = this.#options
    const choices = this.#addresses()
    if (choices.length === 0) throw new PatchcordError('unreachable', 'no address is known', { hint: `give one: patchcord connect ${device} --at <host>:<port>` })
    const { address, agent } = await race({ choices, clock, signal: this.#abort.signal, attempt: (choice, signal) => this.#attempt(choice, AbortSignal.any([this.#abort.signal, signal])) })
      .catch((error: unknown) => { throw error instanceof AggregateError ? mostTelling(error.errors) : error })
    this.#agent.destroy()
    this.#agent = agent
    this.#address = address
    this.#failures.delete(formatAddress(address))
    this.#isAsked = false
    this.#since = clock.now()
    this.#problem = undefined
    logger.info({ device, address: formatAddress(address) }, 'connected')
    onChange()
  }

  /** Best first, and those last that failed lately: who repeats a device's hint from elsewhere and lets nothing
   * through is in the way once. */
  #addresses (): Address[] {
    const addresses = this.#options.addresses()
    const texts = new Set(addresses.map(formatAddress))
    for (const text of this.#failures.keys()) if (!texts.has(text)) this.#failures.delete(text)
    const failures = (address: Address): number => this.#failures.get(formatAddress(address)) ?? 0
    return addresses.toSorted((one, other) => failures(one) - failures(other))
  }

  /** One address, with connections of its own, which become the link's if it is the first to answer. */
  async #attempt (address: Address, signal: AbortSignal): Promise<{ address: Address, agent: PeerAgent }> {
    const { device, credentials, clock } = this.#options
    const agent = new PeerAgent({ device, credentials, address: () => address, clock })
    // A loser is cut at once, in the middle of a handshake too.
    const cut = (): void => { agent.destroy() }
    signal.addEventListener('abort', cut)
    try {
      signal.throwIfAborted()
      if (this.#options.isOver === true) await this.#fetchStatements(address, signal)
      const answer = await this.#greet(agent, signal, ATTEMPT_MS)
      if (answer.statusCode === 403) await this.#fetchRenewal(agent, signal)
      if (answer.statusCode !== 200) throw new PatchcordError('unreachable', `${formatAddress(address)} answered ${answer.statusCode}`)
      return { address, agent }
    } catch (error) {
      agent.destroy()
      if (!signal.aborted) {
        this.#failed(address)
        await this.#fetchRestricted(error, address, signal)
      }
      throw error
    } finally {
      signal.removeEventListener('abort', cut)
    }
  }

  /** The device's answer to `/`, read whole, within `most` ms. By a timer of its own: Node 20 may collect a signal of AbortSignal.timeout
   * that only AbortSignal.any refers to, and it never fires. */
  async #greet (agent: PeerAgent, signal: AbortSignal, most: number): Promise<IncomingMessage> {
    const late = new AbortController()
    const timer = this.#options.clock.after(most, () => { late.abort() })
    try {
      const answer = await askPeer(agent, this.device, '/', { signal: AbortSignal.any([signal, late.signal]) })
      await readBody(answer, MOST_MAIL_BYTES)
      return answer
    } finally {
      timer.cancel()
    }
  }

  #failed (address: Address): void {
    const text = formatAddress(address)
    this.#failures.set(text, (this.#failures.get(text) ?? 0) + 1)
  }

  /** An expired certificate of ours gets one route: its renewal is in there. */
  async #fetchRenewal (agent: PeerAgent, signal: AbortSignal): Promise<never> {
    const answer = await askPeer(agent, this.device, '/mail', { signal })
    const body = await readBody(answer, MOST_MAIL_BYTES)
    if (answer.statusCode === 200) await this.#options.onRestrictedMail?.(parseMail(body), 'admitted')
    throw new PatchcordError('unreachable', 'this device\'s certificate has ended; its renewal is being fetched')
  }

  /** Reads what is signed in the mail of a server that admission refused, where that may be. It never throws:
   * the refusal itself is the news. */
  async #fetchRestricted (refusal: unknown, address: Address, signal: AbortSignal): Promise<void> {
    const { credentials, clock, logger, onRestrictedMail } = this.#options
    const refused = refusedServer(refusal)
    const origin = refused === undefined ? undefined : restrictedOrigin(refused, clock.now())
    if (refused === undefined || origin === undefined || onRestrictedMail === undefined) return
    try {
      const body = await fetchRestrictedMail({ device: this.device, credentials, address, clock, signal, most: MOST_MAIL_BYTES, tolerates: rule => rule === refused.refused })
      await onRestrictedMail(parseMail(body), origin)
    } catch (error) {
      logger.debug({ device: this.device, reason: messageOf(error) }, 'no restricted mail')
    }
  }

  async #fetchStatements (address: Address, signal: AbortSignal): Promise<never> {
    const { credentials, clock, onRestrictedMail } = this.#options
    const body = await fetchRestrictedMail({ device: this.device, credentials, address, clock, signal, most: MOST_MAIL_BYTES, tolerates: rule => rule === 'bad-signature' })
    await onRestrictedMail?.(parseMail(body), 'unproved')
    throw new PatchcordError('unreachable', 'its user CA is retired or was replaced; it is looked for what follows')
  }

  async #follow (): Promise<never> {
    const { clock } = this.#options
    let etag: string | undefined
    for (;;) {
      const answer = await askPeer(this.agent, this.device, '/mail', { signal: this.#abort.signal, silentMs: SILENT_MAIL_MS, headers: etag === undefined ? {} : { 'If-None-Match': etag } })
      const body = await readBody(answer, MOST_MAIL_BYTES)
      if (answer.statusCode === 304) continue
      if (answer.statusCode !== 200) throw new PatchcordError('unreachable', `its mail answered ${answer.statusCode}`)
      etag = answer.headers.etag
      await this.#options.onMail(parseMail(body))
      if (etag === undefined) await this.#sleep(FIRST_WAIT_MS)
      while (!this.#abort.signal.aborted && !this.#mails.take(clock.monotonic())) await this.#sleep(1_000 / MAILS_PER_SECOND)
    }
  }

  #down (problem: string | undefined): void {
    this.#problem = problem
    if (this.#since === undefined) return
    this.#since = undefined
    this.#options.logger.info({ device: this.device, problem }, 'disconnected')
    this.#options.onChange()
  }

  #sleep (delay: number): Promise<void> {
    if (this.#abort.signal.aborted) return Promise.resolve()
    return new Promise(resolve => {
      const timer: Timer = this.#options.clock.after(delay, () => { this.#wake?.() })
      this.#wake = () => {
        this.#wake = undefined
        timer.cancel()
        resolve()
      }
    })
  }
}

/** What a person can do something about goes before an address that does not answer. */
function mostTelling (problems: readonly unknown[]): unknown {
  return problems.find(problem => refusedServer(problem) !== undefined) ?? problems[0]
}

function parseMail (body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8')) as unknown
  } catch {
    throw new PatchcordError('verification', 'the peer\'s mail is not JSON')
  }
}

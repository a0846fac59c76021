import { formatAddress, type Address } from '../core/address.js'
import type { Clock, Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { askPeer, PeerAgent, readBody, type PeerCredentials } from './peer-agent.js'

export interface PeerLinkOptions {
  readonly device: DeviceId
  readonly credentials: () => Promise<PeerCredentials>
  /** Where the peer may be, best first. Asked for anew before each attempt. */
  readonly addresses: () => readonly Address[]
  readonly clock: Clock
  readonly logger: Logger
  /** Called with every new mail of the peer, and awaited before the next is asked for. */
  readonly onMail: (mail: unknown) => Promise<void> | void
  /** Called when the link comes up or goes down. */
  readonly onChange: () => void
}

/** Back-off between attempts: from a second to a minute, each shortened by up to half at random. */
const FIRST_WAIT_MS = 1_000
const LONGEST_WAIT_MS = 60_000
/** Small files are asked for over all of these at once, one after the other on each. The other side takes 32 for each
 * of its whitelist entries. */
const TRANSFERS = { maxSockets: 8, maxFreeSockets: 8, scheduling: 'lifo' } as const
const MAIL_PAUSE_MS = 100
const MOST_MAIL_BYTES = 64 * 1024 + 1

/** Keeps one paired device reached: finds an address that answers, holds a long-poll on its mail (which
 * also tells when it is gone), and tries again with back-off. Requests to the peer go through `agent`. */
export class PeerLink {
  readonly device: DeviceId
  readonly agent: PeerAgent
  /** For files: connections of their own, so that feeds and downloads cannot starve each other. */
  readonly transfers: PeerAgent
  readonly #options: PeerLinkOptions
  readonly #abort = new AbortController()
  readonly #done: Promise<void>
  #address: Address | undefined
  #since: number | undefined
  #problem: string | undefined
  #wake: (() => void) | undefined

  constructor (options: PeerLinkOptions) {
    this.device = options.device
    this.#options = options
    const peer = { device: options.device, credentials: options.credentials, address: () => this.#address, clock: options.clock }
    this.agent = new PeerAgent(peer)
    this.transfers = new PeerAgent(peer, TRANSFERS)
    this.#done = this.#run()
  }

  get connected (): boolean { return this.#since !== undefined }
  /** Since when it is connected, milliseconds since 1970. */
  get since (): number | undefined { return this.#since }
  get address (): Address | undefined { return this.#address }
  /** Why it is not connected, in words. */
  get problem (): string | undefined { return this.#problem }

  /** Tries again now: an address or an interface is new. */
  retry (): void { this.#wake?.() }

  async stop (): Promise<void> {
    this.#abort.abort()
    this.#wake?.()
    this.agent.destroy()
    this.transfers.destroy()
    await this.#done
  }

  async #run (): Promise<void> {
    let wait = FIRST_WAIT_MS
    while (!this.#abort.signal.aborted) {
      try {
        await this.#reach()
        wait = FIRST_WAIT_MS
        await this.#follow()
      } catch (error) {
        if (this.#abort.signal.aborted) break
        this.#down(messageOf(error))
      }
      await this.#sleep(wait * (0.5 + Math.random() / 2))
      wait = Math.min(wait * 2, LONGEST_WAIT_MS)
    }
    this.#down(undefined)
  }

  /** Throws what the last address said, when none answers. */
  async #reach (): Promise<void> {
    let problem: unknown = new PatchcordError('unreachable', 'no address is known', { hint: `give one: patchcord connect ${this.device} --at <host>:<port>` })
    for (const address of this.#options.addresses()) {
      this.#address = address
      try {
        const answer = await askPeer(this.agent, this.device, '/', { signal: this.#abort.signal })
        await readBody(answer, MOST_MAIL_BYTES)
        if (answer.statusCode !== 200) throw new PatchcordError('unreachable', `${formatAddress(address)} answered ${answer.statusCode}`)
        this.#since = this.#options.clock.now()
        this.#problem = undefined
        this.#options.logger.info({ device: this.device, address: formatAddress(address) }, 'connected')
        this.#options.onChange()
        return
      } catch (error) {
        problem = error
        if (this.#abort.signal.aborted) break
      }
    }
    throw problem
  }

  async #follow (): Promise<never> {
    let etag: string | undefined
    for (;;) {
      const answer = await askPeer(this.agent, this.device, '/mail', { signal: this.#abort.signal, headers: etag === undefined ? {} : { 'If-None-Match': etag } })
      const body = await readBody(answer, MOST_MAIL_BYTES)
      if (answer.statusCode === 304) continue
      if (answer.statusCode !== 200) throw new PatchcordError('unreachable', `its mail answered ${answer.statusCode}`)
      etag = answer.headers.etag
      await this.#options.onMail(parseMail(body))
      // A peer whose mail changes all the time must not keep us spinning.
      await this.#sleep(etag === undefined ? FIRST_WAIT_MS : MAIL_PAUSE_MS)
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

function parseMail (body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8')) as unknown
  } catch {
    throw new PatchcordError('verification', 'the peer\'s mail is not JSON')
  }
}

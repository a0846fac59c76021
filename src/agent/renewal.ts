import { randomBytes } from 'node:crypto'
import type { Clock } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { readAuthority } from '../identity/authority.js'
import { parseBundle, parseIssue, parseRequest } from '../identity/bundle.js'
import { deviceIdOf } from '../identity/keys.js'
import type { Keystore } from '../identity/keystore.js'
import type { Standing } from '../identity/ca-lineage.js'
import type { KnownDevice } from './trust-book.js'
import type { TrustMail } from './trust-mail.js'

// Certificates renew themselves: from two thirds of its life on a device asks an own device that holds the CA
// key, by mail, and installs the answer. The keys, and so the device ID, stay.
//
//   holder -> device   nonce          a fresh one after every answer
//   device -> holder   csr            both requests with that nonce, and the device's clock
//   holder -> device   certificates

const DAY_MS = 24 * 60 * 60 * 1000
/** By how much the clocks of a CA holder and of who asks may differ (4-pairing.md). */
export const MOST_CLOCK_DIFFERENCE_MS = DAY_MS
/** A request says the asker's clock, so one that waits is written anew after this. */
const REQUEST_FRESH_MS = DAY_MS / 24

export interface RenewalOptions {
  readonly keystore: Keystore
  readonly clock: Clock
  readonly logger: Logger
  /** What became of this user's CA. */
  readonly standing: () => Standing
  /** PEM of the CA that is meant to certify this device: its own, or the one that followed. */
  readonly expectedCa: () => string
  /** The latest date in a record that this user's CA signed, milliseconds since 1970. */
  readonly latestDate: () => number
  /** The device, where it is listed as an own one and not revoked. */
  readonly ownDevice: (device: DeviceId) => KnownDevice | undefined
  /** Called when another certificate counts for this device. */
  readonly onRenewed: () => Promise<void>
  /** Called when certificates were issued to a device. */
  readonly onIssued: (known: KnownDevice) => Promise<void>
}

interface Asked { readonly nonce: string, readonly request: string, readonly at: number }

export class Renewal {
  readonly #options: RenewalOptions
  /** As CA holder: what each own device has to say, and what it was given. In memory: a restart asks anew. */
  readonly #nonces = new Map<DeviceId, string>()
  readonly #issued = new Map<DeviceId, { readonly by: UserId, readonly certificates: string }>()
  /** As a device that asks, by CA holder: the nonce that it gave last, and what was asked of it. */
  readonly #offered = new Map<DeviceId, string>()
  readonly #asked = new Map<DeviceId, Asked>()
  /** Why the last request was not answered, in words. */
  #problem: string | undefined

  constructor (options: RenewalOptions) {
    this.#options = options
  }

  get problem (): string | undefined { return this.#problem }

  /** Whether this device should have other certificates: two thirds of their life are over, or another CA
   * followed. Not where a new certificate could not end later, because the CA itself ends. */
  get isDue (): boolean {
    const { keystore: { identity }, standing } = this.#options
    const { state, ca } = standing()
    if (state !== 'good') return false
    if (ca !== identity.user) return true
    if (this.now() < identity.notBefore + (identity.notAfter - identity.notBefore) * 2 / 3) return false
    return identity.notAfter < Math.floor(readAuthority(identity.userCa).notAfter / 1000) * 1000
  }

  /** The time for whatever the CA signs, in whole milliseconds: never earlier than what it dated before. */
  now (): number {
    return Math.max(Math.floor(this.#options.clock.now()), this.#options.latestDate())
  }

  /** Renews from the CA key that is here, or brings the requests to CA holders up to date. Resolves to whether
   * there is other mail to tell. */
  async tick (): Promise<boolean> {
    const { keystore, standing } = this.#options
    if (!this.isDue) {
      const had = this.#asked.size > 0
      this.#asked.clear()
      return had
    }
    if (keystore.identity.hasCaKey && standing().ca === keystore.identity.user) {
      this.#checkClock(this.#options.clock.now())
      await keystore.renew(this.now())
      await this.#options.onRenewed()
      return false
    }
    let changed = false
    for (const [holder, nonce] of this.#offered) if (await this.#ask(holder, nonce)) changed = true
    return changed
  }

  /** What the mail for this own device holds. */
  mailFor (device: DeviceId): Pick<TrustMail, 'nonce' | 'csr' | 'certificates'> {
    const asked = this.#asked.get(device)
    const issued = this.#issued.get(device)
    return {
      ...this.#canIssue() ? { nonce: this.#nonceFor(device), certificates: issued?.by === this.#options.keystore.identity.user ? issued.certificates : undefined } : {},
      ...asked === undefined ? {} : { csr: { request: asked.request, at: asked.at } },
    }
  }

  /** Takes in what an own device said; resolves to whether there is other mail to tell. */
  async received (device: DeviceId, { nonce, csr, certificates }: TrustMail): Promise<boolean> {
    let changed = false
    if (csr !== undefined && await this.#answer(device, csr)) changed = true
    if (certificates !== undefined && await this.#install(device, certificates)) changed = true
    if (nonce !== undefined) {
      this.#offered.set(device, nonce)
      if (this.isDue && await this.#ask(device, nonce)) changed = true
    }
    return changed
  }

  // ---- the device that asks

  async #ask (holder: DeviceId, nonce: string): Promise<boolean> {
    const { keystore, clock } = this.#options
    const known = this.#asked.get(holder)
    const now = Math.floor(clock.now())
    if (known?.nonce === nonce && Math.abs(now - known.at) < REQUEST_FRESH_MS) return false
    this.#asked.set(holder, { nonce, at: now, request: known?.nonce === nonce ? known.request : await keystore.request(nonce) })
    return true
  }

  /** Only what was asked for, only of the CA that is meant, and only what is newer: `installIssued` judges the
   * rest, so that a holder that lies gains nothing. */
  async #install (holder: DeviceId, certificates: string): Promise<boolean> {
    const { keystore, logger, expectedCa, clock } = this.#options
    if (!this.#asked.has(holder) || !this.isDue) return false
    const { identity } = keystore
    try {
      // The holder's clock may be ahead of ours by what is allowed; its certificates begin with its time then.
      const { notBefore } = parseIssue(certificates)
      const at = Math.max(clock.now(), Math.min(notBefore, clock.now() + MOST_CLOCK_DIFFERENCE_MS))
      const issue = parseIssue(certificates, at)
      if (issue.userCa !== expectedCa()) throw new PatchcordError('bad-certificate', 'another CA signed than the one that is meant')
      if (issue.user === identity.user && issue.notAfter <= identity.notAfter) return false
      await keystore.installIssued(certificates, at)
    } catch (error) {
      if (!(error instanceof PatchcordError) || error.code !== 'bad-certificate') throw error
      logger.warn({ device: holder, reason: error.message }, 'certificates that came by mail were not installed')
      return false
    }
    this.#asked.clear()
    await this.#options.onRenewed()
    return true
  }

  // ---- the CA holder

  #canIssue (): boolean {
    const { keystore: { identity }, standing } = this.#options
    const { state, ca } = standing()
    return identity.hasCaKey && state === 'good' && ca === identity.user
  }

  #nonceFor (device: DeviceId): string {
    let nonce = this.#nonces.get(device)
    if (nonce === undefined) {
      nonce = randomBytes(16).toString('base64url')
      this.#nonces.set(device, nonce)
    }
    return nonce
  }

  async #answer (device: DeviceId, { request, at }: { readonly request: string, readonly at: number }): Promise<boolean> {
    const { keystore, logger, ownDevice, onIssued } = this.#options
    const known = ownDevice(device)
    if (known === undefined || !this.#canIssue()) return false
    try {
      const { deviceSpki, nonce } = parseRequest(request)
      // One that was answered already still lies in the other's mail.
      if (nonce === undefined || nonce !== this.#nonces.get(device)) return false
      if (deviceIdOf(deviceSpki) !== device) throw new PatchcordError('bad-certificate', 'the request is over another key than its device\'s')
      this.#checkClock(at)
      const certificates = await keystore.issue(request, this.now())
      this.#problem = undefined
      this.#nonces.delete(device)
      const { user, userCa, notBefore, notAfter } = parseBundle(bundleOf(certificates))
      this.#issued.set(device, { by: user, certificates })
      await onIssued({ ...known, user, ca: userCa, certificate: { notBefore, notAfter } })
      logger.info({ device, notAfter: new Date(notAfter).toISOString() }, 'certificates renewed')
      return true
    } catch (error) {
      if (!(error instanceof PatchcordError)) throw error
      this.#problem = `the certificates of ${known.name} were not renewed: ${messageOf(error)}`
      logger.warn({ device, reason: error.message }, 'a request for renewal was refused')
      return false
    }
  }

  /** Throws `refused` where this clock, or what the CA dated, is too far from `theirs`. */
  #checkClock (theirs: number): void {
    const now = this.now()
    for (const other of [theirs, this.#options.clock.now()]) {
      if (!(Math.abs(now - other) <= MOST_CLOCK_DIFFERENCE_MS)) throw new PatchcordError('refused', `the clocks differ by ${Math.round(Math.abs(now - other) / DAY_MS)} days`, { hint: 'set the clock that is wrong' })
    }
  }
}

/** The device certificate and its CA out of an issue. */
export function bundleOf (certificates: string): string {
  const { deviceCertificate, userCa } = parseIssue(certificates)
  return deviceCertificate + userCa
}


import type { Clock, Timer } from '../core/clock.js'
import { messageOf } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import type { Notice } from '../control/operations.js'
import type { Keystore } from '../identity/keystore.js'
import type { MailOrigin } from '../sync/restricted-mail.js'
import type { CaBook } from './ca-book.js'
import { Renewal } from './renewal.js'
import { RevocationSpread } from './revocation-spread.js'
import type { KnownDevice, TrustBook } from './trust-book.js'
import { parseTrustMail, writeTrustMail } from './trust-mail.js'

export interface TrustLifeOptions {
  readonly keystore: Keystore
  readonly book: TrustBook
  readonly cas: CaBook
  readonly clock: Clock
  readonly logger: Logger
  /** The devices that are refused now. */
  readonly revoked: () => ReadonlySet<DeviceId>
  /** Runs changes of trust one after the other. */
  readonly serially: <Result>(change: () => Promise<Result>) => Promise<Result>
  /** Brings everything in step with the book. */
  readonly apply: (change: 'giving' | 'taking') => Promise<unknown>
  /** Puts newly written mail in force. */
  readonly tellMail: () => Promise<void>
  /** Own devices whose pairing was cut: their key alone lets them in to their mail, where their certificates are. And
   * peers that never confirmed theirs. */
  readonly mending: { readonly bridged: () => ReadonlySet<DeviceId>, readonly suspended: () => ReadonlySet<DeviceId>, readonly certificatesFor: (device: DeviceId) => string | undefined }
  /** Ends the service's connections and says why. */
  readonly halt: (reason: string, hint: string) => Promise<void>
  /** Links try again with the certificate that counts now. */
  readonly retryLinks: () => void
  readonly emit: (event: object) => void
}

/** How often it is asked whether certificates are due. The person's clock may jump, so no timer waits longer. */
const TICK_MS = 6 * 60 * 60 * 1000
const DAY_MS = 24 * 60 * 60 * 1000
/** How long before its end a CA that nobody prepared a successor for is worth a word. */
const CA_WARNING_MS = 2 * 365 * DAY_MS

/** The life of trust after pairing: certificates renew, revocations spread, CAs end and are followed. It reads
 * the mail of every device for what is signed, and writes what others need to know. */
export class TrustLife {
  readonly #options: TrustLifeOptions
  readonly renewal: Renewal
  readonly spread: RevocationSpread
  /** The newest mail of each device that was not looked at yet. */
  readonly #waiting = new Map<DeviceId, { readonly mail: unknown, readonly origin: MailOrigin, readonly user: UserId }>()
  #timer: Timer | undefined
  #isTicking = false
  #isStopped = false

  constructor (options: TrustLifeOptions) {
    this.#options = options
    const { keystore, book, cas, clock, logger } = options
    this.spread = new RevocationSpread({
      book, logger,
      ownLine: () => this.ownLine,
      authority: ca => cas.authority(ca),
      hasCaKey: () => keystore.identity.hasCaKey,
    })
    this.renewal = new Renewal({
      keystore, clock, logger,
      standing: () => cas.standing(keystore.identity.user),
      expectedCa: () => cas.standing(keystore.identity.user).pem ?? keystore.identity.userCa,
      latestDate: () => this.#latestDate(),
      ownDevice: device => {
        const known = book.known.get(device)
        return known?.relation !== 'own' || this.#isRevoked(device) ? undefined : known
      },
      onIssued: known => book.remember(known),
      onRenewed: () => this.#renewed(),
    })
  }

  /** The CAs that are or were this user's own, the present one last. */
  get ownLine (): readonly UserId[] { return this.#options.cas.standing(this.#options.keystore.identity.user).line }

  /** What the person should know and do. */
  get notices (): Notice[] {
    const { keystore: { identity }, book, cas, clock } = this.#options
    const notices: Notice[] = []
    const nameOf = (device: DeviceId): string => book.known.get(device)?.name ?? device
    const say = (about: string, text: string, hint: string): void => { notices.push({ about, text, hint }) }
    const own = cas.standing(identity.user)
    if (own.state === 'retired') say('ca', 'your user CA is retired: no device of yours is trusted by it any more', 'with a kit made before: patchcord ca succeed <kit>; without one, pair all devices again')
    if (own.state === 'frozen') say('ca', 'two different successors were signed for your user CA: somebody else has the recovery key', 'trust neither; pair your devices and those of others again')
    if (own.state === 'good' && own.ca !== identity.user) say('ca', 'your user CA was replaced, and this device waits to be certified by the new one', 'connect it to the device on which you said `patchcord ca succeed`')
    const end = cas.authority(own.ca)?.notAfter
    if (own.state === 'good' && end !== undefined && end - clock.now() < CA_WARNING_MS) say('ca', `your user CA ends ${new Date(end).toISOString().slice(0, 10)}`, 'have it followed before: patchcord ca export kit, then patchcord ca succeed kit')
    if (clock.now() > identity.notAfter) say('certificate', 'the certificate of this device has ended', 'connect it to the device that holds your user CA: it fetches its renewal by itself')
    if (this.renewal.problem !== undefined) say('renewal', this.renewal.problem, 'set the clock that is wrong; it is tried again')
    for (const device of cas.awaiting) say('ca', `${nameOf(device)} has not fetched its certificate from your new CA yet`, 'connect it to this device')
    for (const device of this.spread.pending) say('revocation', `${nameOf(device)} is revoked here alone: this device does not hold your CA key`, `on the device that does: patchcord revoke ${device}`)
    for (const { by, device } of this.spread.asked) say('revocation', `${nameOf(by)} asks to revoke ${nameOf(device)} everywhere`, `if that was you: patchcord revoke ${device}`)
    for (const user of new Set([...book.known.values()].filter(({ relation }) => relation === 'peer').map(known => known.user))) {
      const { state } = cas.standing(user)
      const names = [...book.known.values()].filter(known => known.user === user).map(({ name }) => name).join(', ')
      if (state === 'retired') say('peer', `the user CA of ${names} is retired`, 'ask its person; then pair or trust them again')
      if (state === 'frozen') say('peer', `two different successors were signed for the user CA of ${names}: somebody has its recovery key`, 'ask its person, in a way that nobody can fake; then pair or trust them again')
    }
    return notices
  }

  /** Brings the book in step with what became of CAs, before anything is served. */
  async start (): Promise<void> {
    const { keystore, book, cas } = this.#options
    await cas.pin(keystore.identity.userCa)
    for (const { ca } of book.known.values()) await cas.pin(ca)
    await this.follow()
    this.#arm()
  }

  stop (): void {
    this.#isStopped = true
    this.#timer?.cancel()
  }

  /** Follows successions and lays what is over on the book. It writes nothing where nothing changed. */
  async follow (): Promise<void> {
    const { keystore: { identity }, book, cas, mending } = this.#options
    const isBridged = (device: DeviceId): boolean => cas.awaiting.has(device) || mending.bridged().has(device)
    const users = new Set([...book.known.values()].map(({ user }) => user))
    for (const user of users) {
      const { state, ca, pem } = cas.standing(user)
      if (state === 'good' && ca !== user && pem !== undefined) await book.replaceCa(user, ca, pem)
    }
    const bridged = [...book.known.values()].filter(({ device, relation, user }) => relation === 'own' && (user !== identity.user || isBridged(device)) && !cas.isOver(user))
    book.overlay(identity.user, {
      isOver: ca => cas.isOver(ca),
      heir: ca => cas.standing(ca).ca,
      bridged: new Set(bridged.map(({ device }) => device)),
      suspended: mending.suspended(),
    })
  }

  /** What the mail for a device says about trust. */
  mailFor (known: KnownDevice): Record<string, unknown> {
    if (known.relation === 'client') return {}
    // The last that a revoked device hears is that it is.
    if (this.#isRevoked(known.device)) return writeTrustMail({ revocations: this.#options.book.revocations.flatMap(({ device, signed }) => device === known.device && signed !== undefined ? [signed] : []) })
    const paired = known.relation === 'own' ? this.#options.mending.certificatesFor(known.device) : undefined
    return writeTrustMail({
      ...known.relation === 'own' ? this.renewal.mailFor(known.device) : {},
      ...paired === undefined ? {} : { certificates: paired },
      ...this.spread.mailFor(known),
      statements: this.#options.cas.recordsOf(this.#options.keystore.identity.user).slice(0, 20).map(({ record }) => record),
    })
  }

  /** Looks at a mail soon. It does not wait: what the mail says may end the very link that brought it. `user` is
   * the CA that proved the link. */
  received (device: DeviceId, mail: unknown, origin: MailOrigin, user: UserId): void {
    const isWaiting = this.#waiting.has(device)
    this.#waiting.set(device, { mail, origin, user })
    if (!isWaiting) this.#run(`the mail of ${device} was not taken in`, () => this.#look(device))
  }

  /** Asks whether anything is due, now: after a change of identity or CA. */
  wake (): void {
    if (this.#isTicking) return
    this.#isTicking = true
    this.#run('renewal failed', async () => {
      this.#isTicking = false
      if (await this.renewal.tick()) await this.#options.tellMail()
    })
  }

  async #look (device: DeviceId): Promise<void> {
    const { book, cas, apply, tellMail, emit } = this.#options
    const { mail, origin: came, user } = this.#waiting.get(device)!
    this.#waiting.delete(device)
    const known = book.known.get(device)
    if (known === undefined || known.relation === 'client' || this.#isRevoked(device)) return
    // Another CA followed since: what the earlier one proved proves nothing now.
    const origin = known.user === user ? came : 'unproved'
    const said = parseTrustMail(mail)
    let changed = false
    if (said.statements.length > 0 && await cas.add(said.statements)) {
      await this.follow()
      await apply('taking')
      emit({ event: 'ca-changed' })
      changed = true
    }
    // A server that proved nothing may be anybody's: beyond what proves itself it is not listened to.
    const { nonce: _nonce, certificates: _certificates, ...provesItself } = said
    const believed = origin === 'unproved' ? provesItself : said
    const asked = this.spread.asked.length
    if (await this.spread.received(known, origin === 'unproved' ? { ...believed, revoke: [] } : believed)) {
      await apply('taking')
      emit({ event: 'revocations', count: book.revocations.length })
      if (await this.haltIfRevoked()) return
      changed = true
    }
    if (this.spread.asked.length > asked) emit({ event: 'revocation-asked', by: device, devices: this.spread.asked.filter(({ by }) => by === device).map(one => one.device) })
    if (known.relation === 'own') {
      if (origin === 'admitted' && cas.awaiting.has(device)) {
        // Its server proved the CA that is meant: it has its certificates.
        await cas.await([...cas.awaiting].filter(other => other !== device))
        await this.follow()
        await apply('giving')
      }
      if (await this.renewal.received(device, believed)) changed = true
    }
    if (await this.renewal.tick()) changed = true
    if (changed) await tellMail()
  }

  /** Stops the service where a record names this device; whether one does. */
  async haltIfRevoked (): Promise<boolean> {
    const { keystore: { identity }, halt } = this.#options
    if (!this.#isRevoked(identity.device)) return false
    await halt('this device was revoked by its user', 'if that was you and the device is safe again: patchcord identity renew-key, then pair it anew')
    return true
  }

  async #renewed (): Promise<void> {
    const { keystore, book, cas, apply, retryLinks, emit } = this.#options
    const { identity } = keystore
    await cas.pin(identity.userCa)
    for (const known of book.known.values()) {
      if (known.relation === 'own' && known.user !== identity.user && cas.standing(known.user).ca === identity.user) await book.remember({ ...known, user: identity.user, ca: identity.userCa })
    }
    await this.follow()
    await apply('giving')
    retryLinks()
    emit({ event: 'renewed', notBefore: new Date(identity.notBefore).toISOString(), notAfter: new Date(identity.notAfter).toISOString() })
  }

  #isRevoked (device: DeviceId): boolean {
    return this.#options.revoked().has(device)
  }

  #latestDate (): number {
    const { book, cas, keystore: { identity } } = this.#options
    const dates = [
      ...book.revocations.filter(({ ca, signed }) => ca === identity.user && signed !== undefined).map(({ issuedAt }) => issuedAt),
      ...cas.recordsOf(identity.user).map(({ issuedAt }) => issuedAt),
    ]
    return dates.reduce((latest, date) => Math.max(latest, date), 0)
  }

  #arm (): void {
    if (this.#isStopped) return
    this.#timer = this.#options.clock.after(TICK_MS, () => {
      this.#arm()
      this.wake()
    })
  }

  #run (problem: string, task: () => Promise<void>): void {
    const { serially, logger } = this.#options
    serially(async () => { if (!this.#isStopped) await task() }).catch((error: unknown) => { logger.error({ reason: messageOf(error) }, problem) })
  }
}

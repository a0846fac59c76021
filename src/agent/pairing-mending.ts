import { request } from 'node:http'
import { parseAddress, type Address } from '../core/address.js'
import type { Timer } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { Notice } from '../control/operations.js'
import { parseIssue } from '../identity/bundle.js'
import { decodeOnePem, encodePem } from '../identity/pem.js'
import type { Pending, PendingPairs } from '../pairing/index.js'
import { askPeer, PeerAgent, peerHost, readBody } from '../sync/peer-agent.js'
import type { Agent } from './agent.js'
import { parseTrustMail } from './trust-mail.js'
import type { UnconfirmedPair, UnconfirmedPairs } from './unconfirmed.js'

/** Between two attempts at a pending pair. */
const RETRY_MS = 2_000
/** Between two looks at what is unconfirmed. */
const LOOK_MS = 30_000
/** How often in a row a device has to refuse us before a pair that it never confirmed is forgotten. */
const ENOUGH_REFUSALS = 3
const ANSWER_MS = 10_000
const MOST_ANSWER_BYTES = 64 * 1024 + 1

/** Makes a pending pair one, with the certificates for `own` (none where the identity was switched already). */
type Complete = (pending: Pending, certificates: readonly Buffer[]) => Promise<void>

/**
 * What is left of an exchange that was cut between the two disks. The device that joined asks the other's open
 * port, which admits it where the pair was written down there: a peer then has its pair, an own device
 * finds its certificates in the mail. The device that opened the window hears of it when the other's open
 * port admits it. Where the two do not meet in time, the one drops the pending pair; the other one takes the
 * peer's rights back, and forgets the peer once it meets it and is refused.
 */
export class PairingMending {
  readonly #agent: Agent
  readonly #pending: PendingPairs
  readonly #unconfirmed: UnconfirmedPairs
  readonly #complete: Complete
  /** Own devices that are let in to their mail by their key alone, to fetch their certificates. */
  readonly #bridged = new Set<DeviceId>()
  /** Peers whose time to confirm is over: they are listed, and have no rights. */
  readonly #suspended = new Set<DeviceId>()
  readonly #refusals = new Map<DeviceId, number>()
  readonly #heard = new Map<DeviceId, readonly Address[]>()
  #timer: Timer | undefined
  #isWorking = false
  #isStopped = false

  constructor (agent: Agent, pending: PendingPairs, unconfirmed: UnconfirmedPairs, complete: Complete) {
    this.#agent = agent
    this.#pending = pending
    this.#unconfirmed = unconfirmed
    this.#complete = complete
  }

  /** The devices that discovery should look for, because a pair with them is pending. */
  get wanted (): DeviceId[] { return this.#pending.all().map(({ other }) => other.device) }
  get bridged (): ReadonlySet<DeviceId> { return this.#bridged }
  get suspended (): ReadonlySet<DeviceId> { return this.#suspended }

  isUnconfirmed (device: DeviceId): boolean { return this.#unconfirmed.get(device) !== undefined }

  /** The certificates that wait for an own device, PEM. */
  certificatesFor (device: DeviceId): string | undefined {
    return this.#bridged.has(device) ? this.#unconfirmed.get(device)?.certificates : undefined
  }

  get notices (): Notice[] {
    const { book } = this.#agent
    return this.#unconfirmed.all().filter(entry => this.#unconfirmed.isOver(entry) && book.known.has(entry.device)).map(({ device, relation }) => ({
      about: 'pairing',
      text: `${book.known.get(device)!.name} was paired as ${relation} and has not said that it knows${relation === 'peer' ? ': it has no rights until it does' : ''}`,
      hint: relation === 'peer' ? 'connect it, or pair it again' : `connect it, pair it again, or take its certificate back: patchcord revoke ${device}`,
    }))
  }

  /** What a killed process left: a peer that was written down by half is forgotten, the rest is mended. */
  async start (): Promise<void> {
    const { book } = this.#agent
    for (const { device, relation } of this.#unconfirmed.all()) {
      if (relation === 'peer' && book.known.has(device) && !book.whitelist.some(entry => entry.device === device)) await this.#agent.serially(() => this.#forget(device))
      if (!book.known.has(device)) await this.#unconfirmed.drop(device)
      else await this.#agent.serially(() => this.lost(device))
    }
    this.wake()
  }

  stop (): void {
    this.#isStopped = true
    this.#timer?.cancel()
  }

  /** The pair with this device was written down here and the other one has not said that it has it. */
  async lost (device: DeviceId): Promise<void> {
    const entry = this.#unconfirmed.get(device)
    if (entry === undefined) return
    // It admits us as what it is to be, so it has what it needs.
    if (this.#agent.peers.peer(device)?.link.connected === true) return await this.confirmed(device)
    if (entry.relation === 'own') {
      this.#bridged.add(device)
      await this.#agent.life.follow()
      await this.#agent.apply('giving')
    }
    this.wake()
  }

  /** The other one has the pair. */
  async confirmed (device: DeviceId): Promise<void> {
    await this.#unconfirmed.drop(device)
    this.#refusals.delete(device)
    const wasBridged = this.#bridged.delete(device)
    const wasSuspended = this.#suspended.delete(device)
    if (!wasBridged && !wasSuspended) return
    await this.#agent.life.follow()
    await this.#agent.apply('giving')
  }

  /** The link to a device came up: its open port admits us. */
  reached (device: DeviceId): void {
    if (this.isUnconfirmed(device) && !this.#isStopped) this.#run(() => this.#agent.serially(() => this.confirmed(device)))
  }

  /** Where discovery says that a device may be now. */
  found (device: DeviceId, addresses: readonly Address[]): void {
    if (!this.wanted.includes(device)) return
    this.#heard.set(device, addresses)
    this.wake()
  }

  /** Looks at what is pending and unconfirmed, now. */
  wake (): void {
    if (this.#isStopped || this.#isWorking) return
    this.#isWorking = true
    this.#timer?.cancel()
    this.#run(async () => {
      for (const pending of this.#pending.all()) {
        await this.#settle(pending).catch((error: unknown) => {
          this.#agent.logger.debug({ device: pending.other.device, reason: messageOf(error) }, 'a pair is still pending')
        })
      }
      await this.#pending.drop()
      for (const entry of this.#unconfirmed.all()) await this.#weigh(entry)
      this.#isWorking = false
      const isSoon = this.#pending.all().length > 0 || this.#refusals.size > 0
      const isBusy = isSoon || this.#unconfirmed.all().some(entry => entry.relation === 'peer')
      if (isBusy && !this.#isStopped) this.#timer = this.#agent.clock.after(isSoon ? RETRY_MS : LOOK_MS, () => { this.wake() })
    })
  }

  async #weigh (entry: UnconfirmedPair): Promise<void> {
    const { book, revoked } = this.#agent
    const { device, relation } = entry
    if (revoked.has(device) || !book.known.has(device)) return await this.#agent.serially(() => this.confirmed(device))
    if (relation !== 'peer' || !this.#unconfirmed.isOver(entry)) return
    if (!this.#suspended.has(device)) {
      this.#suspended.add(device)
      await this.#agent.serially(async () => {
        await this.#agent.life.follow()
        await this.#agent.apply('taking')
      })
    }
    if (await this.#refuses(device)) this.#refusals.set(device, (this.#refusals.get(device) ?? 0) + 1)
    else this.#refusals.delete(device)
    if ((this.#refusals.get(device) ?? 0) >= ENOUGH_REFUSALS) await this.#agent.serially(() => this.#forget(device))
  }

  async #forget (device: DeviceId): Promise<void> {
    await this.#agent.book.forget(new Set([device]))
    await this.confirmed(device)
    await this.#agent.apply('taking')
    this.#agent.logger.warn({ device }, 'the other device does not have the pair: it is forgotten here, too')
    this.#agent.emit({ event: 'unpaired', device })
  }

  /** Whether a device that proved to be this one ends the connection without an answer, as an open port does with
   * whom it does not admit. */
  async #refuses (device: DeviceId): Promise<boolean> {
    const { book, clock, keystore, revoked } = this.#agent
    const ca = book.known.get(device)?.ca
    if (ca === undefined) return false
    for (const address of [...book.addressesOf(device), ...this.#heard.get(device) ?? []]) {
      const agent = new PeerAgent({
        device, clock, address: () => address,
        credentials: async () => ({ key: await keystore.deviceKey(), certificate: keystore.identity.deviceCertificate, ca, revoked }),
      }, { keepAlive: false, maxSockets: 1 })
      const said = await new Promise<'answered' | 'refused' | 'absent'>(resolve => {
        const sent = request({ agent, host: peerHost(device), path: '/', headers: { Host: peerHost(device) }, signal: AbortSignal.timeout(ANSWER_MS) })
        sent.once('response', answer => {
          answer.resume()
          resolve('answered')
        })
        // Until the device has proved itself, errors are of our own kind (sync/peer-agent.ts).
        sent.once('error', error => { resolve(error instanceof PatchcordError || error.name === 'TimeoutError' || error.name === 'AbortError' ? 'absent' : 'refused') })
        sent.end()
      })
      agent.destroy()
      if (said !== 'absent') return said === 'refused'
    }
    return false
  }

  async #settle (pending: Pending): Promise<void> {
    const { other, at } = pending
    if (this.#agent.revoked.has(other.device)) return await this.#pending.drop(other.device)
    const addresses = [...at === undefined ? [] : [parseAddress(at)], ...this.#heard.get(other.device) ?? []]
    for (const address of addresses) {
      const certificates = await this.#ask(pending, address).catch((error: unknown) => {
        this.#agent.logger.debug({ device: other.device, reason: messageOf(error) }, 'a pair is pending: no answer')
      })
      if (certificates === undefined) continue
      await this.#complete(pending, certificates)
      await this.#pending.drop(other.device)
      return
    }
  }

  /** The certificates that the other's open port has for us, none for a peer; undefined where it has no pair. It
   * proves to be the device that the secret proved, certified by the CA that came with it. */
  async #ask ({ other }: Pending, address: Address): Promise<readonly Buffer[] | undefined> {
    const { keystore, clock, revoked } = this.#agent
    const ca = encodePem('CERTIFICATE', other.userCa)
    const peer = new PeerAgent({
      device: other.device, clock, address: () => address,
      credentials: async () => ({ key: await keystore.deviceKey(), certificate: keystore.identity.deviceCertificate, ca, revoked }),
    }, { keepAlive: false, maxSockets: 1 })
    try {
      const answer = await askPeer(peer, other.device, other.relation === 'own' ? '/mail' : '/', { signal: AbortSignal.timeout(ANSWER_MS) })
      const body = await readBody(answer, MOST_ANSWER_BYTES)
      if (answer.statusCode !== 200) return undefined
      // Killed after the switch of identity: only the rest is missing.
      if (other.relation === 'peer' || keystore.identity.user === other.user) return []
      const { certificates } = parseTrustMail(JSON.parse(body.toString()))
      if (certificates === undefined) return undefined
      const { device, deviceCertificate, serverCertificate, userCa } = parseIssue(certificates, clock.now())
      if (device !== keystore.identity.device || userCa !== ca) return undefined
      return [deviceCertificate, serverCertificate].map(pem => decodeOnePem(pem, 'CERTIFICATE'))
    } finally {
      peer.destroy()
    }
  }

  #run (task: () => Promise<void>): void {
    task().catch((error: unknown) => {
      this.#isWorking = false
      this.#agent.logger.error({ reason: messageOf(error) }, 'mending a pair failed')
    })
  }
}

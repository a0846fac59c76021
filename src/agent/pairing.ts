import { randomBytes } from 'node:crypto'
import { networkInterfaces } from 'node:os'
import { formatAddress, isLoopback, parseAddress, type Address } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import { DEFAULT_LIMITS } from '../core/limits.js'
import { cut, parseDatabaseName, type DatabaseName, type DeviceId } from '../core/ids.js'
import type { Paired, PairEvent, PairJoinArgs, PairOpenArgs } from '../control/operations.js'
import { formatIssue, parseBundle, parseIssue, parseRequest } from '../identity/bundle.js'
import { selfSigned } from '../identity/certificates.js'
import { deviceIdOf, privateKeyFromPem } from '../identity/keys.js'
import { readLeaf } from '../identity/leaf.js'
import { decodePem, encodePem } from '../identity/pem.js'
import { Charges, dialable, join, PairingWindow, parseInvitation, PendingPairs, SpentShares, type Access, type Certificates, type InitiatorHost, type Other, type Pair, type PairingHost, type Relation } from '../pairing/index.js'
import { Sources } from '../server/sources.js'
import type { Agent } from './agent.js'
import { PairingMending } from './pairing-mending.js'
import { MOST_ADDRESSES, parseShare, type KnownDevice } from './trust-book.js'
import { UnconfirmedPairs } from './unconfirmed.js'

type Emit = (event: PairEvent) => void

/** Pairing as the service does it: what the pairing room needs of identity and trust, one window at a time,
 * and questions to the person over the control socket. What an exchange that was cut leaves is `mending`. */
export class Pairing {
  readonly mending: PairingMending
  readonly #agent: Agent
  readonly #charges: Charges
  readonly #pending: PendingPairs
  readonly #unconfirmed: UnconfirmedPairs
  readonly #spent: SpentShares
  readonly #sources: Sources
  readonly #questions = new Map<string, (relation: Relation | undefined) => void>()
  #window: PairingWindow | undefined

  private constructor (agent: Agent, charges: Charges, pending: PendingPairs, unconfirmed: UnconfirmedPairs) {
    this.#agent = agent
    this.#charges = charges
    this.#pending = pending
    this.#unconfirmed = unconfirmed
    this.#spent = new SpentShares(agent.clock)
    // The limits of the open port, with a bucket of its own: a flood here leaves the open port its tokens.
    this.#sources = new Sources(DEFAULT_LIMITS, agent.allowRouted, agent.clock)
    this.mending = new PairingMending(agent, pending, unconfirmed, async ({ other, at }, issued) => {
      if (this.#objection(other, false) !== undefined) return
      await agent.serially(() => this.#commit({ role: 'I', relation: other.relation, other, certificates: issued }, at === undefined ? undefined : parseAddress(at), new Map()))
    })
  }

  /** Throws `bad-state` where what it wrote down earlier is damaged. */
  static async open (agent: Agent): Promise<Pairing> {
    const { root } = agent.home
    return new Pairing(agent, await Charges.open(root, agent.clock), await PendingPairs.open(root, agent.clock), await UnconfirmedPairs.open(root, agent.clock))
  }

  async stop (): Promise<void> {
    this.mending.stop()
    await this.#window?.close()
  }

  /** Opens a window and waits for its end. Throws `not-paired` when it ended without a pair. */
  async openWindow ({ as, yes = false, share = [], linkOnly = false }: PairOpenArgs, emit: Emit, signal: AbortSignal): Promise<Paired> {
    if (yes && as === undefined) throw new PatchcordError('usage', '--yes needs the relation', { hint: 'say --as own (one person\'s devices) or --as peer (two people\'s)' })
    if (this.#window !== undefined) throw new PatchcordError('too-many', 'a pairing window is open already', { hint: 'end it, or use its code' })
    const agent = this.#agent
    const host = await this.#host(this.#offered(share), false, (other, question) => this.#ask(other, question, emit, yes ? as : undefined))
    const window = await PairingWindow.open({
      ...host,
      charges: this.#charges,
      issue: async other => await this.#issue(other),
      admits: ({ remoteAddress, localAddress }) => this.#sources.refusal(remoteAddress, localAddress) === undefined,
      failed: (error, attemptsLeft) => { emit({ event: 'failed', error: error.message, hint: error.hint, attemptsLeft }) },
    }, { withCode: !linkOnly })
    this.#window = window
    const close = (): void => { void window.close() }
    signal.addEventListener('abort', close)
    const silence = agent.looking.announceWindow(window.invitation.port)
    try {
      const { code, link, expiresAt, addresses } = window.invitation
      emit({ event: 'window', code: code ?? null, link, expiresAt: new Date(expiresAt).toISOString(), addresses: addresses.map(({ host, zone, port }) => ({ host: zone === undefined ? host : `${host}%${zone}`, port })) })
      const { pair, confirmed } = await window.done
      if (pair !== undefined) await agent.serially(() => confirmed ? this.mending.confirmed(pair.other.device) : this.mending.lost(pair.other.device))
      if (pair === undefined) throw new PatchcordError('not-paired', 'the pairing window ended without a pair')
      return this.#paired(pair, confirmed || !this.mending.isUnconfirmed(pair.other.device))
    } finally {
      silence()
      signal.removeEventListener('abort', close)
      this.#window = undefined
    }
  }

  /** Joins a window. Throws what went wrong, by whose doing. */
  async join ({ invitation: text, as, yes = false, share = [], at = [], replaceUser = false }: PairJoinArgs, emit: Emit, signal: AbortSignal): Promise<Paired> {
    const invitation = parseInvitation(text)
    const given = at.map(parseAddress)
    const addresses = given.length > 0 ? given : invitation.kind === 'link' ? dialable(invitation.link.addresses) : await this.#agent.looking.findWindows()
    if (addresses.length === 0) throw new PatchcordError('unreachable', 'no pairing window was found', { hint: 'give its address with --at, or use the link that the other device shows' })
    const host: InitiatorHost = {
      ...await this.#host(this.#offered(share), replaceUser, (other, question) => this.#ask(other, question, emit, yes ? other.relation : undefined)),
      pending: this.#pending,
      spent: this.#spent,
      requests: async () => decodePem(await this.#agent.keystore.request()).map(({ der }) => der),
    }
    const outcome = await join(host, { invitation, addresses, relation: as, signal })
    if (outcome.result === 'paired') return this.#paired(outcome.pair)
    if (outcome.result === 'failed') throw outcome.error
    this.#agent.looking.lookForKnown()
    this.mending.wake()
    throw new PatchcordError(outcome.error.code, `${outcome.error.message}; whether the other device has the pair is not known yet`, { hint: 'it is asked for ten minutes; `patchcord devices` shows the pair once it is one. Pairing again mends it, too', cause: outcome.error })
  }

  /** The person's answer to a request. Throws `not-found` for one that is over. */
  answer (request: string, relation: Relation | null): void {
    const settle = this.#questions.get(request)
    if (settle === undefined) throw new PatchcordError('not-found', 'nobody waits for this answer any more', { hint: 'the other device gave up; pair again' })
    settle(relation ?? undefined)
  }

  /** Tells who asks, and waits for `answer` unless `said` is the answer already. */
  #ask (other: Other, question: AbortSignal, emit: Emit, said: Relation | undefined): Promise<Relation | undefined> {
    const request = randomBytes(9).toString('base64url')
    const asked: PairEvent = { event: 'request', request, name: other.name, device: other.device, user: other.user, wants: other.relation, offers: Object.fromEntries(other.databases), ...this.#effect(other) }
    if (said !== undefined) {
      emit(asked)
      return Promise.resolve(said)
    }
    return new Promise(resolve => {
      const settle = (relation: Relation | undefined): void => {
        this.#questions.delete(request)
        question.removeEventListener('abort', withdrawn)
        resolve(relation)
      }
      const withdrawn = (): void => { settle(undefined) }
      this.#questions.set(request, settle)
      question.addEventListener('abort', withdrawn)
      emit(asked)
    })
  }

  /** What a yes does besides trusting: whose signing requests came along is the one that changes hands. */
  #effect (other: Other): { becomes: 'theirs' | 'ours' | null, loses: string[] } {
    const { book, keystore } = this.#agent
    if (other.relation === 'peer' || other.user === keystore.identity.user) return { becomes: null, loses: [] }
    return other.requests.length > 0 ? { becomes: 'ours', loses: [] } : { becomes: 'theirs', loses: [...book.known.values()].map(({ name }) => cut(name)) }
  }

  /** What is offered, each a database that is there. */
  #offered (share: readonly string[]): ReadonlyMap<DatabaseName, Access> {
    const entries = share.map(text => parseShare(text, parseDatabaseName))
    for (const [name] of entries) if (!this.#agent.databases.includes(name)) throw new PatchcordError('not-found', `there is no database ${name} here`, { hint: `make it: patchcord db create ${name}` })
    // The record names databases in the order of their names (pairing/messages.ts).
    return new Map(entries.toSorted(([a], [b]) => a < b ? -1 : a > b ? 1 : 0))
  }

  async #host (databases: ReadonlyMap<DatabaseName, Access>, replaceUser: boolean, confirm: PairingHost['confirm']): Promise<PairingHost> {
    const agent = this.#agent
    const { keystore, clock, logger } = agent
    const { device, user, deviceCertificate, userCa } = keystore.identity
    const recoveryKey = agent.cas.recoveryKey(user)
    const port = agent.addresses[0]?.port
    return {
      clock, logger, confirm,
      self: {
        device, user, certificates,
        isRevoked: other => agent.revoked.has(other),
        objection: other => this.#objection(other, replaceUser),
        record: { name: agent.name, deviceCertificate: derOf(deviceCertificate), userCa: derOf(userCa), requests: [], databases, ...port === undefined ? {} : { port }, ...recoveryKey === undefined ? {} : { recoveryKey } },
      },
      selfSigned: async () => {
        const key = await keystore.deviceKey()
        return { key, certificate: await selfSigned(privateKeyFromPem(key), clock.now()) }
      },
      commit: async (pair, at) => { await agent.serially(() => this.#commit(pair, at, databases)) },
    }
  }

  #objection (other: Other, replaceUser: boolean): string | undefined {
    const { book, cas, keystore } = this.#agent
    const { user, hasCaKey } = keystore.identity
    const known = book.known.get(other.device)
    if (cas.isOver(user) && !(other.relation === 'own' && other.requests.length === 0)) return 'the user CA of this device is over: `patchcord status` says what to do'
    if (cas.isOver(other.user)) return 'its user CA is retired, frozen or was replaced'
    const pinned = cas.recoveryKey(other.user)
    if (pinned !== undefined && other.recoveryKey !== undefined && !pinned.equals(other.recoveryKey)) return 'another recovery key is known for its user: ask them whether they made a new kit, then take it in with `patchcord trust --new-recovery-key`'
    if (other.relation === 'peer') {
      if (other.user === user) return 'it is your own device: pair as own'
      return known !== undefined && known.user !== other.user ? `it is known as ${cut(known.name)}, a device of another user` : undefined
    }
    // Whose requests came along is the one that joins, and becomes ours.
    if (other.requests.length > 0) {
      if (!hasCaKey) return 'this device does not hold the user CA: open the window on the one that does'
      return known?.relation === 'peer' ? `it is known as ${cut(known.name)}, somebody else's device: revoke it here, and give it a fresh key there (patchcord identity renew-key)` : undefined
    }
    if (other.user === user || replaceUser || book.known.size === 0) return undefined
    return `this device knows ${book.known.size} other${book.known.size === 1 ? '' : 's'} (${[...book.known.values()].map(({ name }) => cut(name)).join(', ')}), whose trust would be lost: say --replace-user`
  }

  /** Issues for the two requests of a device that becomes ours. */
  async #issue ({ requests }: Other): Promise<readonly Buffer[]> {
    const request = requests.map(der => encodePem('CERTIFICATE REQUEST', der)).join('')
    return decodePem(await this.#agent.keystore.issue(request)).slice(0, 2).map(({ der }) => der)
  }

  /** Writes the pair down; pairing again with a device that is known mends and keeps its name and grant. */
  async #commit ({ role, relation, other, certificates }: Pair, at: Address | undefined, databases: ReadonlyMap<DatabaseName, Access>): Promise<void> {
    const agent = this.#agent
    const { book, cas, keystore } = agent
    const before = book.known.get(other.device)
    const isOurs = relation === 'own' && role === 'R'
    const ca = isOurs ? keystore.identity.userCa : encodePem('CERTIFICATE', other.userCa)
    const [device, server] = certificates.map(der => encodePem('CERTIFICATE', der))
    // A peer that is known already keeps what it has, whether or not it hears of this.
    if (isOurs) await this.#unconfirmed.hold(other.device, 'own', formatIssue(device!, server!, ca))
    else if (role === 'R' && before === undefined) await this.#unconfirmed.hold(other.device, 'peer')
    if (relation === 'own' && role === 'I') {
      if (other.user !== keystore.identity.user) await book.forgetEverybody()
      if (device !== undefined && server !== undefined) await keystore.installIssued(formatIssue(device, server, ca))
    }
    if (!isOurs) await cas.pin(ca, other.recoveryKey)
    const { notBefore, notAfter } = readLeaf(isOurs ? certificates[0]! : other.deviceCertificate)
    const known: KnownDevice = {
      device: other.device,
      user: isOurs ? keystore.identity.user : other.user,
      ca,
      name: before?.name ?? this.#freeName(other.name, other.device),
      relation,
      addresses: [...new Set([...at === undefined ? [] : rememberable(at).map(formatAddress), ...before?.addresses ?? []])].slice(0, MOST_ADDRESSES),
      certificate: { notBefore, notAfter },
    }
    if (relation === 'own') await book.remember(known)
    else await book.trustPeer(known, Object.fromEntries(databases))
    await agent.life.follow()
    await agent.apply('giving')
    agent.emit({ event: 'paired', device: other.device, relation })
  }

  #freeName (wanted: string, device: DeviceId): string {
    const taken = new Set([...this.#agent.book.known.values()].filter(known => known.device !== device).map(({ name }) => name))
    for (let count = 1; ; count++) {
      const name = count === 1 ? wanted : `${wanted.slice(0, 90)} ${count}`
      if (!taken.has(name)) return name
    }
  }

  #paired ({ relation, other }: Pair, confirmed = true): Paired {
    const known = this.#agent.book.known.get(other.device)
    return { device: other.device, user: known?.user ?? other.user, name: known?.name ?? other.name, relation, confirmed }
  }
}

const certificates: Certificates = {
  deviceOf: certificate => {
    const { keyForm, deviceId } = readLeaf(certificate)
    if (keyForm !== 'p256') throw new PatchcordError('bad-certificate', 'the key is not P-256 in canonical form')
    return deviceId
  },
  identify: (certificate, ca) => {
    const { device, user } = parseBundle(encodePem('CERTIFICATE', certificate) + encodePem('CERTIFICATE', ca))
    return { device, user }
  },
  deviceOfRequests: requests => deviceIdOf(parseRequest(requests.map(der => encodePem('CERTIFICATE REQUEST', der)).join('')).deviceSpki),
  deviceOfIssue: (issued, ca) => parseIssue([...issued, ca].map(der => encodePem('CERTIFICATE', der)).join('')).device,
}

/** Where a device that was met at `at` may be reached. One on this very machine may listen on loopback alone, whatever
 * address it was met at. */
export function rememberable (at: Address, interfaces = networkInterfaces()): Address[] {
  const isHere = !isLoopback(at.host) && Object.values(interfaces).some(entries => entries?.some(({ address }) => address === at.host))
  return isHere ? [at, { host: '::1', port: at.port }] : [at]
}

const derOf = (pem: string): Buffer => decodePem(pem)[0]!.der

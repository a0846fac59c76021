import { randomBytes } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import { readFile } from 'node:fs/promises'
import type { Timer } from '../core/clock.js'
import { messageOf, PatchcordError, type ErrorCode } from '../core/errors.js'
import type { ContentId, DeviceId } from '../core/ids.js'
import { Turns } from '../core/turns.js'
import { eachWithin } from '../core/within.js'
import { SMALL_MOST } from '../files/small-work.js'
import type { DownloadEvent } from '../sync/download.js'
import type { InboxAcceptEvent } from '../control/operations.js'
import type { Agent } from './agent.js'
import { Arrivals } from './arrivals.js'
import { prepareFolder } from './copy-out.js'
import { sourceOf } from './file-sources.js'
import { ProgressMeter } from './local-progress.js'
import { MOST_OFFERS, type OfferAnswer, type PeerMail } from './mail.js'
import { isOpen, OfferBook, type ReceivedOffer, type SentOffer } from './offer-book.js'
import { formatList, keepList, MOST_LIST_BYTES, parseList, type OfferedFile, type OfferedList } from './offer-list.js'
import { land } from './landing.js'

/** Files that are lent at a time, in all offers together: the server is told of all of them when one offer more is made, or less. */
const MOST_LENT = 100_000
/** How long an offer stands, and its files are lent. */
const STANDS_MS = 7 * 24 * 3_600_000
/** What is fetched at once: so many small files, or a quarter as many others. Of small ones few are on the way at a time, and many wait for
 * the disk together. */
const AT_ONCE = 64
const LARGE_COUNTS = 4
/** When an offer that was accepted and did not come or land is tried again (ms): the folder or the disk may be in order by then. Where it is
 * not, after twice the time, and so on. */
const RETRY_MS = 30_000
const LONGEST_RETRY_MS = 1_800_000
/** What will be said again. */
const NOT_AGAIN: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['verification', 'refused', 'stopped', 'too-large', 'not-found'])
/** How long files that are lent may stay off the disk while they are fetched (ms): both ends may share it. */
const FLUSH_MS = 10_000

/**
 * Files handed from one device to another: the sender lends them and offers a list by mail; the receiver's person sees
 * the list and accepts or refuses, or has a rule for that sender; what was accepted is fetched and lands in a folder
 * of the person's choice. Answers go back by mail. Nothing lands without a yes.
 */
export class Offers {
  readonly #agent: Agent
  readonly #book: OfferBook
  /** Offers that are being fetched, how much of each is here, once that is known, and what ends it. */
  readonly #fetching = new Map<string, { arrivals?: Arrivals, isLanding: boolean, readonly abort: AbortController }>()
  /** Files of the offers that are being fetched or land, and of how many. */
  readonly #landing = new Map<ContentId, number>()
  /** Of landings, while they choose names. */
  readonly #naming = new Turns(1)
  #flushing: Timer | undefined
  /** When what failed of a device is tried again. */
  readonly #retries = new Map<DeviceId, Timer>()
  /** After how long, the next time, where it is not the first. */
  readonly #waits = new Map<DeviceId, number>()
  /** What a device offered in its newest mail. */
  readonly #standing = new Map<DeviceId, ReadonlySet<string>>()
  #isStopping = false

  private constructor (agent: Agent, book: OfferBook) {
    this.#agent = agent
    this.#book = book
  }

  /** Throws `bad-state`, naming the file and the field. */
  static async open (agent: Agent): Promise<Offers> {
    const { store, logger, clock } = agent
    const lost = new Set(store.lost)
    const book = await OfferBook.open(agent.home.root, { clock, isRevoked: device => agent.revoked.has(device), changed: isLent => agent.mailChanged(isLent) })
    const ended = book.now.sent.filter(({ files }) => files.some(id => lost.has(id)))
    if (ended.length > 0) await book.change(state => ({ ...state, sent: state.sent.filter(one => !ended.includes(one)) }))
    for (const { offer, device, files } of ended) logger.warn({ offer, device, lost: files.filter(id => lost.has(id)) }, 'an offer ended: the service went down before its files were on the disk; send them again')
    // Of an offer that landed, or that nobody goes on with.
    if (!book.now.received.some(one => one.state === 'accepted')) for (const id of await store.asides.all()) await store.asides.drop(id)
    return new Offers(agent, book)
  }

  /** Nothing begins any more. What is being fetched ends, and what lands does so after the files that are under way; the next process goes on. */
  stop (): void {
    this.#isStopping = true
    this.#flushing?.cancel()
    for (const timer of this.#retries.values()) timer.cancel()
    this.#retries.clear()
    for (const { abort } of this.#fetching.values()) abort.abort(stopping())
  }

  /** Makes durable what was taken in to be lent, when nobody waits for the disk any more. */
  flush (delay = FLUSH_MS): void {
    const { clock, store, logger } = this.#agent
    // Closing the store does so too.
    if (this.#isStopping || (this.#flushing !== undefined && delay > 0)) return
    this.#flushing?.cancel()
    this.#flushing = clock.after(delay, () => {
      this.#flushing = undefined
      store.flush().catch((error: unknown) => { logger.warn({ reason: messageOf(error) }, 'files that are lent are not on the disk yet; after a crash they are read again') })
    })
  }

  get received (): readonly ReceivedOffer[] { return this.#book.now.received }
  get sent (): readonly SentOffer[] { return this.#book.now.sent }

  /** Those that were sent and stand. */
  get open (): readonly SentOffer[] { return this.#book.standing.sent.filter(isOpen) }

  /** Whether files of an offer are on their way in or out of the store. */
  get isBusy (): boolean { return this.#fetching.size > 0 || this.#book.standing.received.some(({ state }) => state === 'accepted') }

  /** What the server lends, for its env. */
  lent (): Array<{ device: DeviceId, files: ContentId[], until: string }> {
    return this.open.map(({ device, files, list, until }) => ({ device, files: [list, ...new Set(files)], until }))
  }

  /** Until when a file is lent to a device (ms since 1970), or undefined. */
  lentUntil (to: DeviceId, file: ContentId): number | undefined {
    const ends = this.lent().filter(({ device, files }) => device === to && files.includes(file)).map(({ until }) => Date.parse(until))
    return ends.length === 0 ? undefined : Math.max(...ends)
  }

  /** What a device is told by mail: the oldest first, the others when those are through. */
  mailFor (to: DeviceId): Pick<PeerMail, 'offers' | 'answers'> {
    const { sent, received } = this.#book.standing
    return {
      offers: sent.filter(one => one.device === to && isOpen(one)).slice(0, MOST_OFFERS)
        .map(({ offer, list, size, files, bytes }) => ({ offer, list, size, files: files.length, bytes })),
      answers: received.filter(({ device, state }) => device === to && state !== 'offered').slice(0, MOST_OFFERS)
        .map(({ offer, state, bytes }) => ({ offer, answer: state as OfferAnswer, done: state === 'done' ? bytes : this.#fetching.get(offer)?.arrivals?.done ?? 0 })),
    }
  }

  /** Throws `too-large` where so many files more cannot be lent. */
  checkRoom (files: number, beside = this.#book.standing.sent): void {
    const lent = beside.filter(isOpen).reduce((sum, one) => sum + one.files.length, 0)
    if (lent + files > MOST_LENT) throw new PatchcordError('too-large', `${files} files are too many beside the ${lent} that are on offer: ${MOST_LENT} can be at a time`, { hint: 'wait until an offer is accepted or refused, take one back (patchcord outbox), or send fewer' })
  }

  /** Offers files of the store, and empty folders, to a device. */
  async offer (device: DeviceId, offered: OfferedList): Promise<SentOffer> {
    const { store, clock } = this.#agent
    const { files } = offered
    this.checkRoom(files.length)
    const list = formatList(offered)
    const id = await keepList(store, list)
    const sent: SentOffer = {
      offer: randomBytes(10).toString('hex'), device, list: id, size: list.length, files: files.map(file => file.id),
      bytes: sumOf(files), until: new Date(clock.now() + STANDS_MS).toISOString(), answer: 'none',
    }
    await this.#book.change(state => {
      // Others may have been made while the list was.
      this.checkRoom(files.length, state.sent)
      return { ...state, sent: [...state.sent, sent] }
    })
    return sent
  }

  /** What an offer has, from the list that the sender lent, which lies aside as long as the offer stands. Where that is not here, a sender
   * who is away is waited for, some seconds, if `isPatient`. */
  async list ({ device, list, size, files, bytes }: ReceivedOffer, signal?: AbortSignal, isPatient = true): Promise<Required<OfferedList>> {
    const { store, peers } = this.#agent
    if (size > MOST_LIST_BYTES) throw new PatchcordError('too-large', 'the list of the offer is too long')
    if (!isPatient && peers.peer(device)?.link.connected !== true && !await store.asides.has(list, size)) throw new PatchcordError('unreachable', 'who sent the offer is not connected')
    // Whoever looks into the inbox does not wait for room.
    const full = new AbortController()
    const isAside = await this.#fetch(device, list, size, true, signal === undefined ? full.signal : AbortSignal.any([signal, full.signal]), event => {
      if (event.event === 'paused') full.abort(new PatchcordError('disk-full', 'no room is left on the disk for the list of the offer'))
    })
    const listed = await parseList(await readFile(isAside ? store.asides.path(list) : store.path(list), 'utf8'))
    // The person may have been shown what the mail said alone.
    if (listed.files.length !== files || sumOf(listed.files) !== bytes) throw new PatchcordError('verification', 'the list of the offer has other files than the offer said', { hint: 'ask who sent it' })
    return listed
  }

  find (text: string): ReceivedOffer {
    return named(text, this.received, 'inbox')
  }

  /** Takes back an offer that was sent: nothing of it is lent any more. What the receiver has of it stays there. Throws `not-found`. */
  async withdraw (text: string): Promise<string> {
    const { offer, device } = named(text, this.open, 'outbox')
    await this.#book.change(state => ({ ...state, sent: state.sent.filter(one => one.offer !== offer) }))
    this.#agent.emit({ event: 'offer-answered', offer, device, answer: 'withdrawn' })
    this.flush(0)
    return offer
  }

  /** Says no, also to what was accepted and is not here yet: what is being fetched of it ends. */
  async refuse (offer: string): Promise<void> {
    const fetching = this.#fetching.get(offer)
    if (fetching?.isLanding === true) throw new PatchcordError('conflict', 'this offer is landing already', { hint: 'remove what landed' })
    // First: what ends by it accepts nothing any more.
    fetching?.abort.abort(new PatchcordError('refused', 'the offer was refused meanwhile', { hint: 'nothing of it landed' }))
    await this.#set(offer, one => ({ ...one, state: 'refused' }))
  }

  /** Fetches an offer and puts it into the folder `to`; what landed. It goes on after a crash, and where it failed for what may pass. Nothing
   * is accepted where nothing could land. */
  async accept (offer: ReceivedOffer, to: string, onEvent: (event: InboxAcceptEvent) => void, given?: AbortSignal): Promise<{ files: number, folders: number, bytes: number, landed: string[] }> {
    if (this.#fetching.has(offer.offer)) throw new PatchcordError('already-exists', 'this offer is being fetched already', { hint: 'wait for it to end' })
    if (offer.state === 'done') throw new PatchcordError('already-exists', 'this offer was fetched already')
    if (this.#isStopping) throw stopping()
    const abort = new AbortController()
    const signal = given === undefined ? abort.signal : AbortSignal.any([abort.signal, given])
    // Each file that is on its way listens.
    setMaxListeners(0, signal)
    const fetching: { arrivals?: Arrivals, isLanding: boolean, abort: AbortController } = { isLanding: false, abort }
    this.#fetching.set(offer.offer, fetching)
    const asides = new Set<ContentId>()
    let ids: ReadonlySet<ContentId> = new Set()
    try {
      const list = await this.list(offer, signal)
      const { files } = list
      await prepareFolder(to)
      ids = new Set(files.map(({ id }) => id))
      for (const id of ids) this.#landing.set(id, (this.#landing.get(id) ?? 0) + 1)
      signal.throwIfAborted()
      // In another folder it lands anew.
      const { landing: tops, ...anew } = offer
      const goesOn = offer.to === to && tops !== undefined
      await this.#set(offer.offer, one => ({ ...goesOn ? one : anew, state: 'accepted', to }))
      onEvent({ event: 'accepted', offer: offer.offer })
      // Somebody else would learn from what is not asked of them what is here: they may offer what they do not have.
      const isOwn = this.#agent.book.isOwn(offer.device)
      const stored = isOwn ? await this.#agent.store.having(files) : new Set<ContentId>()
      const before = new Set(isOwn || offer.state === 'accepted' ? await this.#agent.store.asides.all() : [])
      const total = sumOf(files)
      const { clock, logger } = this.#agent
      const arrivals = fetching.arrivals = new Arrivals(total, {
        clock,
        tell: onEvent,
        mail: () => { this.#agent.mailChanged(false).catch((error: unknown) => { logger.debug({ offer: offer.offer, reason: messageOf(error) }, 'the sender was not told how far its offer is') }) },
      })
      await eachWithin(files, AT_ONCE, ({ size }) => size <= SMALL_MOST ? 1 : LARGE_COUNTS, async ({ id, size }) => {
        let had = 0
        if (!stored.has(id) && await this.#fetch(offer.device, id, size, before.has(id), signal, event => {
          if (event.event !== 'progress') onEvent(event)
          else {
            arrivals.add(id, event.done - had, event.sources)
            had = event.done
          }
        })) asides.add(id)
        arrivals.add(id, size - had, 1)
      })
      signal.throwIfAborted()
      fetching.isLanding = true
      const meter = new ProgressMeter({ clock, stage: 'copying', tell: onEvent, sizes: total })
      const landed = await land(this.#agent.store, list, to, {
        asides,
        signal: abort.signal,
        onBytes: bytes => { meter.add(bytes) },
        note: { tops: goesOn ? tops : undefined, mark: offer.offer, keep: landing => this.#set(offer.offer, one => ({ ...one, landing: [...landing] })), alone: task => this.#naming.run(task) },
      })
      await this.#set(offer.offer, one => {
        const done: ReceivedOffer = { ...one, state: 'done' }
        delete done.landing
        return done
      })
      // Only now: should this process die before, they are not fetched again.
      await Promise.all([...asides].filter(id => this.#landing.get(id) === 1).map(id => this.#agent.store.asides.drop(id)))
      this.#waits.delete(offer.device)
      this.#agent.emit({ event: 'received', offer: offer.offer, device: offer.device, landed })
      return { files: files.length, folders: list.folders.length, bytes: total, landed }
    } catch (error) {
      // Its sender took it back.
      if (error instanceof PatchcordError && error.code === 'not-found' && this.#standing.get(offer.device)?.has(offer.offer) === false) {
        await this.#book.change(state => ({ ...state, received: state.received.filter(one => one.offer !== offer.offer) }))
        await this.#forgot([offer])
      }
      // Who ended it wants to go on when the device is heard of next, and not by itself.
      if (given?.aborted !== true && !(error instanceof PatchcordError && NOT_AGAIN.has(error.code))) this.#again(offer.device)
      throw error
    } finally {
      for (const id of ids) {
        const left = (this.#landing.get(id) ?? 1) - 1
        if (left === 0) this.#landing.delete(id)
        else this.#landing.set(id, left)
      }
      this.#fetching.delete(offer.offer)
    }
  }

  /** What becomes of offers of a device from now on. */
  async rule (device: DeviceId, rule: 'ask' | 'accept' | 'refuse', to?: string): Promise<void> {
    await this.#book.change(state => ({ ...state, rules: [...state.rules.filter(one => one.device !== device), { device, rule, ...to === undefined ? {} : { to } }] }))
  }

  /** What a device's newest mail says of offers, theirs and ours. */
  async mailCame (device: DeviceId, { offers, answers }: Pick<PeerMail, 'offers' | 'answers'>): Promise<void> {
    for (const { offer, answer, done } of answers) {
      if (answer === 'accepted' && done > 0 && this.sent.some(one => one.offer === offer && one.device === device)) this.#agent.emit({ event: 'offer-progress', offer, device, done })
    }
    // What follows is worked out from what is there: what is on its way to the disk comes first.
    await this.#book.settled()
    this.#standing.set(device, new Set(offers.map(({ offer }) => offer)))
    const answered = new Map(answers.map(({ offer, answer }) => [offer, answer]))
    const standing = this.#standing.get(device)!
    // Whoever they came from: by its name one of them is accepted.
    const known = new Set(this.received.map(({ offer }) => offer))
    const fresh: ReceivedOffer[] = [...new Map(offers.map(one => [one.offer, one])).values()].filter(({ offer }) => !known.has(offer)).map(offer => ({ ...offer, device, state: 'offered' }))
    const sent = this.sent.map(one => one.device === device && answered.has(one.offer) ? { ...one, answer: answered.get(one.offer) ?? one.answer } : one)
    // Once the sender has seen the answer it takes the offer away, and both forget it.
    const isOver = (one: ReceivedOffer): boolean => one.device === device && !standing.has(one.offer) && one.state !== 'accepted'
    const over = this.received.filter(isOver)
    const received = this.received.filter(one => !isOver(one))
    if (fresh.length > 0 || over.length > 0 || sent.some((one, at) => one.answer !== this.sent[at]?.answer)) {
      for (const one of sent) {
        if (one.answer !== this.sent.find(({ offer }) => offer === one.offer)?.answer) this.#agent.emit({ event: 'offer-answered', offer: one.offer, device, answer: one.answer })
      }
      const open = sent.filter(isOpen)
      await this.#book.change(state => ({ ...state, sent: open, received: [...received, ...fresh] }))
      await this.#forgot(over)
      if (open.length < sent.length) this.flush(0)
    }
    for (const one of fresh) this.#agent.emit({ event: 'offer', offer: one.offer, device, files: one.files, bytes: one.bytes })
    await this.#goOn(device)
  }

  /** Begins what was accepted of a device, or is by rule, and is not under way. */
  async #goOn (device: DeviceId): Promise<void> {
    if (this.#isStopping) return
    const rule = this.#book.now.rules.find(one => one.device === device)
    for (const one of this.received.filter(one => one.device === device)) {
      const to = one.to ?? rule?.to
      if (one.state === 'offered' && rule?.rule === 'refuse') await this.refuse(one.offer)
      else if (to !== undefined && !this.#fetching.has(one.offer) && (one.state === 'accepted' || (one.state === 'offered' && rule?.rule === 'accept'))) {
        this.accept(one, to, () => undefined).catch((error: unknown) => {
          this.#agent.logger.warn({ device, offer: one.offer, reason: messageOf(error) }, 'an accepted offer was not fetched')
        })
      }
    }
  }

  /** Where the device is not there, its next mail comes with it. */
  #again (device: DeviceId): void {
    const { clock, logger, peers } = this.#agent
    if (this.#isStopping || this.#retries.has(device) || peers.peer(device)?.link.connected !== true) return
    const wait = this.#waits.get(device) ?? RETRY_MS
    this.#waits.set(device, Math.min(2 * wait, LONGEST_RETRY_MS))
    this.#retries.set(device, clock.after(wait, () => {
      this.#retries.delete(device)
      this.#goOn(device).catch((error: unknown) => { logger.warn({ device, reason: messageOf(error) }, 'what was accepted is not gone on with') })
    }))
  }

  /** Fetches a file from this device alone, to lie aside; false where somebody wants it in the store as well, where it is then. It is not fetched again
   * where it lies aside already and `mayBeHere`. */
  async #fetch (device: DeviceId, id: ContentId, size: number, mayBeHere: boolean, signal: AbortSignal, onEvent: (event: DownloadEvent) => void): Promise<boolean> {
    const { store, peers, downloads } = this.#agent
    if (mayBeHere && await store.asides.has(id, size)) return true
    const sources = (): ReturnType<typeof sourceOf>[] => {
      const peer = peers.peer(device)
      return peer?.link.connected === true ? [sourceOf(peer)] : []
    }
    return (await downloads.fetch(id, { size, sources, onEvent, isAside: () => true, signal })).isAside
  }

  /** The lists of offers that are over lie aside no longer. */
  async #forgot (over: readonly ReceivedOffer[]): Promise<void> {
    for (const { list } of over) if (!this.#landing.has(list) && !this.received.some(one => one.list === list)) await this.#agent.store.asides.drop(list)
  }

  async #set (offer: string, change: (one: ReceivedOffer) => ReceivedOffer): Promise<void> {
    await this.#book.change(state => ({ ...state, received: state.received.map(one => one.offer === offer ? change(one) : one) }))
  }
}

/** The offer that is called so, or whose name alone begins so. Throws `not-found`. */
function named<Offer extends { readonly offer: string }> (text: string, offers: readonly Offer[], command: string): Offer {
  const found = offers.filter(({ offer }) => offer === text || (text.length >= 4 && offer.startsWith(text)))
  if (found[0] === undefined || found.length > 1) throw new PatchcordError('not-found', `there is no offer "${text.slice(0, 40)}"`, { hint: `\`patchcord ${command}\` lists them` })
  return found[0]
}

function stopping (): PatchcordError {
  return new PatchcordError('stopped', 'the service is stopping')
}

function sumOf (files: readonly OfferedFile[]): number {
  return files.reduce((sum, { size }) => sum + size, 0)
}

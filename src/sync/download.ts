import type { Clock } from '../core/clock.js'
import { isDiskFull, messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { contentIdOf, EMPTY_ID, HASH_BYTES, LEAF_BYTES, leafCount, leafHash } from '../files/content-id.js'
import type { Giver } from '../files/giver.js'
import { PartialFile } from '../files/partial.js'
import type { FileStore } from '../files/store.js'
import { asGiver, askFirst, askLeaves, type Source } from './ask-file.js'
import type { Distrust } from './distrust.js'
import { fetchLeaves, ROOM_MS } from './leaf-fetch.js'

export type { Source }

/** What happens on the way, for people and programs. */
export type DownloadEvent =
  | { readonly event: 'progress', readonly id: ContentId, readonly done: number, readonly total: number, readonly rate: number, readonly sources: number }
  | { readonly event: 'source-dropped', readonly id: ContentId, readonly device: DeviceId, readonly leaf: number | null, readonly reason: string }
  | { readonly event: 'overtaken', readonly id: ContentId, readonly device: DeviceId }
  | { readonly event: 'paused', readonly id: ContentId, readonly reason: 'disk-full', readonly needed: number }
  | { readonly event: 'resumed', readonly id: ContentId }

export interface DownloadOptions {
  /** Who may be asked, best first; read again while it runs, so that devices come and go. */
  readonly sources: () => readonly Source[]
  /** The size, where the referring document or offer says it: no other is taken. */
  readonly size?: number | undefined
  /** Files larger than this (bytes) are not begun. */
  readonly most?: number
  readonly signal?: AbortSignal
  readonly onEvent?: (event: DownloadEvent) => void
  /** How long to go on while nobody can be asked (ms). Infinity waits for who is not connected, too, though all who are
   * say that they do not have it. */
  readonly waitMs?: number
  /** Whether the file is for somebody, and not for the store (files/asides.ts): asked when it is whole. */
  readonly isAside?: () => boolean
}

export interface DownloadCollaborators {
  readonly clock: Clock
  readonly logger: Logger
  readonly distrust: Distrust
}

export interface Downloaded {
  readonly size: number
  /** Whether it lies aside, and not in the store. */
  readonly isAside: boolean
  /** The devices that gave leaves now. */
  readonly sources: ReadonlySet<DeviceId>
  /** All that ever gave a leaf of it, in earlier processes too, each with its account: every byte came from one of
   * these. */
  readonly givers: ReadonlySet<Giver>
}

const WAIT_MS = 10_000
/** The longest pause before sources are asked again whether they have it (ms). */
const LONGEST_WAIT_MS = 2_000
/** A source that has not answered after this long is no longer waited for alone (ms). */
const HEDGE_MS = 2_000
/** How often a file is begun anew because the size that was told turned out wrong. */
const MOST_ATTEMPTS = 3

/** Fetches one file whole into the store, from all sources at once: the leaf list first, checked against the ID and
 * the size, then the leaves, each verified before it is written. What an earlier attempt left is gone on with. Throws
 * `not-found` where no source has it or gives it, `verification` where they lie, `too-large`, `unreachable`, or the
 * signal's reason; what was fetched so far is then kept, in `partial/` alone. A full disk is waited for. */
export async function download (store: FileStore, id: ContentId, options: DownloadOptions, collaborators: DownloadCollaborators): Promise<Downloaded> {
  return await new Download(store, id, options, collaborators).run()
}

class Download {
  readonly #store: FileStore
  readonly #id: ContentId
  readonly #options: DownloadOptions
  readonly #collaborators: DownloadCollaborators
  readonly #signal: AbortSignal
  /** Sources told different sizes, or the last leaf did not fit the size that was told. */
  #isDoubtful = false

  constructor (store: FileStore, id: ContentId, options: DownloadOptions, collaborators: DownloadCollaborators) {
    this.#store = store
    this.#id = id
    this.#options = options
    this.#collaborators = collaborators
    this.#signal = options.signal ?? new AbortController().signal
  }

  async run (): Promise<Downloaded> {
    for (let attempt = 1; ; attempt++) {
      this.#signal.throwIfAborted()
      const begun = await this.#resume() ?? await this.#begin()
      if (!(begun instanceof PartialFile)) return begun
      if (begun.damaged.length > 0) this.#collaborators.logger.warn({ id: this.#id, leaves: begun.damaged.slice(0, 100) }, 'the disk lost leaves of a download; they are fetched again')
      let keep = true
      try {
        return await this.#finish(begun)
      } catch (error) {
        // Only the last leaf proves the size, and whoever told this one may have lied: others are asked for theirs.
        const isDoubtful = !begun.isSizeProven && this.#isDoubtful
        this.#signal.throwIfAborted()
        keep = !isDoubtful
        if (!isDoubtful || attempt >= MOST_ATTEMPTS || this.#sources().length === 0) throw error
        this.#isDoubtful = false
      } finally {
        if (keep && begun.bytes > 0) await begun.suspend()
        else await begun.discard()
      }
    }
  }

  /** What an earlier attempt left, where it is of the right size. */
  async #resume (): Promise<PartialFile | undefined> {
    // The ID of the empty file says all of it. It is fetched all the same: that a source has it is what counts.
    // Nor does a file of one leaf leave anything behind.
    const { size } = this.#options
    const resumed = this.#id === EMPTY_ID || (size !== undefined && size <= LEAF_BYTES) ? undefined : await PartialFile.resume(this.#store, this.#id)
    if (resumed === undefined || size === undefined || resumed.size === size) return resumed
    await resumed.discard()
    return undefined
  }

  #sources (): readonly Source[] {
    const { distrust } = this.#collaborators
    return this.#options.sources().filter(({ device }) => distrust.of(device) === undefined)
  }

  /** Why nobody can be asked: those that could be lied before, or there is none. */
  #nobody (): PatchcordError {
    for (const { device } of this.#options.sources()) {
      const lie = this.#collaborators.distrust.of(device)
      if (lie !== undefined) return new PatchcordError('unreachable', `device ${device} sent wrong bytes before, and is not asked again: ${lie.reason}`, { hint: 'get it from another device; this one is asked again after the service was started anew' })
    }
    return new PatchcordError('unreachable', `no device that may have ${this.#id} is connected`, { hint: '`patchcord status` says why' })
  }

  async #finish (partial: PartialFile): Promise<Downloaded> {
    const { id, size } = partial
    const { onEvent = () => undefined, waitMs = WAIT_MS } = this.#options
    const sources = await fetchLeaves(partial, {
      sources: () => this.#sources(),
      signal: this.#signal,
      clock: this.#collaborators.clock,
      waitMs,
      nobody: () => this.#nobody(),
      onProgress: (rate, count) => { onEvent({ event: 'progress', id, done: partial.bytes, total: size, rate, sources: count }) },
      onLie: (device, leaf, reason) => {
        if (leaf === leafCount(size) - 1) this.#isDoubtful = true
        this.#convict(device, leaf, reason)
      },
      onConflict: () => { this.#isDoubtful = true },
      onOvertaken: device => {
        this.#collaborators.logger.info({ device, id }, 'a source is silent; its leaves are asked for elsewhere')
        onEvent({ event: 'overtaken', id, device })
      },
      onFull: isFull => { this.#full(isFull, size - partial.bytes) },
    })
    const isAside = this.#options.isAside?.() ?? false
    await partial.complete(isAside)
    return { size, isAside, sources, givers: partial.givers }
  }

  #full (isFull: boolean, needed: number): void {
    const { onEvent = () => undefined } = this.#options
    const id = this.#id
    this.#collaborators.logger.warn({ id }, isFull ? 'the disk is full; the download waits for room' : 'the disk has room again; the download goes on')
    onEvent(isFull ? { event: 'paused', id, reason: 'disk-full', needed } : { event: 'resumed', id })
  }

  /** Does what begins to write the file, once there is room for it. */
  async #inRoom<Result> (size: number, begin: () => Promise<Result>): Promise<Result> {
    for (let isFull = false; ; isFull = true) {
      try {
        const begun = await begin()
        if (isFull) this.#full(false, 0)
        return begun
      } catch (error) {
        if (!isDiskFull(error)) throw error
      }
      if (!isFull) this.#full(true, size)
      do await pause(ROOM_MS, this.#collaborators.clock, this.#signal)
      while (await this.#store.room() < size)
    }
  }

  #convict (device: DeviceId, leaf: number | null, reason: string): void {
    const { distrust, logger } = this.#collaborators
    distrust.add(device, { id: this.#id, reason })
    logger.warn({ device, id: this.#id, leaf, reason }, 'a source sent wrong bytes; it is not asked again')
    this.#options.onEvent?.({ event: 'source-dropped', id: this.#id, device, leaf, reason })
  }

  /** Asks the sources until one proves what the file is: of one leaf, and it is fetched with that; or of more, and its
   * list is right. Throws the worst that was said. */
  async #begin (): Promise<PartialFile | Downloaded> {
    const { clock } = this.#collaborators
    const deadline = clock.monotonic() + (this.#options.waitMs ?? WAIT_MS)
    for (let wait = 100; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      const { found, problem, isHopeless } = await this.#ask(this.#sources())
      if (found !== undefined) return await this.#take(found)
      const isPatient = this.#options.waitMs === Infinity && problem instanceof PatchcordError && problem.code === 'not-found'
      if ((isHopeless && !isPatient) || clock.monotonic() + wait > deadline) throw problem ?? this.#nobody()
      await pause(wait, clock, this.#signal)
    }
  }

  /** One source after the other, the next as soon as one fails or is slow to answer; the first to answer well. */
  async #ask (sources: readonly Source[]): Promise<{ found?: Found, problem?: unknown, isHopeless: boolean }> {
    const [only] = sources
    // Of a thousand small files from one device, what could end the others would cost as much as the asking.
    if (only !== undefined && sources.length === 1) {
      try {
        return { found: await this.#askOne(only, this.#signal), isHopeless: true }
      } catch (problem) {
        this.#signal.throwIfAborted()
        return { problem, isHopeless: isFinal(problem) }
      }
    }
    const stop = new AbortController()
    const signal = AbortSignal.any([this.#signal, stop.signal])
    const pending = new Set<Promise<{ found: Found } | { error: unknown }>>()
    let problem: unknown
    let isHopeless = sources.length > 0
    const next = [...sources]
    try {
      while (next.length > 0 || pending.size > 0) {
        const source = next.shift()
        if (source !== undefined) {
          const asking = this.#askOne(source, signal).then(found => ({ found }), (error: unknown) => ({ error })).finally(() => { pending.delete(asking) })
          pending.add(asking)
        }
        const slow = next.length > 0 ? [pause(HEDGE_MS, this.#collaborators.clock, signal).catch(() => undefined)] : []
        const answer = await Promise.race([...pending, ...slow])
        if (answer === undefined) continue
        if ('found' in answer) return { found: answer.found, isHopeless }
        this.#signal.throwIfAborted()
        if (!isFinal(answer.error)) isHopeless = false
        // A lie is worse news than an absence, whoever is asked last.
        if (!(problem instanceof PatchcordError && problem.code === 'verification')) problem = answer.error
      }
      return { problem, isHopeless }
    } finally {
      stop.abort()
      await Promise.all(pending)
    }
  }

  async #askOne (source: Source, signal: AbortSignal): Promise<Found> {
    const { size: wanted, most = Number.MAX_SAFE_INTEGER } = this.#options
    const { device } = source
    const id = this.#id
    const check = (size: number): void => {
      // Not the source's lie, as far as anybody can tell: whoever wrote the document may have made its size up.
      if (wanted !== undefined && size !== wanted) throw new PatchcordError('not-found', `${id} has ${size} bytes at device ${device}, and its document says ${wanted}`)
      if (size > most) throw new PatchcordError('too-large', `${id} has ${size} bytes at device ${device}; the limit is ${most}`)
    }
    let first: Buffer | undefined
    try {
      if (wanted === undefined || wanted <= LEAF_BYTES) {
        const { size, bytes } = await askFirst(source, id, wanted, signal)
        check(size)
        if (size <= LEAF_BYTES) {
          // The ID of a file of one leaf is the hash of that leaf: nothing else need be asked.
          if (contentIdOf(leafHash(bytes)) !== id) throw new PatchcordError('verification', `leaf 0 of ${id} is wrong: its bytes do not match its hash`)
          return { source, size, bytes }
        }
        first = bytes
      }
      const { size, leaves } = await askLeaves(source, id, most, signal)
      check(size)
      if (first === undefined) return { source, size, leaves }
      if (!leafHash(first).equals(leaves.subarray(0, HASH_BYTES))) throw new PatchcordError('verification', `leaf 0 of ${id} is wrong: its bytes do not match its hash`)
      return { source, size, leaves, first }
    } catch (error) {
      if (!signal.aborted) {
        this.#collaborators.logger.debug({ device, id, reason: messageOf(error) }, 'a source does not give a file')
        if (error instanceof PatchcordError && error.code === 'verification') this.#convict(device, null, error.message)
      }
      throw error
    }
  }

  async #take (found: Found): Promise<PartialFile | Downloaded> {
    const { source, size } = found
    const id = this.#id
    if ('leaves' in found) {
      const partial = await this.#inRoom(size, () => PartialFile.create(this.#store, { id, size, leaves: found.leaves }))
      // Where there is no room for this one, what follows finds that too, and waits.
      if (found.first !== undefined) await partial.writeLeaf(0, found.first, asGiver(source)).catch(() => undefined)
      return partial
    }
    const isAside = this.#options.isAside?.() ?? false
    await this.#inRoom(size, async () => { await (isAside ? this.#store.putAside(id, found.bytes) : this.#store.put(id, found.bytes)) })
    this.#options.onEvent?.({ event: 'progress', id, done: size, total: size, rate: size, sources: 1 })
    return { size, isAside, sources: new Set([source.device]), givers: new Set([asGiver(source)]) }
  }
}

/** Whether a source that said so would say it again. */
function isFinal (error: unknown): boolean {
  return error instanceof PatchcordError && ['verification', 'not-found', 'too-large'].includes(error.code)
}

/** What a source proved of a file: all its bytes, or its list. */
type Found = { readonly source: Source, readonly size: number } & ({ readonly bytes: Buffer } | { readonly leaves: Buffer, readonly first?: Buffer })

/** Resolves after `delay` ms; rejects with the signal's reason. */
function pause (delay: number, clock: Clock, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const aborted = (): void => {
      timer.cancel()
      reject(signal.reason as Error)
    }
    const timer = clock.after(delay, () => {
      signal.removeEventListener('abort', aborted)
      resolve()
    })
    if (signal.aborted) aborted()
    else signal.addEventListener('abort', aborted, { once: true })
  })
}

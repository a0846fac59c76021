import type { Clock } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import { contentIdOf, EMPTY_ID, LEAF_BYTES, leafHash } from '../files/content-id.js'
import { PartialFile } from '../files/partial.js'
import type { FileStore } from '../files/store.js'
import { askFirst, askLeaves, type Source } from './ask-file.js'
import type { Distrust } from './distrust.js'
import { fetchLeaves } from './leaf-fetch.js'

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
  /** How long to go on while nobody can be asked (ms). */
  readonly waitMs?: number
}

export interface DownloadCollaborators {
  readonly clock: Clock
  readonly logger: Logger
  readonly distrust: Distrust
}

export interface Downloaded {
  readonly size: number
  /** The devices that gave leaves now. */
  readonly sources: ReadonlySet<DeviceId>
  /** All that ever gave a leaf of it, in earlier processes too: every byte came from one of these. */
  readonly givers: ReadonlySet<DeviceId>
}

const WAIT_MS = 10_000

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

  constructor (store: FileStore, id: ContentId, options: DownloadOptions, collaborators: DownloadCollaborators) {
    this.#store = store
    this.#id = id
    this.#options = options
    this.#collaborators = collaborators
    this.#signal = options.signal ?? new AbortController().signal
  }

  async run (): Promise<Downloaded> {
    this.#signal.throwIfAborted()
    if (this.#id === EMPTY_ID) {
      // The ID alone says every byte there is. It is fetched all the same: that a source has it is what counts.
      return await this.#begin() as Downloaded
    }
    const resumed = await PartialFile.resume(this.#store, this.#id)
    const { size } = this.#options
    if (resumed !== undefined && size !== undefined && resumed.size !== size) await resumed.discard()
    const begun = resumed === undefined || resumed.size !== (size ?? resumed.size) ? await this.#begin() : { partial: resumed, from: undefined }
    if (!('partial' in begun)) return begun
    const { partial, from } = begun
    if (partial.damaged.length > 0) this.#collaborators.logger.warn({ id: this.#id, leaves: partial.damaged.slice(0, 100) }, 'the disk lost leaves of a download; they are fetched again')
    try {
      return await this.#finish(partial, [...partial.givers])
    } catch (error) {
      // Whoever told a size that is not the file's: the last leaf proves it, and another is asked.
      if (from !== undefined && this.#collaborators.distrust.of(from) !== undefined && partial.bytes === 0 && this.#sources().length > 0) {
        await partial.discard()
        return await this.run()
      }
      throw error
    } finally {
      if (partial.bytes > 0) await partial.suspend()
      else await partial.discard()
    }
  }

  #sources (): readonly Source[] {
    const { distrust } = this.#collaborators
    return this.#options.sources().filter(({ device }) => distrust.of(device) === undefined)
  }

  async #finish (partial: PartialFile, before: DeviceId[]): Promise<Downloaded> {
    const { id, size } = partial
    const { onEvent = () => undefined, waitMs = WAIT_MS } = this.#options
    const sources = await fetchLeaves(partial, {
      sources: () => this.#sources(),
      signal: this.#signal,
      clock: this.#collaborators.clock,
      waitMs,
      onProgress: (rate, count) => { onEvent({ event: 'progress', id, done: partial.bytes, total: size, rate, sources: count }) },
      onLie: (device, leaf, reason) => { this.#convict(device, leaf, reason) },
      onOvertaken: device => {
        this.#collaborators.logger.info({ device, id }, 'a source is silent; its leaves are asked for elsewhere')
        onEvent({ event: 'overtaken', id, device })
      },
      onFull: isFull => {
        this.#collaborators.logger.warn({ id }, isFull ? 'the disk is full; the download waits for room' : 'the disk has room again; the download goes on')
        onEvent(isFull ? { event: 'paused', id, reason: 'disk-full', needed: size - partial.bytes } : { event: 'resumed', id })
      },
    })
    await partial.complete()
    return { size, sources, givers: new Set([...before, ...partial.givers]) }
  }

  #convict (device: DeviceId, leaf: number | null, reason: string): void {
    const { distrust, logger } = this.#collaborators
    distrust.add(device, { id: this.#id, reason })
    logger.warn({ device, id: this.#id, leaf, reason }, 'a source sent wrong bytes; it is not asked again')
    this.#options.onEvent?.({ event: 'source-dropped', id: this.#id, device, leaf, reason })
  }

  /** Asks one source after the other until one proves what the file is: of one leaf, and it is fetched with that; or
   * of more, and its list is right. Throws the worst that was said. */
  async #begin (): Promise<{ partial: PartialFile, from: DeviceId } | Downloaded> {
    const { clock } = this.#collaborators
    const deadline = clock.monotonic() + (this.#options.waitMs ?? WAIT_MS)
    let problem: unknown
    for (let wait = 100; ; wait = Math.min(2 * wait, 2_000)) {
      const asked = this.#sources()
      let isHopeless = asked.length > 0
      for (const source of asked) {
        try {
          return await this.#beginWith(source)
        } catch (error) {
          this.#signal.throwIfAborted()
          const code = error instanceof PatchcordError ? error.code : undefined
          if (code === 'disk-full' || code === 'unreadable' || code === 'already-exists') throw error
          if (code === 'verification') this.#convict(source.device, null, messageOf(error))
          if (code !== 'verification' && code !== 'not-found' && code !== 'too-large') isHopeless = false
          this.#collaborators.logger.debug({ device: source.device, id: this.#id, reason: messageOf(error) }, 'a source does not give a file')
          // A lie is worse news than an absence, whoever is asked last.
          if (!(problem instanceof PatchcordError && problem.code === 'verification')) problem = error
        }
      }
      if (isHopeless || clock.monotonic() + wait > deadline) throw problem ?? new PatchcordError('unreachable', `no device that may have ${this.#id} is connected`, { hint: '`patchcord status` says why' })
      await new Promise<void>(resolve => {
        const done = (): void => {
          timer.cancel()
          this.#signal.removeEventListener('abort', done)
          resolve()
        }
        const timer = clock.after(wait, done)
        this.#signal.addEventListener('abort', done, { once: true })
      })
      this.#signal.throwIfAborted()
    }
  }

  async #beginWith (source: Source): Promise<{ partial: PartialFile, from: DeviceId } | Downloaded> {
    const { size: wanted, most = Number.MAX_SAFE_INTEGER } = this.#options
    if (wanted !== undefined && wanted > most) throw new PatchcordError('too-large', `${this.#id} has ${wanted} bytes; the limit is ${most}`)
    if (wanted === undefined || wanted <= LEAF_BYTES) {
      const { size, bytes } = await askFirst(source, this.#id, this.#signal)
      if (wanted !== undefined && size !== wanted) throw sizeConflict(this.#id, wanted, source.device, size)
      if (size > most) throw new PatchcordError('too-large', `${this.#id} has ${size} bytes at device ${source.device}; the limit is ${most}`)
      if (size <= LEAF_BYTES) return await this.#take(source, bytes)
    }
    const { size, leaves } = await askLeaves(source, this.#id, most, this.#signal)
    if (wanted !== undefined && size !== wanted) throw sizeConflict(this.#id, wanted, source.device, size)
    return { partial: await PartialFile.create(this.#store, { id: this.#id, size, leaves }), from: source.device }
  }

  /** A file of one leaf: its hash is the ID, so nothing else need be asked. */
  async #take ({ device }: Source, bytes: Buffer): Promise<Downloaded> {
    if (contentIdOf(leafHash(bytes)) !== this.#id) throw new PatchcordError('verification', `leaf 0 of ${this.#id} is wrong: its bytes do not match its hash`)
    await this.#store.put(this.#id, bytes)
    const size = bytes.length
    this.#options.onEvent?.({ event: 'progress', id: this.#id, done: size, total: size, rate: size, sources: 1 })
    return { size, sources: new Set([device]), givers: new Set([device]) }
  }
}

/** Not the source's lie, as far as anybody can tell: whoever wrote the document may have made the size up. */
function sizeConflict (id: ContentId, wanted: number, device: DeviceId, size: number): PatchcordError {
  return new PatchcordError('not-found', `${id} has ${size} bytes at device ${device}, and its document says ${wanted}`)
}

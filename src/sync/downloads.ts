import { isDiskFull, messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import type { FileStore } from '../files/store.js'
import { asGiver, type Source } from './ask-file.js'
import { Distrust } from './distrust.js'
import { download, type DownloadCollaborators, type Downloaded, type DownloadEvent, type DownloadOptions } from './download.js'
import { DownloadQueue } from './download-queue.js'

/** Who wants a file that is being fetched. */
interface Wish {
  readonly sources: () => readonly Source[]
  readonly onEvent: (event: DownloadEvent) => void
  readonly isAside: boolean
}

interface Running {
  readonly wishes: Set<Wish>
  readonly abort: AbortController
  readonly done: Promise<Downloaded>
}

/** All downloads of this device: one for each file, however many want it, and a list on disk of those that a person
 * asked for, so that they go on after a crash. */
export class Downloads {
  readonly distrust = new Distrust()
  readonly #store: FileStore
  readonly #collaborators: DownloadCollaborators
  readonly #emit: (event: DownloadEvent) => void
  readonly #queue: DownloadQueue
  readonly #running = new Map<ContentId, Running>()
  #isStopping = false

  private constructor (store: FileStore, queue: DownloadQueue, collaborators: Omit<DownloadCollaborators, 'distrust'>, emit: (event: DownloadEvent) => void) {
    this.#store = store
    this.#queue = queue
    this.#collaborators = { ...collaborators, distrust: this.distrust }
    this.#emit = emit
  }

  /** Throws `bad-state` where the list in the folder `root` is damaged. */
  static async open (root: string, store: FileStore, collaborators: Omit<DownloadCollaborators, 'distrust'>, emit: (event: DownloadEvent) => void): Promise<Downloads> {
    return new Downloads(store, await DownloadQueue.open(root), collaborators, emit)
  }

  /** Fetches a file, or joins whoever is fetching it. Rejects like `download`; with the signal's reason, at once, where
   * that aborts, and the download ends when nobody wants it any more. Where any of those who want it wants it in the
   * store, it is there; who wants it aside looks in both. */
  async fetch (id: ContentId, options: DownloadOptions): Promise<Downloaded> {
    for (;;) {
      const done = await this.#join(id, options)
      // It was whole already, and put aside, when this wish came.
      if (!done.isAside || options.isAside?.() === true) return done
    }
  }

  async #join (id: ContentId, options: DownloadOptions): Promise<Downloaded> {
    const { signal, sources, onEvent = () => undefined, isAside } = options
    signal?.throwIfAborted()
    if (this.#isStopping) throw new PatchcordError('stopped', 'the service is stopping')
    const wish: Wish = { sources, onEvent, isAside: isAside?.() ?? false }
    const running = this.#running.get(id) ?? this.#start(id, options)
    running.wishes.add(wish)
    const leave = (): void => {
      running.wishes.delete(wish)
      if (running.wishes.size === 0) running.abort.abort(signal?.reason)
    }
    if (signal === undefined) return await running.done
    return await new Promise((resolve, reject) => {
      const aborted = (): void => {
        leave()
        // The partial is settled before anybody goes on.
        if (running.wishes.size > 0) reject(signal.reason as Error)
      }
      signal.addEventListener('abort', aborted, { once: true })
      running.done.then(resolve, reject).finally(() => { signal.removeEventListener('abort', aborted) })
    })
  }

  /** Fetches a file that a person asked for: should this process die, the next one goes on by itself. On a full disk that holds
   * from when there is room again. */
  async fetchAsked (id: ContentId, options: DownloadOptions): Promise<Downloaded> {
    const { size } = options
    const list = async (): Promise<boolean> => {
      try {
        await this.#queue.add({ id, ...size === undefined ? {} : { size } })
        return true
      } catch (error) {
        if (!isDiskFull(error)) throw error
        this.#collaborators.logger.warn({ id }, 'the disk is full; the list of downloads does not have this one yet')
        return false
      }
    }
    let isListed = await list()
    let listing: Promise<unknown> = Promise.resolve()
    const onEvent = (event: DownloadEvent): void => {
      // What moves has room.
      if (!isListed && event.event !== 'paused') {
        isListed = true
        listing = list().then(isThere => { isListed = isThere }, (error: unknown) => { this.#collaborators.logger.warn({ id, reason: messageOf(error) }, 'the list of downloads could not be written') })
      }
      options.onEvent?.(event)
    }
    try {
      return await this.fetch(id, { ...options, onEvent })
    } finally {
      await listing
      if (!this.#isStopping) await this.#queue.remove(id)
    }
  }

  /** Whether the file is being fetched, or was asked for and is not here yet. */
  isWanted (id: ContentId): boolean {
    return this.#running.has(id) || this.#queue.all.some(queued => queued.id === id)
  }

  /** Goes on with what an earlier process was asked for and did not end. Runs in the background until it is done, or
   * until all who had it lied; it waits for as long as it takes, for devices that are not connected as well: that the others do not
   * have it says nothing of them. `onDone` is told of
   * each that came. */
  goOn (sources: (id: ContentId) => () => readonly Source[], onDone: (id: ContentId, done: Downloaded) => Promise<void>): void {
    for (const { id, size } of this.#queue.all) {
      this.fetch(id, { sources: sources(id), size, waitMs: Infinity }).then(async done => {
        this.#collaborators.logger.info({ id }, 'a download of an earlier run is complete')
        await this.#queue.remove(id)
        await onDone(id, done)
      }).catch(async (error: unknown) => {
        if (this.#isStopping) return
        this.#collaborators.logger.warn({ id, reason: messageOf(error) }, 'a download of an earlier run was given up')
        await this.#queue.remove(id)
      }).catch((error: unknown) => { this.#collaborators.logger.error({ err: error }, 'the list of downloads could not be written') })
    }
  }

  /** Ends them all, each with what it has so far kept. */
  async stop (): Promise<void> {
    this.#isStopping = true
    const running = [...this.#running.values()]
    for (const { abort } of running) abort.abort(new PatchcordError('stopped', 'the service is stopping'))
    await Promise.allSettled(running.map(({ done }) => done))
  }

  #start (id: ContentId, options: DownloadOptions): Running {
    const abort = new AbortController()
    const wishes = new Set<Wish>()
    const sources = (): Source[] => {
      const all = new Map<string, Source>()
      for (const wish of wishes) for (const source of wish.sources()) all.set(asGiver(source), source)
      return [...all.values()]
    }
    const onEvent = (event: DownloadEvent): void => {
      for (const wish of wishes) wish.onEvent(event)
      if (event.event !== 'progress') this.#emit(event)
    }
    // Its first steps see the wish of whoever started it, which is added before they run.
    const done = Promise.resolve()
      .then(() => download(this.#store, id, { ...options, sources, onEvent, signal: abort.signal, isAside: () => [...wishes].every(wish => wish.isAside) }, this.#collaborators))
      .finally(() => { this.#running.delete(id) })
    done.catch(() => { /* those who wait for it are told */ })
    const running = { wishes, abort, done }
    this.#running.set(id, running)
    return running
  }
}

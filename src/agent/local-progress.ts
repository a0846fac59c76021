import { lstat } from 'node:fs/promises'
import type { Clock } from '../core/clock.js'
import type { LocalProgress } from '../control/operations.js'
import { walk } from '../files/walk.js'
import { Rate } from '../sync/rate.js'

/** How often progress is told (ms). */
const TELL_MS = 250
/** What there is in all is counted only once something takes this long (ms): what is quick costs nothing more. */
const COUNT_MS = 1_000

export interface LocalProgressOptions {
  readonly clock: Clock
  readonly stage: LocalProgress['stage']
  readonly tell: (progress: LocalProgress) => void
  /** The sizes of all there is to do, or the sum. */
  readonly sizes?: (() => AsyncIterable<number>) | number
  readonly signal?: AbortSignal
}

/** How far work on this device's own disk has come: bytes, files, and the rate of the last seconds. */
export class ProgressMeter {
  readonly #options: LocalProgressOptions
  readonly #rate: Rate
  readonly #started: number
  #toldAt: number
  #done = 0
  #files = 0
  #total: number | null = null
  #ofFiles: number | null = null
  #isCounting = false

  constructor (options: LocalProgressOptions) {
    this.#options = options
    this.#rate = new Rate(options.clock)
    this.#started = options.clock.monotonic()
    this.#toldAt = this.#started
    if (typeof options.sizes === 'number') this.#total = options.sizes
  }

  /** So many bytes more, and files that are through. */
  add (bytes: number, files = 0): void {
    this.#done += bytes
    this.#files += files
    // A file whose size another one has is read twice, and begins again.
    this.#rate.add(Math.max(0, bytes))
    const { clock, sizes } = this.#options
    const now = clock.monotonic()
    if (typeof sizes === 'function' && !this.#isCounting && now - this.#started >= COUNT_MS) void this.#count(sizes)
    if (now - this.#toldAt < TELL_MS) return
    this.#toldAt = now
    this.#tell()
  }

  #tell (): void {
    const { stage, tell } = this.#options
    // What grew since it was counted is no reason to tell of more than all.
    const [total, ofFiles] = [this.#total, this.#ofFiles]
    tell({ event: 'progress', stage, done: this.#done, total: total === null ? null : Math.max(total, this.#done), rate: this.#rate.perSecond, files: this.#files, ofFiles: ofFiles === null ? null : Math.max(ofFiles, this.#files) })
  }

  async #count (sizes: () => AsyncIterable<number>): Promise<void> {
    this.#isCounting = true
    let total = 0
    let files = 0
    try {
      for await (const size of sizes()) {
        if (this.#options.signal?.aborted === true) return
        total += size
        files += 1
      }
    } catch {
      // The work itself comes to what cannot be read, and tells it with its path; until then nobody knows how much there is.
      return
    }
    this.#total = total
    this.#ofFiles = files
  }
}

/** The sizes of the regular files at and below the paths, but for those in the folder `except`. */
export async function * sizesBelow (paths: readonly string[], except: string): AsyncIterable<number> {
  for (const path of paths) for await (const found of walk(path, { except })) yield (await lstat(found.path)).size
}

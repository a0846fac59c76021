import type { Clock } from '../core/clock.js'
import type { ContentId } from '../core/ids.js'
import type { TransferProgress } from '../control/operations.js'
import { Rate } from '../sync/rate.js'

/** How often progress is told here, and to the sender (ms). */
const TELL_MS = 250
const MAIL_MS = 2_000

export interface ArrivalsCollaborators {
  readonly clock: Clock
  /** To who accepted the offer. */
  readonly tell: (progress: TransferProgress) => void
  /** To the sender. */
  readonly mail: () => void
}

/** How much is here of an offer that is being fetched, of `total` bytes in all. */
export class Arrivals {
  done = 0
  readonly #total: number
  readonly #collaborators: ArrivalsCollaborators
  readonly #rate: Rate
  #toldAt: number
  #mailedAt: number

  constructor (total: number, collaborators: ArrivalsCollaborators) {
    const { clock } = collaborators
    this.#total = total
    this.#collaborators = collaborators
    this.#rate = new Rate(clock)
    this.#toldAt = this.#mailedAt = clock.monotonic()
  }

  /** So many bytes more of a file, from so many devices. */
  add (id: ContentId, bytes: number, sources: number): void {
    const { clock, tell, mail } = this.#collaborators
    this.done += bytes
    this.#rate.add(Math.max(0, bytes))
    const now = clock.monotonic()
    if (now - this.#toldAt >= TELL_MS) {
      this.#toldAt = now
      tell({ event: 'progress', id, done: this.done, total: this.#total, rate: this.#rate.perSecond, sources })
    }
    if (now - this.#mailedAt < MAIL_MS) return
    this.#mailedAt = now
    mail()
  }
}

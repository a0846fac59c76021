import type { Clock, Timer } from './clock.js'

/** Something with a deadline. */
export interface Watched {
  /** Called about once a period, with monotonic time. May end it. */
  look (now: number): void
}

/**
 * One timer for all that runs, in place of one for each: what takes a hundred microseconds cannot afford to arm
 * three. Deadlines are kept a period late at most, and never early if they are counted from `now`.
 */
export class Patrol {
  /** Monotonic time, at most a period old. Good for as long as something is watched. */
  now = 0
  /** How far apart looks are (ms). */
  readonly period: number
  readonly #clock: Clock
  readonly #watched = new Set<Watched>()
  #timer: Timer | undefined

  /** `shortest` is the shortest of the deadlines (ms). */
  constructor (clock: Clock, shortest: number) {
    this.#clock = clock
    this.period = Math.min(1000, Math.max(5, shortest / 16))
  }

  add (watched: Watched): void {
    this.#watched.add(watched)
    if (this.#timer === undefined) this.#arm()
  }

  delete (watched: Watched): void {
    this.#watched.delete(watched)
  }

  /** Runs on for one period after the last one has gone, so that requests one after the other arm nothing. */
  #arm (): void {
    this.now = this.#clock.monotonic()
    this.#timer = this.#clock.after(this.period, () => {
      this.#timer = undefined
      if (this.#watched.size === 0) return
      this.#arm()
      for (const watched of this.#watched) watched.look(this.now)
    })
  }
}

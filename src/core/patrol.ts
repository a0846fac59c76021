import type { Clock, Timer } from './clock.js'

/** Something that runs and has a deadline. */
export interface Watched {
  /** The patrol's own: where it stands in its list. -1 to begin with. */
  place: number
  /** Called about once a period, with monotonic time. May end it. */
  look (now: number): void
}

/**
 * All that runs, and one timer for it in place of one for each: what takes a hundred microseconds cannot afford to arm
 * three. Deadlines are kept a period or two late, and never early if they are counted from `now` and a period is added.
 *
 * A list and not a Set: V8 makes a Set a new table every few additions, and an old table that died keeps alive what it held
 * until the whole heap is collected. With one addition a request that was a fifth of all CPU, and half of the heap.
 */
export class Patrol<Each extends Watched = Watched> {
  /** Monotonic time, at most a period old. Good for as long as something is watched. */
  now = 0
  /** How far apart looks are (ms). */
  readonly period: number
  readonly #clock: Clock
  readonly #watched: Each[] = []
  #timer: Timer | undefined

  /** `shortest` is the shortest of the deadlines (ms). */
  constructor (clock: Clock, shortest: number) {
    this.#clock = clock
    this.period = Math.min(1000, Math.max(5, shortest / 16))
  }

  /** What runs now. */
  all (): readonly Each[] { return [...this.#watched] }

  add (watched: Each): void {
    watched.place = this.#watched.push(watched) - 1
    if (this.#timer === undefined) this.#arm()
  }

  /** The last one takes its place. */
  delete (watched: Each): void {
    const { place } = watched
    if (this.#watched[place] !== watched) return
    const last = this.#watched.pop()!
    watched.place = -1
    if (last === watched) return
    this.#watched[place] = last
    last.place = place
  }

  /** Runs on for one period after the last one has gone, so that requests one after the other arm nothing. */
  #arm (): void {
    this.now = this.#clock.monotonic()
    this.#timer = this.#clock.after(this.period, () => {
      this.#timer = undefined
      if (this.#watched.length === 0) return
      this.#arm()
      for (const watched of this.all()) watched.look(this.now)
    })
  }
}

import type { Clock } from '../core/clock.js'

/** How far back a rate looks (ms), and how finely. */
const WINDOW_MS = 5_000
const STEP_MS = 250

/** How much of something, such as bytes, goes by in a second: the mean of the last seconds. */
export class Rate {
  readonly #clock: Clock
  readonly #started: number
  #steps: Array<{ readonly at: number, count: number }> = []

  constructor (clock: Clock) {
    this.#clock = clock
    this.#started = clock.monotonic()
  }

  add (count: number): void {
    const now = this.#clock.monotonic()
    const last = this.#steps.at(-1)
    if (last !== undefined && now - last.at < STEP_MS) last.count += count
    else this.#steps.push({ at: now, count })
    if (this.#steps.length > 2 * WINDOW_MS / STEP_MS) this.#trim(now)
  }

  get perSecond (): number {
    const now = this.#clock.monotonic()
    this.#trim(now)
    const over = Math.max(STEP_MS, Math.min(WINDOW_MS, now - this.#started))
    return Math.round(this.#steps.reduce((sum, { count }) => sum + count, 0) / over * 1000)
  }

  #trim (now: number): void {
    this.#steps = this.#steps.filter(({ at }) => now - at < WINDOW_MS)
  }
}

import type { Clock, Timer } from '../core/clock.js'

/** How often time is looked at, and how much of it may be missing (ms). */
const EVERY_MS = 5_000
const GAP_MS = 5_000

/** Calls `onGap` when time went by in which nothing ran: the machine slept. Linux stops the monotonic clock in
 * suspend while the person's goes on; a stopped process or virtual machine sees a timer come late. A clock
 * that somebody set looks the same, which costs a question to each peer. */
export function watchForGaps (clock: Clock, onGap: () => void): Timer {
  let timer: Timer
  const look = (): void => {
    const [wall, monotonic] = [clock.now(), clock.monotonic()]
    timer = clock.after(EVERY_MS, () => {
      const passed = clock.monotonic() - monotonic
      const isGap = passed - EVERY_MS > GAP_MS || Math.abs(clock.now() - wall - passed) > GAP_MS
      look()
      if (isGap) onGap()
    })
  }
  look()
  return { cancel: () => { timer.cancel() } }
}

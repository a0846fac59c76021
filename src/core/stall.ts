import type { Clock, Timer } from './clock.js'

/** Calls `stalled`, once, where nothing moved for `stallMs`. `hasMoved` is asked four times in that, and says whether anything did since it was asked before. */
export function watchForStall (clock: Clock, stallMs: number, hasMoved: () => boolean, stalled: () => void): Timer {
  let movedAt = clock.monotonic()
  let timer: Timer
  const watch = (): void => {
    timer = clock.after(Math.max(1, Math.min(stallMs / 4, movedAt + stallMs - clock.monotonic())), () => {
      const now = clock.monotonic()
      if (hasMoved()) movedAt = now
      else if (now - movedAt >= stallMs) {
        stalled()
        return
      }
      watch()
    })
  }
  hasMoved()
  watch()
  return { cancel: () => { timer.cancel() } }
}

/** What the system has not taken of a socket yet (bytes). `writeQueueSize` is not public, but it is what Node's own socket time-out reads to tell a slow
 * client from a stalled one; where it is missing, only whole writes count as movement. */
export function queuedIn (socket: object): number {
  const { _handle: handle } = socket as { _handle?: { writeQueueSize?: unknown } | null }
  return typeof handle?.writeQueueSize === 'number' ? handle.writeQueueSize : 0
}

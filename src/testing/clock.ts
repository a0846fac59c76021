import type { Clock, Timer } from '../core/clock.js'

interface Pending {
  readonly due: number
  readonly task: () => void
  timeout: NodeJS.Timeout
}

/** Time that goes on by itself, as real sockets need it, and that a test can push forward. */
export class LabClock implements Clock {
  #ahead = 0
  /** How far the person's clock is off (ms); monotonic time knows nothing of it. */
  #off = 0
  readonly #pending = new Set<Pending>()

  now (): number { return Date.now() + this.#ahead + this.#off }

  monotonic (): number { return performance.now() + this.#ahead }

  after (delay: number, task: () => void): Timer {
    const pending: Pending = { due: this.monotonic() + delay, task, timeout: this.#arm(delay, () => { this.#fire(pending) }) }
    this.#pending.add(pending)
    return { cancel: () => { this.#drop(pending) } }
  }

  /** Moves time forward; timers that are due run, earliest first, before this returns. */
  advance (milliseconds: number): void {
    if (!(milliseconds >= 0)) throw new RangeError('time only moves forward; setWallClock makes the person\'s clock jump')
    const target = this.monotonic() + milliseconds
    for (;;) {
      const [first] = [...this.#pending].toSorted((a, b) => a.due - b.due)
      if (first === undefined || first.due > target) break
      this.#ahead += Math.max(0, first.due - this.monotonic())
      this.#fire(first)
    }
    this.#ahead += Math.max(0, target - this.monotonic())
    this.#rearm()
  }

  /** Lets time pass as for a machine that sleeps: every timer that is due runs once, when it wakes. Years take no
   * longer than seconds, however often something looks around. */
  sleep (milliseconds: number): void {
    if (!(milliseconds >= 0)) throw new RangeError('time only moves forward; setWallClock makes the person\'s clock jump')
    this.#ahead += milliseconds
    const due = [...this.#pending].filter(pending => pending.due <= this.monotonic()).toSorted((a, b) => a.due - b.due)
    for (const pending of due) if (this.#pending.has(pending)) this.#fire(pending)
    this.#rearm()
  }

  /** Makes the person's clock say `time` (ms since 1970), as when somebody sets it. No timer is affected. */
  setWallClock (time: number): void {
    this.#off += time - this.now()
  }

  /** Drops every timer. */
  stop (): void {
    for (const pending of [...this.#pending]) this.#drop(pending)
  }

  #rearm (): void {
    for (const pending of this.#pending) {
      clearTimeout(pending.timeout)
      pending.timeout = this.#arm(pending.due - this.monotonic(), () => { this.#fire(pending) })
    }
  }

  #arm (delay: number, run: () => void): NodeJS.Timeout {
    return setTimeout(run, Math.min(Math.max(0, delay), 0x7fffffff)).unref()
  }

  #fire (pending: Pending): void {
    const left = pending.due - this.monotonic()
    if (left > 1) {
      pending.timeout = this.#arm(left, () => { this.#fire(pending) })
      return
    }
    this.#drop(pending)
    pending.task()
  }

  #drop (pending: Pending): void {
    clearTimeout(pending.timeout)
    this.#pending.delete(pending)
  }
}

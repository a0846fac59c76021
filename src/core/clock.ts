/** Time as a collaborator: certificates, windows and limits read this, so tests move it. */
export interface Clock {
  /** Milliseconds since 1970, as the person's clock says. It may jump. */
  now (): number
  /** Milliseconds that only ever grow, for durations and time-outs. */
  monotonic (): number
  /** Runs `task` once after `delay` milliseconds of monotonic time. The timer keeps no process alive. */
  after (delay: number, task: () => void): Timer
}

export interface Timer {
  cancel (): void
}

/** setTimeout takes at most 2^31 - 1 ms; a certificate lives longer than that. */
const LONGEST_TIMEOUT = 0x7fffffff

export const systemClock: Clock = Object.freeze({
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after (delay: number, task: () => void): Timer {
    const due = performance.now() + delay
    let timeout: NodeJS.Timeout
    const arm = (): void => {
      const left = Math.max(0, due - performance.now())
      timeout = setTimeout(left > LONGEST_TIMEOUT ? arm : task, Math.min(left, LONGEST_TIMEOUT))
      timeout.unref()
    }
    arm()
    return { cancel: () => { clearTimeout(timeout) } }
  },
})

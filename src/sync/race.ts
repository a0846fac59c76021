import type { Clock, Timer } from '../core/clock.js'

/** RFC 8305 section 5: how long an attempt is alone before the next begins beside it (ms). */
export const STAGGER_MS = 250

export interface RaceOptions<Choice, Result> {
  /** Best first. */
  readonly choices: readonly Choice[]
  /** One attempt; ends at once when its signal aborts. What it made for a race that another won is its own to undo. */
  readonly attempt: (choice: Choice, signal: AbortSignal) => Promise<Result>
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Attempts one after the other, each a moment after the one before or as soon as that failed, until the first one
 * succeeds; the others are aborted. Throws an AggregateError of what each said, best first, where
 * all fail. */
export function race<Choice, Result> ({ choices, attempt, clock, signal }: RaceOptions<Choice, Result>): Promise<Result> {
  return new Promise((resolve, reject) => {
    const problems = new Map<number, unknown>()
    const running = new Map<number, AbortController>()
    let next = 0
    let timer: Timer | undefined
    let isOver = false

    const end = (winner?: number): void => {
      isOver = true
      timer?.cancel()
      signal.removeEventListener('abort', aborted)
      for (const [index, controller] of running) if (index !== winner) controller.abort()
    }
    const aborted = (): void => {
      end()
      reject(signal.reason as Error)
    }
    const begin = (): void => {
      timer?.cancel()
      const index = next++
      if (index >= choices.length) {
        if (running.size > 0) return
        end()
        return reject(new AggregateError([...problems].toSorted(([a], [b]) => a - b).map(([, problem]) => problem)))
      }
      const controller = new AbortController()
      running.set(index, controller)
      timer = clock.after(STAGGER_MS, () => { if (next < choices.length) begin() })
      attempt(choices[index]!, controller.signal).then(result => {
        if (isOver) return
        end(index)
        resolve(result)
      }, (error: unknown) => {
        running.delete(index)
        problems.set(index, error)
        if (!isOver) begin()
      })
    }

    if (signal.aborted) return aborted()
    signal.addEventListener('abort', aborted)
    begin()
  })
}

import { createHash } from 'node:crypto'
import { join } from 'node:path'
import * as v from 'valibot'
import type { Clock } from '../core/clock.js'
import { readState, writeState } from '../core/state-file.js'

// Who guesses, pays. The responder writes each attempt at a code down before it answers, and after a window
// in which nobody proved the code the next code has to wait: 10 s, then twice as long each time, to 10
// minutes. The initiator counts its own shares. No secret is ever written.

const FIRST_WAIT_MS = 10_000
const LONGEST_WAIT_MS = 600_000
/** Failures of yesterday are not held against today's typing. */
const FORGOTTEN_MS = 24 * 60 * 60 * 1000

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const Shape = v.strictObject({ version: v.literal(1), failures: count, charges: count, at: count })

/** `pairing.json`: how many windows in a row saw their code tried and not proved, the last one's charges, and
 * when the last of them was (milliseconds since 1970). */
export class Charges {
  readonly #path: string
  readonly #clock: Clock
  #state: v.InferOutput<typeof Shape>
  /** When the last charge was, on the monotonic clock, as well as that is known. */
  #since: number

  private constructor (path: string, clock: Clock, state: v.InferOutput<typeof Shape>) {
    this.#path = path
    this.#clock = clock
    this.#state = state
    // A clock that was set back since makes us wait once more, not for years; one set forward is the
    // person's own doing.
    this.#since = clock.monotonic() - Math.max(0, clock.now() - state.at)
  }

  /** Opens `pairing.json` in `root`. Throws `bad-state` where it is damaged: it is never read as empty. */
  static async open (root: string, clock: Clock): Promise<Charges> {
    const path = join(root, 'pairing.json')
    return new Charges(path, clock, await readState(path, Shape) ?? { version: 1, failures: 0, charges: 0, at: 0 })
  }

  /** How long until a code may be shown, in milliseconds; 0 for now. Links need not wait. */
  get wait (): number {
    return Math.max(0, waitAfter(this.#state.failures) - (this.#clock.monotonic() - this.#since))
  }

  /** Writes down, durably, that the code of this window is being tried for the `charges`th time. Until it is
   * proved, that counts as a failure: a crash is no way around it. Throws, and the share must not leave. */
  async charge (charges: number): Promise<void> {
    const elapsed = this.#clock.monotonic() - this.#since
    const failures = elapsed >= FORGOTTEN_MS ? 0 : this.#state.failures
    await this.#write({ version: 1, failures: charges === 1 ? failures + 1 : Math.max(1, failures), charges, at: Math.max(0, Math.floor(this.#clock.now())) })
    this.#since = this.#clock.monotonic()
  }

  /** Somebody proved the secret: no code has to wait. */
  async proven (): Promise<void> {
    if (this.#state.failures > 0) await this.#write({ ...this.#state, failures: 0, charges: 0 })
  }

  async #write (state: v.InferOutput<typeof Shape>): Promise<void> {
    await writeState(this.#path, Shape, state)
    this.#state = state
  }
}

/** How long a code waits after this many failures in a row, in milliseconds. */
export const waitAfter = (failures: number): number => failures === 0 ? 0 : Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** Math.min(failures - 1, 30))

/** The most shares that leave for one typed code, over all listeners. */
export const MOST_SHARES = 3
/** No code lives that long; typed again after it, the same digits are another code. */
const REMEMBERED_MS = 600_000

/** The initiator's side: a lying responder has one guess at the code for each share it gets. Kept in memory,
 * by hash, for as long as the agent runs: typing the same code again does not start anew. */
export class SpentShares {
  readonly #clock: Clock
  readonly #spent = new Map<string, { shares: number, at: number }>()

  constructor (clock: Clock) {
    this.#clock = clock
  }

  /** Counts one more share for this code; false, and nothing may be sent, from the fourth on. */
  spend (code: Uint8Array): boolean {
    const now = this.#clock.monotonic()
    for (const [key, { at }] of this.#spent) if (now - at > REMEMBERED_MS) this.#spent.delete(key)
    const key = createHash('sha256').update(code).digest('base64')
    const shares = this.#spent.get(key)?.shares ?? 0
    if (shares >= MOST_SHARES) return false
    this.#spent.set(key, { shares: shares + 1, at: now })
    return true
  }
}

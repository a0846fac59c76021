import type { Contestant, Work } from './contest.js'
import type { Materials } from './materials.js'

/** A work, and how its contestants are made ready. */
export interface Prepared {
  readonly work: Work
  /** `load` compiles the client where it is needed. Rejects where the work cannot be done here, with a sentence
   * that says why. */
  readonly prepare: (materials: Materials, load: () => string) => Promise<{ readonly contestants: readonly Contestant[], readonly clean?: () => Promise<void> }>
}

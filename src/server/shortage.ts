import { open } from 'node:fs/promises'
import type { Clock, Timer } from '../core/clock.js'
import { fileError, messageOf, systemCode } from '../core/errors.js'
import type { Logger } from '../core/log.js'

/** How often it is looked whether there are open files again (ms). */
const LOOK_MS = 1_000

export interface ShortageOptions {
  readonly clock: Clock
  readonly logger: Logger
  /** Opens a file and closes it. */
  readonly probe?: () => Promise<void>
}

/**
 * Tells once that the system lets this process have no more open files and connections, and once that it does again.
 * Nothing else may: libuv keeps one descriptor in reserve, and gives it up to accept what waits at the port and to close it
 * at once (`uv__emfile_trick`). Whoever connects then is turned away, and nobody here hears of it; so a file is opened
 * now and then to find out.
 */
export class Shortage {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #probe: () => Promise<void>
  #isShort = false
  #timer: Timer | undefined

  constructor ({ clock, logger, probe = openOwnCode }: ShortageOptions) {
    this.#clock = clock
    this.#logger = logger
    this.#probe = probe
  }

  /** Something failed for want of a descriptor, in words. */
  noticed (what: string): void {
    if (this.#isShort) return
    this.#isShort = true
    this.#logger.error({ reason: what }, 'too many open files: who connects is turned away, and files cannot be read. Raise the limit (ulimit -n, or LimitNOFILE= in the unit)')
    this.#lookLater()
  }

  /** Finds out. Never rejects. */
  async look (): Promise<void> {
    try {
      await this.#probe()
    } catch (error) {
      // What else may be wrong with that file says nothing.
      if (systemCode(error) === 'EMFILE' || systemCode(error) === 'ENFILE') {
        this.noticed(messageOf(fileError(error, 'a file')))
        this.#lookLater()
        return
      }
    }
    if (!this.#isShort) return
    this.#isShort = false
    this.#logger.info('there are open files again')
  }

  stop (): void {
    this.#timer?.cancel()
  }

  #lookLater (): void {
    this.#timer?.cancel()
    this.#timer = this.#clock.after(LOOK_MS, () => { void this.look() })
  }
}

/** Of all files, the one that every confinement lets this process read. */
async function openOwnCode (): Promise<void> {
  const handle = await open(new URL(import.meta.url))
  await handle.close()
}

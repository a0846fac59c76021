import { messageOf } from '../core/errors.js'
import type { Clock, Timer } from '../core/clock.js'
import type { Logger } from '../core/log.js'
import type { CouchClient } from './couch-client.js'

const HEARTBEAT_MS = 20_000
/** Longer than two heartbeats without a byte, and the feed is taken for dead. */
const QUIET_MS = 50_000
/** How often the list is asked for where there is no feed to tell of changes. */
const POLL_MS = 10_000
/** Between the end of a feed and the next. */
const AGAIN_MS = 1_000

/** Tells when a database of a CouchDB is made or deleted: by `_db_updates`, which administrators may follow, and by
 * asking every 10 s where that is refused or missing. `look` is called at every beginning, too, for what happened
 * in between. */
export class CouchUpdates {
  readonly #client: CouchClient
  readonly #look: () => Promise<unknown>
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #ending = new AbortController()
  #timer: Timer | undefined
  #running: Promise<void>

  constructor (client: CouchClient, look: () => Promise<unknown>, clock: Clock, logger: Logger) {
    this.#client = client
    this.#look = look
    this.#clock = clock
    this.#logger = logger
    this.#running = this.#follow()
  }

  async stop (): Promise<void> {
    this.#ending.abort()
    this.#timer?.cancel()
    await this.#running
  }

  async #follow (): Promise<void> {
    let wait = AGAIN_MS
    try {
      const status = await this.#client.follow(`/_db_updates?feed=continuous&since=now&heartbeat=${HEARTBEAT_MS}`, QUIET_MS, this.#ending.signal, line => {
        if (tellsOfList(line)) this.#lookNow()
      })
      if (status !== 200) wait = POLL_MS
    } catch (error) {
      this.#logger.warn({ reason: messageOf(error) }, 'the feed of CouchDB\'s databases ended')
    }
    if (this.#ending.signal.aborted) return
    this.#timer = this.#clock.after(wait, () => {
      this.#lookNow()
      this.#running = this.#follow()
    })
  }

  #lookNow (): void {
    this.#look().catch((error: unknown) => { this.#logger.warn({ reason: messageOf(error) }, 'CouchDB does not tell its databases') })
  }
}

/** A line is `{"db_name","type":"created"|"updated"|"deleted","seq"}`; updates of documents change no list. */
function tellsOfList (line: string): boolean {
  try {
    const type = (JSON.parse(line) as { type?: unknown } | null)?.type
    return type === 'created' || type === 'deleted'
  } catch {
    return false
  }
}

import * as v from 'valibot'
import type { Clock } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId, DatabaseName } from '../core/ids.js'
import { contentId } from '../core/shape.js'
import type { Logger } from '../core/log.js'
import type { CouchClient } from './couch-client.js'

/** What the newest revision of a document says of a file: its size, or that it refers to none (any more). */
export interface FileChange {
  readonly id: ContentId
  readonly size: number | undefined
}

export interface FileFeedOptions {
  readonly couch: CouchClient
  readonly database: DatabaseName
  readonly clock: Clock
  readonly logger: Logger
  /** Called for every document that changed, with how many revisions it has beside the winning one. */
  readonly onConflicts: (losers: ReadonlyMap<string, number>) => void
  /** Awaited before the next are asked for. */
  readonly onChanges: (changes: readonly FileChange[]) => Promise<void>
  /** Called once, when everything there was when the feed began has been told. */
  readonly onCaughtUp: () => Promise<void>
}

const BATCH = 500
/** Shorter than what the client of the database waits for an answer (ms). */
const POLL_MS = 8_000
const FIRST_RETRY_MS = 1_000
const LONGEST_RETRY_MS = 30_000

const Changes = v.object({
  last_seq: v.union([v.string(), v.number()]),
  results: v.array(v.object({ id: v.string(), deleted: v.optional(v.boolean()), doc: v.nullish(v.unknown()) })),
})
const Conflicted = v.object({ _conflicts: v.array(v.string()) })
const FileDocument = v.object({ type: v.literal('file'), size: v.pipe(v.number(), v.safeInteger(), v.minValue(0)) })

/** The size that a document gives its file, where it refers to one: its `_id` is a content ID, its `type` is `file`. */
export function sizeIn (id: string, document: unknown): number | undefined {
  if (!v.is(contentId, id)) return undefined
  const parsed = v.safeParse(FileDocument, document)
  return parsed.success && (document as { _deleted?: unknown })._deleted !== true ? parsed.output.size : undefined
}

/** Tells every document of a local database that is named after a file, and what conflicts there are, from the
 * first, and goes on telling. */
export class FileFeed {
  readonly #options: FileFeedOptions
  #isStopped = false
  #wake: () => void = () => undefined
  readonly #done: Promise<void>

  constructor (options: FileFeedOptions) {
    this.#options = options
    this.#done = this.#run()
  }

  /** Resolves when nothing of it runs any more. */
  async stop (): Promise<void> {
    this.#isStopped = true
    this.#wake()
    await this.#done
  }

  async #run (): Promise<void> {
    const { database, logger, onCaughtUp } = this.#options
    let since: string | number = 0
    let caughtUp = false
    let wait = FIRST_RETRY_MS
    while (!this.#isStopped) {
      try {
        const { last, count } = await this.#ask(since, caughtUp)
        since = last
        wait = FIRST_RETRY_MS
        if (caughtUp || count === BATCH || this.#isStopped) continue
        await onCaughtUp()
        caughtUp = true
      } catch (error) {
        if (this.#isStopped) break
        logger.debug({ database, reason: messageOf(error) }, 'the changes of a database were not read')
        await this.#sleep(wait)
        wait = Math.min(2 * wait, LONGEST_RETRY_MS)
      }
    }
  }

  async #ask (since: string | number, poll: boolean): Promise<{ last: string | number, count: number }> {
    const { couch, database, onChanges, onConflicts } = this.#options
    const query = `include_docs=true&conflicts=true&limit=${BATCH}&since=${encodeURIComponent(since)}${poll ? `&feed=longpoll&timeout=${POLL_MS}` : ''}`
    const asked = couch.ask('GET', `/${encodeURIComponent(database)}/_changes?${query}`)
    asked.catch(() => { /* nobody waits for it once this has stopped */ })
    const answer = await Promise.race([asked, new Promise<undefined>(resolve => {
      this.#wake = () => { resolve(undefined) }
      if (this.#isStopped) resolve(undefined)
    })])
    if (answer === undefined) return { last: since, count: 0 }
    const parsed = v.safeParse(Changes, answer.value)
    if (answer.status !== 200 || !parsed.success) throw new PatchcordError('upstream-down', `CouchDB answered ${answer.status} for the changes of ${database}`)
    onConflicts(new Map(parsed.output.results.map(({ id, doc }) => [id, v.is(Conflicted, doc) ? doc._conflicts.length : 0])))
    const changes = parsed.output.results.flatMap(({ id, deleted, doc }) => v.is(contentId, id) ? [{ id, size: deleted === true ? undefined : sizeIn(id, doc) }] : [])
    if (changes.length > 0) await onChanges(changes)
    return { last: parsed.output.last_seq, count: parsed.output.results.length }
  }

  #sleep (delay: number): Promise<void> {
    return new Promise(resolve => {
      const timer = this.#options.clock.after(delay, resolve)
      this.#wake = () => {
        timer.cancel()
        resolve()
      }
      if (this.#isStopped) this.#wake()
    })
  }
}

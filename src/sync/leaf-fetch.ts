import type { Clock } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import { LEAF_BYTES, leafCount } from '../files/content-id.js'
import type { Giver } from '../files/giver.js'
import type { PartialFile } from '../files/partial.js'
import { asGiver, type Source } from './ask-file.js'
import { LeafPlan, type Span } from './leaf-plan.js'
import { Rate } from './rate.js'
import { fetchSpan } from './span-fetch.js'

/** Leaves that are asked for in one request. */
const SPAN_LEAVES = 16
/** Requests at once to one source: the second hides the turn-around of the first. */
const LANES = 2
const TICK_MS = 250
/** A source on which nothing moved for this long is overtaken where there is another (ms). */
const STALL_MS = 4_000
/** A source that would need longer than this for what it was asked for gives half of it away (ms). */
const SLOW_MS = 1_000
const FIRST_RETRY_MS = 250
/** Failures in a row after which a source is not asked again for this file, until it went away and came back. */
const MOST_STRIKES = 4
/** How often a full disk is looked at again (ms). */
export const ROOM_MS = 2_000

export interface LeafFetchOptions {
  /** Who may be asked now, best first. Read again all the time. */
  readonly sources: () => readonly Source[]
  readonly signal: AbortSignal
  readonly clock: Clock
  /** How long to go on without any source (ms). */
  readonly waitMs: number
  /** What to throw where there was no source at all. */
  readonly nobody: () => PatchcordError
  readonly onProgress: (rate: number, sources: number) => void
  /** A source that sent a wrong leaf; it is asked no more. */
  readonly onLie: (device: DeviceId, leaf: number, reason: string) => void
  /** A source that tells another size. */
  readonly onConflict: () => void
  /** A source whose leaves were asked for elsewhere. */
  readonly onOvertaken: (device: DeviceId) => void
  /** The disk is full, and later has room again. */
  readonly onFull: (isFull: boolean) => void
}

/** One source at work. */
interface Feeder {
  readonly source: Source
  readonly abort: AbortController
  readonly rate: Rate
  readonly lanes: Set<Promise<void>>
  /** Bytes that came since it was last looked at. */
  moved: number
  movedAt: number
  strikes: number
  retryAt: number
  /** Why it is asked no more. */
  gone: unknown
}

interface Running {
  readonly feeder: Feeder
  readonly abort: AbortController
}

/** Fetches the leaves that a partial file lacks from all sources at once, and resolves when none is missing. Leaves
 * that a slow or a silent source has are asked for elsewhere; a source that sends a wrong leaf is out. Throws what the
 * last source said once there was none for `waitMs`, what the disk said, or the signal's reason. */
export async function fetchLeaves (partial: PartialFile, options: LeafFetchOptions): Promise<ReadonlySet<DeviceId>> {
  const fetching = new LeafFetch(partial, options)
  return await fetching.run()
}

class LeafFetch {
  readonly #partial: PartialFile
  readonly #options: LeafFetchOptions
  readonly #plan: LeafPlan<Running>
  readonly #feeders = new Map<Giver, Feeder>()
  readonly #givers = new Set<DeviceId>()
  /** Sources that went away without having said that they do not give it: they may come back. */
  readonly #away = new Set<Giver>()
  readonly #rate: Rate
  readonly #stop = new AbortController()
  #isFull = false
  #fatal: unknown
  #problem: unknown
  #aloneSince: number | undefined
  #waiting: Array<() => void> = []

  constructor (partial: PartialFile, options: LeafFetchOptions) {
    this.#partial = partial
    this.#options = options
    this.#plan = new LeafPlan(leafCount(partial.size), partial.missing())
    this.#rate = new Rate(options.clock)
  }

  async run (): Promise<ReadonlySet<DeviceId>> {
    const { signal } = this.#options
    const aborted = (): void => { this.#nudge() }
    signal.addEventListener('abort', aborted)
    try {
      if (!this.#plan.isDone && !await this.#partial.hasRoom()) await this.#untilRoom()
      while (!this.#plan.isDone) {
        signal.throwIfAborted()
        if (this.#fatal !== undefined) throw this.#fatal
        if (this.#isFull) await this.#untilRoom()
        this.#look()
        this.#feed()
        this.#overtake()
        this.#failIfAlone()
        this.#report()
        await this.#tick(TICK_MS)
      }
      this.#report()
      return this.#givers
    } finally {
      signal.removeEventListener('abort', aborted)
      this.#stop.abort()
      for (const { abort } of this.#feeders.values()) abort.abort()
      this.#nudge()
      await Promise.all([...this.#feeders.values()].flatMap(({ lanes }) => [...lanes]))
    }
  }

  /** Sets every source to work that may be asked now, and ends those that no longer may. */
  #feed (): void {
    const now = this.#options.clock.monotonic()
    const listed = new Map(this.#options.sources().map(source => [asGiver(source), source]))
    for (const [giver, feeder] of this.#feeders) {
      if (listed.get(giver)?.bytes === feeder.source.bytes) continue
      feeder.abort.abort()
      if (feeder.gone === undefined) this.#away.add(giver)
      if (feeder.lanes.size === 0) this.#feeders.delete(giver)
    }
    // A device is asked on one account at a time; on the next where it does not give the file on that.
    const asked = new Set([...this.#feeders.values()].filter(({ gone, abort }) => gone === undefined && !abort.signal.aborted).map(({ source }) => source.device))
    for (const [giver, source] of listed) {
      if (this.#feeders.has(giver) || asked.has(source.device)) continue
      asked.add(source.device)
      this.#away.delete(giver)
      this.#feeders.set(giver, { source, abort: new AbortController(), rate: new Rate(this.#options.clock), lanes: new Set(), moved: 0, movedAt: now, strikes: 0, retryAt: 0, gone: undefined })
    }
    for (const feeder of this.#feeders.values()) {
      while (this.#mayWork(feeder) && feeder.lanes.size < LANES) {
        const lane = this.#lane(feeder).finally(() => {
          feeder.lanes.delete(lane)
          this.#nudge()
        })
        feeder.lanes.add(lane)
      }
    }
  }

  /** What moved since the last time. Not at every piece: a clock costs as much as a piece. */
  #look (): void {
    const now = this.#options.clock.monotonic()
    for (const feeder of this.#feeders.values()) {
      if (feeder.moved === 0) continue
      feeder.rate.add(feeder.moved)
      feeder.moved = 0
      feeder.movedAt = now
    }
  }

  #mayWork (feeder: Feeder): boolean {
    return feeder.gone === undefined && !feeder.abort.signal.aborted && feeder.retryAt <= this.#options.clock.monotonic()
  }

  /** Works until there is nothing left, or the source failed. It never rejects. */
  async #lane (feeder: Feeder): Promise<void> {
    const ring: Buffer[] = []
    while (!this.#stop.signal.aborted && !this.#isFull && this.#mayWork(feeder) && !this.#plan.isDone) {
      const running: Running = { feeder, abort: new AbortController() }
      const span = this.#pick(running)
      if (span === undefined) {
        await this.#nudged()
        continue
      }
      try {
        await fetchSpan(feeder.source, this.#partial, span, ring, {
          signal: AbortSignal.any([running.abort.signal, feeder.abort.signal, this.#stop.signal]),
          onMoved: count => { feeder.moved += count },
          write: (index, bytes) => this.#write(feeder, index, bytes),
        })
        feeder.strikes = 0
      } catch (error) {
        this.#failed(feeder, error)
      } finally {
        this.#plan.drop(span)
        this.#nudge()
      }
    }
  }

  /** Leaves with nobody; else half of what the slowest source still has; else the one leaf that a slow one is at. */
  #pick (running: Running): Span<Running> | undefined {
    const { feeder } = running
    const lanes = Math.max(1, this.#feeders.size) * LANES
    const span = this.#plan.take(running, Math.min(SPAN_LEAVES, Math.max(1, Math.ceil(this.#plan.left / lanes))))
    if (span !== undefined) return span
    let slowest: { span: Span<Running>, ms: number } | undefined
    for (const other of this.#plan.spans) {
      if (other.owner.feeder === feeder || other.next >= other.end) continue
      // Doubled already: a third copy would help nobody.
      if (other.end - other.next === 1 && [...this.#plan.spans].some(one => one !== other && one.next === other.next)) continue
      const ms = this.#expectedMs(other)
      if (ms > SLOW_MS && ms > (slowest?.ms ?? 0)) slowest = { span: other, ms }
    }
    if (slowest === undefined) return undefined
    return this.#plan.split(slowest.span, running) ?? this.#plan.double(slowest.span, running)
  }

  /** How long the owner of a span needs for the rest of it, as it goes now. */
  #expectedMs ({ owner: { feeder }, next, end }: Span<Running>): number {
    const perMs = feeder.rate.perSecond / 1000 / Math.max(1, feeder.lanes.size)
    if (perMs === 0) return this.#options.clock.monotonic() - feeder.movedAt
    return (end - next) * LEAF_BYTES / perMs
  }

  async #write (feeder: Feeder, index: number, bytes: Buffer): Promise<void> {
    if (!this.#plan.isWanted(index)) return
    try {
      await this.#partial.writeLeaf(index, bytes, asGiver(feeder.source))
    } catch (error) {
      this.#plan.lost(index)
      if (error instanceof PatchcordError && error.code === 'verification') {
        if (feeder.gone === undefined) this.#options.onLie(feeder.source.device, index, error.message)
        feeder.gone = error
        feeder.abort.abort()
      } else if (error instanceof PatchcordError && error.code === 'disk-full') {
        this.#isFull = true
        for (const { abort } of this.#feeders.values()) abort.abort()
      } else {
        this.#fatal ??= error
      }
      this.#problem = error
      throw error
    }
    this.#plan.done(index)
    this.#givers.add(feeder.source.device)
    this.#rate.add(bytes.length)
    if (this.#plan.isDone) this.#nudge()
  }

  #failed (feeder: Feeder, error: unknown): void {
    if (this.#stop.signal.aborted || this.#isFull || feeder.gone !== undefined) return
    if (feeder.abort.signal.aborted) return
    this.#problem = error
    const code = error instanceof PatchcordError ? error.code : undefined
    if (code === 'not-found' || code === 'verification' || code === 'conflict') {
      if (code === 'conflict') this.#options.onConflict()
      feeder.gone = error
      return
    }
    feeder.strikes += 1
    feeder.retryAt = this.#options.clock.monotonic() + FIRST_RETRY_MS * 2 ** feeder.strikes
    if (feeder.strikes >= MOST_STRIKES) feeder.gone = error
  }

  /** Ends what a silent source was asked for where another could do it, and what nobody needs any more. */
  #overtake (): void {
    const now = this.#options.clock.monotonic()
    const others = (feeder: Feeder): boolean => [...this.#feeders.values()].some(other => other !== feeder && this.#mayWork(other))
    for (const { owner: { feeder, abort }, next, end } of this.#plan.spans) {
      let wanted = false
      for (let index = next; index < end; index++) wanted ||= this.#plan.isWanted(index)
      if (!wanted) abort.abort()
      if (now - feeder.movedAt < STALL_MS || !others(feeder) || abort.signal.aborted) continue
      this.#options.onOvertaken(feeder.source.device)
      feeder.retryAt = now + 10 * STALL_MS
      feeder.movedAt = now
      for (const other of this.#plan.spans) if (other.owner.feeder === feeder) other.owner.abort.abort()
    }
  }

  #failIfAlone (): void {
    const { clock, waitMs } = this.#options
    if ([...this.#feeders.values()].some(({ gone, abort }) => gone === undefined && !abort.signal.aborted)) {
      this.#aloneSince = undefined
      return
    }
    this.#aloneSince ??= clock.monotonic()
    // Those that answered that they do not have it, or lied, will not have it in a moment; one that was giving it may.
    const saidNo = (error: unknown): boolean => error instanceof PatchcordError && ['not-found', 'verification', 'conflict'].includes(error.code)
    const isHopeless = this.#away.size === 0 && this.#feeders.size > 0 && [...this.#feeders.values()].every(({ gone }) => saidNo(gone))
    // Who waits for as long as it takes waits for those, too, that were never connected.
    const isPatient = waitMs === Infinity && [...this.#feeders.values()].every(({ gone }) => gone instanceof PatchcordError && gone.code === 'not-found')
    if ((!isHopeless || isPatient) && clock.monotonic() - this.#aloneSince < waitMs) return
    // What others do not have says nothing of the one that had it.
    if (this.#problem === undefined || (this.#away.size > 0 && saidNo(this.#problem))) throw this.#options.nobody()
    throw this.#problem
  }

  async #untilRoom (): Promise<void> {
    const { signal, onFull } = this.#options
    await Promise.all([...this.#feeders.values()].flatMap(({ lanes }) => [...lanes]))
    this.#feeders.clear()
    onFull(true)
    do {
      await this.#tick(ROOM_MS)
      signal.throwIfAborted()
    } while (!await this.#partial.hasRoom())
    this.#isFull = false
    onFull(false)
  }

  #report (): void {
    const working = [...this.#feeders.values()].filter(feeder => feeder.gone === undefined && feeder.rate.perSecond > 0).length
    this.#options.onProgress(this.#rate.perSecond, working)
  }

  /** Resolves after `delay` ms, or at the next nudge. */
  async #tick (delay: number): Promise<void> {
    const timer = this.#options.clock.after(delay, () => { this.#nudge() })
    await this.#nudged()
    timer.cancel()
  }

  #nudged (): Promise<void> {
    return new Promise(resolve => { this.#waiting.push(resolve) })
  }

  #nudge (): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }
}

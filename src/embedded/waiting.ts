import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Exchange } from './exchange.js'
import { Problem } from './problem.js'
import type { Store } from './store.js'

/** Waits for the next write to a database. */
export class Waiter {
  readonly #unwatch: () => void
  readonly #signal: AbortSignal
  #dirty = false
  #wake: () => void = () => undefined
  readonly #changed = (): void => {
    this.#dirty = true
    this.#wake()
  }

  constructor (store: Store, signal: AbortSignal) {
    this.#signal = signal
    this.#unwatch = store.watch(this.#changed)
    signal.addEventListener('abort', this.#changed)
  }

  /** Writes from here on count. */
  reset (): void {
    this.#dirty = false
  }

  /** Resolves at once where something was written since `reset`. Rejects when the exchange has ended. */
  async wait (timeoutMs: number | undefined): Promise<'changed' | 'timeout'> {
    let timer: NodeJS.Timeout | undefined
    if (!this.#dirty && !this.#signal.aborted) {
      await new Promise<void>(resolve => {
        this.#wake = resolve
        if (timeoutMs !== undefined) timer = setTimeout(resolve, timeoutMs)
      })
      clearTimeout(timer)
    }
    if (this.#signal.aborted) throw new Problem(503, 'stopped', 'the feed has ended')
    return this.#dirty ? 'changed' : 'timeout'
  }

  stop (): void {
    this.#unwatch()
    this.#signal.removeEventListener('abort', this.#changed)
  }
}

/** Sends empty lines while a feed has nothing to say, where the client asked for them. */
export class Heartbeat {
  /** Without a heartbeat a feed ends after this. */
  readonly timeoutMs: number
  readonly #timer: NodeJS.Timeout | undefined

  constructor (exchange: Exchange) {
    const { shortestHeartbeatMs: shortest, feedTimeoutMs: longest } = exchange.limits
    this.timeoutMs = Math.min(exchange.count('timeout') ?? longest, longest)
    const asked = exchange.parameter('heartbeat')
    const isFeed = (exchange.parameter('feed') ?? 'normal') !== 'normal'
    if (!isFeed || asked === undefined || asked === '0') return
    const every = asked === 'true' ? longest : Math.min(Math.max(Number(asked), shortest), longest)
    this.#timer = setInterval(() => {
      // To a client that does not read, one more line says nothing.
      if (!exchange.isBehind) exchange.write('\n').catch(() => undefined)
    }, every)
  }

  get active (): boolean { return this.#timer !== undefined }

  stop (): void { clearInterval(this.#timer) }
}

/** How long one request may keep all others waiting (ms). */
const TURN_MS = 20

/** Lets others have their turn in the middle of what takes long and waits for nothing. */
export class Pauses {
  #since = performance.now()

  /** Where it is time for one. */
  async next (): Promise<void> {
    if (performance.now() - this.#since < TURN_MS) return
    await nextTurn()
    this.#since = performance.now()
  }
}

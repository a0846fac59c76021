/** Consecutive leaves that one source was asked for in one request. `owner` is whoever asked. */
export interface Span<Owner> {
  readonly owner: Owner
  /** The next leaf that is to come. */
  next: number
  /** The first leaf after it; another may take leaves from the end. */
  end: number
}

/** Who fetches which leaves: pure bookkeeping, so that it can be tested without a network. Every missing leaf is with
 * nobody, or in at least one span; a leaf that is done is done for all. */
export class LeafPlan<Owner> {
  readonly #wanted: Set<number>
  /** Wanted, and in no span. In ascending order from `#low` on. */
  readonly #free: Uint8Array
  readonly #spans = new Set<Span<Owner>>()
  #low: number

  /** `count` leaves, of which `missing` are to be fetched. */
  constructor (count: number, missing: Iterable<number>) {
    this.#wanted = new Set(missing)
    this.#free = new Uint8Array(count)
    for (const index of this.#wanted) this.#free[index] = 1
    this.#low = 0
  }

  get isDone (): boolean { return this.#wanted.size === 0 }
  /** Leaves that are still to come. */
  get left (): number { return this.#wanted.size }
  get spans (): ReadonlySet<Span<Owner>> { return this.#spans }

  isWanted (index: number): boolean { return this.#wanted.has(index) }

  /** Gives the first leaves that are with nobody, `most` at most; undefined where there are none. */
  take (owner: Owner, most: number): Span<Owner> | undefined {
    while (this.#low < this.#free.length && this.#free[this.#low] === 0) this.#low += 1
    if (this.#low >= this.#free.length) return undefined
    const start = this.#low
    let end = start
    while (end < this.#free.length && end - start < most && this.#free[end] === 1) this.#free[end++] = 0
    return this.#add(owner, start, end)
  }

  /** Gives the later half of what `from` still has to come, and takes it from there; undefined where that is less
   * than two leaves. */
  split (from: Span<Owner>, owner: Owner): Span<Owner> | undefined {
    const left = from.end - from.next
    if (left < 2) return undefined
    const middle = from.next + Math.ceil(left / 2)
    const { end } = from
    from.end = middle
    return this.#add(owner, middle, end)
  }

  /** Gives the one leaf that `from` is at, and leaves it there too: the first to have it wins. */
  double (from: Span<Owner>, owner: Owner): Span<Owner> {
    return this.#add(owner, from.next, from.next + 1)
  }

  /** The leaf is written. */
  done (index: number): void {
    this.#wanted.delete(index)
    this.#free[index] = 0
  }

  /** The leaf did not come after all: whoever is free gets it. */
  lost (index: number): void {
    if (!this.#wanted.has(index)) return
    this.#free[index] = 1
    this.#low = Math.min(this.#low, index)
  }

  /** Ends a span; what is still to come of it, and with nobody else, is with nobody again. */
  drop (span: Span<Owner>): void {
    this.#spans.delete(span)
    for (let index = span.next; index < span.end; index++) {
      if (![...this.#spans].some(({ next, end }) => index >= next && index < end)) this.lost(index)
    }
  }

  #add (owner: Owner, next: number, end: number): Span<Owner> {
    const span = { owner, next, end }
    this.#spans.add(span)
    return span
  }
}

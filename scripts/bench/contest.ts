// The contest: contestants take turns (A B C, C B A, …), so that whatever else the machine does meets all of them
// alike, and ratios are made within a round, never between two moments.

/** What one turn gave. */
export interface Sample {
  readonly value: number
  /** What it does per second of CPU that it uses up, with all its processes: on a machine that does other things
   * besides, this stays what it is while `value` falls. More is better, whatever `value` is. */
  readonly perCpu?: number
  /** Cores that it kept busy meanwhile: below its budget, something else was the limit. */
  readonly busy?: number
  /** Other figures of the same turn, by name and unit: `p99 µs`. */
  readonly also?: Readonly<Record<string, number>>
}

/** Something that was started for the contest and does the work as often as it is asked. */
export interface Runner {
  turn (): Promise<Sample>
  /** Does the work until what it runs in is compiled: so many requests or bytes, not so many seconds, because a busy
   * machine does less in a second. Where it is left out, one turn that does not count comes first. */
  warmUp? (): Promise<void>
  stop (): Promise<void>
}

export interface Contestant {
  readonly name: string
  /** Its version, as it says itself. */
  readonly version: string
  /** The Debian package that brings it, or another sentence, where it is not there. */
  readonly missing?: string
  start (): Promise<Runner>
}

/** `ratio` times `of`, and never less than `floor` times, for the cores that each kept busy where `perCpu` is set; or, where a number is the
 * goal, at most (`less`) or at least (`more`) so much. */
export type Goal = { readonly of: string, readonly ratio: number, readonly floor?: number, readonly perCpu?: true } | { readonly limit: number }

export interface Work {
  readonly name: string
  /** A sentence: what is done, with how much, by whom. */
  readonly title: string
  readonly unit: string
  readonly better: 'more' | 'less'
  readonly goal?: Goal
  /** What is measured of it: one may be asked for by this word. */
  readonly group: 'files' | 'port' | 'couch' | 'devices'
  /** Turns of each contestant that count. */
  readonly rounds: number
  /** Nothing is done before the turns that count: each begins with something that is started anew. */
  readonly cold?: true
  /** Whoever is measured against the others. */
  readonly ours: string
  readonly notes?: string
}

export interface Standing {
  readonly name: string
  readonly version: string
  readonly median: number
  readonly low: number
  readonly high: number
  /** Medians over the turns. */
  readonly perCpu?: number
  readonly busy?: number
  readonly also?: Readonly<Record<string, number>>
  readonly samples: readonly number[]
}

/** Ours divided by theirs (or the other way round where less is better): above 1 we are ahead. */
export interface Ratio { readonly median: number, readonly low: number, readonly high: number }

export interface Outcome extends Work {
  readonly standings: readonly Standing[]
  readonly ratios: Readonly<Record<string, Ratio>>
  /** The same of `perCpu`. */
  readonly cpuRatios: Readonly<Record<string, Ratio>>
  readonly missing: ReadonlyArray<{ readonly name: string, readonly why: string }>
  /** Undefined where there is no goal, or whom it names is missing. */
  readonly reached?: boolean
  /** Undefined where the goal has no floor, or whom it names is missing. */
  readonly aboveFloor?: boolean
  readonly load: { readonly before: number, readonly after: number }
}

export interface ContestOptions {
  /** Told of each turn. */
  readonly onTurn: (contestant: string, round: number, sample: Sample) => void
  /** The machine's load, as processes that want to run. */
  readonly load: () => number
}

/** Runs it to its end; whatever was started is stopped. Rejects with what a contestant threw. */
export async function contest (work: Work, contestants: readonly Contestant[], { onTurn, load }: ContestOptions): Promise<Outcome> {
  const before = load()
  const there = contestants.filter(({ missing }) => missing === undefined)
  const runners = new Map<string, Runner>()
  const samples = new Map<string, Sample[]>()
  try {
    for (const contestant of there) runners.set(contestant.name, await contestant.start())
    for (let round = work.cold === true ? 1 : 0; round <= work.rounds; round++) {
      const order = round % 2 === 0 ? there : there.toReversed()
      for (const { name } of order) {
        const runner = runners.get(name)!
        if (round === 0 && runner.warmUp !== undefined) {
          await runner.warmUp()
          continue
        }
        const sample = await runner.turn()
        onTurn(name, round, sample)
        if (round > 0) samples.set(name, [...samples.get(name) ?? [], sample])
      }
    }
  } finally {
    for (const runner of runners.values()) await runner.stop()
  }
  const standings = there.map(({ name, version }) => standing(name, version, samples.get(name)!))
  const compare = (better: Work['better'], figure: (sample: Sample) => number | undefined): Record<string, Ratio> => Object.fromEntries(there.flatMap(({ name }) => {
    const ratio = name === work.ours ? undefined : ratioOf(better, samples.get(work.ours)?.map(figure) ?? [], samples.get(name)!.map(figure))
    return ratio === undefined ? [] : [[name, ratio]]
  }))
  const ratios = compare(work.better, ({ value }) => value)
  const cpuRatios = compare('more', ({ perCpu }) => perCpu)
  const missing = contestants.filter(contestant => contestant.missing !== undefined).map(({ name, missing: why }) => ({ name, why: why! }))
  const judged = work.goal !== undefined && 'of' in work.goal && work.goal.perCpu === true ? cpuRatios : ratios
  const reached = isReached(work, standings, judged)
  const aboveFloor = goalRatio(work, judged, goal => goal.floor)
  return { ...work, standings, ratios, cpuRatios, missing, ...reached === undefined ? {} : { reached }, ...aboveFloor === undefined ? {} : { aboveFloor }, load: { before, after: load() } }
}

function standing (name: string, version: string, samples: readonly Sample[]): Standing {
  const values = samples.map(({ value }) => value)
  const names = Object.keys(samples[0]?.also ?? {})
  const perCpu = samples.map(sample => sample.perCpu).filter(value => value !== undefined)
  const busy = samples.map(sample => sample.busy).filter(value => value !== undefined)
  return {
    name, version, median: median(values), low: Math.min(...values), high: Math.max(...values),
    ...perCpu.length === 0 ? {} : { perCpu: median(perCpu) },
    ...busy.length === 0 ? {} : { busy: median(busy) },
    ...names.length === 0 ? {} : { also: Object.fromEntries(names.map(key => [key, median(samples.map(({ also }) => also?.[key] ?? Number.NaN))])) },
    samples: values,
  }
}

/** Undefined where one of them has no such figure. */
function ratioOf (better: Work['better'], ours: ReadonlyArray<number | undefined>, theirs: ReadonlyArray<number | undefined>): Ratio | undefined {
  const each = ours.map((own = Number.NaN, at) => {
    const other = theirs[at] ?? Number.NaN
    return better === 'more' ? own / other : other / own
  })
  if (each.length === 0 || each.some(Number.isNaN)) return undefined
  return { median: median(each), low: Math.min(...each), high: Math.max(...each) }
}

function isReached (work: Work, standings: readonly Standing[], ratios: Readonly<Record<string, Ratio>>): boolean | undefined {
  const { goal, ours, better } = work
  if (goal === undefined) return undefined
  if ('of' in goal) return goalRatio(work, ratios, ({ ratio }) => ratio)
  const median = standings.find(({ name }) => name === ours)?.median
  if (median === undefined) return undefined
  return better === 'less' ? median <= goal.limit : median >= goal.limit
}

/** Whether the ratio to whom the goal names is at least what `wanted` says. */
function goalRatio ({ goal }: Work, ratios: Readonly<Record<string, Ratio>>, wanted: (goal: { readonly ratio: number, readonly floor?: number }) => number | undefined): boolean | undefined {
  if (goal === undefined || !('of' in goal)) return undefined
  const [least, ratio] = [wanted(goal), ratios[goal.of]]
  return least === undefined || ratio === undefined ? undefined : ratio.median >= least
}

/** The middle value, or the mean of the two in the middle. NaN of nothing. */
export function median (values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other)
  const middle = sorted.length / 2
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

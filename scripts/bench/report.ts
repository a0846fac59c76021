import type { Outcome, Ratio } from './contest.js'

// What a person reads of a run: one line a work for the README, and all figures below it.

const figure = (value: number): string => value >= 100 ? Math.round(value).toLocaleString('en-US') : value >= 10 ? value.toFixed(1) : value >= 0.1 ? value.toFixed(2) : value.toPrecision(2)

const row = (cells: readonly string[]): string => `| ${cells.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`

const spread = (ratio: Ratio | undefined): string => ratio === undefined ? '' : `${ratio.median.toFixed(2)} (${ratio.low.toFixed(2)} – ${ratio.high.toFixed(2)})`

function table (head: readonly string[], rows: ReadonlyArray<readonly string[]>): string {
  return [row(head), row(head.map(() => '---')), ...rows.map(row)].join('\n')
}

export function goalOf ({ goal, unit }: Outcome): string {
  if (goal === undefined) return ''
  return 'of' in goal ? `${goal.ratio} × ${goal.of}${goal.perCpu === true ? ' for the cores used' : ''}${goal.floor === undefined ? '' : `, at least ${goal.floor}`}` : `${figure(goal.limit)} ${unit}`
}

/** `ahead` compares what the ratio means: 1.2 is 1.2 times as good, whatever the unit. */
export function summary (outcomes: readonly Outcome[]): string {
  return table(['work', 'patchcord', 'beside it', 'ratio (1 = equal, more = ahead)', 'per CPU second', 'goal', 'reached'], outcomes.map(outcome => {
    const { title, unit, standings, ratios, cpuRatios, ours, missing, reached } = outcome
    const own = standings.find(({ name }) => name === ours)
    const others = standings.filter(({ name }) => name !== ours)
    return [
      title, own === undefined ? '–' : `${figure(own.median)} ${unit}`,
      [...others.map(({ name, median }) => `${name} ${figure(median)}`), ...missing.map(({ name }) => `${name} –`)].join(', '),
      ...[ratios, cpuRatios].map(each => others.filter(({ name }) => each[name] !== undefined).map(({ name }) => `${name} ${each[name]!.median.toFixed(2)}`).join(', ')),
      goalOf(outcome), reached === undefined ? '' : reached ? 'yes' : outcome.aboveFloor === false ? '**no, below the floor**' : '**no**',
    ]
  }))
}

/** What the README shows: the ratio is of whom the goal names, or of each where there is no goal. */
export function readmeTable (outcomes: readonly Outcome[]): string {
  return table(['work', 'patchcord', 'ratio: 1 is equal, more is ahead', 'goal'], outcomes.map(outcome => {
    const { title, unit, standings, ratios, cpuRatios, ours, missing, reached, goal } = outcome
    const own = standings.find(({ name }) => name === ours)
    const others = standings.filter(({ name }) => name !== ours)
    return [
      title, own === undefined ? '–' : `${figure(own.median)} ${unit}`,
      [...others.map(({ name }) => ratios[name] === undefined ? name : `${ratios[name].median.toFixed(2)} × ${name}${goal !== undefined && 'of' in goal && goal.perCpu === true && goal.of === name ? ` (${cpuRatios[name]?.median.toFixed(2)} for the cores used)` : ''}`), ...missing.map(({ name }) => `${name} is not installed`)].join(', '),
      `${goalOf(outcome)}${reached === undefined ? '' : reached ? ': reached' : ': **behind**'}`,
    ]
  }))
}

/** Every work with its medians, spread, ratios and who was missing. */
export function details (outcomes: readonly Outcome[]): string {
  return outcomes.map(outcome => {
    const { name, title, unit, standings, ratios, cpuRatios, missing, rounds, load, notes } = outcome
    const also = [...new Set(standings.flatMap(({ also: more }) => Object.keys(more ?? {})))]
    const rows = standings.map(standing => [
      `${standing.name} ${standing.version}`, figure(standing.median), `${figure(standing.low)} – ${figure(standing.high)}`,
      standing.busy === undefined ? '' : standing.busy.toFixed(2), standing.perCpu === undefined ? '' : figure(standing.perCpu),
      ...also.map(key => standing.also?.[key] === undefined ? '' : figure(standing.also[key])),
      spread(ratios[standing.name]), spread(cpuRatios[standing.name]),
    ])
    return [
      `### ${name}`, '', `${title}. Median of ${rounds} turns each; load of the machine ${load.before.toFixed(1)} before and ${load.after.toFixed(1)} after.`, '',
      table(['', unit, 'from – to', 'cores busy', 'per CPU second', ...also, 'patchcord ÷ this', 'the same per CPU second'], rows),
      ...missing.map(({ name: who, why }) => `\n${who}: ${why}.`), ...notes === undefined ? [] : ['', notes],
    ].join('\n')
  }).join('\n\n')
}

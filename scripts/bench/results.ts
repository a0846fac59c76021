import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { chart } from './chart.js'
import type { Outcome } from './contest.js'
import { details, readmeTable, summary } from './report.js'

// What was measured on one day: <date>.json, from which the tables, the chart and the README's part are made. A work
// that is measured again replaces itself and leaves the others, so that a day's results can come of several goes.

/** A work's outcome, and how it came about. */
export interface Measured extends Outcome {
  /** When it ended, as ISO 8601. */
  readonly measured: string
  /** How long the whole work took, materials and warm-up included. */
  readonly took: number
  /** What else the machine did, as whoever ran it said. */
  readonly meanwhile: string
}

export interface Results {
  /** ISO 8601; its first ten characters name the files. */
  readonly date: string
  readonly machine: Readonly<Record<string, string | number>>
  readonly outcomes: readonly Measured[]
  readonly notDone: ReadonlyArray<{ readonly name: string, readonly why: string }>
}

/** The results of `date` (or a longer ISO 8601 that begins with it), or undefined where there are none. Throws where the file is
 * there and cannot be read: what was measured is not to be overwritten. */
export function readResults (folder: string, date: string): Results | undefined {
  let text: string
  try {
    text = readFileSync(join(folder, `${date.slice(0, 10)}.json`), 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  return JSON.parse(text) as Results
}

/** The results of the latest day in the folder, or undefined where there are none. */
export function newestResults (folder: string): Results | undefined {
  const last = readdirSync(folder).filter(name => /^\d{4}-\d\d-\d\d\.json$/.test(name)).toSorted().at(-1)
  return last === undefined ? undefined : readResults(folder, last)
}

/** What is new in the place of what was there of the same name. `order` names the works. */
export function merge (before: Results | undefined, now: Results, order: readonly string[]): Results {
  const names = new Set([...now.outcomes, ...now.notDone].map(({ name }) => name))
  const outcomes = [...before?.outcomes.filter(({ name }) => !names.has(name)) ?? [], ...now.outcomes]
  const notDone = [...before?.notDone.filter(({ name }) => !names.has(name)) ?? [], ...now.notDone]
  return { ...now, outcomes: outcomes.toSorted((one, other) => order.indexOf(one.name) - order.indexOf(other.name)), notDone }
}

/** Writes <date>.json, .md and .svg, the first of them in one step: a run that is stopped keeps what it measured. Returns
 * the path without its ending. */
export function writeResults (folder: string, results: Results): string {
  mkdirSync(folder, { recursive: true })
  const base = join(folder, results.date.slice(0, 10))
  writeFileSync(`${base}.json.new`, `${JSON.stringify(results, null, 1)}\n`)
  renameSync(`${base}.json.new`, `${base}.json`)
  writeFileSync(`${base}.md`, document(results))
  writeFileSync(`${base}.svg`, chart(results.outcomes, `${results.machine['processor']} · ${results.date.slice(0, 10)} · ${results.machine['budget']}`))
  return base
}

export function document ({ date, machine, outcomes, notDone }: Results): string {
  const seconds = outcomes.reduce((sum, { took }) => sum + took, 0)
  return `# Measured ${date.slice(0, 10)}

${Object.entries(machine).map(([name, value]) => `${name} ${value}`).join(' · ')}

All works took ${Math.round(seconds / 60)} minutes.

${summary(outcomes)}
${notDone.map(({ name, why }) => `\n${name} was not done: ${why}\n`).join('')}
${outcomes.map(outcome => `${details([outcome])}\n\nEnded ${outcome.measured.slice(0, 16).replace('T', ' ')} UTC after ${Math.round(outcome.took)} s; meanwhile: ${outcome.meanwhile}.`).join('\n\n')}
`
}

const [BEGIN, END] = ['<!-- Made from the newest file of bench/results by `npm run docs`, and by `npm run bench`. -->', '<!-- The end of what is made. -->']

/** The README with its part on speed made anew. Throws where it has no place for it. */
export function withFigures (readme: string, results: Results): string {
  const [from, to] = [readme.indexOf(BEGIN), readme.indexOf(END)]
  if (from < 0 || to < from) throw new Error(`README.md has no place for figures: ${BEGIN} … ${END}`)
  const day = results.date.slice(0, 10)
  const meanwhile = [...new Set(results.outcomes.map(outcome => outcome.meanwhile))].join('; ')
  const part = `![patchcord beside other programs, as ratios](bench/results/${day}.svg)

Measured ${day}: ${results.machine['processor']}, ${results.machine['budget']}, Node ${String(results.machine['node']).replace('v', '')}; meanwhile: ${meanwhile}.
Each figure is the median of several turns; spread, versions and figures per CPU second are in
[bench/results/${day}.md](bench/results/${day}.md).

${readmeTable(results.outcomes)}
${results.notDone.length === 0 ? '' : `\nNot done: ${results.notDone.map(({ name, why }) => `${name} (${why})`).join('; ')}.\n`}`
  return `${readme.slice(0, from)}${BEGIN}\n\n${part}\n${readme.slice(to)}`
}

/**
 * patchcord beside what one would use instead, on this machine, in one run. Nothing is installed and nothing
 * but a temporary folder and bench/results is written.
 *
 *   npm run bench                      every work
 *   npm run bench -- file handshakes   these works
 *   npm run bench -- --list            what there is, and which peers are here
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { cpus, loadavg, release, tmpdir, totalmem } from 'node:os'
import { join, relative } from 'node:path'
import { parseArgs } from 'node:util'
import { contest } from './bench/contest.js'
import { buildLoad, makePki, TOP } from './bench/materials.js'
import { endAll, find, shareCores } from './bench/processes.js'
import { document, merge, newestResults, readResults, withFigures, writeResults, type Measured, type Results } from './bench/results.js'
import { PEERS, WORKS } from './bench/works.js'
import type { Prepared } from './bench/work.js'

const HELP = `Usage: npm run bench -- [options] [work or group…]

Measures patchcord beside other programs, in turns, each on cores of its own. Groups: files, port, couch, devices.

  --list           the works, how long each took, and which of the other programs are installed
  --continue       only works that are not in the results of today yet
  --rounds <n>     turns of each that count (default: the work's own)
  --cores <n>      cores that a contestant may use (default: 1; at most half of the machine)
  --note <text>    what else the machine did meanwhile, for the results
  --no-write       prints the tables and writes nothing
  --to <folder>    where results go (default: bench/results, and the README's table)
  --help           this text

Results are <date>.json, <date>.md and <date>.svg, the chart. They are written after each work: a run that is stopped keeps
what it measured, and works that are measured again on the same day take the place of their older figures. Exits 1 where a
work could not be done or a ratio is below its floor.
`

let options
try {
  options = parseArgs({ allowPositionals: true, options: { list: { type: 'boolean' }, help: { type: 'boolean', short: 'h' }, rounds: { type: 'string' }, cores: { type: 'string' }, note: { type: 'string' }, 'continue': { type: 'boolean' }, 'no-write': { type: 'boolean' }, to: { type: 'string' } } })
} catch (error) {
  fail(error instanceof Error ? error.message : String(error))
}
const { values, positionals } = options
const rounds = wholeNumber('rounds', values.rounds)
const cores = shareCores(wholeNumber('cores', values.cores) ?? 1)
const unknown = positionals.filter(name => !WORKS.some(({ work }) => work.name === name || work.group === name))
if (unknown.length > 0) fail(`there is no work or group ${unknown.join(', ')} (npm run bench -- --list says what there is)`)
const folder = values.to ?? join(TOP, 'bench/results')
/** Where the client was compiled to. */
let program: string | undefined

if (values.help === true) process.stdout.write(HELP)
else if (values.list === true) list()
else await run()
process.exit()

function list (): void {
  const took = new Map(newestResults(join(TOP, 'bench/results'))?.outcomes.map(outcome => [outcome.name, outcome.took]))
  for (const { work } of WORKS) process.stdout.write(`${work.group.padEnd(8)} ${work.name.padEnd(18)} ${took.has(work.name) ? `${Math.round(took.get(work.name)!)} s` : '?'}`.padEnd(36) + `${work.title}${work.goal === undefined ? '' : `; goal ${'of' in work.goal ? `${work.goal.ratio} × ${work.goal.of}` : `${work.goal.limit} ${work.unit}`}`}\n`)
  process.stdout.write(`\nAll together took ${Math.round([...took.values()].reduce((sum, seconds) => sum + seconds, 0) / 60)} minutes when it was measured last.\n\n`)
  for (const { program, debian, for: purpose } of PEERS) process.stdout.write(`${program.padEnd(20)} ${find(program) === undefined ? `not installed; Debian package ${debian}` : 'here'} (${purpose})\n`)
}

async function run (): Promise<void> {
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => { endAll(); process.exit(130) })
  if (find('taskset') === undefined) fail('taskset is not installed; Debian package util-linux')
  const from = performance.now()
  const date = new Date().toISOString()
  const done = values.continue === true ? readResults(folder, date)?.outcomes.map(({ name }) => name) ?? [] : []
  const chosen = WORKS.filter(({ work: { name, group } }) => (positionals.length === 0 || positionals.includes(name) || positionals.includes(group)) && !done.includes(name))
  const absent = PEERS.filter(({ program }) => find(program) === undefined)
  if (absent.length > 0) process.stderr.write(`not here, and so not measured: ${absent.map(({ program, debian }) => `${program} (Debian package ${debian})`).join(', ')}\n`)
  const outcomes: Measured[] = []
  const notDone: Array<{ name: string, why: string }> = []
  const results = (): Results => ({ date, machine: machine(), outcomes, notDone })
  const parent = await mkdtemp(join(tmpdir(), 'patchcord-bench-'))
  try {
    for (const prepared of chosen) {
      const { work: { name, title } } = prepared
      process.stderr.write(`${name}: ${title}\n`)
      try {
        outcomes.push(await measure(prepared, parent))
      } catch (error) {
        // One work that cannot be done must not hide the others; the run fails in the end.
        const why = error instanceof Error ? error.message : String(error)
        notDone.push({ name, why })
        process.stderr.write(`  not done: ${why}\n`)
      }
      keep(results())
    }
  } finally {
    endAll()
    await rm(parent, { recursive: true, force: true, maxRetries: 5 })
  }
  process.stdout.write(document(results()))
  process.stderr.write(`${outcomes.length} of ${chosen.length} works in ${Math.round((performance.now() - from) / 1000)} s\n`)
  if (notDone.length > 0 || outcomes.some(({ aboveFloor }) => aboveFloor === false)) process.exitCode = 1
}

async function measure ({ work, prepare }: Prepared, parent: string): Promise<Measured> {
  const from = performance.now()
  const own = join(parent, work.name)
  await mkdir(own)
  const load = (): string => {
    if (find('cc') === undefined) throw new Error('the client is compiled from bench/load.c, and there is no compiler; Debian packages gcc libssl-dev')
    return program ??= buildLoad(parent)
  }
  try {
    const { contestants, clean } = await prepare({ folder: own, cores, pki: await makePki(own) }, load)
    try {
      const outcome = await contest({ ...work, rounds: rounds ?? work.rounds }, contestants, {
        load: () => loadavg()[0]!,
        onTurn: (name, round, { value, busy }) => { process.stderr.write(`  ${round === 0 ? 'warm-up' : `round ${round}`} ${name}: ${value.toPrecision(4)} ${work.unit}${busy === undefined ? '' : `, ${busy.toFixed(2)} cores`}\n`) },
      })
      return { ...outcome, measured: new Date().toISOString(), took: Math.round((performance.now() - from) / 100) / 10, meanwhile: values.note ?? 'not said' }
    } finally {
      await clean?.()
    }
  } finally {
    await rm(own, { recursive: true, force: true, maxRetries: 5 })
  }
}

function machine (): Results['machine'] {
  const [first] = cpus()
  const each = cores.contestant.length
  return {
    processor: first?.model ?? 'unknown', cores: cpus().length, memoryGiB: Math.round(totalmem() / 2 ** 30), kernel: release(), node: process.version, openssl: process.versions.openssl ?? '',
    budget: `${each} core${each === 1 ? '' : 's'} for the contestant, ${cores.client.length} for the client`,
  }
}

/** Writes what is there so far, with what was measured earlier today; and the README, where results are kept beside it. */
function keep (results: Results): void {
  if (values['no-write'] === true) return
  const all = merge(readResults(folder, results.date), results, WORKS.map(({ work }) => work.name))
  const base = writeResults(folder, all)
  if (values.to === undefined) {
    const readme = join(TOP, 'README.md')
    writeFileSync(readme, withFigures(readFileSync(readme, 'utf8'), all))
  }
  process.stderr.write(`  written: ${relative(process.cwd(), base)}.json, .md and .svg\n`)
}

function wholeNumber (name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const number = Number(text)
  if (!Number.isInteger(number) || number < 1) fail(`--${name} must be a whole number from 1`)
  return number
}

function fail (problem: string): never {
  process.stderr.write(`bench: ${problem}\n`)
  process.exit(2)
}

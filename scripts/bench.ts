/**
 * patchcord beside what one would use instead, on this machine, in one run. Nothing is installed and nothing
 * but a temporary folder and bench/results is written.
 *
 *   npm run bench                      every work
 *   npm run bench -- file handshakes   these works
 *   npm run bench -- --list            what there is, and which peers are here
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { cpus, loadavg, release, tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { chart } from './bench/chart.js'
import { contest, type Outcome } from './bench/contest.js'
import { buildLoad, makePki, TOP } from './bench/materials.js'
import { endAll, find, shareCores } from './bench/processes.js'
import { details, summary } from './bench/report.js'
import { PEERS, WORKS } from './bench/works.js'

const HELP = `Usage: npm run bench -- [options] [work…]

Measures patchcord beside other programs, in turns, each on cores of its own.

  --list           the works, and which of the other programs are installed
  --rounds <n>     turns of each that count (default: the work's own)
  --cores <n>      cores that a contestant may use (default: 1; at most half of the machine)
  --note <text>    what else the machine did meanwhile, for the results
  --no-write       prints the tables and writes nothing
  --to <folder>    where results go (default: bench/results)
  --help           this text

Results are <date>.json, <date>.md and <date>.svg, the chart.
`

interface Results { readonly date: string, readonly machine: Readonly<Record<string, string | number>>, readonly outcomes: readonly Outcome[], readonly notDone: ReadonlyArray<{ name: string, why: string }> }

let options
try {
  options = parseArgs({ allowPositionals: true, options: { list: { type: 'boolean' }, help: { type: 'boolean', short: 'h' }, rounds: { type: 'string' }, cores: { type: 'string' }, note: { type: 'string' }, 'no-write': { type: 'boolean' }, to: { type: 'string' } } })
} catch (error) {
  fail(error instanceof Error ? error.message : String(error))
}
const { values, positionals } = options
const rounds = wholeNumber('rounds', values.rounds)
const cores = shareCores(wholeNumber('cores', values.cores) ?? 1)
const unknown = positionals.filter(name => !WORKS.some(({ work }) => work.name === name))
if (unknown.length > 0) fail(`there is no work ${unknown.join(', ')} (npm run bench -- --list says what there is)`)

if (values.help === true) process.stdout.write(HELP)
else if (values.list === true) list()
else await run()
process.exit()

function list (): void {
  for (const { work } of WORKS) process.stdout.write(`${work.name.padEnd(20)} ${work.title}${work.goal === undefined ? '' : `; goal ${'of' in work.goal ? `${work.goal.ratio} × ${work.goal.of}` : `${work.goal.limit} ${work.unit}`}`}\n`)
  process.stdout.write('\n')
  for (const { program, debian, for: purpose } of PEERS) process.stdout.write(`${program.padEnd(20)} ${find(program) === undefined ? `not installed; Debian package ${debian}` : 'here'} (${purpose})\n`)
}

async function run (): Promise<void> {
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => { endAll(); process.exit(130) })
  if (find('taskset') === undefined) fail('taskset is not installed; Debian package util-linux')
  const parent = await mkdtemp(join(tmpdir(), 'patchcord-bench-'))
  const outcomes: Outcome[] = []
  const notDone: Array<{ name: string, why: string }> = []
  let program: string | undefined
  const load = (): string => {
    if (find('cc') === undefined) throw new Error('the client is compiled from bench/load.c, and there is no compiler; Debian packages gcc libssl-dev')
    return program ??= buildLoad(parent)
  }
  try {
    for (const { work, prepare } of WORKS.filter(({ work: { name } }) => positionals.length === 0 || positionals.includes(name))) {
      process.stderr.write(`${work.name}: ${work.title}\n`)
      const folder = join(parent, work.name)
      await mkdir(folder)
      try {
        const { contestants, clean } = await prepare({ folder, cores, pki: await makePki(folder) }, load)
        try {
          outcomes.push(await contest({ ...work, rounds: rounds ?? work.rounds }, contestants, {
            load: () => loadavg()[0]!,
            onTurn: (name, round, { value, busy }) => { process.stderr.write(`  ${round === 0 ? 'warm-up' : `round ${round}`} ${name}: ${value.toPrecision(4)} ${work.unit}${busy === undefined ? '' : `, ${busy.toFixed(2)} cores`}\n`) },
          }))
        } finally {
          await clean?.()
        }
      } catch (error) {
        // One work that cannot be done must not hide the others; the run fails in the end.
        const why = error instanceof Error ? error.message : String(error)
        notDone.push({ name: work.name, why })
        process.stderr.write(`  not done: ${why}\n`)
      }
      await rm(folder, { recursive: true, force: true, maxRetries: 5 })
    }
    await tell({ date: new Date().toISOString(), machine: machine(), outcomes, notDone })
  } finally {
    endAll()
    await rm(parent, { recursive: true, force: true, maxRetries: 5 })
  }
  if (notDone.length > 0) process.exitCode = 1
}

function machine (): Results['machine'] {
  const [first] = cpus()
  return {
    processor: first?.model ?? 'unknown', cores: cpus().length, memoryGiB: Math.round(totalmem() / 2 ** 30), kernel: release(), node: process.version, openssl: process.versions.openssl ?? '',
    contestant: `core ${cores.contestant.join()}`, client: `core ${cores.client.join()}`, load: loadavg().map(value => value.toFixed(2)).join(' '), meanwhile: values.note ?? 'not said',
  }
}

async function tell (results: Results): Promise<void> {
  const about = Object.entries(results.machine).map(([name, value]) => `${name} ${value}`).join(' · ')
  const text = `# Measured ${results.date.slice(0, 16).replace('T', ' ')} UTC

${about}

${summary(results.outcomes)}
${results.notDone.map(({ name, why }) => `\n${name} was not done: ${why}\n`).join('')}
${details(results.outcomes)}
`
  process.stdout.write(text)
  if (values['no-write'] === true) return
  const folder = values.to ?? join(TOP, 'bench/results')
  await mkdir(folder, { recursive: true })
  const base = join(folder, results.date.slice(0, 10))
  // A run of some works replaces those in the results of the day, and leaves the others.
  const all = await merged(`${base}.json`, results)
  await writeFile(`${base}.json`, `${JSON.stringify(all, null, 1)}\n`)
  await writeFile(`${base}.md`, text)
  await writeFile(`${base}.svg`, chart(results.outcomes, `${results.machine['processor']}, ${results.date.slice(0, 10)}`))
  process.stderr.write(`written: ${base}.json, .md and .svg\n`)
}

async function merged (path: string, results: Results): Promise<Results> {
  let before: Results
  try {
    before = JSON.parse(await readFile(path, 'utf8')) as Results
  } catch {
    return results
  }
  return { ...results, outcomes: [...before.outcomes.filter(({ name }) => !results.outcomes.some(other => other.name === name)), ...results.outcomes] }
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

import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { chart } from '../scripts/bench/chart.js'
import { contest, median, type Contestant, type Outcome, type Work } from '../scripts/bench/contest.js'
import { fill } from '../scripts/bench/materials.js'
import { details, readmeTable, summary } from '../scripts/bench/report.js'
import { merge, withFigures, writeResults, readResults, newestResults, type Measured, type Results } from '../scripts/bench/results.js'
import { WORKS } from '../scripts/bench/works.js'

const TOP = fileURLToPath(new URL('../..', import.meta.url))
const BENCH = join(TOP, 'build/scripts/bench.js')
const WORK: Work = { name: 'work', title: 'a <work>', unit: '/s', better: 'more', group: 'port', rounds: 3, ours: 'patchcord', goal: { of: 'other', ratio: 2 } }

/** Gives the values one after the other, the first as its warm-up. */
function contestant (name: string, values: readonly number[], log: string[], missing?: string): Contestant {
  return {
    name, version: '1.0', ...missing === undefined ? {} : { missing },
    start: async () => {
      log.push(`start ${name}`)
      const left = [...values]
      return {
        turn: async () => {
          const value = left.shift()
          if (value === undefined) throw new Error(`${name} failed`)
          log.push(name)
          return { value, perCpu: value * 2 }
        },
        stop: async () => { log.push(`stop ${name}`) },
      }
    },
  }
}

const run = (work: Work, contestants: readonly Contestant[]): Promise<Outcome> => contest(work, contestants, { onTurn: () => undefined, load: () => 0 })

await t.test('what is not a work, an option or a number is refused', t => {
  for (const args of [['no-such-work'], ['--fast'], ['--rounds', '0'], ['--rounds', 'x'], ['--cores', '1.5']]) {
    const { status, stderr } = spawnSync(process.execPath, [BENCH, ...args], { encoding: 'utf8' })
    t.equal(status, 2, args.join(' '))
    t.match(stderr, /^bench: /)
  }
  const { status, stdout } = spawnSync(process.execPath, [BENCH, '--list'], { encoding: 'utf8' })
  t.equal(status, 0)
  for (const { work } of WORKS) t.ok(stdout.includes(`${work.name} `), work.name)
  t.end()
})

await t.test('one that throws ends the contest, and everything that was started is stopped', async t => {
  const log: string[] = []
  await t.rejects(run(WORK, [contestant('patchcord', [1, 1, 1, 1], log), contestant('other', [1, 1], log)]), /other failed/)
  t.same(log.slice(-2), ['stop patchcord', 'stop other'])
})

await t.test('turns alternate, the warm-up does not count, ratios are made within a round', async t => {
  const log: string[] = []
  const outcome = await run(WORK, [contestant('patchcord', [1000, 2, 4, 300], log), contestant('other', [1, 1, 2, 100], log), contestant('third', [], log, 'not installed; Debian package third')])
  t.same(log, ['start patchcord', 'start other', 'patchcord', 'other', 'other', 'patchcord', 'patchcord', 'other', 'other', 'patchcord', 'stop patchcord', 'stop other'])
  t.same(outcome.ratios['other'], { median: 2, low: 2, high: 3 })
  t.same(outcome.cpuRatios['other'], { median: 2, low: 2, high: 3 })
  t.equal(outcome.standings[0]?.median, 4)
  t.equal(outcome.reached, true)
  t.same(outcome.missing, [{ name: 'third', why: 'not installed; Debian package third' }])
  t.match(details([outcome]), /third: not installed; Debian package third\./)
  t.match(summary([outcome]), /other 2\.00.*2 × other \| yes/)
  const svg = chart([outcome], 'a & b')
  t.match(svg, /a &amp; b/)
  t.match(svg, /2\.00 ×/)
  const less = await run({ ...WORK, better: 'less', goal: { limit: 3 } }, [contestant('patchcord', [9, 2, 2, 2], log), contestant('other', [9, 4, 4, 4], log)])
  t.equal(less.ratios['other']?.median, 2, 'half of what is better smaller is twice as good')
  t.equal(less.reached, true)
  const perCpu = await run({ ...WORK, goal: { of: 'other', ratio: 1.5, perCpu: true } }, [contestant('patchcord', [1, 1, 1, 1], log), { ...contestant('other', [], log), start: async () => ({ turn: async () => ({ value: 2, perCpu: 1 }), stop: async () => undefined }) }])
  t.equal(perCpu.reached, true, 'half as fast, by a quarter of the cores')
  t.match(readmeTable([perCpu]), /0\.50 × other \(2\.00 for the cores used\) \| 1\.5 × other for the cores used: reached/)
  const alone = await run(WORK, [contestant('patchcord', [1, 1, 1, 1], log), contestant('other', [], log, 'not installed')])
  t.equal(alone.reached, undefined, 'nothing is reached beside somebody who is missing')
  t.equal(median([4, 1, 3, 2]), 2.5)
})

await t.test('a warm-up of its own comes instead of the turn that does not count, and what starts cold has none', async t => {
  const log: string[] = []
  const warm: Contestant = { name: 'patchcord', version: '', start: async () => ({ turn: async () => { log.push('turn'); return { value: 1 } }, warmUp: async () => { log.push('warm-up') }, stop: async () => undefined }) }
  await run({ ...WORK, rounds: 2 }, [warm])
  t.same(log.splice(0), ['warm-up', 'turn', 'turn'])
  await run({ ...WORK, rounds: 2, cold: true }, [warm])
  t.same(log, ['turn', 'turn'])
})

await t.test('results of one day come together, and the README says what they say', async t => {
  const folder = t.testdir({})
  t.equal(newestResults(folder), undefined)
  const outcome = async (name: string, ours: number): Promise<Measured> => ({ ...await run({ ...WORK, name, title: `title of ${name}`, goal: { of: 'other', ratio: 2, floor: 1.5 } }, [contestant('patchcord', [ours, ours, ours, ours], []), contestant('other', [1, 1, 1, 1], [])]), measured: '2026-01-02T03:04:05Z', took: 61, meanwhile: 'nothing' })
  const results = (outcomes: Measured[], notDone: Results['notDone'] = []): Results => ({ date: '2026-01-02T03:04:05Z', machine: { processor: 'p', node: 'v1', budget: 'one core' }, outcomes, notDone })
  const first = results([await outcome('one', 3), await outcome('two', 1)], [{ name: 'three', why: 'no curl' }])
  const all = merge(first, results([await outcome('three', 1.6), await outcome('one', 5)]), ['one', 'two', 'three'])
  t.same(all.outcomes.map(({ name, standings }) => [name, standings[0]?.median]), [['one', 5], ['two', 1], ['three', 1.6]])
  t.same(all.notDone, [], 'what could not be done was done later')
  t.same(all.outcomes.map(({ reached, aboveFloor }) => [reached, aboveFloor]), [[true, true], [false, false], [false, true]])
  writeResults(folder, first)
  writeResults(folder, { ...all, date: '2026-01-10' })
  t.same(newestResults(folder)?.outcomes.length, 3)
  t.same(readResults(folder, '2026-01-02')?.notDone, first.notDone)
  t.same(readdirSync(folder).toSorted(), ['2026-01-02.json', '2026-01-02.md', '2026-01-02.svg', '2026-01-10.json', '2026-01-10.md', '2026-01-10.svg'])
  t.throws(() => withFigures('no place', all), /no place for figures/)
  const readme = readFileSync(join(TOP, 'README.md'), 'utf8')
  const made = withFigures(readme, first)
  t.equal(withFigures(withFigures(readme, all), first), made, 'made again it is the same')
  t.match(made, /title of one \| 3\.00 \/s \| 3\.00 × other \| 2 × other, at least 1\.5: reached/)
  t.match(made, /Not done: three \(no curl\)/)
})

await t.test('every configuration of a peer has its values named, and asks for none that is not given', async t => {
  for (const name of readdirSync(join(TOP, 'bench/peers'))) {
    const keys = [...new Set([...readFileSync(join(TOP, 'bench/peers', name), 'utf8').matchAll(/@([A-Z_]+)@/g)].map(match => match[1]!))]
    await t.rejects(fill(name, {}), /asks for/)
    t.notMatch(await fill(name, Object.fromEntries(keys.map(key => [key, 'x']))), /@[A-Z_]+@/)
  }
})

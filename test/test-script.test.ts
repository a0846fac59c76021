import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

// The counting behind the last line of `npm test`: a run that is green because it was counted wrongly is
// worse than one that is red.

const TOP = fileURLToPath(new URL('../..', import.meta.url))
interface Counts { readonly passed: number, readonly failed: string[], readonly skipped: string[], readonly todo: string[], readonly files: string[] }
const { countTap } = await import(new URL('../../scripts/count-tap.js', import.meta.url).href) as { countTap: (text: string) => Counts }
const { runTests } = await import(new URL('../../scripts/run-tests.js', import.meta.url).href) as { runTests: (files: readonly string[], options: { cwd: string, jobs: number, timeout: number, grace: number, write: (tap: string) => void }) => Promise<void> }

await t.test('assertions are counted once, failures, skips and todos by name', t => {
  const counts = countTap(`TAP version 14
# Subtest: build/test/a.test.js
    # Subtest: inner
        ok 1 - one
        not ok 2 - two
        ok 3 - three # SKIP no root
        not ok 4 - four # TODO later
        ok 5 - five # TODO
        1..5
    not ok 1 - inner # time=1ms
    ok 2 - plain
    1..2
not ok 1 - build/test/a.test.js # time=3ms
# Subtest: build/test/b.test.js
    1..0 # no tests found
ok 2 - build/test/b.test.js # SKIP no tests found
# Subtest: build/test/c.test.js
    # Subtest: nothing in it
        1..0
    ok 1 - nothing in it
    1..1
ok 3 - build/test/c.test.js
# Subtest: build/test/d.test.js
    ok 1 - fine
    1..1
not ok 4 - build/test/d.test.js
  ---
  exitCode: 1
  ...
1..4
`)
  t.equal(counts.passed, 3)
  t.strictSame(counts.failed, ['build/test/a.test.js > inner > two', 'build/test/d.test.js (as a whole)'])
  t.strictSame(counts.skipped, ['build/test/a.test.js > inner > three: no root', 'build/test/b.test.js: no tests found', 'build/test/c.test.js > nothing in it: it asserts nothing'])
  t.strictSame(counts.todo, ['build/test/a.test.js > inner > four: later', 'build/test/a.test.js > inner > five'])
  t.strictSame(counts.files, ['a', 'b', 'c', 'd'].map(name => `build/test/${name}.test.js`))
  t.end()
})

await t.test('files that run at once are told apart, and one that fails, dies, hangs or says nothing is a failure', async t => {
  // Written when the call returns, whatever becomes of the process.
  const say = (...lines: string[]): string => `import { writeSync } from 'node:fs'\n${lines.map(line => `writeSync(1, ${JSON.stringify(`${line}\n`)})`).join('\n')}`
  const cwd = t.testdir({
    'fine.js': `${say('TAP version 14', '# Subtest: one', '    ok 1 - first')}\nsetTimeout(() => { writeSync(1, '    1..1\\nok 1 - one\\n1..1\\n') }, 300)`,
    'twice.js': say('TAP version 14', 'ok 1 - a', 'ok 2 - b', '1..2'),
    'fails.js': `${say('TAP version 14', 'not ok 1 - wrong', '1..1')}\nprocess.exitCode = 1`,
    'dies.js': `${say('TAP version 14', 'ok 1 - a', '1..1')}\nprocess.kill(process.pid, 'SIGKILL')`,
    'ends.js': `${say('TAP version 14', 'ok 1 - a', '1..1')}\nprocess.exitCode = 7`,
    'hangs.js': 'setInterval(() => {}, 1000)',
    'mute.js': '',
    'half.js': say('TAP version 14', 'ok 1 - a', '1..2'),
  })
  const files = ['fine.js', 'twice.js', 'fails.js', 'dies.js', 'ends.js', 'hangs.js', 'mute.js', 'half.js']
  let tap = ''
  await runTests(files, { cwd, jobs: 3, timeout: 4, grace: 1, write: text => { tap += text } })
  const { passed, failed, skipped, files: ran } = countTap(tap)
  t.strictSame(ran.toSorted(), files.filter(name => !['mute.js', 'hangs.js'].includes(name)).toSorted())
  t.equal(passed, 6)
  t.strictSame(failed.toSorted(), ['dies.js (as a whole)', 'ends.js (as a whole)', 'fails.js > wrong', 'half.js (as a whole)', 'hangs.js', 'mute.js'])
  t.strictSame(skipped, [])
})

await t.test('TAP that ends early, bails out or is empty is a failure', t => {
  t.strictSame(countTap('').failed.length, 1)
  t.strictSame(countTap('TAP version 14\n1..0\n').failed, ['no test ran'])
  t.strictSame(countTap('TAP version 14\nok 1 - a\n1..2\n').failed, ['the TAP is not complete'])
  t.strictSame(countTap('TAP version 14\nok 1 - a\nBail out! the disk is full\n').failed, ['bail out: the disk is full'])
  t.strictSame(countTap('TAP version 14\n# Subtest: x\n    ok 1 - a\n').failed.length, 1)
  t.end()
})

await t.test('what npm test leaves out is written down', t => {
  const registry = JSON.parse(readFileSync(join(TOP, 'test/left-out.json'), 'utf8')) as Array<{ script?: string, environment?: string, what: string, why: string }>
  const { scripts } = JSON.parse(readFileSync(join(TOP, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  for (const script of Object.keys(scripts).filter(name => name.startsWith('test:'))) t.ok(registry.some(entry => entry.script === script), `npm run ${script}`)
  for (const { script, environment, what, why } of registry) t.ok(what && why && (script === undefined) !== (environment === undefined), what)
  t.end()
})

await t.test('what CI counts is the sum, and nothing that ended badly is lost', t => {
  const folder = t.testdir()
  const fine = '{"test":"a","ok":true}'
  for (const [tests, cable, status, last] of [
    ['boom', fine, '1', '1 passed, 1 failed'],
    ['', '', '1', '0 passed, 2 failed'],
    ['3 passed, 1 failed', fine, '1', '4 passed, 1 failed'],
    ['3 passed, 0 failed\nand then it died', fine, '1', '1 passed, 1 failed'],
    ['3 passed, 0 failed', `${fine}\n{"test":"b","ok":false}`, '1', '4 passed, 1 failed'],
    ['3 passed, 0 failed', fine, '1', '4 passed, 1 failed'],
    ['3 passed, 0 failed', 'no result', '0', '3 passed, 1 failed'],
    ['said\n3 passed, 0 failed', `> npm\n${fine}\n${fine}`, '0', '5 passed, 0 failed'],
    ['3 passed, 0 failed', '{"test":"cable","skipped":"no root"}', '0', '3 passed, 0 failed'],
  ] as const) {
    writeFileSync(join(folder, 'tests'), tests)
    writeFileSync(join(folder, 'cable'), cable)
    const run = spawnSync(process.execPath, [join(TOP, 'scripts/count-ci.js'), join(folder, 'tests'), join(folder, 'cable'), status], { encoding: 'utf8' })
    t.equal(run.stdout.trimEnd().split('\n').at(-1), last, `${tests} and ${cable}`)
    t.equal(run.status, last.endsWith(' 0 failed') ? 0 : 1)
  }
  t.end()
})

// `npm test`: lint and every test in build/test, then what was left out and why, and as the last line
// `N passed, N failed`. Files may be named: `npm test -- test/policy.test.ts`. Exits with 1 when anything
// failed, when a test file did not run, when none did, or when the linter complains.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { inspect } from 'node:util'
import { readTap } from './count-tap.js'
import { runTests } from './run-tests.js'

const top = fileURLToPath(new URL('..', import.meta.url))
const say = text => { process.stdout.write(`${text}\n`) }

const named = process.argv.slice(2).map(path => `build/${path.replace(/^(?:\.\/)?(?:build\/)?/, '').replace(/\.ts$/, '.js')}`)
const all = readdirSync(join(top, 'build', 'test'), { recursive: true, encoding: 'utf8' })
  .filter(path => path.endsWith('.test.js')).map(path => `build/test/${path}`).sort()
const wanted = named.length > 0 ? named : all
const missing = wanted.filter(path => !existsSync(join(top, path)))

const { tap: { jobs, timeout }, scripts } = JSON.parse(readFileSync(join(top, 'package.json'), 'utf8'))
// Beside the tests, which wait for something now and then.
const linting = lint()

// tap's own reporters redraw a terminal; this is one line for each file and the whole of each failure, the
// same in a terminal, a log and a CI.
const reader = readTap({
  onFile: (name, ok, ms) => { say(`${ok ? 'ok    ' : 'FAILED'} ${name}${ms === undefined ? '' : ` ${(ms / 1000).toFixed(1)} s`}`) },
  onFailure: (name, diag) => { say(`FAILED ${name}${describe(diag)}`) },
})
const present = wanted.filter(path => !missing.includes(path))
await runTests(present, { cwd: top, jobs, timeout, write: text => { reader.write(text) } })
reader.end()
const isClean = await linting
const { passed, failed, skipped, todo, files } = reader.counts

/** Whether the linter finds nothing; what it says is said when it is through. */
async function lint () {
  const child = spawn(process.execPath, [join(top, 'node_modules/oxlint/bin/oxlint'), '--type-aware'], { cwd: top, stdio: ['ignore', 'pipe', 'pipe'] })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', part => { text += part })
  const [code] = await once(child, 'close')
  say(`${code === 0 ? 'ok    ' : 'FAILED'} lint: oxlint --type-aware\n${code === 0 ? '' : text}`.trimEnd())
  return code === 0
}

function describe ({ diff, message, at, found, wanted, stack, exitCode, signal, error }) {
  const lines = []
  if (at?.fileName !== undefined) lines.push(`at ${at.fileName}:${at.lineNumber}`)
  if (exitCode !== undefined || signal) lines.push(`exit code ${exitCode}, signal ${signal}`)
  for (const text of [message, error, diff]) if (typeof text === 'string') lines.push(...text.trimEnd().split('\n'))
  if (diff === undefined && wanted !== undefined) lines.push(`found ${inspect(found)}, wanted ${inspect(wanted)}`)
  if (at === undefined && typeof stack === 'string') lines.push(...stack.trimEnd().split('\n'))
  return lines.slice(0, 60).map(line => `\n         ${line}`).join('')
}

const unseen = present.filter(path => !files.some(name => name.endsWith(path.slice('build/'.length))))
if (!isClean) failed.push('lint: oxlint --type-aware')
for (const path of missing) failed.push(`${path} is not there; is it built?`)
for (const path of unseen) failed.push(`${path} did not run`)
if (passed === 0 && failed.length === 0) failed.push('nothing passed')

const leftOut = [...named.length > 0 ? [`${all.filter(path => !wanted.includes(path)).length} test files that were not named`] : [], ...registered()]

const list = (title, names) => {
  if (names.length === 0) return
  say(`\n${title}:`)
  for (const name of names) say(`  ${name}`)
}
list('failed', failed)
list('skipped', skipped)
list('todo', todo)
list('left out of this run', leftOut)

/** What the registry says is not part of `npm test`, and what of it does not exist yet. */
function registered () {
  const registry = JSON.parse(readFileSync(join(top, 'test', 'left-out.json'), 'utf8'))
  const known = new Set(registry.map(({ script }) => script))
  for (const script of Object.keys(scripts)) {
    if (script.startsWith('test:') && !known.has(script)) failed.push(`test/left-out.json says nothing of npm run ${script}`)
  }
  const sources = readdirSync(join(top, 'test'), { recursive: true, encoding: 'utf8' }).filter(path => path.endsWith('.ts'))
  return registry.flatMap(({ what, why, script, environment }) => {
    if (environment !== undefined) {
      if (process.env[environment]) return []
      const isWritten = sources.some(path => readFileSync(join(top, 'test', path), 'utf8').includes(environment))
      return [`${what}: ${why} (${isWritten ? `set ${environment}` : 'not written yet'})`]
    }
    return [`${what}: ${why} (${script in scripts ? `npm run ${script}` : 'not written yet'})`]
  })
}

say(`\n${skipped.length} skipped, ${todo.length} todo, ${files.length} files`)
say(`${passed} passed, ${failed.length} failed`)
process.exitCode = failed.length === 0 ? 0 : 1

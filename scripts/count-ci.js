// `count-ci.js <output of npm test> <output of test:cable> <0, or 1 where either failed>`: prints the sum as
// `N passed, N failed`. Every result of the cable is one, a skipped scenario none. Exits with 1 when anything
// failed, and when either ended without saying what it did.
import { readFileSync } from 'node:fs'

const [testPath, cablePath, status] = process.argv.slice(2)
const linesOf = path => readFileSync(path, 'utf8').trimEnd().split('\n')
let passed = 0
let failed = 0

const counted = /^(\d+) passed, (\d+) failed$/.exec(linesOf(testPath).at(-1))
if (counted === null) failed += 1
else {
  passed += Number(counted[1])
  failed += Number(counted[2])
}

const results = linesOf(cablePath).filter(line => line.startsWith('{"test":')).map(line => JSON.parse(line))
for (const { test, ok, skipped } of results) {
  if (skipped !== undefined) process.stdout.write(`left out: ${test}: ${skipped}\n`)
  else if (ok) passed += 1
  else failed += 1
}
if (results.length === 0) failed += 1
// Something ended badly and none of the lines says so.
if (status !== '0' && failed === 0) failed += 1

process.stdout.write(`${passed} passed, ${failed} failed\n`)
process.exitCode = failed === 0 ? 0 : 1

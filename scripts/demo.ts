/**
 * What patchcord promises, done once for real: `npm run demo` starts four services of the built executables in
 * temporary folders and lets them exchange files and databases over real sockets, then attacks, revokes,
 * kills and ends them. Nothing is simulated, and the set-up is the command line's alone.
 *
 *   npm run demo                 a table of what was done
 *   npm run --silent demo -- --json        one line: {"ok":true,"steps":[…]}
 *   npm run demo -- --keep       leaves the temporary folder where it is
 *
 * It exits 1 at the first thing that is not as promised, says where the logs are, and ends what it started.
 */
import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { holdBoundaries } from './demo/boundaries.js'
import { assemble } from './demo/cast.js'
import { Broken } from './demo/checks.js'
import { moveDatabases } from './demo/databases.js'
import { endAll } from './demo/device.js'
import { endure, interruptAll } from './demo/endurance.js'
import { moveFiles } from './demo/files.js'
import { Report } from './demo/report.js'
import { revokeFriend } from './demo/revocation.js'

/** Longer than this and something hangs. */
const GUARD_MS = 180_000

const { values: { json = false, keep = false } } = parseArgs({ options: { json: { type: 'boolean' }, keep: { type: 'boolean' } } })
const report = new Report(json, process.stdout, process.stderr)
const folder = await mkdtemp(join(tmpdir(), 'patchcord-demo-'))
const logs = join(folder, 'logs')

async function play (): Promise<void> {
  await mkdir(logs)
  report.heading()
  const cast = await assemble(report, folder, logs)
  const files = await moveFiles(report, cast)
  await moveDatabases(report, cast)
  await holdBoundaries(report, cast, files)
  await revokeFriend(report, cast, files)
  await endure(report, cast)
  await interruptAll(report, cast)
}

/** Rejects when it took too long, or at Ctrl-C. */
const stopped = new Promise<never>((_resolve, reject) => {
  setTimeout(() => { reject(new Broken(`nothing more happened; given up after ${GUARD_MS / 1000} s`)) }, GUARD_MS).unref()
  process.once('SIGINT', () => { reject(new Broken('interrupted')) })
  process.once('SIGTERM', () => { reject(new Broken('terminated')) })
})

try {
  await Promise.race([play(), stopped])
  report.passed()
} catch (error) {
  process.exitCode = 1
  const kept = keep ? logs : `${folder}-logs`
  if (!keep) await cp(logs, kept, { recursive: true })
  report.failed(error instanceof Error ? error.message : String(error), kept)
  if (!(error instanceof Broken)) console.error(error)
} finally {
  endAll()
  if (keep) process.stderr.write(`kept: ${folder}\n`)
  else await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}
process.exit()

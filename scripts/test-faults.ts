// All faults on real processes: `npm run test:faults [state|landing|downloads|pairing|many] [seed]`. State and downloads take about
// half an hour each, the pairings ten minutes; the samples in `npm test` run the same code. The downloads can be had by parts:
// `npm run test:faults kill lie`, and with FAULT_RUNS another number of times
// (test/state-faults.test.ts, test/download-faults.test.ts, test/pairing-faults.test.ts). Exits 1 if anything went wrong.
// `npm run test:faults grants [seed]` plays 20,000 random operations (GRANTS_OPERATIONS is another number) on whole devices
// and compares each principal's whole surface with a model; it takes about half an hour (test/grants-walk.test.ts).
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LEAF_BYTES } from '../src/files/content-id.js'
import { fillDisk, killAt, lie, mend, rot, shrink, stall, starveReceiver, starveServer, vanish } from '../test/fixtures/download-faults.js'
import { manyFiles } from '../test/fixtures/many-files.js'
import { killWhileWriting, startStateWorld, VICTIMS } from '../test/fixtures/state-faults.js'
import { beGuardedBy } from '../test/fixtures/processes.js'
import { killWhileLanding, startLandingWorld } from '../test/fixtures/landing-faults.js'
import { startFaultWorld, type FaultWorld } from '../test/fixtures/fault-world.js'
import { drawOperations, playOperations, shrink as shrinkWalk } from '../test/fixtures/grants-walk.js'
import { killDuringPairing, PAIRING_KILLS } from '../test/fixtures/pairing-faults.js'

/** Of state. */
const KILLS = 200
const LANDINGS = 50
const LEAVES = 96
const MANY = Number(process.env['FAULT_FILES'] ?? 100_000)
// It may run beside other work for an hour.
beGuardedBy(300_000)

const args = process.argv.slice(2)
const parts = args.filter(arg => !/^\d+$/.test(arg))
let seed = Number(args.find(arg => /^\d+$/.test(arg)) ?? 1)
/** mulberry32: the moments can be had again by the seed. */
const random = (): number => {
  seed = (seed + 0x6d2b79f5) | 0
  let x = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
  return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
}
let failed = 0
const say = (isGood: boolean, what: string): void => {
  if (!isGood) failed += 1
  process.stdout.write(`${isGood ? 'ok' : 'NOT OK'}  ${what}\n`)
}

/** kill -9 of each process while state is written. */
async function faultState (): Promise<void> {
  const states = await startStateWorld(mkdtempSync(join(tmpdir(), 'pcs-')))
  for (let run = 1; run <= KILLS; run++) {
    const victim = VICTIMS[Math.floor(random() * VICTIMS.length)]!
    // As long as the two changes take, and a little longer on a busy machine.
    const delay = Math.floor(random() * 150)
    try {
      const { right, what } = await killWhileWriting(states, victim, delay, run)
      say(right, `kill -9 ${run} of the ${victim} after ${delay} ms: ${what}`)
    } catch (error) {
      say(false, `kill -9 ${run} of the ${victim} after ${delay} ms: ${String(error)}`)
      if (states.laptop.service === undefined) await states.laptop.start()
    }
  }
  await states.laptop.stop()
}

/** kill -9 of the receiver while an offer lands. */
async function faultLanding (): Promise<void> {
  const world = await startLandingWorld(mkdtempSync(join(tmpdir(), 'pcl-')), 1_000)
  try {
    for (let run = 1; run <= Number(process.env['FAULT_RUNS'] ?? LANDINGS); run++) {
      const { right, what } = await killWhileLanding(world, run, random(), Math.floor(random() * 20))
      say(right, `kill -9 ${run} of a receiver: ${what}`)
    }
  } finally {
    await world.stop()
  }
}

/** What can happen to a download: how often each is tried (FAULT_RUNS is another number), and one try. */
const DOWNLOADS = new Map<string, readonly [times: number, once: (world: FaultWorld, run: number) => Promise<void>]>([
  ['kill', [200, async (world, run) => {
    const leaves = Math.floor(random() * LEAVES)
    const delay = Math.floor(random() * 20)
    const { right, written, recorded, again } = await killAt(world, leaves, { delay })
    say(right && again.length === 0, `kill -9 ${run}: ${written} leaves were written, ${recorded.length} recorded, of which ${again.length} were asked for again`)
  }]],
  ['stall', [10, async world => {
    const { right, seconds } = await stall(world, Math.floor(random() * LEAVES))
    say(right, `a source that stalls: ${seconds.toFixed(1)} s`)
    await world.receiver.connected(2)
  }]],
  ['vanish', [10, async world => { say((await vanish(world, Math.floor(random() * LEAVES))).right, 'a source that vanishes') }]],
  ['starve', [3, async world => {
    const [server, receiver] = [await starveServer(world), await starveReceiver(world)]
    say(server.isSaid && server.isBack, 'a server without open files says so, and goes on')
    say(receiver.isSaid && receiver.isBack, 'a receiver without open files says so, and goes on')
  }]],
  ['rot', [10, async world => {
    const leaf = Math.floor(random() * LEAVES)
    const { right, dropped } = await rot(world, leaf)
    say(right && dropped.every(device => device === world.sources[0]?.service?.ready.device), `a file that rots under the server in leaf ${leaf}${dropped.length === 0 ? ' (which it was not asked for)' : ''}`)
    await mend(world)
    await newSession(world)
  }]],
  ['shrink', [10, async world => {
    const leaves = Math.floor(random() * LEAVES / 2)
    const { right, dropped, isNamed } = await shrink(world, leaves)
    say(right && dropped.length === 0, `a file that shrinks under the server to ${leaves} leaves${isNamed ? ', which its log names' : ' (none of what is gone was asked for)'}`)
    await mend(world)
    await newSession(world)
  }]],
  ['lie', [10, async world => {
    const leaf = Math.floor(random() * LEAVES)
    const { right, dropped, isLogged, askedAgain } = await lie(world, leaf)
    const isNamed = dropped.length === 0 || (isLogged && dropped.every(({ device, leaf: at }) => device === world.sources[0]?.service?.ready.device && at !== null && at % 100 === leaf % 100))
    say(right && isNamed && askedAgain === 0, `a peer that lies in one leaf of a hundred (${leaf % 100})${dropped.length === 0 ? ', which it was not asked for' : ', and is dropped'}`)
    await newSession(world)
  }]],
])

/** Distrust lasts for a session. */
async function newSession ({ receiver, sources }: FaultWorld): Promise<void> {
  await receiver.stop()
  await receiver.start()
  await receiver.connected(sources.length)
}

async function faultDownloads (kinds: readonly string[]): Promise<void> {
  const begin = (): Promise<FaultWorld> => startFaultWorld(mkdtempSync(join(tmpdir(), 'pcf-')), 2, LEAVES * LEAF_BYTES + 11)
  let world = await begin()
  try {
    for (const [kind, [times, once]] of DOWNLOADS) {
      if (!kinds.includes(kind)) continue
      const from = performance.now()
      for (let run = 1; run <= Number(process.env['FAULT_RUNS'] ?? times); run++) {
        try {
          await once(world, run)
        } catch (error) {
          say(false, `${kind} ${run}: ${String(error)}`)
          await world.stop()
          world = await begin()
        }
      }
      process.stdout.write(`${kind}: ${Math.round((performance.now() - from) / 1000)} s\n`)
    }
  } finally {
    await world.stop()
  }
}

async function faultDisk (): Promise<void> {
  const disk = mkdtempSync(join(tmpdir(), 'pcd-'))
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'none', disk], { stdio: 'ignore' })
  } catch (error) {
    rmdirSync(disk)
    process.stdout.write(`NOT TESTED: a full disk takes root to mount a small one (${String(error)})\n`)
    return
  }
  const small = await startFaultWorld(join(disk, 'w'), 1, 8 * LEAF_BYTES)
  try {
    const { right, paused } = await fillDisk(small, disk)
    say(right && paused, 'a full disk is waited for')
  } finally {
    await small.stop()
    execFileSync('umount', [disk])
    rmdirSync(disk)
  }
}

/** A store of 100,000 files (FAULT_FILES is another number): nothing is lost or slow beyond reason, and the memory stays bounded. */
async function manyInStore (): Promise<void> {
  const { seconds, cpuSeconds, mebibytes, files } = await manyFiles(mkdtempSync(join(tmpdir(), 'pcm-')), MANY)
  process.stdout.write(`${MANY} files: seconds ${JSON.stringify(seconds)}, of CPU ${JSON.stringify(cpuSeconds)}, MiB ${JSON.stringify(mebibytes)}\n`)
  for (const [what, count] of Object.entries(files)) say(count === (what === 'left' ? 0 : MANY), `${what}: ${count} files`)
  say(mebibytes.afterStart - mebibytes.before < 50, 'a start with many files holds no list of them')
}

/** The kill table: each row is a fresh pair of devices. */
async function faultPairing (): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'pcp-'))
  const ends = { both: 0, neither: 0, torn: 0 }
  for (const row of PAIRING_KILLS) {
    const { end, expected, detail } = await killDuringPairing(join(folder, 'w'), row)
    ends[end] += 1
    say(end !== 'torn' && end === (expected ?? end), `${row.relation}: ${row.who} dies with M${row.message} ${row.arrives ? `arrived ${row.delay} ms ago` : 'lost'}: ${end}; ${detail}`)
  }
  rmdirSync(folder)
  process.stdout.write(`${PAIRING_KILLS.length} kills during a pairing: ${JSON.stringify(ends)}\n`)
}

/** Random operations beside a model of the grants; a walk that fails is shrunk for at most ten minutes. */
async function walkGrants (): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'pcg-'))
  const count = Number(process.env['GRANTS_OPERATIONS'] ?? 20_000)
  const chosen = seed
  const operations = drawOperations(count, chosen)
  process.stdout.write(`seed ${chosen}, ${count} operations\n`)
  const from = performance.now()
  const { compared, failure } = await playOperations(operations, folder, 2_500, at => {
    if (at > 0 && at % 1_000 === 0) process.stdout.write(`${at} operations after ${Math.round((performance.now() - from) / 1000)} s\n`)
  })
  const { user, system } = process.cpuUsage()
  say(failure === undefined, `grants, seed ${chosen}: ${count} operations, ${compared} requests compared, ${Math.round((performance.now() - from) / 1000)} s, ${Math.round((user + system) / 1e6)} s of CPU`)
  if (failure !== undefined) {
    process.stdout.write(`operation ${failure.at}: ${failure.error.message}\n`)
    const until = performance.now() + 600_000
    const few = await shrinkWalk(operations.slice(0, failure.at + 1), folder, () => performance.now() > until)
    process.stdout.write(`${few.length} operations that do: ${JSON.stringify(few)}\n`)
  }
  rmSync(folder, { recursive: true, force: true })
}

const isChosen = (part: string): boolean => parts.length === 0 || parts.includes(part)
const kinds = [...DOWNLOADS.keys(), 'full'].filter(kind => isChosen('downloads') || parts.includes(kind))
const unknown = parts.filter(part => !['state', 'landing', 'downloads', 'pairing', 'grants', 'many', 'full', ...DOWNLOADS.keys()].includes(part))
if (unknown.length > 0) throw new Error(`there is no part ${unknown.join(' ')}`)
if (isChosen('grants')) await walkGrants()
if (isChosen('state')) await faultState()
if (isChosen('landing')) await faultLanding()
if (isChosen('pairing')) await faultPairing()
if (isChosen('many')) await manyInStore()
if (kinds.some(kind => kind !== 'full')) await faultDownloads(kinds)
if (kinds.includes('full')) await faultDisk()
process.exit(failed === 0 ? 0 : 1)

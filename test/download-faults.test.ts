import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { LEAF_BYTES } from '../src/files/content-id.js'
import { fillDisk, killAt, lie, stall, vanish } from './fixtures/download-faults.js'
import { startFaultWorld } from './fixtures/fault-world.js'

// Samples of what scripts/test-faults.ts runs whole; every process is a real one.

const home = mkdtempSync(join(tmpdir(), 'pcf-'))

// At once: each waits for what takes seconds.
t.jobs = 2

void t.test('kill -9, a source that lies, stalls, vanishes', { buffered: true }, async t => {
  const world = await startFaultWorld(join(home, 'w'), 2, 64 * LEAF_BYTES + 11)
  t.teardown(() => world.stop())
  for (const leaves of [2, 30]) {
    const { right, written, recorded, again, asked } = await killAt(world, leaves, { isHeld: true })
    t.ok(right && recorded.length >= leaves, `killed with ${written} of 65 leaves, ${recorded.length} recorded`)
    t.ok(asked >= 65 - written, `${asked} were asked for after that`)
    t.strictSame(again, [], 'and none that was recorded')
  }
  const stalled = await stall(world, 10)
  t.ok(stalled.right && stalled.seconds < 25, `with a source that hangs: ${stalled.seconds} s`)
  await world.receiver.connected(2)
  t.ok((await vanish(world, 10)).right, 'with a source that vanishes')
  const lied = await lie(world, 3)
  t.ok(lied.right, 'with a source that lies')
  for (const device of lied.dropped) t.equal(device, world.sources[0]?.service?.ready.device, 'the liar is named, nobody else')
})

const disk = mkdtempSync(join(tmpdir(), 'pcd-'))
let mounted = true
try {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'none', disk], { stdio: 'ignore' })
} catch {
  mounted = false
  rmdirSync(disk)
}

void t.test('a full disk is waited for', { buffered: true, skip: !mounted && 'NOT TESTED: a small file system takes root to mount' }, async t => {
  const world = await startFaultWorld(join(disk, 'w'), 1, 8 * LEAF_BYTES)
  t.teardown(async () => {
    await world.stop()
    execFileSync('umount', [disk])
    rmdirSync(disk)
  })
  t.strictSame(await fillDisk(world, disk), { right: true, paused: true })
})

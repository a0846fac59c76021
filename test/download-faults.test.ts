import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { LEAF_BYTES } from '../src/files/content-id.js'
import { fillDisk, killAt, lie, mend, shrink, stall, starveReceiver, starveServer, vanish } from './fixtures/download-faults.js'
import { startFaultWorld } from './fixtures/fault-world.js'
import { manyFiles } from './fixtures/many-files.js'
import { mountSmall, NO_SMALL_DISK } from './fixtures/small-disk.js'

// Samples of what scripts/test-faults.ts runs whole; every process is a real one.

const home = mkdtempSync(join(tmpdir(), 'pcf-'))

// At once: each waits for what takes seconds.
t.jobs = 2

void t.test('kill -9, no more open files, a source that stalls, one that vanishes, a file that shrinks, a peer that lies', { buffered: true }, async t => {
  const world = await startFaultWorld(join(home, 'w'), 2, 64 * LEAF_BYTES + 11)
  t.teardown(() => world.stop())
  const { right, written, recorded, again, asked } = await killAt(world, 20, { isHeld: true })
  t.ok(right && recorded.length >= 20, `killed with ${written} of 65 leaves, ${recorded.length} recorded`)
  t.ok(asked >= 65 - written, `${asked} were asked for after that`)
  t.strictSame(again, [], 'and none that was recorded')
  t.strictSame(await starveServer(world), { isSaid: true, isBack: true }, 'with a server that is out of files: it says so, and goes on')
  t.strictSame(await starveReceiver(world), { isSaid: true, isBack: true }, 'with a receiver that is: the person is told')
  t.ok((await stall(world, 10)).right, 'with a source that hangs')
  await world.receiver.connected(2)
  t.strictSame(await shrink(world, 3, { isAlone: true }), { right: true, dropped: [], isNamed: true }, 'a file that shrinks under its server: cut, never counted, and named by the log')
  await mend(world)
  t.ok((await vanish(world, 10, { isBack: false })).right, 'with a source that vanishes')
  // It comes back as a modified peer.
  const lied = await lie(world, 3, { isAlone: true, isBack: false })
  const device = world.sources[0]?.service?.ready.device
  t.match(lied, { right: true, isLogged: true, askedAgain: 0, dropped: [{ device, leaf: 3 }] }, 'with a peer that lies in one leaf of a hundred')
  t.match(lied.told, `device ${device} sent wrong bytes`)
})

void t.test('many files in the store (npm run test:faults many has 100,000)', { buffered: true }, async t => {
  const { files, mebibytes } = await manyFiles(join(home, 'm'), 200)
  t.strictSame(files, { added: 200, again: 200, listed: 200, verified: 200, unreferenced: 200, removed: 200, left: 0 })
  t.comment(JSON.stringify(mebibytes))
})

void t.test('a full disk is waited for', { buffered: true }, async t => {
  const disk = mountSmall(t, '64m')
  if (disk === undefined) return void t.pass('a small disk', { skip: NO_SMALL_DISK })
  const world = await startFaultWorld(join(disk, 'w'), 1, 8 * LEAF_BYTES)
  t.teardown(() => world.stop())
  t.strictSame(await fillDisk(world, disk), { right: true, paused: true })
  t.strictSame(await fillDisk(world, disk, 0), { right: true, paused: true }, 'also where there is none for the list of downloads')
})

import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readSettings, writeSettings, type Settings } from '../src/agent/settings.js'
import { migrate } from '../src/agent/state-version.js'
import { readGrants, writeGrants } from '../src/identity/index.js'
import { Keystore } from '../src/identity/keystore.js'
import { Revocations } from '../src/identity/revocations.js'
import { momentsOf, recordDisk, replay, type Survival } from './fixtures/disk-recorder.js'
import { killWhileWriting, startStateWorld } from './fixtures/state-faults.js'

const folder = mkdtempSync(join(tmpdir(), 'pcst-'))
t.teardown(() => { rmSync(folder, { recursive: true }) })
const SURVIVALS: readonly Survival[] = ['least', 'names', 'all']
const settings = (name: string): Settings => ({ version: 1, name, programPassword: 'p'.repeat(32), bridgeToken: 't'.repeat(32) })

/** What `read` finds after a loss of power at every moment of `write`, in each way to lose. */
async function atEveryLoss<Found> (begin: (root: string) => Promise<void>, write: (root: string) => Promise<void>, read: (root: string) => Promise<Found>, judge: (found: Found, where: string) => void): Promise<number> {
  const before = mkdtempSync(join(folder, 'before-'))
  await begin(before)
  const live = `${before}-live`
  cpSync(before, live, { recursive: true, verbatimSymlinks: true })
  const events = await recordDisk(live, () => write(live))
  for (const survival of SURVIVALS) {
    for (const moment of momentsOf(events)) {
      const lost = `${before}-lost`
      rmSync(lost, { recursive: true, force: true })
      cpSync(before, lost, { recursive: true, verbatimSymlinks: true })
      replay(events, moment, lost, survival)
      judge(await read(lost), `power lost after ${moment} of ${events.length} writes, ${survival} of what was not synced kept`)
    }
  }
  return events.length
}

await t.test('power loss: old settings or new ones, never neither', async t => {
  const events = await atEveryLoss(root => writeSettings(root, settings('old')), root => writeSettings(root, settings('new')), readSettings, (found, where) => {
    t.ok(found?.name === 'old' || found?.name === 'new', where)
  })
  t.ok(events >= 4, 'a write, its sync, a rename and its sync were recorded')
  await atEveryLoss(async () => undefined, root => writeSettings(root, settings('first')), readSettings, (found, where) => { t.ok(found === undefined || found.name === 'first', where) })
})

await t.test('power loss: what was acknowledged stays', async t => {
  const root = mkdtempSync(join(folder, 'done-'))
  const events = await recordDisk(root, () => writeGrants(root, { friend: { databases: {}, files: 'referenced' } } as never))
  const lost = mkdtempSync(join(folder, 'lost-'))
  replay(events, events.length, lost, 'least')
  t.match(await readGrants(lost), { friend: {} })
})

await t.test('power loss: the first start leaves an identity, or none and is done again', async t => {
  const create = (root: string): Promise<unknown> => Keystore.openOrCreate(join(root, 'identity'), undefined, { alongside: () => Revocations.create(root) })
  await atEveryLoss(async () => undefined, async root => { await create(root) }, async root => {
    const was = await Keystore.exists(join(root, 'identity')).catch(() => false)
    const opened = await create(root) as Keystore
    return { was, device: opened.identity.device, revoked: existsSync(join(root, 'revoked.json')) }
  }, ({ device, revoked }, where) => {
    t.match(device, /^[a-z2-7]{52}$/, where)
    t.ok(revoked, `${where}: revoked.json is there`)
  })
})

await t.test('kill -9 while state is written (npm run test:faults makes 200, of each process)', async t => {
  const world = await startStateWorld(mkdtempSync(join(folder, 'k')))
  const { right, what } = await killWhileWriting(world, 'agent', 200, 1)
  t.ok(right, what)
  await world.laptop.stop()
})

await t.test('state migrates forward, step by step, with a copy of each kept', async t => {
  const home = (name: string): string => {
    const root = join(folder, name)
    mkdirSync(join(root, 'files'), { recursive: true, mode: 0o700 })
    writeFileSync(join(root, 'settings.json'), '{"as":"it was"}', { mode: 0o600 })
    writeFileSync(join(root, 'files', 'large'), 'not copied')
    return root
  }
  const rewrite = (text: string) => (root: string): Promise<void> => {
    writeFileSync(join(root, 'settings.json'), text, { mode: 0o600 })
    return Promise.resolve()
  }
  const read = (...path: string[]): string => readFileSync(join(...path), 'utf8')
  const root = home('migrated')
  t.strictSame(await migrate(root, [rewrite('two'), rewrite('three')]), { from: 1, to: 3 })
  t.equal(read(root, 'settings.json'), 'three')
  t.equal(read(root, 'before-version-2', 'settings.json'), '{"as":"it was"}')
  t.equal(read(root, 'before-version-3', 'settings.json'), 'two')
  t.notOk(existsSync(join(root, 'before-version-2', 'files')), 'the store is not copied')
  t.strictSame(await migrate(root, [rewrite('again'), rewrite('again')]), { from: 3, to: 3 }, 'once')
  t.equal(read(root, 'settings.json'), 'three')
  await t.rejects(migrate(root, [rewrite('older')]), { code: 'bad-state', message: /newer patchcord .*version 3, this one knows 2/ })
  t.equal(read(root, 'settings.json'), 'three', 'what is newer is not touched')

  // A migration that is cut goes on from the copy and the version that were kept.
  const cut = home('cut')
  await t.rejects(migrate(cut, [rewrite('two'), async root => { await rewrite('half')(root); throw new Error('cut') }]), /cut/)
  t.strictSame(await migrate(cut, [rewrite('never'), rewrite('three')]), { from: 2, to: 3 })
  t.equal(read(cut, 'before-version-3', 'settings.json'), 'two', 'the copy is of before, not of the half')
  const fresh = join(folder, 'fresh')
  mkdirSync(fresh, { mode: 0o700 })
  t.strictSame(await migrate(fresh, [rewrite('x')]), { from: 2, to: 2 })
  t.strictSame(readdirSync(fresh), ['version.json'], 'a fresh home is of this version')
})

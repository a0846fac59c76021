import { createHash, randomBytes } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { open, rename, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { CaBook } from '../src/agent/ca-book.js'
import { FollowPolicies } from '../src/agent/follow-policies.js'
import { TrustBook } from '../src/agent/trust-book.js'
import { UnconfirmedPairs } from '../src/agent/unconfirmed.js'
import { writeDurably } from '../src/core/durable-file.js'
import { Charges } from '../src/pairing/charges.js'
import { PendingPairs } from '../src/pairing/pending.js'
import { parseContentId, type ContentId } from '../src/core/ids.js'
import { contentIdOf, LEAF_BYTES, leafHash } from '../src/files/content-id.js'
import { perform } from '../src/files/small-turn.js'
import type { SmallAsked, SmallDone, SmallWork } from '../src/files/small-work.js'
import { Placement } from '../src/files/placement.js'
import type { SmallFiles } from '../src/files/small-files.js'
import { FileStore } from '../src/files/store.js'
import { Unsettled } from '../src/files/unsettled.js'
import { DownloadQueue } from '../src/sync/download-queue.js'
import { Lab } from '../src/testing.js'
import { readSettings, writeSettings, type Settings } from '../src/agent/settings.js'
import { migrate } from '../src/agent/state-version.js'
import { readGrants, writeGrants } from '../src/identity/index.js'
import { Keystore } from '../src/identity/keystore.js'
import { Revocations } from '../src/identity/revocations.js'
import { hostChild } from '../src/agent/server-host.js'
import { systemClock } from '../src/core/clock.js'
import { silentLogger } from '../src/core/log.js'
import { isAlive, until } from './fixtures/processes.js'
import { envOf, strangerDevice } from './fixtures/server-world.js'
import { layOut, readDisk, recordDisk, replay, type Disk, type Recording, type Survival } from './fixtures/disk-recorder.js'
import { killWhileWriting, startStateWorld } from './fixtures/state-faults.js'

const folder = mkdtempSync(join(tmpdir(), 'pcst-'))
t.teardown(() => { rmSync(folder, { recursive: true }) })
const SURVIVALS: readonly Survival[] = ['least', 'names', 'all', 'last', 1, 2]
const settings = (name: string): Settings => ({ version: 1, name, programPassword: 'p'.repeat(32), bridgeToken: 't'.repeat(32) })

/** Every state of the disk after a loss of power at every moment, in each way to lose; each once, or once for each thing that `what` says of a moment. */
function * losses (recording: Recording, before: Disk, step = 1, what: (moment: number) => string = () => ''): Generator<{ disk: Disk, where: string, moment: number }> {
  const seen = new Set<string>()
  for (const survival of SURVIVALS) {
    for (const moment of recording.moments.filter(moment => moment % step === 0)) {
      const disk = replay(recording, moment, before, survival)
      const hash = createHash('sha256').update(what(moment))
      for (const [path, entry] of [...disk].toSorted(([one], [other]) => one < other ? -1 : 1)) hash.update(`${path}\0`).update(entry.kind === 'file' ? entry.data : entry.kind)
      const key = hash.digest('hex')
      if (seen.has(key)) continue
      seen.add(key)
      yield { disk, moment, where: `power lost after ${moment} of ${recording.events.length} writes, ${typeof survival === 'number' ? `some (${survival})` : survival} of what was not synced kept` }
    }
  }
}

/** What `read` finds after a loss of power at every moment of `write`, in each way to lose. */
async function atEveryLoss<Found> (begin: (root: string) => Promise<unknown>, write: (root: string) => Promise<unknown>, read: (root: string) => Promise<Found>, judge: (found: Found, where: string) => void, step = 1): Promise<number> {
  const live = mkdtempSync(join(folder, 'live-'))
  await begin(live)
  const before = readDisk(live)
  const recording = await recordDisk(live, async () => { await write(live) })
  for (const { disk, where } of losses(recording, before, step)) {
    const lost = mkdtempSync(join(folder, 'lost-'))
    layOut(disk, lost)
    judge(await read(lost), where)
    rmSync(lost, { recursive: true })
  }
  return recording.events.length
}

await t.test('power loss: old settings or new ones, never neither', async t => {
  const events = await atEveryLoss(root => writeSettings(root, settings('old')), root => writeSettings(root, settings('new')), readSettings, (found, where) => {
    t.ok(found?.name === 'old' || found?.name === 'new', where)
  })
  t.ok(events >= 4, 'a write, its sync, a rename and its sync were recorded')
  await atEveryLoss(async () => undefined, root => writeSettings(root, settings('first')), readSettings, (found, where) => { t.ok(found === undefined || found.name === 'first', where) })
})

await t.test('power loss: a write that is not synced is found out', async t => {
  // What this test is worth: the same in the two ways that are wrong.
  for (const careless of [
    (path: string) => writeFile(path, '{"as":"it will be"}'),
    async (path: string) => {
      const file = await open(`${path}.tmp`, 'wx', 0o600)
      await file.writeFile('{"as":"it will be"}')
      await file.close()
      await rename(`${path}.tmp`, path)
    },
  ]) {
    let torn = 0
    await atEveryLoss(root => { writeFileSync(join(root, 'x.json'), '{"as":"it was"}'); return Promise.resolve() }, root => careless(join(root, 'x.json')), root => Promise.resolve(readFileSync(join(root, 'x.json'), 'utf8')), found => { if (!/^\{"as":"it (was|will be)"\}$/.test(found)) torn += 1 })
    t.ok(torn > 0)
  }
})

await t.test('power loss while small files are taken in by turns: each is whole or absent, and one that was given to somebody is read first', async t => {
  const source = mkdtempSync(join(folder, 'source-'))
  const bytes = ['one', 'two', 'three'].map(text => Buffer.from(text))
  for (const [n, each] of bytes.entries()) writeFileSync(join(source, `${n}`), each)
  const ids = bytes.map(each => contentIdOf(leafHash(each)))
  const path = (root: string, id: string): string => join(root, 'files', id.slice(0, 2), id.slice(2))
  const turn = async (bytes: Uint8Array, ...asked: SmallAsked[]): Promise<readonly SmallDone[]> => (await perform({ asked, bytes })).done
  await atEveryLoss(async root => { await (await FileStore.open(join(root, 'files'))).close() }, async root => {
    const taken = await turn(Buffer.alloc(0), ...ids.map((_, n) => ({ kind: 'take' as const, path: join(source, `${n}`), root: join(root, 'files'), folder: join(root, 'partial'), isSynced: true })))
    await turn(Buffer.alloc(0), ...(taken as Array<SmallWork['take']['done']>).map(({ id, size, temporary }) => ({ kind: 'place' as const, temporary: temporary!, to: path(root, id), size })))
    await turn(bytes[0]!, { kind: 'write', to: join(root, 'partial', `${ids[0]}.whole`), at: 0, length: 3 })
  }, async root => {
    const store = await FileStore.open(join(root, 'files'))
    const left = await store.asides.all()
    return { stored: ids.map((id, n) => existsSync(path(root, id)) ? readFileSync(path(root, id)).equals(bytes[n]!) : undefined), left, isCounted: await store.asides.has(ids[0]!, 3), kept: (await store.asides.all()).map(() => readFileSync(store.asides.path(ids[0]!), 'utf8')) }
  }, ({ stored, isCounted, kept }, where) => {
    t.notOk(stored.includes(false), where)
    t.strictSame(kept, isCounted ? ['one'] : [], where)
  })
})

await t.test('a file is said to be on the disk once its folder is, by name, and the folders of the store are', async t => {
  const live = mkdtempSync(join(folder, 'named-'))
  let root = join(live, 'a/b/files')
  const made = await recordDisk(live, async () => { await (await FileStore.open(root)).close() })
  const at = (events: Recording['events'], kind: string, path: string): number => events.findLastIndex(event => event.kind === kind && 'path' in event && event.path === path)
  for (const [path, parent] of [['a', ''], ['a/b', 'a'], ['a/b/files', 'a/b'], ['a/b/partial', 'a/b']] as const) {
    t.ok(at(made.events, 'mkdir', path) >= 0 && at(made.events, 'sync', parent) > at(made.events, 'mkdir', path), `${path} is in ${parent}`)
  }

  // As the threads for small files do it, and answer it, in an order of the test's.
  const [one, two] = ['ab'.padEnd(52, 'a'), `${'ab'.padEnd(51, 'a')}q`] as const
  const placed = async (note: string, run: (world: { place: (id: string, isLater: boolean) => Promise<boolean>, mark: (what: string) => void, answers: { ofOne?: Promise<unknown> }, placement: Placement, unsettled: Unsettled }) => Promise<void>): Promise<Recording['events']> => {
    root = join(live, `${note}/files`)
    mkdirSync(root, { recursive: true })
    mkdirSync(join(live, note, 'partial'))
    const unsettled = new Unsettled(join(live, note, 'partial/unsettled'))
    const answers: { ofOne?: Promise<unknown> } = {}
    const ask = (async (kind: 'place', asked: SmallWork['place']['asked']) => {
      const { done } = await perform({ asked: [{ kind, ...asked }], bytes: Buffer.alloc(0) })
      if (kind === 'place' && asked.to === join(root, 'ab', one.slice(2))) await answers.ofOne
      return done[0]
    }) as SmallFiles['ask']
    const placement = new Placement(root, join(live, note, 'partial'), async () => false, { ask }, unsettled)
    const place = async (id: string, isLater: boolean): Promise<boolean> => {
      const temporary = join(live, note, 'partial', `${id}.tmp`)
      writeFileSync(temporary, 'x')
      return await placement.place({ id: parseContentId(id), size: 1, temporary, isSynced: !isLater }, isLater)
    }
    return (await recordDisk(join(live, note), mark => run({ place, mark, answers, placement, unsettled }))).events
  }
  const later = await placed('later', async ({ place, placement, unsettled }) => {
    t.ok(await place(one, true))
    await placement.flush()
    t.strictSame([...unsettled.noted().keys()], [])
  })
  const isNamed = at(later, 'sync', 'files')
  t.ok(isNamed > at(later, 'mkdir', 'files/ab') && isNamed < at(later, 'make', 'partial/unsettled'), 'lent: before it is noted no more')

  const beside = await placed('beside', async ({ place, mark, answers }) => {
    let answer = (): void => undefined
    answers.ofOne = new Promise<void>(resolve => { answer = resolve })
    // While this is placed, the others come to be the next group.
    const before = place('cd'.padEnd(52, 'a'), false)
    const first = place(one, false)
    t.ok(await place(two, false), 'another has made the folder, and not said so yet')
    mark('placed')
    answer()
    await Promise.all([before, first])
  })
  const waitedFor = beside.slice(0, beside.findIndex(event => event.kind === 'mark'))
  t.ok(at(waitedFor, 'mkdir', 'files/ab') >= 0 && at(waitedFor, 'sync', 'files') > at(waitedFor, 'mkdir', 'files/ab'))
})

await t.test('power loss in the life of a device: each file of its state is one that was, never older than what was answered', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  const root = laptop.home.root
  // The embedded database is LevelDB's own matter.
  const leaveOut = (path: string): boolean => /^(?:couch|lock|control\.sock)(?:\/|$|-)|^\.pipes/.test(path)
  const before = readDisk(root, leaveOut)
  const photo = join(folder, 'photo')
  writeFileSync(photo, 'of a dog')
  const recording = await recordDisk(root, async mark => {
    const step = async (what: string, done: Promise<unknown>): Promise<void> => {
      await done
      mark(what)
    }
    const { bundle } = await friend.call('identity', {})
    await step('trust', laptop.call('trust', { bundle, name: 'friend' }))
    await step('db-create', laptop.call('db-create', { name: 'notes' }))
    await step('share', laptop.call('share', { database: 'notes', with: 'friend' }))
    await step('follow', laptop.call('follow', { database: 'notes', policy: { fetch: 'on-demand' } }))
    await step('quota', laptop.call('quota', { device: 'friend', bytes: 1_000_000 }))
    const ids: ContentId[] = []
    await step('add', laptop.call('add', { paths: [photo], to: 'notes' }, event => { if (event.event === 'added') ids.push(parseContentId(event.id)) }))
    await step('rename', laptop.call('rename', { device: 'friend', name: 'renamed' }))
    await step('send', laptop.call('send', { device: 'renamed', paths: [photo], wait: false }))
    await step('inbox-rule', laptop.call('inbox-rule', { device: 'renamed', rule: 'refuse' }))
    await step('a code that was tried', Charges.open(root, systemClock).then(charges => charges.charge(1)))
    await step('unshare', laptop.call('unshare', { database: 'notes', with: 'renamed' }))
    await step('revoke', laptop.call('revoke', { device: 'renamed' }))
    await step('remove', Promise.all(ids.map(id => laptop.agent.store.remove(id))))
  }, leaveOut)
  const { events } = recording
  /** What each file of the state was, in order, and which of them it was when something was last answered. */
  const contents = (disk: Disk): Map<string, string> => new Map([...disk].flatMap(([path, entry]) => entry.kind === 'file' && !/(?:^|\/)\.[^/]*$|^partial\//.test(path) ? [[path, entry.data.toString('latin1')]] : []))
  const versions = new Map<string, string[]>()
  const answered: Array<ReadonlyMap<string, number>> = []
  let now = new Map<string, number>()
  for (const moment of recording.moments) {
    const after = contents(replay(recording, moment, before, 'all'))
    for (const path of new Set([...after.keys(), ...versions.keys()])) {
      const known = versions.get(path) ?? []
      const text = after.get(path) ?? 'absent'
      if (known.at(-1) !== text) versions.set(path, [...known, ...known.length === 0 && moment > 0 ? ['absent'] : [], text])
    }
    if (moment > 0 && events[moment - 1]!.kind === 'mark') now = new Map([...versions].map(([path, known]) => [path, known.length - 1]))
    answered.push(now)
  }
  const written = [...versions].filter(([, known]) => known.length > 1).map(([path]) => path)
  for (const name of ['whitelist.json', 'grants.json', 'peers.json', 'revoked.json', 'settings.json', 'offers.json', 'follow.json', 'pairing.json']) t.ok(written.includes(name), `${name} was written`)
  t.ok(written.some(path => path.endsWith('.refs')), 'records of files were written')

  let states = 0
  for (const survival of SURVIVALS) {
    for (const moment of recording.moments) {
      const found = contents(replay(recording, moment, before, survival))
      for (const [path, known] of versions) {
        const at = known.lastIndexOf(found.get(path) ?? 'absent')
        const least = answered[moment]!.get(path) ?? 0
        if (at === -1 || at < least) t.fail(`${path} after ${moment} of ${events.length} events, ${survival} kept: ${at === -1 ? 'neither the old nor the new' : `older (${at}) than what was answered (${least})`}`)
      }
      for (const path of found.keys()) {
        // A record never outlives its file: it would grant it when it comes back.
        if (path.endsWith('.refs') && !found.has(path.slice(0, -'.refs'.length))) t.fail(`${path} without its file after ${moment} events, ${survival} kept`)
      }
    }
  }
  for (const { disk, where } of losses(recording, before)) {
    const lost = mkdtempSync(join(folder, 'life-'))
    layOut(disk, lost)
    try {
      await migrate(lost)
      const book = await TrustBook.open(lost)
      await Promise.all([CaBook.open(lost), FollowPolicies.open(lost), DownloadQueue.open(lost), Charges.open(lost, systemClock), PendingPairs.open(lost, systemClock), UnconfirmedPairs.open(lost, systemClock), readSettings(lost), Keystore.open(join(lost, 'identity'))])
      t.ok(book.known.size <= 1, where)
      states += 1
    } catch (error) {
      t.fail(`${where}: ${String(error)}`)
    }
    rmSync(lost, { recursive: true })
  }
  t.ok(states > 30, `${states} states of the disk are read`)
})

await t.test('power loss while state migrates: a version is of the state that is there, and the copy is whole', async t => {
  const names = ['settings.json', 'peers.json']
  const rewrite = (text: string) => async (root: string): Promise<void> => { for (const name of names) await writeDurably(join(root, name), text) }
  const steps = [rewrite('two'), rewrite('three')]
  await atEveryLoss(root => {
    for (const name of names) writeFileSync(join(root, name), 'one', { mode: 0o600 })
    return Promise.resolve()
  }, root => migrate(root, steps), async root => {
    const read = (...path: string[]): string | undefined => existsSync(join(root, ...path)) ? readFileSync(join(root, ...path), 'utf8') : undefined
    const at = read('version.json')
    const had = names.map(name => read(name))
    await migrate(root, steps)
    return { at, had, now: names.map(name => read(name)), copies: [2, 3].map(version => names.map(name => read(`before-version-${version}`, name))) }
  }, ({ at, had, now, copies }, where) => {
    const version = (JSON.parse(at ?? '{"version":1}') as { version: number }).version
    for (const text of had) t.ok([['one', 'two'], ['two', 'three'], ['three']][version - 1]!.includes(text!), `${where}: version ${version} with ${text}`)
    t.strictSame(now, ['three', 'three'], where)
    t.strictSame(copies, [['one', 'one'], ['two', 'two']], `${where}: the copies`)
  })
})

await t.test('power loss: what was acknowledged stays', async t => {
  const root = mkdtempSync(join(folder, 'done-'))
  const recording = await recordDisk(root, () => writeGrants(root, { friend: { databases: {}, files: 'referenced' } } as never))
  const lost = join(folder, 'lost')
  layOut(replay(recording, recording.events.length, new Map(), 'least'), lost)
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
    // Each makes keys and certificates: every fourth moment is a sample.
  }, 4)
})

for (const [what, size] of [['large', LEAF_BYTES + 5], ['small', 5]] as const) await t.test(`power loss while a ${what} file is lent: it is right, or gone and told to be`, async t => {
  const live = mkdtempSync(join(folder, 'lent-'))
  const bytes = randomBytes(size)
  const path = join(folder, what)
  writeFileSync(path, bytes)
  const store = await FileStore.open(join(live, 'files'))
  t.teardown(() => store.close())
  const before = readDisk(live)
  let id = '' as ContentId
  const recording = await recordDisk(live, async (mark, wrote) => {
    const copy = store.hashes.copy.bind(store.hashes)
    store.hashes.copy = async (from, source, to, position, length) => {
      const hashes = await copy(from, source, to, position, length)
      if (to !== undefined) wrote(readlinkSync(`/proc/self/fd/${to}`), bytes.subarray(position, position + length), position)
      return hashes
    }
    for await (const added of store.addAll([path], { isLater: true })) if ('id' in added) id = added.id
    mark('lent')
    await store.flush()
    mark('on the disk')
    t.equal(statSync(join(live, 'partial', 'unsettled')).size, 0, 'nothing is noted any more')
    await store.remove(id)
    mark('removed')
  })
  const moment = (what: string): number => recording.events.findIndex(event => event.kind === 'mark' && event.what === what)
  const syncs = recording.events.slice(0, moment('lent')).flatMap(event => event.kind === 'sync' ? [event.path] : [])
  t.notOk(syncs.some(path => /^partial\/.*\.tmp$/.test(path)), 'who lends it does not wait for its bytes')
  const found = { right: 0, lost: 0, none: 0 }
  const stageOf = (at: number): string => ['removed', 'on the disk', 'lent'].find(what => at > moment(what)) ?? 'before'
  for (const { disk, moment: at, where } of losses(recording, before, 1, stageOf)) {
    const stage = stageOf(at)
    // It is being removed.
    if (stage === 'on the disk' && at > moment('on the disk') + 1) continue
    const lost = mkdtempSync(join(folder, 'lost-'))
    layOut(disk, lost)
    const opened = await FileStore.open(join(lost, 'files'))
    const there: ContentId[] = []
    for await (const file of opened.list()) {
      const chunks: Buffer[] = []
      for await (const chunk of opened.read(file.id) as AsyncIterable<Buffer>) chunks.push(chunk)
      if (!Buffer.concat(chunks).equals(bytes)) t.fail(`${where}: what is there is not right`)
      there.push(file.id)
    }
    const isThere = there.includes(id)
    const isLost = opened.lost.includes(id)
    found[isThere ? 'right' : isLost ? 'lost' : 'none'] += 1
    if (stage === 'lent' && isThere === isLost) t.fail(`${stage}, ${where}: ${isThere ? 'it is there, and told to be lost' : 'it is gone, and nobody is told'}`)
    if (stage === 'on the disk' && !isThere) t.fail(`${stage}, ${where}: it is gone`)
    await opened.close()
    rmSync(lost, { recursive: true })
  }
  t.ok(found.right > 2 && found.lost > 2 && found.none > 2, `it was right ${found.right} times, lost ${found.lost} times, and not there yet or any more ${found.none} times`)
})

await t.test('kill -9 while state is written (npm run test:faults makes 200, of each process)', async t => {
  const world = await startStateWorld(mkdtempSync(join(folder, 'k')))
  const { right, what } = await killWhileWriting(world, 'agent', 10, 1)
  t.ok(right, what)

  const { laptop } = world
  const name = answerOf(await laptop.run('devices', '--json'))
  const [kept, damaged] = ['kept', 'damaged'].map(what => {
    const bytes = randomBytes(LEAF_BYTES + 1)
    const path = join(laptop.home, '..', what)
    writeFileSync(path, bytes)
    return { path, id: contentIdOf(Buffer.concat([leafHash(bytes.subarray(0, LEAF_BYTES)), leafHash(bytes.subarray(LEAF_BYTES))])) }
  }) as [{ path: string, id: ContentId }, { path: string, id: ContentId }]
  const offered: string[] = []
  for (const { path } of [kept, damaged]) offered.push((await laptop.json<{ offer: string }>('send', name, path, '--no-wait')).offer)
  const note = join(laptop.home, 'partial', 'unsettled')
  t.equal(readFileSync(note, 'latin1'), `${kept.id}\n${damaged.id}\n`, 'what is lent is not on the disk yet')
  await laptop.kill()
  chmodSync(laptop.storePath(damaged.id), 0o600)
  writeFileSync(laptop.storePath(damaged.id), Buffer.alloc(LEAF_BYTES + 1))
  await laptop.start()
  t.strictSame([kept, damaged].map(({ id }) => laptop.has(id)), [true, false], 'what is not what it was is dropped')
  const { sent } = JSON.parse(readFileSync(join(laptop.home, 'offers.json'), 'utf8')) as { sent: Array<{ offer: string }> }
  t.strictSame(sent.map(({ offer }) => offer), offered.slice(0, 1), 'its offer ended')
  t.match(laptop.service!.log(), new RegExp(`"offer":"${offered[1]}".*an offer ended: .* send them again`))
  t.equal(readFileSync(note, 'latin1'), '', 'the rest is on the disk now')
  await laptop.stop()
})

function answerOf ({ stdout }: { stdout: string }): string {
  return (JSON.parse(stdout.trim().split('\n').find(line => line.includes('"friend'))!) as { name: string }).name
}

await t.test('any fault in the update channel ends in the new trust or a dead server', async t => {
  const root = mkdtempSync(join(folder, 'u'))
  let revoked: string[] = []
  const given: string[][] = []
  const host = await hostChild({
    folders: { data: join(root, 'files'), folder: root }, clock: systemClock, logger: silentLogger(), onRestart: () => undefined, onLogLine: () => undefined,
    env: () => {
      given.push([...revoked])
      return Promise.resolve({ ...envOf({ listen: [{ host: '::1', port: 0 }] }), revoked } as never)
    },
  })
  t.teardown(() => host.stop())
  const faults: ReadonlyArray<readonly [what: string, fault: (pid: number) => void]> = [
    ['a server that hangs', pid => { process.kill(pid, 'SIGSTOP') }],
    ['one that is killed before the update', pid => { process.kill(pid, 'SIGKILL') }],
    ['one that is killed while it reads it', pid => { setImmediate(() => { process.kill(pid, 'SIGKILL') }) }],
  ]
  for (const [index, [what, fault]] of faults.entries()) {
    const pid = host.pid!
    revoked = [...revoked, strangerDevice.id]
    fault(pid)
    await host.update({ revoked } as never)
    await until(`the end of ${what}`, () => !isAlive(pid))
    await until('the next one', () => host.pid !== undefined && host.pid !== pid)
    t.ok(given.some(had => had.length > index), `${what}: the next one begins with the new trust`)
    // It answers: the channel is whole again.
    await host.update({ revoked } as never)
    t.ok(isAlive(host.pid!), what)
  }
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

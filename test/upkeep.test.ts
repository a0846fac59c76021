import { randomBytes } from 'node:crypto'
import { chmodSync, existsSync, readdirSync, readFileSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { upkeepOperations } from '../src/agent/upkeep-operations.js'
import { fileError } from '../src/core/errors.js'
import { parseContentId } from '../src/core/ids.js'
import { contentIdOf } from '../src/files/content-id.js'
import { PartialFile } from '../src/files/partial.js'
import { Lab } from '../src/testing.js'

await t.test('get by name, verify, gc, add --move', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const device = await lab.device({ user: 'u1', name: 'laptop' })
  const folder = t.testdir({ in: {} })
  await device.call('db-create', { name: 'notes' })
  const add = async (name: string, bytes: Buffer, options: { to?: string, move?: boolean } = {}): Promise<string> => {
    writeFileSync(join(folder, 'in', name), bytes)
    // A file that changed in this very millisecond could still be changing.
    await new Promise(resolve => { setTimeout(resolve, 10) })
    let id = ''
    await device.call('add', { paths: [join(folder, 'in', name)], ...options }, event => { if (event.event === 'added') id = event.id })
    return id
  }
  const path = (id: string): string => device.agent.store.path(parseContentId(id))
  const large = randomBytes(2_500_000)
  const kept = await add('kept.bin', large, { to: 'notes' })
  const loose = await add('loose.bin', randomBytes(100))
  const moved = await add('moved.bin', randomBytes(1_100_000), { to: 'notes', move: true })
  t.strictSame(readdirSync(join(folder, 'in')).toSorted(), ['kept.bin', 'loose.bin'], 'what was moved is gone there')
  t.ok(existsSync(path(moved)))
  await t.rejects(device.call('add', { paths: [join(folder, 'in', 'kept.bin')], to: 'nowhere', move: true }), { code: 'not-found' })
  t.ok(existsSync(join(folder, 'in', 'kept.bin')), 'what was not added stays')

  // A document that says something else of the file, as a device that may write it can make it, is put right.
  const found = await device.db('GET', `/notes/${kept}`)
  t.match(found.value, { _id: kept, type: 'file', size: large.length, names: ['kept.bin'], contentType: 'application/octet-stream', mtime: /^\d{4}-.*Z$/ })
  t.equal((await device.db('PUT', `/notes/${kept}`, { ...found.value as object, size: 1 })).status, 201)
  await device.call('add', { paths: [join(folder, 'in', 'kept.bin')], to: 'notes' })
  t.match((await device.db('GET', `/notes/${kept}`)).value, { size: large.length, names: ['kept.bin'] })

  // The store's own files, by whatever path, and what lies around them.
  await device.call('add', { paths: [path(kept)], to: 'notes', move: true })
  t.ok(existsSync(path(kept)), 'what is the store itself is not moved into it')
  const passed: string[] = []
  t.match(await device.call('add', { paths: [dirname(device.home.root)], move: true }, event => { if (event.event === 'passed-over') passed.push(event.path) }), { files: 0 })
  t.ok(passed.includes(device.home.root))
  await t.rejects(device.call('get', { id: 'kept.bin', output: join(folder, 'in'), force: true }), { code: 'already-exists', message: `${join(folder, 'in')} is a folder` })
  t.match(await device.call('get', { id: 'kept.bin', output: join(folder, 'out') }), { id: kept })
  t.ok(readFileSync(join(folder, 'out')).equals(large))
  await t.rejects(device.call('get', { id: 'nothing.bin', output: join(folder, 'x') }), { code: 'not-found' })
  await add('kept.bin', randomBytes(10), { to: 'notes' })
  await t.rejects(device.call('get', { id: 'kept.bin', output: join(folder, 'x') }), { code: 'usage', message: '2 files are called "kept.bin"' })

  const unreferenced: string[] = []
  t.match(await device.call('gc', {}, event => { if (event.event === 'unreferenced') unreferenced.push(event.id) }), { files: 1, bytes: 100, removed: false })
  t.strictSame(unreferenced, [loose])
  t.ok(existsSync(path(loose)), 'shown, not removed')
  // An import that begins while gc looks may find this file here, and count on it.
  const beginning = (event: { event: string }): void => { if (event.event === 'unreferenced') device.agent.importing += 1 }
  await t.rejects(upkeepOperations(device.agent).gc({ remove: true }, beginning, new AbortController().signal), { code: 'conflict' })
  t.ok(existsSync(path(loose)))
  device.agent.importing = 0
  t.match(await device.call('gc', { remove: true }), { files: 1, removed: true })
  t.notOk(existsSync(path(loose)))
  t.ok(existsSync(path(kept)) && existsSync(path(moved)))

  // What is left of a download that nobody goes on with is nothing else.
  const leaves = Buffer.alloc(3 * 32)
  const half = contentIdOf(leaves)
  const partial = await PartialFile.create(device.agent.store, { id: half, size: 2_500_000, leaves })
  t.match(await device.call('gc', { remove: true }), { files: 0 }, 'while it runs it is somebody\'s')
  await partial.suspend()
  t.match(await device.call('gc', {}), { files: 1, removed: false })
  t.strictSame(await device.agent.store.partials(), [half])
  t.match(await device.call('gc', { remove: true }), { files: 1, removed: true })
  t.strictSame(readdirSync(join(dirname(device.home.files), 'partial')), [])

  t.match(await device.call('verify', {}), { files: 3, damaged: 0, mended: 0 })

  // A leaf list is made of the bytes again, where they are right: the file and what it is recorded for stay.
  const listOf = (id: string): string => `${path(id)}.leaves`
  const list = readFileSync(listOf(kept))
  for (const [what, rot] of [
    ['is missing', () => { unlinkSync(listOf(kept)) }],
    ['is too short', () => { truncateSync(listOf(kept), 64) }],
    ['is empty', () => { truncateSync(listOf(kept), 0) }],
    ['has a wrong bit', () => { writeFileSync(listOf(kept), Buffer.concat([Buffer.of(list[0]! ^ 1), list.subarray(1)])) }],
  ] as const) {
    if (existsSync(listOf(kept))) chmodSync(listOf(kept), 0o644)
    rot()
    const events: Array<{ event: string }> = []
    t.match(await device.call('verify', {}, event => { if (event.event !== 'progress') events.push(event) }), { files: 3, damaged: 0, mended: 1 }, what)
    t.strictSame(events, [{ event: 'mended', id: kept }], what)
    t.ok(readFileSync(listOf(kept)).equals(list), what)
    t.strictSame(await device.agent.store.records(parseContentId(kept)), ['notes'], what)
    t.notOk(readdirSync(dirname(path(kept))).some(name => name.endsWith('.tmp')))
  }
  t.match(await device.call('verify', {}), { files: 3, damaged: 0, mended: 0 })
  // A dying disk: no file system here refuses root to read, so the refusal is put before the store's.
  const readable = device.agent.store
  const examine = readable.examine.bind(readable)
  readable.examine = async (id, onBytes) => {
    if (id === moved) throw fileError(Object.assign(new Error('i/o error'), { code: 'EIO' }), path(moved))
    return await examine(id, onBytes)
  }
  const refused: object[] = []
  t.match(await device.call('verify', {}, event => { if (event.event !== 'progress') refused.push(event) }), { files: 3, damaged: 0, unreadable: 1 }, 'the others are read all the same')
  t.match(refused, [{ event: 'unreadable', id: moved, reason: /i\/o error/ }])
  t.ok(existsSync(path(moved)), 'and it stays where it is')
  readable.examine = examine
  unlinkSync(listOf(moved))
  const cut = await add('cut.bin', randomBytes(1_200_000), { to: 'notes' })
  for (const [id, damage] of [
    [kept, (file: string) => { const bytes = readFileSync(file); bytes[2_000_000]! ^= 1; writeFileSync(file, bytes) }],
    [moved, (file: string) => { const bytes = readFileSync(file); bytes[5]! ^= 1; writeFileSync(file, bytes) }],
    [cut, (file: string) => { truncateSync(file, 5) }],
  ] as const) {
    chmodSync(path(id), 0o644)
    damage(path(id))
  }
  const damaged: string[] = []
  t.match(await device.call('verify', {}, event => { if (event.event === 'damaged') damaged.push(event.id) }), { files: 4, damaged: 3, mended: 0 })
  t.strictSame(damaged.toSorted(), [kept, moved, cut].toSorted(), 'what is not what it was cannot be mended, with its list or without')
  for (const id of damaged) {
    t.notOk(existsSync(path(id)), 'no longer served')
    t.ok(existsSync(join(dirname(device.home.files), 'quarantine', id)), 'and still there for who wants to look')
    t.strictSame(await device.agent.store.records(parseContentId(id)), [])
  }
  t.match(await device.call('verify', {}), { files: 1, damaged: 0 })
  t.equal(await add('kept.bin', large, { to: 'notes' }), kept, 'and can be added again')
  // One that is damaged, and replaced by a good one before it is put aside.
  chmodSync(path(kept), 0o644)
  writeFileSync(path(kept), large.subarray(1))
  const { store } = device.agent
  const quarantine = store.quarantine.bind(store)
  store.quarantine = async (...args) => {
    await add('kept.bin', large, { to: 'notes' })
    return await quarantine(...args)
  }
  t.match(await device.call('verify', {}), { files: 1, damaged: 0 })
  store.quarantine = quarantine
  t.ok(readFileSync(path(kept)).equals(large))
  t.strictSame(await store.records(parseContentId(kept)), ['notes'])
  t.match(await device.call('verify', {}), { files: 2, damaged: 0 })

  // What cannot be read holds up nothing else that was named.
  writeFileSync(join(folder, 'in', 'last.TXT'), 'last')
  const added: string[] = []
  await t.rejects(device.call('add', { paths: [join(folder, 'in', 'nothing'), join(folder, 'in', 'last.TXT')], to: 'notes' }, event => { if (event.event === 'added') added.push(event.id) }), { code: 'unreadable', message: '1 of 2 files was not added' })
  t.strictSame(await device.agent.store.records(parseContentId(added[0] ?? '')), ['notes'])
  t.match((await device.db('GET', `/notes/${added[0]}`)).value, { names: ['last.TXT'], contentType: 'text/plain' })
  await t.rejects(device.call('add', { paths: [join(folder, 'in', 'nothing')] }), { code: 'unreadable', message: `${join(folder, 'in', 'nothing')} does not exist` })
})

await t.test('gc --remove: what is lent, wanted or taken in at the last moment stays', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const device = await lab.device({ user: 'u1', name: 'laptop' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(device, friend)
  const { store, offers, downloads } = device.agent
  const folder = t.testdir({ loose: 'loose', other: 'other' })
  const { id, size } = await store.add(join(folder, 'loose'))
  const { id: other } = await store.add(join(folder, 'other'))
  const records = store.records.bind(store)
  const removeUnrecorded = store.removeUnrecorded.bind(store)
  t.teardown(() => { Object.assign(store, { records, removeUnrecorded }) })
  /** What comes up once the files are being removed that nothing referred to. */
  const gcWhile = async (happens: () => Promise<void>): Promise<object> => {
    let begun = false
    store.removeUnrecorded = async (...args) => {
      begun = true
      return await removeUnrecorded(...args)
    }
    let happened: Promise<void> | undefined
    store.records = async one => {
      if (begun) await (happened ??= happens())
      return await records(one)
    }
    return await device.call('gc', { remove: true })
  }
  t.match(await gcWhile(async () => { await offers.offer(friend.agent.keystore.identity.device, { files: [{ path: ['loose'], size, id }] }) }), { files: 1, bytes: 5, removed: true })
  t.strictSame([await store.has(id), await store.has(other)], [true, false], 'what was lent')

  await store.add(join(folder, 'other'))
  const wanted = downloads.fetch(other, { sources: () => [], waitMs: 60_000 }).catch(() => undefined)
  t.match(await gcWhile(async () => undefined), { files: 0, bytes: 0 })
  t.ok(await store.has(other), 'what is being asked for')
  await downloads.stop()
  await wanted

  await t.rejects(gcWhile(async () => { device.agent.importing += 1 }), { code: 'conflict' })
  device.agent.importing = 0
  t.ok(await store.has(other), 'what an import that began may find')
})

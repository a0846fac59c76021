import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { HeldFolders } from '../src/agent/held-folders.js'
import { land, type LandingNote, type Top } from '../src/agent/landing.js'
import type { OfferedFile } from '../src/agent/offer-list.js'
import type { ContentId } from '../src/core/ids.js'
import { contentIdOf, LEAF_BYTES, leafHash } from '../src/files/content-id.js'
import { FileStore } from '../src/files/store.js'
import { killWhileLanding, startLandingWorld } from './fixtures/landing-faults.js'

const folder = mkdtempSync(join(tmpdir(), 'pcl-'))
t.teardown(() => { rmSync(folder, { recursive: true }) })

/** What is below a folder: each file's content, and each folder without anything in it. */
function contentsOf (root: string, below = ''): Map<string, string> {
  const entries = readdirSync(join(root, below), { withFileTypes: true })
  if (entries.length === 0) return new Map([[`${below}/`, '']])
  return new Map(entries.flatMap(entry => {
    const path = below === '' ? entry.name : `${below}/${entry.name}`
    return entry.isDirectory() ? [...contentsOf(root, path)] : [[path, readFileSync(join(root, path), 'latin1')]]
  }))
}

/** What this process has open below a folder. */
function openUnder (root: string): string[] {
  return readdirSync('/proc/self/fd').flatMap(fd => {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`)
      return path.startsWith(root) ? [path] : []
    } catch {
      return []
    }
  })
}

/** A note that is kept as long as the test wants. */
function noteOf (kept: { tops?: readonly Top[] | undefined }): LandingNote {
  return {
    tops: kept.tops,
    mark: 'fedcba98',
    keep: tops => {
      kept.tops = structuredClone(tops)
      return Promise.resolve()
    },
    alone: task => task(),
  }
}

await t.test('a landing that is cut anywhere goes on where it was: nothing is replaced, and nothing whole is there twice', async t => {
  const store = await FileStore.open(join(folder, 'one', 'files'))
  t.teardown(() => store.close())
  const asides = new Set<ContentId>()
  const file = async (path: string, bytes: Buffer, isAside = true): Promise<OfferedFile & { text: string }> => {
    const leaves = Array.from({ length: Math.max(1, Math.ceil(bytes.length / LEAF_BYTES)) }, (_, n) => leafHash(bytes.subarray(n * LEAF_BYTES, (n + 1) * LEAF_BYTES)))
    const id = contentIdOf(Buffer.concat(leaves))
    if (isAside) {
      asides.add(id)
      await store.putAside(id, bytes)
    } else {
      writeFileSync(join(folder, 'source'), bytes)
      await store.add(join(folder, 'source'))
    }
    return { path: path.split('/'), size: bytes.length, id, text: bytes.toString('latin1') }
  }
  const twice = Buffer.from('the same bytes')
  const files = [
    await file('a.txt', Buffer.from('theirs')), await file('same', twice), await file('same', twice), await file('same', Buffer.from('others')),
    await file('holiday/a', Buffer.from('a')), await file('holiday/deep/b', twice), await file('holiday/deep/nothing', Buffer.alloc(0)), await file('holiday/large', randomBytes(LEAF_BYTES + 7), false),
    await file('work/c', Buffer.from('c'), false),
  ]
  const folders = [['holiday', 'empty', 'deeper'], ['hollow']]
  // What two names of one list are called beside the person's own.
  const names = ['a (2).txt', 'same', 'same (2)', 'same (3)', 'holiday (2)/a', 'holiday (2)/deep/b', 'holiday (2)/deep/nothing', 'holiday (2)/large', 'work/c']
  const path = store.path.bind(store)
  const giveTo = store.asides.giveTo.bind(store.asides)
  t.teardown(() => { store.path = path })
  /** Throws when so many steps are done: at once, or after the step. */
  const cutAt = (cut: number, isAfter: boolean, note: LandingNote): LandingNote => {
    let steps = 0
    const step = async <Result>(does: () => Promise<Result>): Promise<Result> => {
      const mine = ++steps
      if (mine === cut && !isAfter) throw new Error('cut')
      const result = await does()
      if (mine === cut) throw new Error('cut')
      return result
    }
    store.asides.giveTo = (id, to) => step(() => giveTo(id, to))
    store.path = id => {
      if (++steps === cut) throw new Error('cut')
      return path(id)
    }
    return { ...note, keep: tops => step(() => note.keep(tops)) }
  }
  const places = { cut: 0, whole: 0 }
  for (let cut = 1; places.whole < 2; cut++) {
    places.whole = 0
    for (const isAfter of [false, true]) {
      const to = mkdtempSync(join(folder, 'to-'))
      mkdirSync(join(to, 'holiday'))
      writeFileSync(join(to, 'holiday', 'a'), 'mine')
      writeFileSync(join(to, 'a.txt'), 'mine')
      const kept: { tops?: readonly Top[] } = {}
      const where = `cut ${isAfter ? 'after' : 'at'} step ${cut}`
      try {
        await land(store, { files, folders }, to, { asides, note: cutAt(cut, isAfter, noteOf(kept)) })
        places.whole += 1
      } catch (error) {
        t.match(error, { message: 'cut' })
        places.cut += 1
      }
      // What the person does meanwhile, where that is not taken yet; and what a process that was killed left of a copy.
      const mine = new Map([['holiday/a', 'mine'], ['a.txt', 'mine']])
      for (const name of ['holiday (2)/deep/b', 'work/own']) {
        if (!existsSync(join(to, name, '..')) || existsSync(join(to, name))) continue
        writeFileSync(join(to, name), 'mine, too')
        mine.set(name, 'mine, too')
      }
      for (const name of ['.patchcord-fedcba98-0123456789ab.part', '.patchcord-0123456789ab.part', '.patchcord-fedcba9876-0123456789ab.part']) {
        writeFileSync(join(to, name), 'half')
        utimesSync(join(to, name), 1, 1)
        if (!name.startsWith('.patchcord-fedcba98-')) mine.set(name, 'half')
      }
      store.asides.giveTo = giveTo
      store.path = path
      const landed = await land(store, { files, folders }, to, { asides, note: noteOf(kept) })
      // A landing that was cut before anything was noted is the first one.
      const expected = new Map([...mine, ...names.map((name, n) => [mine.has(name) ? name.replace('/b', '/b (2)') : name, files[n]!.text] as const), ['holiday (2)/empty/deeper/', ''] as const, ['hollow/', ''] as const])
      const found = contentsOf(to)
      found.delete(cut === 1 && !isAfter ? '.patchcord-fedcba98-0123456789ab.part' : '')
      t.strictSame([...found.keys()].toSorted(), [...expected.keys()].toSorted(), where)
      // Which of three files of one name has which number is nobody's matter.
      for (const name of expected.keys()) if (!name.startsWith('same')) t.equal(found.get(name) === expected.get(name), true, `${where}: ${name}`)
      t.strictSame(['same', 'same (2)', 'same (3)'].map(name => found.get(name) ?? '').toSorted(), ['others', String(twice), String(twice)])
      t.strictSame(new Set(landed), new Set(['a (2).txt', 'same', 'same (2)', 'same (3)', 'holiday (2)', 'work', 'hollow'].map(name => join(to, name))), where)
    }
  }
  t.ok(places.cut > 15, `it was cut in ${places.cut} ways`)
})

await t.test('what was noted and is no folder any more, or was somebody else\'s first', async t => {
  const home = mkdtempSync(join(folder, 'other-'))
  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  writeFileSync(join(home, 'source'), 'theirs')
  const { id, size } = await store.add(join(home, 'source'))
  const to = join(home, 'to')
  mkdirSync(join(to, 'elsewhere'), { recursive: true })
  symlinkSync(join(to, 'elsewhere'), join(to, 'd'))
  const files = [{ path: ['d', 'x'], size, id }]
  const kept: { tops?: readonly Top[] } = { tops: [{ name: 'd', as: 'd' }] }
  t.strictSame(await land(store, { files }, to, { note: noteOf(kept) }), [join(to, 'd (2)')], 'a link is never gone through')
  t.strictSame([readdirSync(join(to, 'elsewhere')), kept.tops], [[], [{ name: 'd', as: 'd (2)' }]])
  // Between the note and the folder.
  const first: { tops?: readonly Top[] } = {}
  const note = noteOf(first)
  await land(store, { files }, to, {
    note: {
      ...note,
      keep: async tops => {
        await note.keep(tops)
        if (tops[0]?.as === 'd (3)') mkdirSync(join(to, 'd (3)'))
      },
    },
  })
  t.strictSame([readdirSync(join(to, 'd (3)')), readFileSync(join(to, 'd (4)/x'), 'utf8'), first.tops], [[], 'theirs', [{ name: 'd', as: 'd (4)' }]])
  const stop = new AbortController()
  stop.abort(new Error('stopping'))
  await t.rejects(land(store, { files }, to, { note: noteOf({}), signal: stop.signal }), { message: 'stopping' })
})

await t.test('a folder that is moved, or becomes a link, while files land in it: nothing is written elsewhere', async t => {
  const home = mkdtempSync(join(folder, 'moved-'))
  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  const names = ['stored', 'another', 'third']
  const files: OfferedFile[] = []
  for (const name of names) {
    writeFileSync(join(home, name), name)
    files.push({ path: ['d', 'e', name], ...await store.add(join(home, name)) })
  }
  const outside = join(home, 'outside')
  mkdirSync(join(outside, 'd/e'), { recursive: true })
  mkdirSync(join(outside, 'e'))
  const path = store.path.bind(store)
  for (const replaced of ['d/e', 'd', '']) {
    const to = mkdtempSync(join(home, 'to-'))
    const moved = mkdtempSync(join(home, 'moved-'))
    let isMoved = false
    store.path = id => {
      if (!isMoved) {
        renameSync(join(to, replaced), moved)
        symlinkSync(outside, join(to, replaced))
      }
      isMoved = true
      return path(id)
    }
    await land(store, { files }, to)
    t.strictSame([...contentsOf(outside).keys()].toSorted(), ['d/e/', 'e/'], `in place of ${replaced}`)
    t.strictSame([...contentsOf(moved).keys()].map(name => name.slice(name.lastIndexOf('/') + 1)).toSorted(), names.toSorted(), 'what was under way goes where the folder went')
  }
  store.path = path

  const held = new HeldFolders()
  const [to, below] = [join(home, 'held'), join(home, 'held', 'below')]
  mkdirSync(below, { recursive: true })
  await held.begin(to)
  await held.in(to, at => held.add(below, join(at, 'below')))
  await held.in(below, at => Promise.resolve(writeFileSync(join(at, 'x'), 'x')))
  await held.close()
  renameSync(below, join(to, 'moved'))
  await t.rejects(held.in(below, () => Promise.resolve()), { code: 'unreadable', message: `${below} does not exist` })
  symlinkSync(outside, below)
  await t.rejects(held.in(below, () => Promise.resolve()), { code: 'conflict', message: `${below} is not the folder any more that it was` })
  await t.rejects(held.in(to, at => held.add(below, join(at, 'below'))), { code: 'conflict' }, 'nor is a link one')
  await held.close()
  t.strictSame([readdirSync(join(to, 'moved')), openUnder(home)], [['x'], []])
})

await t.test('one name for all files of a list, and many files in no folder: each costs what a file costs', async t => {
  const home = mkdtempSync(join(folder, 'many-'))
  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  const count = 1_100
  const asides = new Set<ContentId>()
  const files = await Promise.all(Array.from({ length: count }, async (_, n) => {
    const bytes = Buffer.from(`${n}`.padStart(8))
    const id = contentIdOf(leafHash(bytes))
    asides.add(id)
    await store.putAside(id, bytes)
    return { path: ['same'], size: bytes.length, id }
  }))
  const giveTo = store.asides.giveTo.bind(store.asides)
  let asked = 0
  let running = 0
  let most = 0
  store.asides.giveTo = async (id, to) => {
    asked += 1
    if (asked === count - 10 && !isAgain) throw new Error('cut')
    most = Math.max(most, ++running)
    return await giveTo(id, to).finally(() => { running -= 1 })
  }
  let isAgain = false
  const to = join(home, 'to')
  await t.rejects(land(store, { files }, to, { asides, note: noteOf({}) }))
  isAgain = true
  const copy = store.hashes.copy.bind(store.hashes)
  let read = 0
  store.hashes.copy = (...args) => {
    read += 1
    return copy(...args)
  }
  writeFileSync(join(to, 'same (2000)'), 'x')
  // The first is of the person's own, and of the same length.
  rmSync(join(to, 'same'))
  writeFileSync(join(to, 'same'), 'personal')
  const landed = await land(store, { files }, to, { asides, note: noteOf({ tops: [] }) })
  t.equal(new Set(landed).size, count)
  t.strictSame(landed.map(path => readFileSync(path, 'utf8').trim()).toSorted(), files.map((_, n) => `${n}`).toSorted())
  t.equal(readFileSync(join(to, 'same'), 'utf8'), 'personal')
  t.ok(asked < 3 * count, `${asked} names were tried for ${count} files`)
  t.ok(read < 10, `${read} files were read`)

  most = 0
  await land(store, { files: files.map((file, n) => ({ ...file, path: [`${n}`] })) }, join(home, 'flat'), { asides })
  t.ok(most > 8, `${most} at once`)
})

await t.test('kill -9 of the receiver while an offer lands (npm run test:faults landing makes 50)', async t => {
  const world = await startLandingWorld(mkdtempSync(join(folder, 'k')), 400)
  t.teardown(() => world.stop())
  for (const [run, [share, delay]] of ([[0, 0], [0.3, 3], [0.9, 10]] as const).entries()) {
    const { right, what } = await killWhileLanding(world, run, share, delay)
    t.ok(right, what)
  }
})

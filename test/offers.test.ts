import { randomBytes } from 'node:crypto'
import { existsSync, fstatSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { copyOut, giveFreeName, prepareFolder } from '../src/agent/copy-out.js'
import { land } from '../src/agent/landing.js'
import { OfferBook } from '../src/agent/offer-book.js'
import { formatList, MOST_FILES, MOST_LIST_BYTES, parseList } from '../src/agent/offer-list.js'
import { parseContentId } from '../src/core/ids.js'
import { eachWithin } from '../src/core/within.js'
import { safeName } from '../src/core/safe-name.js'
import { contentIdOf, LEAF_BYTES, leafHash } from '../src/files/content-id.js'
import { FileStore } from '../src/files/store.js'
import type { InboxOffer } from '../src/control/operations.js'
import { Lab } from '../src/testing.js'
import { recordLog } from './fixtures/server-world.js'

await t.test('safe names: a table, then anything', t => {
  for (const [name, safe] of [
    ['a.txt', 'a.txt'], ['Ünï cödé.jpg', 'Ünï cödé.jpg'], ['.', '_'], ['..', '__'], ['', '_'], ['...', '__'], ['.bashrc', '_bashrc'], ['../../etc/passwd', '___.._etc_passwd'],
    ['a/b', 'a_b'], ['a\\b', 'a_b'], ['a\0b', 'ab'], ['a\nb', 'ab'], ['invoice\u202Efdp.exe', 'invoicefdp.exe'], ['\u2066x', 'x'], ['con', '_con'], ['NUL.txt', '_NUL.txt'], ['com1', '_com1'],
    ['company', 'company'], ['a ', 'a'], ['a.', 'a'], ['C:x', 'C_x'], ['a?*|', 'a___'],
    ['nul .txt', '_nul .txt'], ['null .txt', 'null .txt'], ['e\u200d\u0301', 'é'], [`${'a'.repeat(199)} bcd`, 'a'.repeat(199)],
  ] as const) t.equal(safeName(name), safe, JSON.stringify(name))
  const long = safeName(`${'ä'.repeat(300)}.tar`)
  t.ok(Buffer.byteLength(long) <= 200 && long.endsWith('.tar'))
  fc.assert(fc.property(fc.oneof(fc.string({ unit: 'binary', maxLength: 40 }), fc.string({ maxLength: 300 })), name => {
    const safe = safeName(name)
    return safe !== '' && safe !== '.' && safe !== '..' && !/[/\\\0]|[\p{Cc}\p{Cf}]/u.test(safe) && !safe.startsWith('.') && !/[\s.]$/u.test(safe) && safe === safeName(safe) && Buffer.byteLength(safe) <= 201
  }), { numRuns: 2000 })
  t.end()
})

await t.test('a list that is made to cost the receiver: it is refused at once, or read in short turns', async t => {
  const began = performance.now()
  t.equal(safeName(`x${' .'.repeat(100_000)}${'漢'.repeat(100_000)}x`), 'x')
  t.equal(safeName(`${'漢'.repeat(100_000)}.tar`), `${'漢'.repeat(65)}.tar`)
  t.ok(performance.now() - began < 5_000, 'in time that grows as the name does')
  const id = 'a'.repeat(52)
  const listOf = (path: unknown): string => JSON.stringify({ patchcord: 'offer/1', files: [{ path, size: 0, id }] })
  t.match(await parseList(listOf(Array<string>(64).fill('漢'.repeat(255)))), { files: { length: 1 } })
  for (const [bad, message] of [
    [listOf(['x'.repeat(256)]), /files\.0: path\.0/], [listOf(Array<string>(65).fill('x')), /files\.0: path must be a list of 1 to 64/],
    [`{"patchcord":"offer/1","files":${'['.repeat(1_000_000)}${']'.repeat(1_000_000)}}`, /nests too deep/],
    [`{"patchcord":"offer/1","files":[]${Array.from({ length: 8 * MOST_FILES }, (_, n) => `,"${n}":0`).join('')}}`, /too many fields/],
  ] as const) await t.rejects(parseList(bad), { code: 'verification', message })
  t.strictSame((await parseList(listOf([`[{":\\"${'['.repeat(100)}`]))).files[0]!.path, [`[{____${'['.repeat(100)}`], 'what is in a name is none')
  let turns = 0
  let isParsed = false
  const parsing = parseList(JSON.stringify({ patchcord: 'offer/1', files: Array.from({ length: 8_000 }, (_, n) => ({ path: [`${n}a${'\u0315\u0300'.repeat(120)}`], size: 0, id })) })).then(() => { isParsed = true })
  while (!isParsed) {
    await new Promise(resolve => { setImmediate(resolve) })
    turns += 1
  }
  await parsing
  t.ok(turns > 80, `${turns} turns`)
})

await t.test('landing: what is there stays, shapes stay, nothing leaves the folder', async t => {
  const home = t.testdir({ to: { 'a.txt': 'mine', dir: { x: 'mine' } }, outside: {} })
  const store = await FileStore.open(join(home, 'files'))
  const to = join(home, 'to')
  writeFileSync(join(home, 'one'), 'theirs')
  const { id, size } = await store.add(join(home, 'one'))
  symlinkSync(join(home, 'outside'), join(to, 'link'))
  const list = [['a.txt'], ['dir', 'x'], ['dir', 'sub', 'y'], ['link', 'z'], ['..', '..', 'up'], ['.ssh', 'authorized_keys'], ['a.txt', 'b'], ['same'], ['same']].map(path => ({ path, size, id }))
  const landed = await land(store, await parseList(formatList({ files: list, folders: [['dir', 'empty', 'deeper'], ['dir', 'empty'], ['hollow'], ['link'], ['..', '.config'], ['same']] }).toString()), to)
  t.equal(readFileSync(join(to, 'a.txt'), 'utf8'), 'mine')
  t.equal(readFileSync(join(to, 'a (3).txt'), 'utf8'), 'theirs', 'folders have their names first')
  t.equal(readFileSync(join(to, 'dir/x'), 'utf8'), 'mine')
  t.equal(readFileSync(join(to, 'dir (2)/x'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, 'dir (2)/sub/y'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, 'link (2)/z'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, '__/__/up'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, '_ssh/authorized_keys'), 'utf8'), 'theirs')
  t.ok(existsSync(join(to, 'same (3)')))
  t.strictSame(readdirSync(join(home, 'outside')), [])
  for (const name of ['dir (2)/empty/deeper', 'hollow', '__/_config', 'same']) t.strictSame(readdirSync(join(to, name)), [], name)
  t.notOk(existsSync(join(to, 'dir/empty')))
  t.strictSame(landed.map(path => path.slice(to.length + 1)).toSorted(), ['__', '_ssh', 'a (2).txt', 'a (3).txt', 'dir (2)', 'hollow', 'link (2)', 'same', 'same (2)', 'same (3)'])
  t.throws(() => formatList({ files: [{ path: Array<string>(65).fill('d'), size, id }] }), { code: 'too-large', message: /lies more than 64 folders deep/ }, 'what nobody could accept is not offered')
  t.throws(() => formatList({ files: [], folders: [Array<string>(65).fill('d')] }), { code: 'too-large' })
  t.throws(() => formatList({ files: Array.from({ length: MOST_FILES + 1 }, () => ({ path: ['a'], size, id })) }), { code: 'too-large' })
  t.strictSame(await parseList('{"patchcord":"offer/1","files":[],"of a later version":1}'), { files: [], folders: [] })
  for (const bad of ['', '{}', '[]', '{"patchcord":"offer/2","files":[]}', '{"patchcord":"offer/1","files":[],"folders":["a"]}', '{"patchcord":"offer/1","files":[],"folders":[[]]}', `{"patchcord":"offer/1","files":[{"path":"a","size":1,"id":"${id}"}]}`, `{"patchcord":"offer/1","files":[{"path":[],"size":1,"id":"${id}"}]}`, '{"patchcord":"offer/1","files":[{"path":["a"],"size":1,"id":"x"}]}', `{"patchcord":"offer/1","files":[{"path":["a"],"size":-1,"id":"${id}"}]}`]) await t.rejects(parseList(bad), { code: 'verification' }, bad)
})

await t.test('landing: names of any length; folders are made, or what is in the way is told', async t => {
  const home = t.testdir({ file: 'x', to: {} })
  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  const { id, size } = await store.add(join(home, 'file'))
  // 200 bytes is what a safe name may have; with a longer one beside it no name would fit.
  const name = '漢'.repeat(66)
  t.strictSame(await land(store, { files: [{ path: [name], size, id }] }, join(home, 'to/new/deep')), [join(home, 'to/new/deep', name)])
  await copyOut(store.path(id), join(home, 'to', '漢'.repeat(85)), false)
  t.strictSame(readdirSync(join(home, 'to')).toSorted(), ['new', '漢'.repeat(85)])
  await t.rejects(prepareFolder(join(home, 'file')), { code: 'unreadable', message: `${join(home, 'file')} is not a folder` })
  await t.rejects(prepareFolder(join(home, 'file/below')), { code: 'unreadable' })
  await t.rejects(prepareFolder('/proc/no-such-folder/below'), { code: 'unreadable' }, 'and it ends')
  symlinkSync(join(home, 'nowhere'), join(home, 'link'))
  await t.rejects(prepareFolder(join(home, 'link')), { code: 'unreadable' })

  // A file system without links: nothing is replaced there either.
  const noLink = async (): Promise<void> => { throw Object.assign(new Error('operation not permitted'), { code: 'EPERM' }) }
  const [part, free, taken] = ['part', 'free', 'taken'].map(each => join(home, 'to', each)) as [string, string, string]
  writeFileSync(part, 'new')
  writeFileSync(taken, 'mine')
  await t.rejects(giveFreeName(part, taken, noLink), { code: 'EEXIST' })
  await giveFreeName(part, free, noLink)
  t.strictSame([readFileSync(taken, 'utf8'), readFileSync(free, 'utf8'), existsSync(part)], ['mine', 'new', false])
  await t.rejects(giveFreeName(part, join(home, 'to/empty'), noLink), { code: 'ENOENT' }, 'what has no file to give')
  t.notOk(existsSync(join(home, 'to/empty')), 'leaves no empty one')
})

await t.test('what landed is on the disk: each file, and each folder with a name of it', async t => {
  const home = t.testdir({ in: { file: 'x' }, to: {} })
  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  const { id, size } = await store.add(join(home, 'in/file'))
  const synced = new Set<number>()
  const handle = await open(home)
  const kind = Object.getPrototypeOf(handle) as FileHandle
  await handle.close()
  // oxlint-disable-next-line typescript/unbound-method -- it is called on a handle below
  const { sync } = kind
  t.teardown(() => { kind.sync = sync })
  kind.sync = async function (this: FileHandle): Promise<void> {
    await sync.call(this)
    synced.add(fstatSync(this.fd).ino)
  }
  await land(store, { files: [['a'], ['b'], ['c', 'd']].map(path => ({ path, size, id })), folders: [['e', 'f']] }, join(home, 'to/new/deep'))
  for (const name of ['', 'new', 'new/deep', 'new/deep/a', 'new/deep/b', 'new/deep/c', 'new/deep/c/d', 'new/deep/e', 'new/deep/e/f']) t.ok(synced.has(statSync(join(home, 'to', name)).ino), name)
})

await t.test('what lies aside is given away once, and never a name that shares its bytes with another', async t => {
  const home = t.testdir({ to: {} })
  const [store, to] = [await FileStore.open(join(home, 'files')), join(home, 'to')]
  t.teardown(() => store.close())
  const bytes = randomBytes(2_000)
  const id = contentIdOf(leafHash(bytes))
  await t.rejects(store.putAside(id, Buffer.from('another')), { code: 'verification' })
  t.equal(await store.asides.has(id, bytes.length), false)
  await store.putAside(id, bytes)
  t.strictSame([await store.has(id), await store.asides.has(id, bytes.length), await store.asides.has(id, 1)], [false, true, false], 'of another size it is not believed')
  await store.putAside(id, bytes)
  const list = [['a'], ['b'], ['c', 'd']].map(path => ({ path, size: bytes.length, id }))
  await land(store, { files: list }, to, { asides: new Set([id]) })
  const landed = ['a', 'b', 'c/d'].map(name => join(to, name))
  for (const path of landed) t.ok(readFileSync(path).equals(bytes), path)
  t.equal(new Set(landed.map(path => statSync(path).ino)).size, 3)
  t.equal(await store.asides.has(id, bytes.length), true, 'a process that died here does not fetch it again')
  const path = landed.find(each => statSync(each).nlink === 2)
  t.ok(path)
  t.equal((await FileStore.open(store.root)).path(id), store.path(id))
  t.equal(await store.asides.has(id, bytes.length), true, 'nor does the next process remove it')
  writeFileSync(path!, Buffer.concat([Buffer.from('x'), bytes.subarray(1)]))
  t.equal(await store.asides.has(id, bytes.length), false, 'unless the person changed it meanwhile')
  t.strictSame(await store.asides.all(), [])
  t.equal(await store.asides.drop(id), false)
  writeFileSync(store.asides.path(id), Buffer.alloc(bytes.length))
  t.equal(await store.asides.has(id, bytes.length), false, 'what a crash left in part is not counted on')
  t.strictSame(await store.asides.all(), [])

  // Many at once, each its own; a name that is taken gets a number.
  const many = Array.from({ length: 100 }, (_, n) => randomBytes(n * 40)).map(each => ({ bytes: each, id: contentIdOf(leafHash(each)) }))
  await Promise.all(many.map(one => store.putAside(one.id, one.bytes)))
  const files = many.map((one, n) => ({ path: ['many', `f${n % 50}`], size: one.bytes.length, id: one.id }))
  await land(store, { files }, to, { asides: new Set(many.map(one => one.id)) })
  t.strictSame(readdirSync(join(to, 'many')).map(name => contentIdOf(leafHash(readFileSync(join(to, 'many', name))))).sort(), many.map(one => one.id).sort())
  await Promise.all(many.map(one => store.asides.drop(one.id)))
  t.strictSame(await store.asides.all(), [])
  t.strictSame(readdirSync(join(to, 'many')).map(name => statSync(join(to, 'many', name)).nlink), many.map(() => 1))
})

await t.test('as many at once as weigh what may be, and none after one that failed', async t => {
  await fc.assert(fc.asyncProperty(fc.array(fc.nat(6), { maxLength: 30 }), fc.integer({ min: 1, max: 8 }), fc.option(fc.nat(29)), async (weights, most, failing) => {
    const begun: number[] = []
    let [weight, running] = [0, 0]
    const over = eachWithin(weights.entries(), most, ([, own]) => own, async ([index, own]) => {
      begun.push(index)
      weight += own
      running += 1
      t.ok(weight <= most || running === 1)
      await new Promise(resolve => { setImmediate(resolve) })
      weight -= own
      running -= 1
      if (index === failing) throw new Error('enough')
    })
    if (failing !== null && failing < weights.length) {
      await t.rejects(over, new Error('enough'))
      const { length } = begun
      for (let turn = 0; turn < 3; turn++) await new Promise(resolve => { setImmediate(resolve) })
      t.equal(begun.length, length)
    } else {
      await over
      t.strictSame(begun, [...weights.keys()])
    }
  }), { numRuns: 60 })
})

await t.test('send and inbox: seen, accepted, refused, by rule; lent to one device, and no longer', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [laptop, friend, other] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' }), await lab.device({ user: 'u3', name: 'other' })]
  await lab.pair(laptop, friend)
  await lab.pair(laptop, other)
  const folder = t.testdir({ holiday: { 'a.jpg': 'picture', deep: { 'b.bin': '', nothing: '' }, empty: { deeper: {} }, links: {} }, to: {} })
  const big = randomBytes(2_400_000)
  writeFileSync(join(folder, 'holiday/deep/b.bin'), big)
  symlinkSync('/etc/passwd', join(folder, 'holiday/links/link'))
  const to = join(folder, 'to')
  const inbox = async (device = friend): Promise<InboxOffer[]> => {
    const offers: InboxOffer[] = []
    await device.call('inbox', {}, offer => { offers.push(offer) })
    return offers
  }
  const events: Array<{ event: string }> = []
  const sending = laptop.call('send', { device: 'friend', paths: [join(folder, 'holiday')] }, event => { events.push(event) })
  await lab.until('the offer', async () => (await inbox()).length === 1)
  const [offer] = await inbox()
  t.strictSame(offer?.files?.map(({ path, size }) => [path, size]), [['holiday/a.jpg', 7], ['holiday/deep/b.bin', big.length], ['holiday/deep/nothing', 0]], 'the whole list, without the link')
  t.strictSame(offer?.folders, ['holiday/empty/deeper', 'holiday/links'], 'and the folders in which there is nothing to send')
  t.strictSame(readdirSync(to), [], 'nothing lands without a yes')
  const id = parseContentId(offer?.files?.[1]?.id ?? '')
  t.equal(await friend.agent.store.has(id), false)
  t.strictSame(await inbox(other), [], 'others hear nothing of it')
  t.match(await laptop.call('explain', { device: 'other', method: 'GET', path: `/files/${id}` }), { allowed: false })
  t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${id}` }), { allowed: true, rule: 'file: lent' })
  await t.rejects(other.call('get', { id, output: join(folder, 'x'), from: 'laptop' }), { code: 'not-found' })
  await t.rejects(friend.call('inbox-accept', { offer: 'ffffffff', to }), { code: 'not-found' })
  const said: string[] = []
  await t.rejects(friend.call('inbox-accept', { offer: offer!.offer, to: join(folder, 'holiday/a.jpg') }, ({ event }) => { said.push(event) }), { code: 'unreadable' })
  t.strictSame([said, (await inbox())[0]?.state], [[], 'offered'], 'where nothing can land nothing was accepted')
  t.match(await friend.call('inbox-accept', { offer: offer!.offer, to }), { files: 3, folders: 2, landed: [join(to, 'holiday')] })
  for (const name of ['empty/deeper', 'links']) t.strictSame(readdirSync(join(to, 'holiday', name)), [], name)
  t.equal(readFileSync(join(to, 'holiday/deep/nothing')).length, 0)
  t.equal(await friend.agent.store.has(id), false, 'what was fetched for the inbox alone is not kept a second time')
  await lab.until('nothing being left aside', async () => (await friend.agent.store.asides.all()).length === 0)
  const status = statSync(join(to, 'holiday/deep/b.bin'))
  t.strictSame([status.nlink, status.mode & 0o777], [1, 0o666 & ~process.umask()], 'the person has it alone, and may change it')
  t.ok(readFileSync(join(to, 'holiday/deep/b.bin')).equals(big))
  t.match(await sending, { answer: 'done', files: 3 })
  t.match(events.find(({ event }) => event === 'offered'), { event: 'offered', files: 3, folders: 2, connected: true, until: /^\d{4}-/ })
  await lab.until('the offer being forgotten', async () => (await inbox()).length === 0 && laptop.agent.offers.sent.length === 0)
  t.strictSame(await laptop.agent.store.records(id), [], 'lending records nothing')
  t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${id}` }), { allowed: false, rule: 'file: no record' })

  writeFileSync(join(folder, 'no'), 'not wanted')
  const refused = laptop.call('send', { device: 'friend', paths: [join(folder, 'no')] })
  refused.catch(() => undefined)
  await lab.until('the second offer', async () => (await inbox()).length === 1)
  await friend.call('inbox-refuse', { offer: (await inbox())[0]!.offer })
  await t.rejects(refused, { code: 'refused' })
  t.strictSame(readdirSync(to), ['holiday'])

  await t.rejects(friend.call('inbox-rule', { device: 'laptop', rule: 'accept' }), { code: 'usage' })
  await friend.call('inbox-rule', { device: 'laptop', rule: 'accept', to })
  t.match(await laptop.call('send', { device: 'friend', paths: [join(folder, 'no'), join(folder, 'holiday')] }), { answer: 'done' })
  t.strictSame(readdirSync(to).toSorted(), ['holiday', 'holiday (2)', 'no'])

  const hollow = join(folder, 'holiday/empty')
  t.match(await laptop.call('send', { device: 'friend', paths: [hollow] }), { answer: 'done', files: 0 })
  t.match(await laptop.call('send', { device: 'friend', paths: [hollow] }), { answer: 'done', files: 0 })
  t.strictSame(['empty', 'empty (2)'].map(name => readdirSync(join(to, name))), [['deeper'], ['deeper']], 'folders alone')
  await t.rejects(laptop.call('send', { device: 'friend', paths: [laptop.home.root] }), { code: 'usage', message: 'there is no file to send' })

  // By rule, into a folder that is not there yet for what is in its way.
  const later = join(folder, 'later')
  writeFileSync(later, 'in the way')
  await friend.call('inbox-rule', { device: 'laptop', rule: 'accept', to: later })
  const patient = laptop.call('send', { device: 'friend', paths: [join(folder, 'no')] })
  await lab.until('the offer', async () => (await inbox()).length === 1)
  rmSync(later)
  await lab.until('another attempt', () => {
    lab.clock.advance(1_000)
    return existsSync(join(later, 'no'))
  })
  t.match(await patient, { answer: 'done' })

  // What was accepted and cannot be had any more is in nobody's way: not in that of gc, nor in the inbox.
  const [ours, theirs] = [laptop.agent.offers, friend.agent.offers]
  const device = laptop.agent.keystore.identity.device
  const to2 = friend.agent.keystore.identity.device
  await friend.call('inbox-rule', { device: 'laptop', rule: 'ask' })
  const { size } = await laptop.agent.store.add(join(folder, 'no'))
  const gone = parseContentId('a'.repeat(52))
  const stuck = await ours.offer(to2, { files: [{ path: ['stuck'], size: 5_000_000, id: gone }] })
  await lab.until('the offer', () => theirs.received.some(one => one.offer === stuck.offer))
  const accepting = friend.call('inbox-accept', { offer: stuck.offer, to })
  accepting.catch(() => undefined)
  await lab.until('its being accepted', () => theirs.received.some(one => one.offer === stuck.offer && one.state === 'accepted'))
  await t.rejects(friend.call('gc', { remove: true }), { code: 'conflict' })
  await friend.call('inbox-refuse', { offer: stuck.offer })
  await t.rejects(accepting)
  await friend.call('gc', { remove: true })
  await lab.until('the offer being forgotten', () => ours.sent.length === 0 && theirs.received.length === 0)

  // More than fit into one mail: the others come when those are through.
  await lab.cut(laptop, friend)
  await Promise.all(Array.from({ length: 102 }, (_, n) => ours.offer(to2, { files: [{ path: [`f${n}`], size, id: gone }] })))
  await lab.heal(laptop, friend)
  await lab.until('a hundred', () => theirs.received.length === 100)
  await friend.call('inbox-refuse', { offer: ours.sent[0]!.offer })
  const last = ours.sent[100]!.offer
  await lab.until('the next', () => theirs.received.some(one => one.offer === last))

  // A mail that says less than the list, and one offer by two names of one.
  const { list, size: length, bytes, offer: real } = ours.sent[0]!
  await theirs.mailCame(device, { answers: [], offers: [{ offer: 'abababab', list, size: length, files: 1, bytes: bytes - 1 }, { offer: 'abababab', list, size: length, files: 1, bytes }, { offer: 'cdcdcdcd', list, size: length, files: 2, bytes }, { offer: real, list, size: length, files: 1, bytes }] })
  t.equal(theirs.received.filter(one => one.offer === 'abababab').length, 1)
  await t.rejects(friend.call('inbox-accept', { offer: 'cdcdcdcd', to }), { code: 'verification', message: 'the list of the offer has other files than the offer said' })
  t.equal((await inbox()).find(one => one.offer === 'cdcdcdcd')?.files, undefined)

  lab.clock.advance(7 * 24 * 3_600_000 + 1)
  t.strictSame([ours.lent(), ours.mailFor(to2).offers], [[], []], 'an offer whose time is up lends nothing, and keeps nothing in the store')
})

await t.test('an offer of very many files: its list is of several leaves; what is too much is told before anything is read', async t => {
  const id = parseContentId('a'.repeat(52))
  const files = Array.from({ length: MOST_FILES }, (_, n) => ({ path: ['photographs', `${n % 12}`, `IMG_${n}.jpg`], size: n, id }))
  const folders = [['photographs', '..']]
  const text = formatList({ files, folders })
  t.ok(text.length > 4 * LEAF_BYTES && text.length < MOST_LIST_BYTES)
  t.strictSame(await parseList(text.toString()), { files, folders: [['photographs', '__']] })
  t.throws(() => formatList({ files: [...files, files[0]!] }), { code: 'too-large', message: `${MOST_FILES + 1} files are more than one offer can have, which is ${MOST_FILES}` })
  await t.rejects(parseList(JSON.stringify({ patchcord: 'offer/1', files: [], folders: Array.from({ length: 1_000 }, (_, n) => Array.from({ length: 60 }, (_, m) => `${n}.${m}`)) })), { code: 'verification', message: 'the list of an offer has more than 50000 folders' })
  // More than is said in one turn: whoever waits for another does not wait for all of it.
  let turns = 0
  let isParsed = false
  const parsing = parseList(text.toString()).then(() => { isParsed = true })
  while (!isParsed) {
    await new Promise(resolve => { setImmediate(resolve) })
    turns += 1
  }
  await parsing
  t.ok(turns > 20, `${turns} turns`)

  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [laptop, friend] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' })]
  await lab.pair(laptop, friend)
  const folder = t.testdir({ to: {} })
  const deep = Array.from({ length: 12 }, (_, n) => `${n}`.padEnd(190, 'x'))
  const at = join(folder, 'tree', ...deep)
  mkdirSync(at, { recursive: true })
  const make = (from: number, to: number): void => { for (let n = from; n < to; n++) writeFileSync(join(at, `${n}`), `${n}`) }
  make(0, 700)
  await friend.call('inbox-rule', { device: 'laptop', rule: 'accept', to: join(folder, 'to') })
  t.match(await laptop.call('send', { device: 'friend', paths: [join(folder, 'tree')] }), { answer: 'done', files: 700 })
  t.equal(readdirSync(join(folder, 'to', 'tree', ...deep)).length, 700)

  make(700, 3_700)
  await t.rejects(laptop.call('send', { device: 'friend', paths: [join(folder, 'tree')] }), { code: 'too-large', message: new RegExp(`the names of 3700 files make a list of [0-9]+ bytes, and one offer can have ${MOST_LIST_BYTES}`) })
  t.equal(await laptop.agent.store.has(contentIdOf(leafHash(Buffer.from('3000')))), false, 'nothing was read')
  t.throws(() => { laptop.agent.offers.checkRoom(100_001) }, { code: 'too-large', message: '100001 files are too many beside the 0 that are on offer: 100000 can be at a time' })
})

await t.test('what was sent is taken back: before it is seen, seen, and while it is fetched', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [laptop, friend] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' })]
  await lab.pair(laptop, friend)
  const folder = t.testdir({ file: 'x', to: {} })
  const to = friend.agent.keystore.identity.device
  const [ours, theirs] = [laptop.agent.offers, friend.agent.offers]
  const outbox = async (): Promise<Array<[string, string, string, number]>> => {
    const found: Array<[string, string, string, number]> = []
    await laptop.call('outbox', {}, ({ offer, name, state, count }) => { found.push([offer, name, state, count]) })
    return found
  }
  const sending = laptop.call('send', { device: 'friend', paths: [join(folder, 'file')] })
  const withdrawn = t.rejects(sending, { code: 'conflict', message: 'the offer was withdrawn' })
  await lab.until('the offer', () => theirs.received.length === 1)
  const { offer, files: [id] } = ours.sent[0]!
  t.strictSame(await outbox(), [[offer, 'friend', 'offered', 1]])
  await t.rejects(laptop.call('outbox-withdraw', { offer: 'ffffffff' }), { code: 'not-found', hint: '`patchcord outbox` lists them' })
  t.match(await laptop.call('outbox-withdraw', { offer: offer.slice(0, 6) }), { offer })
  await withdrawn
  t.strictSame([await outbox(), ours.lent()], [[], []])
  t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${id}` }), { allowed: false })
  await lab.until('its being forgotten', () => theirs.received.length === 0)
  await t.rejects(laptop.call('outbox-withdraw', { offer }), { code: 'not-found' })

  // What is accepted by then cannot be had any more, and is in nobody's way.
  const gone = parseContentId('a'.repeat(52))
  const stuck = await ours.offer(to, { files: [{ path: ['stuck'], size: 5_000_000, id: gone }] })
  await lab.until('the offer', () => theirs.received.length === 1)
  const accepting = friend.call('inbox-accept', { offer: stuck.offer, to: join(folder, 'to') })
  accepting.catch(() => undefined)
  await lab.until('its being accepted', async () => (await outbox())[0]?.[2] === 'accepted')
  await laptop.call('outbox-withdraw', { offer: stuck.offer })
  await t.rejects(accepting)
  await lab.until('its being forgotten', () => theirs.received.length === 0)
  await lab.until('its end', () => !theirs.isBusy)
  t.strictSame(readdirSync(join(folder, 'to')), [])
  await friend.call('gc', { remove: true })

  // Nobody who looks waits for the list of who is away.
  await ours.offer(to, { files: [{ path: ['away'], size: 1, id: gone }] })
  await lab.until('the offer', () => theirs.received.length === 1)
  await lab.cut(laptop, friend)
  const seen: InboxOffer[] = []
  const began = performance.now()
  t.match(await friend.call('inbox', {}, one => { seen.push(one) }), { offers: 1 })
  t.ok(performance.now() - began < 5_000)
  t.match(seen, [{ count: 1, files: undefined }])

  // Nor for each list of one who is slow.
  await lab.heal(laptop, friend)
  for (let n = 0; n < 5; n++) await ours.offer(to, { files: [{ path: ['slow'], size: n, id: gone }] })
  await lab.until('the offers', () => theirs.received.length === 6)
  await lab.slow(laptop, friend, 1)
  let asked = 0
  const list = theirs.list.bind(theirs)
  theirs.list = async (...all) => {
    asked += 1
    return await list(...all)
  }
  const slow: InboxOffer[] = []
  const looking = friend.call('inbox', {}, one => { slow.push(one) })
  await lab.until('the inbox', () => {
    lab.clock.advance(500)
    return slow.length === 6
  })
  t.match(await looking, { offers: 6 })
  t.equal(asked, 1)
  await lab.cut(laptop, friend)
})

await t.test('offers that lie: a list that is a large file of the receiver\'s own, room that others take meanwhile, a note that leads elsewhere', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [laptop, friend] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' })]
  await lab.pair(laptop, friend)
  const home = t.testdir({ file: 'x' })
  const { store, offers } = friend.agent
  writeFileSync(join(home, 'own'), randomBytes(3 * LEAF_BYTES))
  const own = await store.add(join(home, 'own'))
  const device = laptop.agent.keystore.identity.device
  await offers.mailCame(device, { answers: [], offers: [{ offer: 'abababab', list: own.id, size: 100, files: 1, bytes: 1 }] })
  await t.rejects(friend.call('inbox-accept', { offer: 'abababab', to: home }), { code: 'not-found' }, 'which is not read')

  const many = Array.from({ length: 45_000 }, (_, n) => ({ path: [`${n}`], size: 1, id: own.id }))
  const made = await Promise.allSettled(Array.from({ length: 3 }, () => laptop.agent.offers.offer(friend.agent.keystore.identity.device, { files: many })))
  // Whichever is written down last.
  t.match(made.filter(({ status }) => status === 'rejected'), [{ reason: { code: 'too-large', message: /^45000 files are too many beside the 90000 that are on offer/ } }])
  t.equal(made.filter(({ status }) => status === 'fulfilled').length, 2)

  const root = t.testdir({ state: {} })
  const open = (as: string): Promise<OfferBook> => {
    const offer = { offer: 'abababab', device, list: own.id, size: 1, files: 0, bytes: 0, state: 'accepted', to: root, landing: [{ name: 'a', as }] }
    writeFileSync(join(root, 'offers.json'), JSON.stringify({ version: 1, sent: [], received: [offer], rules: [] }), { mode: 0o600 })
    return OfferBook.open(root, { clock: lab.clock, isRevoked: () => false, changed: () => Promise.resolve() })
  }
  t.match((await open('a (2)')).now.received, [{ landing: [{ as: 'a (2)' }] }])
  for (const as of ['', '.', '..', '../a', '/etc', 'a/b', 'a\0']) await t.rejects(open(as), { code: 'bad-state', message: /offers\.json: received\.0\.landing\.0\.as must be a name, without folders/ }, as)
})

await t.test('whether a file is here, nobody learns who offers it: it is asked of them all the same; an own device may know', async t => {
  const log = recordLog()
  const lab = await Lab.start({ logger: log.logger })
  t.teardown(() => lab.stop())
  const [laptop, friend, desk] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' }), await lab.device({ user: 'u1', name: 'desk' })]
  await lab.pair(laptop, friend)
  await lab.pair(laptop, desk)
  const folder = t.testdir({ to: {} })
  const to = join(folder, 'to')
  writeFileSync(join(folder, 'film'), randomBytes(2 * LEAF_BYTES + 5))
  writeFileSync(join(folder, 'note'), 'a note')
  const [film, note] = [await laptop.agent.store.add(join(folder, 'film')), await laptop.agent.store.add(join(folder, 'note'))]
  const unknown = parseContentId('a'.repeat(52))
  const sender = friend.agent.keystore.identity.device
  const receiver = laptop.agent.keystore.identity.device
  /** What the server of `sender` answered of `id` since `from`: statuses, and bytes in all. */
  const asked = (from: number, id: string): { statuses: unknown[], bytes: number } => {
    const lines = log.requests().slice(from).filter(({ device, action }) => device === receiver && String(action).endsWith(` ${id}`))
    return { statuses: [...new Set(lines.map(({ status }) => status))], bytes: lines.reduce((sum, { bytes }) => sum + Number(bytes), 0) }
  }

  // As a list, and in one.
  for (const { id, size } of [film, note, { id: unknown, size: note.size }]) {
    const from = log.requests().length
    const name = id.slice(0, 8)
    await laptop.agent.offers.mailCame(sender, { answers: [], offers: [{ offer: name, list: id, size, files: 1, bytes: 1 }] })
    await t.rejects(laptop.call('inbox-accept', { offer: name, to }), { code: 'not-found', message: `device ${sender} does not have it, or does not share it with this device` })
    t.strictSame(asked(from, id).statuses, [404], 'the one that is here like the one that nobody has')
    const { offer } = await friend.agent.offers.offer(receiver, { files: [{ path: ['x'], size, id }] })
    await lab.until('the offer', () => laptop.agent.offers.received.some(one => one.offer === offer))
    const before = log.requests().length
    await t.rejects(laptop.call('inbox-accept', { offer, to }), { code: 'not-found' })
    t.strictSame(asked(before, id).statuses, [404])
    t.not(friend.agent.offers.sent.find(one => one.offer === offer)?.answer, 'done')
    await friend.call('outbox-withdraw', { offer })
  }

  // Whoever has it gives it once more.
  for (const device of [friend, desk]) {
    const from = log.requests().length
    await laptop.call('inbox-rule', { device: device.name, rule: 'accept', to })
    t.match(await device.call('send', { device: 'laptop', paths: ['film', 'note'].map(path => join(folder, path)) }), { answer: 'done' })
    const all = [asked(from, film.id), asked(from, note.id)]
    if (device === friend) t.ok(all[0]!.bytes >= film.size && all[1]!.bytes >= note.size, 'all of it')
    else t.strictSame(all, [{ statuses: [], bytes: 0 }, { statuses: [], bytes: 0 }])
  }
  t.strictSame(readdirSync(to).toSorted(), ['film', 'film (2)', 'note', 'note (2)'])
  await lab.until('nothing being left aside', async () => (await laptop.agent.store.asides.all()).length === 0)
  t.equal(await laptop.agent.store.has(film.id), true)
})

await t.test('what was accepted and did not land is tried again by itself, and nothing is there twice; a service that stopped tries nothing', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [laptop, friend] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' })]
  await lab.pair(laptop, friend)
  const folder = t.testdir({ holiday: Object.fromEntries(Array.from({ length: 5 }, (_, n) => [`${n}`, `picture ${n}`])), to: {} })
  const to = join(folder, 'to')
  const { agent } = friend
  const offered = async (): Promise<string> => {
    const { offer } = await laptop.call('send', { device: 'friend', paths: [join(folder, 'holiday')], wait: false })
    await lab.until('the offer', () => agent.offers.received.some(one => one.offer === offer))
    return offer
  }
  const failsOnce = (after: number): void => {
    const giveTo = agent.store.asides.giveTo.bind(agent.store.asides)
    let left = after
    agent.store.asides.giveTo = async (id, path) => {
      if (left-- > 0) return await giveTo(id, path)
      agent.store.asides.giveTo = giveTo
      throw Object.assign(new Error('no space left on device'), { code: 'ENOSPC' })
    }
  }
  const landed = (offer: string) => () => {
    lab.clock.advance(1_000)
    return agent.offers.received.every(one => one.offer !== offer || one.state === 'done')
  }

  // What an offer failed for before any of it landed.
  const first = await offered()
  await t.rejects(agent.offers.accept(agent.offers.find(first), to, ({ event }) => {
    if (event !== 'accepted') return
    rmSync(to, { recursive: true })
    writeFileSync(to, 'in the way')
  }), { code: 'unreadable', message: `${to} is not a folder` })
  // Each time after twice as long. The clock stands while one is under way.
  const attempts: number[] = []
  let underWay = 0
  const accept = agent.offers.accept.bind(agent.offers)
  agent.offers.accept = async (...all) => {
    attempts.push(lab.clock.monotonic())
    underWay += 1
    try {
      return await accept(...all)
    } finally {
      underWay -= 1
    }
  }
  await lab.until('four attempts', () => {
    if (underWay === 0) lab.clock.advance(4_000)
    return attempts.length === 4
  })
  const waited = attempts.slice(1).map((at, n) => at - attempts[n]!)
  t.ok(waited.every((ms, n) => n === 0 || ms > 1.8 * waited[n - 1]!), waited.join(' '))
  rmSync(to)
  await lab.until('another attempt', () => {
    lab.clock.advance(3_000)
    return landed(first)()
  })
  t.strictSame(readdirSync(to), ['holiday'])

  // Half-way: by itself, and when it is said once more.
  for (const isSaid of [false, true]) {
    const offer = await offered()
    failsOnce(2)
    await t.rejects(friend.call('inbox-accept', { offer, to }), { code: 'disk-full' })
    if (isSaid) t.match(await friend.call('inbox-accept', { offer, to }), { files: 5, landed: [join(to, 'holiday (3)')] })
    await lab.until('the rest', landed(offer))
  }
  t.ok(agent.offers.received.every(one => one.landing === undefined), 'what has landed is gone on with no more')
  t.strictSame(readdirSync(to).toSorted(), ['holiday', 'holiday (2)', 'holiday (3)'])
  for (const name of readdirSync(to)) t.strictSame(readdirSync(join(to, name)), ['0', '1', '2', '3', '4'], name)
  // In another folder nothing of it is there yet.
  const moved = await offered()
  failsOnce(2)
  await t.rejects(friend.call('inbox-accept', { offer: moved, to }), { code: 'disk-full' })
  t.match(await friend.call('inbox-accept', { offer: moved, to: join(folder, 'elsewhere') }), { landed: [join(folder, 'elsewhere', 'holiday')] })
  t.strictSame(readdirSync(join(folder, 'elsewhere', 'holiday')), ['0', '1', '2', '3', '4'])

  const last = await offered()
  failsOnce(0)
  await t.rejects(friend.call('inbox-accept', { offer: last, to }), { code: 'disk-full' })
  const asked: string[] = []
  const stores = [laptop.agent.store, agent.store]
  await Promise.all([laptop.stop(), friend.stop()])
  for (const store of stores) {
    store.flush = () => Promise.resolve(asked.push('flush')).then(() => undefined)
    store.asides.has = () => Promise.resolve(asked.push('has') < 0)
  }
  lab.clock.advance(60_000)
  await new Promise(resolve => { setImmediate(resolve) })
  t.strictSame(asked, [], 'neither what is lent is made durable, nor is anything fetched')
})

import { randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { formatList, land, parseList } from '../src/agent/offer-list.js'
import { parseContentId } from '../src/core/ids.js'
import { safeName } from '../src/core/safe-name.js'
import { FileStore } from '../src/files/store.js'
import { Lab } from '../src/testing.js'

await t.test('safe names: a table, then anything', t => {
  for (const [name, safe] of [
    ['a.txt', 'a.txt'], ['Ünï cödé.jpg', 'Ünï cödé.jpg'], ['.', '_'], ['..', '__'], ['', '_'], ['...', '__'], ['.bashrc', '_bashrc'], ['../../etc/passwd', '___.._etc_passwd'],
    ['a/b', 'a_b'], ['a\\b', 'a_b'], ['a\0b', 'ab'], ['a\nb', 'ab'], ['invoice\u202Efdp.exe', 'invoicefdp.exe'], ['\u2066x', 'x'], ['con', '_con'], ['NUL.txt', '_NUL.txt'], ['com1', '_com1'],
    ['company', 'company'], ['a ', 'a'], ['a.', 'a'], ['C:x', 'C_x'], ['a?*|', 'a___'],
  ] as const) t.equal(safeName(name), safe, JSON.stringify(name))
  const long = safeName(`${'ä'.repeat(300)}.tar`)
  t.ok(Buffer.byteLength(long) <= 200 && long.endsWith('.tar'))
  fc.assert(fc.property(fc.oneof(fc.string({ unit: 'binary', maxLength: 40 }), fc.string({ maxLength: 300 })), name => {
    const safe = safeName(name)
    return safe !== '' && safe !== '.' && safe !== '..' && !/[/\\\0]|[\p{Cc}\p{Cf}]/u.test(safe) && !safe.startsWith('.') && Buffer.byteLength(safe) <= 201
  }), { numRuns: 2000 })
  t.end()
})

await t.test('landing: what is there stays, shapes stay, nothing leaves the folder', async t => {
  const home = t.testdir({ to: { 'a.txt': 'mine', dir: { x: 'mine' } }, outside: {} })
  const store = await FileStore.open(join(home, 'files'))
  const to = join(home, 'to')
  writeFileSync(join(home, 'one'), 'theirs')
  const { id, size } = await store.add(join(home, 'one'))
  symlinkSync(join(home, 'outside'), join(to, 'link'))
  const list = [['a.txt'], ['dir', 'x'], ['dir', 'sub', 'y'], ['link', 'z'], ['..', '..', 'up'], ['.ssh', 'authorized_keys'], ['a.txt', 'b'], ['same'], ['same']].map(path => ({ path, size, id }))
  const landed = await land(store, parseList(formatList(list).toString()), to)
  t.equal(readFileSync(join(to, 'a.txt'), 'utf8'), 'mine')
  t.equal(readFileSync(join(to, 'a (2).txt'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, 'dir/x'), 'utf8'), 'mine')
  t.equal(readFileSync(join(to, 'dir (2)/x'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, 'dir (2)/sub/y'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, 'link (2)/z'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, '__/__/up'), 'utf8'), 'theirs')
  t.equal(readFileSync(join(to, '_ssh/authorized_keys'), 'utf8'), 'theirs')
  t.ok(existsSync(join(to, 'same (2)')))
  t.strictSame(readdirSync(join(home, 'outside')), [])
  t.equal(landed.length, 8)
  for (const bad of ['', '{}', '[]', '{"patchcord":"offer/2","files":[]}', `{"patchcord":"offer/1","files":[{"path":"a","size":1,"id":"${id}"}]}`, `{"patchcord":"offer/1","files":[{"path":[],"size":1,"id":"${id}"}]}`, '{"patchcord":"offer/1","files":[{"path":["a"],"size":1,"id":"x"}]}', `{"patchcord":"offer/1","files":[{"path":["a"],"size":-1,"id":"${id}"}]}`]) t.throws(() => parseList(bad), { code: 'verification' }, bad)
})

await t.test('send and inbox: seen, accepted, refused, by rule; lent to one device, and no longer', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [laptop, friend, other] = [await lab.device({ user: 'u1', name: 'laptop' }), await lab.device({ user: 'u2', name: 'friend' }), await lab.device({ user: 'u3', name: 'other' })]
  await lab.pair(laptop, friend)
  await lab.pair(laptop, other)
  const folder = t.testdir({ holiday: { 'a.jpg': 'picture', deep: { 'b.bin': '', nothing: '' } }, to: {} })
  const big = randomBytes(2_400_000)
  writeFileSync(join(folder, 'holiday/deep/b.bin'), big)
  symlinkSync('/etc/passwd', join(folder, 'holiday/link'))
  const to = join(folder, 'to')
  const inbox = async (device = friend): Promise<Array<{ offer: string, state: string, files?: Array<{ path: string, size: number, id: string }> }>> => {
    const offers: Array<{ offer: string, state: string, files?: Array<{ path: string, size: number, id: string }> }> = []
    await device.call('inbox', {}, offer => { offers.push(offer) })
    return offers
  }
  const events: Array<{ event: string }> = []
  const sending = laptop.call('send', { device: 'friend', paths: [join(folder, 'holiday')] }, event => { events.push(event) })
  await lab.until('the offer', async () => (await inbox()).length === 1)
  const [offer] = await inbox()
  t.strictSame(offer?.files?.map(({ path, size }) => [path, size]), [['holiday/a.jpg', 7], ['holiday/deep/b.bin', big.length], ['holiday/deep/nothing', 0]], 'the whole list, without the link')
  t.strictSame(readdirSync(to), [], 'nothing lands without a yes')
  const id = parseContentId(offer?.files?.[1]?.id ?? '')
  t.equal(await friend.agent.store.has(id), false)
  t.strictSame(await inbox(other), [], 'others hear nothing of it')
  t.match(await laptop.call('explain', { device: 'other', method: 'GET', path: `/files/${id}` }), { allowed: false })
  await t.rejects(other.call('get', { id, output: join(folder, 'x'), from: 'laptop' }), { code: 'not-found' })
  await t.rejects(friend.call('inbox-accept', { offer: 'ffffffff', to }), { code: 'not-found' })
  t.match(await friend.call('inbox-accept', { offer: offer!.offer, to }), { files: 3, landed: [join(to, 'holiday')] })
  t.equal(readFileSync(join(to, 'holiday/deep/nothing')).length, 0)
  t.ok(readFileSync(join(to, 'holiday/deep/b.bin')).equals(big))
  t.match(await sending, { answer: 'done', files: 3 })
  t.match(events.find(({ event }) => event === 'offered'), { event: 'offered', files: 3 })
  await lab.until('the offer being forgotten', async () => (await inbox()).length === 0 && laptop.agent.offers.sent.length === 0)
  t.strictSame(await laptop.agent.store.records(id), [], 'lending records nothing')

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
})

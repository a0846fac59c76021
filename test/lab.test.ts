import t from 'tap'
import { writeFile, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { randomBytes } from 'node:crypto'
import { Lab } from '../src/testing.js'

await t.test('two own devices and a friend: databases, files, revocation, and the cable', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(laptop, desktop)
  await lab.pair(laptop, friend)

  await laptop.call('db-create', { name: 'dmedia-0' })
  await laptop.db('PUT', '/dmedia-0/doc1', { text: 'one' })
  await lab.until('the document on the desktop', async () => (await desktop.db('GET', '/dmedia-0/doc1')).status === 200)
  await desktop.db('PUT', '/dmedia-0/doc2', { text: 'two' })
  await lab.until('the document on the laptop', async () => (await laptop.db('GET', '/dmedia-0/doc2')).status === 200)

  const folder = t.testdir({})
  const bytes = randomBytes(3_000_001)
  await writeFile(join(folder, 'private.bin'), bytes)
  await writeFile(join(folder, 'shared.bin'), bytes.subarray(5))
  await laptop.call('db-create', { name: 'dmedia-0-foo' })
  const ids: Record<string, string> = {}
  await laptop.call('add', { paths: [join(folder, 'private.bin')], to: 'dmedia-0' }, event => { if (event.event === 'added') ids['private'] = event.id })
  await laptop.call('add', { paths: [join(folder, 'shared.bin')], to: 'dmedia-0-foo' }, event => { if (event.event === 'added') ids['shared'] = event.id })
  await laptop.call('share', { database: 'dmedia-0-foo', with: 'friend' })
  await lab.until('the offer', async () => (await friend.call('shares', {})).shares.length > 0)
  await t.rejects(friend.call('accept', { peer: 'laptop', database: 'dmedia-0' }), { code: 'not-found' })
  await friend.call('accept', { peer: 'laptop', database: 'dmedia-0-foo' })
  await lab.until('the file\'s document at the friend', async () => (await friend.db('GET', `/dmedia-0-foo/${ids['shared']}`)).status === 200)

  await t.rejects(friend.call('get', { id: ids['private']!, output: join(folder, 'gained') }), { code: 'not-found' })
  await friend.call('get', { id: ids['shared']!, output: join(folder, 'got') })
  t.ok((await readFile(join(folder, 'got'))).equals(bytes.subarray(5)))
  await desktop.call('get', { id: ids['private']!, output: join(folder, 'own') })
  t.ok((await readFile(join(folder, 'own'))).equals(bytes))

  await lab.cut(laptop, desktop)
  await laptop.db('PUT', '/dmedia-0/doc3', { text: 'while the cable was out' })
  await lab.heal(laptop, desktop)
  await lab.until('what was written meanwhile', async () => (await desktop.db('GET', '/dmedia-0/doc3')).status === 200)

  const revoked = await laptop.call('revoke', { device: 'friend' })
  t.ok(revoked.connectionsCut > 0)
  await lab.until('the friend noticing', async () => (await friend.call('status', {})).peers.every(({ connected }) => !connected))
  await t.rejects(friend.call('get', { id: ids['private']!, output: join(folder, 'gained') }), { code: 'unreachable' })
})

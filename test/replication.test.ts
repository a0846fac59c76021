import { randomBytes } from 'node:crypto'
import t from 'tap'
import { Lab, type LabDevice } from '../src/testing.js'
import type { DeviceId } from '../src/core/ids.js'
import { askPeer } from '../src/sync/peer-agent.js'
import type { DatabaseStatus } from '../src/control/operations.js'

const lab = await Lab.start()
t.teardown(() => lab.stop())
const laptop = await lab.device({ user: 'u1', name: 'laptop' })
const desktop = await lab.device({ user: 'u1', name: 'desktop' })
const friend = await lab.device({ user: 'u2', name: 'friend' })
await lab.pair(laptop, desktop)
await lab.pair(laptop, friend)

async function received (device: LabDevice, from: string, database: string): Promise<DatabaseStatus | undefined> {
  return (await device.call('status', {})).peers.find(({ name }) => name === from)?.databases.find(({ name }) => name === database)
}

async function share (database: string, write = false): Promise<void> {
  await laptop.call('db-create', { name: database })
  await laptop.call('share', { database, with: 'friend', write })
  await lab.until('the offer', async () => (await friend.call('shares', {})).shares.some(offer => offer.database === database))
  await friend.call('accept', { peer: 'laptop', database })
  await lab.until('the pull', async () => (await received(friend, 'laptop', database))?.state === 'in sync')
}

const has = async (device: LabDevice, path: string): Promise<boolean> => (await device.db('GET', path)).status === 200

await t.test('status and events tell of each database; conflicts are counted and listed', async t => {
  const seen: Array<Record<string, unknown>> = []
  desktop.agent.events.on('event', event => { seen.push(event as Record<string, unknown>) })
  await laptop.call('db-create', { name: 'notes' })
  await laptop.db('PUT', '/notes/same', { text: 'from the start' })
  await lab.until('it on the desktop', () => has(desktop, '/notes/same'))
  await lab.until('no lag', async () => (await received(desktop, 'laptop', 'notes'))?.state === 'in sync')
  t.match(await received(desktop, 'laptop', 'notes'), { name: 'notes', remote: 'notes', direction: 'pull', connected: true, lag: 0, secondsLeft: null, conflicts: 0 })

  await lab.cut(laptop, desktop)
  t.match(await received(desktop, 'laptop', 'notes'), { connected: false, state: 'not connected' })
  for (const device of [laptop, desktop]) {
    const { _rev } = (await device.db('GET', '/notes/same')).value as { _rev: string }
    await device.db('PUT', '/notes/same', { _rev, text: `by ${device.name}` })
    await device.db('PUT', `/notes/only-${device.name}`, {})
  }
  await lab.heal(laptop, desktop)
  for (const device of [laptop, desktop]) await lab.until(`the conflict on the ${device.name}`, async () => (await received(device, device === laptop ? 'desktop' : 'laptop', 'notes'))?.conflicts === 1)
  const found: Array<{ id: string, winner: string, others: string[] }> = []
  t.strictSame(await desktop.call('conflicts', { database: 'notes' }, conflict => { found.push(conflict) }), { database: 'notes', conflicts: 1 })
  t.match(found, [{ event: 'conflict', id: 'same', winner: /^2-/, others: [/^2-/] }])
  await t.rejects(desktop.call('conflicts', { database: 'nothing' }), { code: 'not-found' })

  await desktop.db('DELETE', `/notes/same?rev=${found[0]!.others[0]}`)
  for (const device of [laptop, desktop]) await lab.until(`its end on the ${device.name}`, async () => (await received(device, device === laptop ? 'desktop' : 'laptop', 'notes'))?.conflicts === 0)
  t.strictSame(await laptop.call('conflicts', { database: 'notes' }), { database: 'notes', conflicts: 0 })
  t.match(seen.filter(({ event }) => event === 'conflicts'), [{ database: 'notes', conflicts: 1 }, { database: 'notes', conflicts: 0 }])
  t.ok(seen.some(({ event, database, state, connected }) => event === 'replication' && database === 'notes' && state === 'not connected' && connected === false))
  t.ok(seen.some(({ event, database, state, lag }) => event === 'replication' && database === 'notes' && state === 'in sync' && lag === 0))
})

await t.test('unshare ends the feeds, transfers and pulls of that database at once, and of no other', async t => {
  await share('taken', true)
  await share('kept')
  const { device } = laptop
  await laptop.db('PUT', '/taken/large', { _attachments: { blob: { content_type: 'application/octet-stream', data: Buffer.alloc(8_000_000, 1).toString('base64') } } })
  await lab.slow(laptop, friend, 300_000)
  // Each on a connection of its own, as a curious friend would hold them, with the rights that it has.
  const mine = friend.agent.peers.peer(device as DeviceId)!.link.agent
  const hold = async (path: string): Promise<{ bytes: number, ended: boolean }> => {
    const held = { bytes: 0, ended: false }
    const answer = await askPeer(mine, device as DeviceId, path)
    t.equal(answer.statusCode, 200, path)
    answer.on('data', (chunk: Buffer) => { held.bytes += chunk.length }).on('error', () => undefined).on('close', () => { held.ended = true })
    return held
  }
  const feed = await hold('/couch/taken/_changes?feed=continuous&since=now')
  const other = await hold('/couch/kept/_changes?feed=continuous&since=now')
  const blob = await hold('/couch/taken/large/blob')
  await lab.until('the transfer moving', () => blob.bytes > 0)
  // The friend writes all the time: what it has may be pulled until the share is gone, and not after.
  await lab.until('the pull back', async () => (await received(laptop, 'friend', 'taken'))?.connected === true)
  let writes = 0
  let stop = false
  const writer = (async () => { while (!stop) await friend.db('PUT', `/taken/back-${writes++}`, {}) })()
  await lab.until('some of it here', async () => has(laptop, '/taken/back-3'))

  await laptop.call('unshare', { database: 'taken', with: 'friend' })
  const { update_seq: at } = (await laptop.db('GET', '/taken')).value as { update_seq: number }
  await laptop.db('PUT', '/kept/after', {})
  await lab.until('the other feed telling', () => other.bytes > 5)
  const before = { feed: feed.bytes }
  const written = writes
  await lab.until('the friend having written more', () => writes > written + 30)
  stop = true
  await writer
  await lab.until('what ran having ended', () => feed.ended && blob.ended)
  t.match((await laptop.db('GET', '/taken')).value, { update_seq: at }, 'nothing more came in')
  t.equal(feed.bytes, before.feed)
  t.ok(blob.bytes < 8_000_000)
  t.notOk(other.ended)
  await lab.until('the friend knowing', async () => (await received(friend, 'laptop', 'taken'))?.state === 'not offered any more')
  await laptop.db('PUT', '/taken/later', {})
  t.equal((await askPeer(mine, device as DeviceId, '/couch/taken')).resume().statusCode, 404)
  t.notOk(await has(friend, '/taken/later'))
  await lab.slow(laptop, friend, Infinity)
})

await t.test('a connection that died while the machine slept is noticed when it wakes', async t => {
  const seen: string[] = []
  laptop.agent.events.on('event', event => { seen.push((event as { event: string }).event) })
  for (const [near, far] of [[laptop, desktop], [desktop, laptop]] as const) (await far.relayFrom(near)).freeze()
  lab.clock.sleep(3_600_000)
  await lab.until('the laptop noticing', () => seen.includes('disconnected'))
  for (const [near, far] of [[laptop, desktop], [desktop, laptop]] as const) (await far.relayFrom(near)).thaw()
  await lab.connected(laptop, desktop)
  t.ok(seen.includes('connected'))
})

await t.test('where there is no room, pulling pauses, says so, and goes on when there is', async t => {
  const { device } = laptop
  await share('bulk')
  const put = async (from: number): Promise<void> => {
    for (let at = from; at < from + 20; at++) await laptop.db('PUT', `/bulk/doc${at}`, { text: randomBytes(25_000).toString('hex') })
  }
  const state = async (): Promise<string> => (await received(friend, 'laptop', 'bulk'))!.state
  await friend.call('quota', { device, bytes: 300_000 })
  await put(0)
  await lab.until('the quota', async () => (await state()).startsWith('paused: '))
  t.match(await state(), /quota of 300000 bytes/)
  const { used } = await friend.call('quota', { device })
  t.ok(used! <= 300_000, `${used} bytes are used`)
  t.match(await friend.call('quota', { device, bytes: null }), { quota: null })
  await lab.until('all of it', () => has(friend, '/bulk/doc19'))
  await lab.until('no pause', async () => await state() === 'in sync')

  await friend.call('quota', { keepFree: Number.MAX_SAFE_INTEGER })
  await put(20)
  await lab.until('the floor', async () => (await state()).startsWith('paused: '))
  t.match(await state(), /would stay free on the disk/)
  t.notOk(await has(friend, '/bulk/doc20'))
  await friend.call('quota', { keepFree: 0 })
  await lab.until('the rest', () => has(friend, '/bulk/doc39'))
  await t.rejects(friend.call('quota', { bytes: 1 }), { code: 'usage' })
  await t.rejects(friend.call('quota', { device: 'nobody' }), { code: 'not-found' })
})

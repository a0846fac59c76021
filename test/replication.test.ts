import t from 'tap'
import { Lab, type LabDevice } from '../src/testing.js'
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

await t.test('what is taken back ends, and says so', async t => {
  await share('taken')
  t.match(await received(friend, 'laptop', 'taken'), { connected: true, state: 'in sync' })
  await laptop.call('unshare', { database: 'taken', with: 'friend' })
  await lab.until('the friend knowing', async () => (await received(friend, 'laptop', 'taken'))?.state === 'not offered any more')
  t.match(await received(friend, 'laptop', 'taken'), { connected: false })
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

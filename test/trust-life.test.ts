import t from 'tap'
import { Lab, type LabDevice } from '../src/testing.js'

const DAY = 24 * 60 * 60 * 1000

const endOf = (device: LabDevice): number => device.agent.keystore.identity.notAfter
const connected = (one: LabDevice, other: LabDevice): boolean => one.agent.peers.peer(other.agent.keystore.identity.device)?.link.connected ?? false

await t.test('certificates renew themselves, and nobody notices', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(laptop, desktop)
  await lab.pair(desktop, friend)
  const before = [laptop, desktop, friend].map(endOf)
  const ids = [laptop, desktop, friend].map(({ device }) => device)
  lab.clock.advance(200 * DAY)
  await new Promise(resolve => { setTimeout(resolve, 300) })
  t.strictSame([laptop, desktop, friend].map(endOf), before, 'nothing is renewed before two thirds of its life')
  const since = desktop.agent.peers.peer(friend.agent.keystore.identity.device)?.link.since
  lab.clock.advance(44 * DAY)
  await lab.until('the renewals', () => [laptop, desktop, friend].every((device, at) => endOf(device) > before[at]!))
  t.strictSame([laptop, desktop, friend].map(({ device }) => device), ids, 'the keys stay')
  await lab.connected(desktop, friend)
  t.equal(desktop.agent.peers.peer(friend.agent.keystore.identity.device)?.link.since, since, 'the connection stays')
  // Past the end of the first certificates.
  lab.clock.advance(130 * DAY)
  await lab.connected(laptop, desktop)
  await lab.connected(desktop, friend)
  t.ok(connected(laptop, desktop))
})

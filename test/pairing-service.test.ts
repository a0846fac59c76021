import t from 'tap'
import type { PairEvent, PairOpenArgs } from '../src/control/operations.js'
import { Lab, type LabDevice } from '../src/testing.js'

// Pairing as the service does it: windows, questions and what is written down, between whole devices.

interface Window { readonly code: string, readonly link: string, readonly at: string[], readonly events: PairEvent[], readonly done: Promise<{ device: string, relation: string, name: string }> }

async function open (lab: Lab, device: LabDevice, args: PairOpenArgs, answer?: (request: Extract<PairEvent, { event: 'request' }>) => 'own' | 'peer' | null): Promise<Window> {
  const events: PairEvent[] = []
  const done = device.call('pair-open', args, event => {
    events.push(event)
    if (event.event === 'request' && answer !== undefined) void device.call('pair-answer', { request: event.request, relation: answer(event) })
  })
  done.catch(() => undefined)
  await lab.until('the window', () => events.length > 0)
  const [window] = events
  if (window?.event !== 'window') throw new Error('the first event is the window')
  return { code: window.code ?? '', link: window.link, at: [`[::1]:${window.addresses[0]!.port}`], events, done }
}

const other = (code: string): string => String((Number(code) + 1) % 1_000_000).padStart(6, '0')

await t.test('own by a code: certificates, databases, and nothing of it before the person\'s yes', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const desktop = await lab.device({ user: 'was alone', name: 'desktop' })
  const alone = (await desktop.call('identity', {})).user
  await t.rejects(laptop.call('pair-open', { yes: true }), { code: 'usage', message: /needs the relation/ })

  const asked: Array<{ name: string, wants: string }> = []
  const window = await open(lab, laptop, {}, request => {
    asked.push({ name: request.name, wants: request.wants })
    return 'own'
  })
  t.match(window.code, /^\d{6}$/)
  await t.rejects(laptop.call('pair-open', { as: 'own' }), { code: 'too-many' }, 'one window at a time')
  await t.rejects(desktop.call('pair-join', { invitation: other(window.code), as: 'own', yes: true, at: window.at }), { code: 'verification' })
  t.match(window.events.at(-1), { event: 'failed', attemptsLeft: 2 })
  t.strictSame(asked, [], 'who does not know the code is not even shown')
  t.equal((await desktop.call('identity', {})).user, alone)

  t.match(await desktop.call('pair-join', { invitation: window.code, as: 'own', yes: true, at: window.at }), { device: laptop.device, relation: 'own', name: 'laptop' })
  t.match(await window.done, { device: desktop.device, relation: 'own', name: 'desktop' })
  t.strictSame(asked, [{ name: 'desktop', wants: 'own' }])
  t.equal((await desktop.call('identity', {})).user, (await laptop.call('identity', {})).user)
  t.notOk((await desktop.call('identity', {})).hasCaKey)
  await lab.connected(laptop, desktop)
  await laptop.call('db-create', { name: 'notes' })
  await lab.until('the database at the desktop', async () => (await desktop.call('db-ls', {})).databases.includes('notes'))

  const again = await open(lab, laptop, { as: 'own', yes: true })
  t.match(await desktop.call('pair-join', { invitation: again.link, as: 'own', yes: true, at: again.at }), { name: 'laptop' }, 'pairing again mends and changes nothing')
  await again.done
  t.equal((await laptop.call('devices', {})).devices.length, 2)
})

await t.test('peers by a link, with what is offered; refusals of every kind change nothing', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const anna = await lab.device({ user: 'u1', name: 'anna' })
  const bob = await lab.device({ user: 'u2', name: 'bob' })
  const nothing = async (what: string): Promise<void> => {
    t.strictSame([(await anna.call('devices', {})).devices.length, (await bob.call('devices', {})).devices.length], [1, 1], `${what}: nobody knows anybody`)
  }
  await anna.call('db-create', { name: 'shared' })

  const declined = await open(lab, anna, { linkOnly: true }, () => null)
  t.equal(declined.code, '')
  await t.rejects(bob.call('pair-join', { invitation: declined.link, as: 'peer', yes: true, at: declined.at }), { code: 'refused', message: /said no/ })
  await nothing('the person said no')
  const unequal = await open(lab, anna, { as: 'own', yes: true, linkOnly: true }).catch(async () => {
    await lab.until('the first window to end', async () => declined.done.then(() => true, () => true))
    return await open(lab, anna, { as: 'own', yes: true, linkOnly: true })
  })
  await t.rejects(bob.call('pair-join', { invitation: unequal.link, as: 'peer', yes: true, at: unequal.at }), { code: 'refused' })
  await nothing('the relations were not equal')
  await t.rejects(bob.call('pair-join', { invitation: '12345', as: 'peer', yes: true }), { code: 'usage' })
  await t.rejects(bob.call('pair-join', { invitation: '123456', as: 'peer', yes: true, at: ['[::1]:1'] }), { code: 'unreachable' })
  await t.rejects(bob.call('pair-answer', { request: 'x', relation: 'own' }), { code: 'not-found' })
  await unequal.done.catch(() => undefined)

  const window = await open(lab, anna, { as: 'peer', yes: true, share: ['shared:write'], linkOnly: true })
  await bob.call('pair-join', { invitation: window.link, as: 'peer', yes: true, at: window.at })
  t.match(await window.done, { device: bob.device, relation: 'peer', name: 'bob' })
  t.match((await anna.call('devices', {})).devices[1], { name: 'bob', relation: 'peer', grant: { databases: { shared: 'write' } } })
  t.match((await bob.call('devices', {})).devices[1], { name: 'anna', grant: { databases: {} } })
  await lab.connected(anna, bob)
  await lab.until('the offer', async () => (await bob.call('shares', {})).shares.some(({ database, access }) => database === 'shared' && access === 'write'))

  // Bob has a peer now: as somebody else's own device he would lose it.
  const own = await open(lab, anna, { as: 'own', yes: true, linkOnly: true })
  await t.rejects(bob.call('pair-join', { invitation: own.link, as: 'own', yes: true, at: own.at }), { code: 'refused' })
  await own.done.catch(() => undefined)
  t.match((await bob.call('devices', {})).devices[1], { name: 'anna', relation: 'peer' })
})

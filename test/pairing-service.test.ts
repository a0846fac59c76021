import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import { rememberable } from '../src/agent/pairing.js'
import { runCli } from '../src/cli/program.js'
import type { PairEvent, PairOpenArgs } from '../src/control/operations.js'
import { Lab, type LabDevice } from '../src/testing.js'
import { PairingRelay } from './fixtures/pairing-relay.js'

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

  await t.rejects(laptop.call('pair-open', { as: 'own', yes: true, share: ['nothing'] }), { code: 'not-found', message: /no database nothing/ })
  const asked: Array<{ name: string, wants: string }> = []
  const window = await open(lab, laptop, {}, request => {
    asked.push({ name: request.name, wants: request.wants })
    t.match(request, { becomes: 'ours', loses: [] })
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
  t.strictSame(again.events.map(({ event }) => event), ['window', 'request'], 'who said yes beforehand is told who came')
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

  // What he would lose is named before he says yes.
  const carol = await lab.device({ user: 'u3', name: 'carol' })
  const taking = await open(lab, carol, { as: 'own', yes: true, linkOnly: true })
  const told: PairEvent[] = []
  await t.rejects(bob.call('pair-join', { invitation: taking.link, as: 'own', at: taking.at, replaceUser: true }, event => {
    told.push(event)
    if (event.event === 'request') void bob.call('pair-answer', { request: event.request, relation: null })
  }), { code: 'refused', message: 'you said no' })
  t.match(told, [{ event: 'request', name: 'carol', becomes: 'theirs', loses: ['anna'] }])
  await taking.done.catch(() => undefined)
})

/** A pairing by link whose cable is pulled when message `at` comes by. */
async function pairUntil (t: Test, lab: Lab, R: LabDevice, I: LabDevice, as: 'own' | 'peer', at: number, onCut: () => Promise<void> = () => Promise.resolve()): Promise<void> {
  const window = await open(lab, R, { as, yes: true, linkOnly: true })
  let pulled: Promise<void> | undefined
  const relay = await PairingRelay.open(Number(window.at[0]!.split(':').at(-1)), async number => {
    if (number !== at) return true
    pulled = onCut()
    await pulled
    relay.cut()
    return false
  })
  t.teardown(() => { relay.close() })
  await t.rejects(I.call('pair-join', { invitation: window.link, as, yes: true, at: [`[::1]:${relay.port}`] }), `the cable is pulled at M${at}`)
  await lab.until('the message', () => pulled !== undefined)
  await pulled
  await window.done.catch(() => undefined)
}

const stateOf = async (device: LabDevice, other: string): Promise<string> => (await device.call('devices', {})).devices.find(one => one.device === other)?.state ?? 'nothing'
const pendingOf = (device: LabDevice): unknown[] => (JSON.parse(readFileSync(join(device.home.root, 'pairing-pending.json'), 'utf8')) as { pending: unknown[] }).pending
const MINUTE = 60_000

/** Ends a device before it can mend anything, as a power button does. */
async function off (device: LabDevice): Promise<void> {
  device.agent.pairing.mending.stop()
  await device.stop()
}

await t.test('an exchange that was cut: mended at the next contact, forgotten by both where there is none', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [anna, bob, tablet] = [await lab.device({ user: 'u1', name: 'anna' }), await lab.device({ user: 'u2', name: 'bob' }), await lab.device({ user: 'was alone', name: 'tablet' })]
  const [toBob, toTablet, toAnna] = [bob.device, tablet.device, anna.device]

  await pairUntil(t, lab, anna, bob, 'peer', 7)
  t.strictSame([await stateOf(anna, toBob), await stateOf(bob, toAnna), pendingOf(bob).length], ['nothing', 'nothing', 1])
  lab.clock.sleep(11 * MINUTE)
  await lab.until('the pending pair to be dropped', () => pendingOf(bob).length === 0)

  // R has it on disk, I is off for longer than a pair may be pending.
  await pairUntil(t, lab, anna, bob, 'peer', 8, () => off(bob))
  t.equal(await stateOf(anna, toBob), 'unconfirmed')
  t.equal(anna.agent.book.whitelist.length, 1)
  lab.clock.sleep(16 * MINUTE)
  await lab.until('its rights to be taken back', () => anna.agent.book.whitelist.length === 0)
  t.match((await anna.call('status', {})).notices, [{ about: 'pairing', text: /bob was paired as peer and has not said that it knows: it has no rights/ }])
  await bob.start()
  t.equal(await stateOf(bob, toAnna), 'nothing')
  await lab.until('being refused, and forgetting', async () => {
    lab.clock.advance(MINUTE)
    return await stateOf(anna, toBob) === 'nothing'
  })
  t.strictSame((await anna.call('status', {})).notices, [])

  // The same, and I comes back in time.
  await pairUntil(t, lab, anna, bob, 'peer', 8, () => off(bob))
  await bob.start()
  await lab.until('both', async () => await stateOf(anna, toBob) === 'trusted' && await stateOf(bob, toAnna) === 'trusted')

  // Own: the certificates wait in the mail, for who shows the key.
  await pairUntil(t, lab, anna, tablet, 'own', 8, () => off(tablet))
  t.equal(await stateOf(anna, toTablet), 'unconfirmed')
  await tablet.start()
  await lab.until('both', async () => await stateOf(anna, toTablet) === 'trusted' && await stateOf(tablet, toAnna) === 'trusted')
  t.equal((await tablet.call('identity', {})).user, (await anna.call('identity', {})).user)
  await anna.call('db-create', { name: 'notes' })
  await lab.until('what own devices have', async () => (await tablet.call('db-ls', {})).databases.includes('notes'))

  // Nobody comes for them: it stays listed, and the person is told.
  const phone = await lab.device({ user: 'alone, too', name: 'phone' })
  const toPhone = phone.device
  await pairUntil(t, lab, anna, phone, 'own', 8, () => off(phone))
  lab.clock.sleep(16 * MINUTE)
  t.match((await anna.call('status', {})).notices.filter(({ about }) => about === 'pairing'), [{ text: /phone was paired as own and has not said that it knows/, hint: /patchcord revoke/ }])
  await phone.start()
  t.equal(await stateOf(phone, toAnna), 'nothing')
  const again = await open(lab, anna, { as: 'own', yes: true, linkOnly: true })
  await phone.call('pair-join', { invitation: again.link, as: 'own', yes: true, at: again.at })
  await again.done
  t.strictSame([await stateOf(anna, toPhone), await stateOf(phone, toAnna)], ['trusted', 'trusted'], 'pairing again mends')
  t.strictSame((await anna.call('status', {})).notices.filter(({ about }) => about === 'pairing'), [])
})

await t.test('killed in the middle of writing a peer down: nothing of it is left', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [anna, bob] = [await lab.device({ user: 'u1', name: 'anna' }), await lab.device({ user: 'u2', name: 'bob' })]
  const toBob = bob.device
  await pairUntil(t, lab, anna, bob, 'peer', 8, () => off(bob))
  await anna.stop()
  writeFileSync(join(anna.home.root, 'whitelist.json'), '{"version":1,"entries":[]}', { mode: 0o600 })
  await anna.start()
  t.equal(await stateOf(anna, toBob), 'nothing')
  t.notOk(Object.hasOwn(anna.agent.book.grants, toBob))
})

await t.test('the recovery key travels with the pairing and is pinned; another one is refused', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [anna, bob, tablet] = [await lab.device({ user: 'u1', name: 'anna' }), await lab.device({ user: 'u2', name: 'bob' }), await lab.device({ user: 'was alone', name: 'tablet' })]
  const { user } = await anna.call('identity', {})
  await anna.call('ca-export', { passphrase: 'a long enough passphrase' })
  const told = anna.agent.cas.recoveryKey(user as never)
  t.ok(told)
  for (const [other, as] of [[bob, 'peer'], [tablet, 'own']] as const) {
    const window = await open(lab, anna, { as, yes: true, linkOnly: true })
    await other.call('pair-join', { invitation: window.link, as, yes: true, at: window.at })
    await window.done
    t.strictSame(other.agent.cas.recoveryKey(user as never), told, as)
  }
  await anna.call('ca-export', { passphrase: 'a long enough passphrase', replace: true })
  const window = await open(lab, anna, { as: 'peer', yes: true, linkOnly: true })
  await t.rejects(bob.call('pair-join', { invitation: window.link, as: 'peer', yes: true, at: window.at }), { code: 'refused', message: /another recovery key is known/ })
  await window.done.catch(() => undefined)
  t.strictSame(bob.agent.cas.recoveryKey(user as never), told, 'the first one told stays')
})

await t.test('the command: a person who cannot be asked says no, at once, and JSON stays JSON', async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const [anna, bob] = [await lab.device({ user: 'u1', name: 'anna' }), await lab.device({ user: 'u2', name: 'bob' })]
  const command = (device: LabDevice, ...args: string[]): { code: Promise<number>, lines: () => Array<Record<string, unknown>> } => {
    const stdout = new PassThrough()
    let text = ''
    stdout.on('data', (chunk: Buffer) => { text += chunk.toString() })
    const io = { stdin: new PassThrough().end(), stdout, stderr: new PassThrough().resume(), env: {}, signal: new AbortController().signal }
    const code = runCli(['pair', ...args, '--json', '--home', device.home.root], { io, version: '0', startService: () => Promise.reject(new Error('not here')) })
    return { code, lines: () => text.split('\n').filter(line => line !== '').map(line => JSON.parse(line) as Record<string, unknown>) }
  }
  for (const [openArgs, joinArgs, openCode, joinCode] of [
    [['--as', 'peer'], ['--as', 'peer', '--yes'], 1, 3],
    [['--as', 'peer', '--yes'], ['--as', 'peer'], 1, 3],
    [['--as', 'peer', '--yes'], ['--as', 'peer', '--yes'], 0, 0],
  ] as const) {
    const opener = command(anna, '--link-only', ...openArgs)
    await lab.until('the window', () => opener.lines().length > 0)
    const [window] = opener.lines() as [{ event: string, link: string, addresses: Array<{ port: number }> }]
    t.match(window, { event: 'window', code: null })
    const joiner = command(bob, window.link, '--at', `[::1]:${window.addresses[0]!.port}`, ...joinArgs)
    t.strictSame([await joiner.code, await opener.code], [joinCode, openCode], `${openArgs.join(' ')}, ${joinArgs.join(' ')}`)
    const last = opener.lines().at(-1)
    t.match(last, openCode === 0 ? { event: 'paired', device: bob.device, relation: 'peer', confirmed: true } : { event: 'failed', code: 'not-paired' })
    t.match(joiner.lines().at(-1), joinCode === 0 ? { event: 'paired', device: anna.device } : { event: 'failed', code: 'refused' })
  }
})

await t.test('a device met on this very machine is looked for on loopback, too', async t => {
  const interfaces = { eth0: [{ address: 'fe80::2', netmask: '', family: 'IPv6' as const, mac: '', internal: false, cidr: null, scopeid: 2 }] }
  t.same(rememberable({ host: 'fe80::2', zone: 'eth0', port: 7 }, interfaces), [{ host: 'fe80::2', zone: 'eth0', port: 7 }, { host: '::1', port: 7 }])
  t.same(rememberable({ host: 'fe80::3', zone: 'eth0', port: 7 }, interfaces), [{ host: 'fe80::3', zone: 'eth0', port: 7 }], 'another machine')
  t.same(rememberable({ host: '::1', port: 7 }, interfaces), [{ host: '::1', port: 7 }])
})

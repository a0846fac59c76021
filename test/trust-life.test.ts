import { connect } from 'node:tls'
import t from 'tap'
import { openKit } from '../src/identity/ca-kit.js'
import { signRetirement, signSuccession } from '../src/identity/ca-records.js'
import { createUserCa, issueDevice } from '../src/identity/certificates.js'
import { deviceIdOf, generateKey, privateKeyToPem, spkiOf, userIdOf } from '../src/identity/keys.js'
import { signRevocation } from '../src/identity/revocation.js'
import { Lab, type LabDevice } from '../src/testing.js'

// Years of trust in seconds: every device has real certificates, sockets and mail, and the clock is the lab's.

const DAY = 24 * 60 * 60 * 1000

const endOf = (device: LabDevice): number => device.agent.keystore.identity.notAfter
t.jobs = 4

const connected = (one: LabDevice, other: LabDevice): boolean => one.agent.peers.peer(other.agent.keystore.identity.device)?.link.connected ?? false

void t.test('certificates renew themselves, and nobody notices', { buffered: true }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(laptop, desktop)
  await lab.pair(desktop, friend)
  const before = [laptop, desktop, friend].map(endOf)
  const ids = [laptop, desktop, friend].map(({ device }) => device)
  lab.clock.sleep(200 * DAY)
  await new Promise(resolve => { setTimeout(resolve, 300) })
  t.strictSame([laptop, desktop, friend].map(endOf), before, 'nothing is renewed before two thirds of its life')
  const since = desktop.agent.peers.peer(friend.agent.keystore.identity.device)?.link.since
  lab.clock.sleep(44 * DAY)
  await lab.until('the renewals', () => [laptop, desktop, friend].every((device, at) => endOf(device) > before[at]!))
  t.strictSame([laptop, desktop, friend].map(({ device }) => device), ids, 'the keys stay')
  await lab.connected(desktop, friend)
  t.equal(desktop.agent.peers.peer(friend.agent.keystore.identity.device)?.link.since, since, 'the connection stays')
  // Past the end of the first certificates.
  lab.clock.sleep(130 * DAY)
  await lab.connected(laptop, desktop)
  await lab.connected(desktop, friend)
  t.ok(connected(laptop, desktop))
})

/** Waits as `lab.until` does, without the back-off of links: to push the clock instead would run their handshakes
 * into the time-outs of servers. */
async function patiently (lab: Lab, devices: readonly LabDevice[], what: string, holds: () => boolean): Promise<void> {
  let retried = 0
  await lab.until(what, () => {
    if (holds()) return true
    if (performance.now() - retried > 250) {
      for (const { agent } of devices) for (const { link } of agent.peers.all()) if (!link.connected) link.retry()
      retried = performance.now()
    }
    return false
  })
}

const pause = (milliseconds: number): Promise<void> => new Promise(resolve => { setTimeout(resolve, milliseconds) })
const notices = (device: LabDevice): string => device.agent.status().notices.map(({ text }) => text).join('\n')

/** What a port does with who shows this certificate: an answer's status, or `cut`. */
function knock (device: LabDevice, key: string, cert: string): Promise<string> {
  return new Promise(resolve => {
    const socket = connect({ host: '::1', port: device.address.port, key, cert, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
    let said = ''
    socket.once('secureConnect', () => { socket.write('GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n') })
    socket.on('data', (chunk: Buffer) => { said += chunk.toString() })
    socket.on('error', () => undefined)
    socket.once('close', () => { resolve(/^HTTP\/1.1 (\d+)/.exec(said)?.[1] ?? 'cut') })
  })
}

void t.test('a revocation spreads, and names whom it stops', { buffered: true }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  const tablet = await lab.device({ user: 'u1', name: 'tablet' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  const foe = await lab.device({ user: 'u3', name: 'foe' })
  await lab.pair(laptop, desktop)
  await lab.pair(laptop, friend)
  await lab.pair(desktop, tablet)
  await lab.pair(tablet, friend)
  await lab.pair(desktop, foe)
  await lab.pair(laptop, foe)

  const asked = await desktop.call('revoke', { device: 'foe' })
  t.equal(asked.spread, 'pending', 'without the CA key it is this device\'s word')
  t.ok(asked.connectionsCut > 0, 'and counts here at once')
  t.match(notices(desktop), /foe is revoked here alone/)
  await lab.until('the request at the CA holder', () => /desktop asks to revoke foe/.test(notices(laptop)))
  t.notOk(laptop.agent.revoked.has(foe.device as never), 'a request revokes nobody')
  t.equal((await laptop.call('revoke', { device: 'foe' })).spread, 'done')
  await lab.until('the confirmation', () => notices(desktop) === '' && notices(laptop) === '')

  const lost = tablet.device as never
  await t.rejects(laptop.call('revoke', { device: laptop.device }), { code: 'refused' }, 'not the device one sits at')
  t.equal((await laptop.call('revoke', { device: 'tablet' })).spread, 'done')
  await lab.until('own devices and friends', () => [desktop, friend].every(({ agent }) => agent.revoked.has(lost)))
  await lab.until('the tablet itself', () => tablet.agent.status().stopped !== null)
  t.match(tablet.agent.status(), { stopped: { reason: /revoked/, hint: /renew-key/ }, listen: [], peers: [] })
  await tablet.stop()
  await tablet.start()
  t.match(await tablet.call('status', {}), { stopped: { reason: /revoked/ }, listen: [] }, 'it stays so')
  const was = tablet.device
  const fresh = await tablet.call('renew-key', {})
  t.not(fresh.device, was)
  await tablet.stop()
  await tablet.start()
  t.equal(tablet.device, fresh.device)
  t.equal(tablet.agent.status().stopped, null, 'with a fresh key it serves again, as somebody new')
  t.strictSame([...tablet.agent.book.known.values()].map(({ name }) => name), ['friend'])
})

void t.test('who was away for too long fetches its renewal, for a year', { buffered: true }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  await lab.pair(laptop, desktop)
  await lab.cut(laptop, desktop)
  lab.clock.sleep(400 * DAY)
  await lab.until('the holder renewing itself', () => endOf(laptop) > lab.clock.now())
  t.ok(endOf(desktop) < lab.clock.now())
  t.match(notices(desktop), /certificate of this device has ended/)
  await lab.heal(laptop, desktop)
  t.ok(endOf(desktop) > lab.clock.now(), 'it came back by itself')

  await lab.cut(laptop, desktop)
  // Half a year at a time, so that the holder keeps its own.
  for (let gone = 0; gone < 5; gone++) {
    lab.clock.sleep(150 * DAY)
    await lab.until('the holder renewing itself', () => endOf(laptop) > lab.clock.now() + 100 * DAY)
  }
  const ended = endOf(desktop)
  t.ok(lab.clock.now() - ended > 365 * DAY)
  const relays = [await laptop.relayFrom(desktop), await desktop.relayFrom(laptop)]
  for (const relay of relays) relay.heal()
  for (const device of [laptop, desktop]) for (const { link } of device.agent.peers.all()) link.retry()
  await pause(1500)
  t.equal(endOf(desktop), ended, 'after a year it is too late')
})

void t.test('25 years: renewals, a CA that another one follows, and a thief with the old key', { buffered: true }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab.stop())
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const { kit } = await laptop.call('ca-export', { passphrase: 'correct horse battery' })
  await t.rejects(laptop.call('ca-export', { passphrase: 'correct horse battery' }), { code: 'already-exists' }, 'a second kit would have another recovery key')
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  const tablet = await lab.device({ user: 'u1', name: 'tablet' })
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(laptop, desktop)
  await lab.pair(laptop, friend)
  await lab.pair(desktop, friend)
  const all = [laptop, desktop, friend]
  const began = lab.clock.now()
  const devices = all.map(({ device }) => device)
  let renewals = 0
  const live = async (years: number): Promise<void> => {
    while (lab.clock.now() < began + years * 365.25 * DAY) {
      const before = all.map(endOf)
      lab.clock.sleep(300 * DAY)
      await lab.until('the renewals', () => all.every((device, at) => endOf(device) > before[at]!))
      renewals += all.length
    }
  }
  // The friend's own CA would end with the rest: it is followed too, before anybody's certificate is cut short.
  const friendKit = (await friend.call('ca-export', { passphrase: 'friend horse battery' })).kit
  await t.rejects(laptop.call('trust', { bundle: (await friend.call('identity', {})).bundle.replace(/-----BEGIN PUBLIC KEY-----[^]*$/, (await laptop.call('identity', {})).bundle.match(/-----BEGIN PUBLIC KEY-----[^]*$/)![0]), name: 'friend' }).then(() => friend.call('identity', {})).then(async ({ bundle }) => await laptop.call('trust', { bundle, name: 'friend' })), { code: 'refused' }, 'the first recovery key told stays')
  for (const device of [laptop, desktop]) await device.call('trust', { bundle: (await friend.call('identity', {})).bundle, name: 'friend', newRecoveryKey: true })
  await live(18)
  t.match(notices(laptop), /your user CA ends/, 'a CA that ends soon says so')

  const old = await openKit(kit, 'correct horse battery')
  const oldUser = userIdOf(spkiOf(old.caKey))
  await laptop.call('ca-retire', {})
  await lab.until('the friend learning it', () => /CA of .*laptop.* is retired/.test(notices(friend)) && !connected(friend, laptop))
  await lab.until('own devices learning it', () => desktop.agent.book.grants['own'] === undefined)

  await t.rejects(laptop.call('ca-succeed', { kit, passphrase: 'wrong horse battery' }), { code: 'refused' })
  const next = await laptop.call('ca-succeed', { kit, passphrase: 'correct horse battery', keep: ['desktop'] })
  t.strictSame([next.kept, next.revoked], [[desktop.device], [tablet.device]])
  const found = (): boolean => all.every(one => all.every(other => one === other || connected(one, other))) && [laptop, desktop].every(({ agent }) => agent.keystore.identity.user === next.user)
  await patiently(lab, all, 'everybody finding each other again', found)
  const friends = await friend.call('ca-succeed', { kit: friendKit, passphrase: 'friend horse battery' })
  await patiently(lab, all, 'everybody finding the friend again', () => found() && [laptop, desktop].every(({ agent }) => agent.book.known.get(friend.device as never)?.user === friends.user))
  t.strictSame([laptop, desktop].map(({ agent }) => agent.keystore.identity.user), [next.user, next.user], 'the device that was kept is certified anew')
  t.strictSame(all.map(({ device }) => device), devices, 'with the same keys')
  t.equal(friend.agent.book.known.get(desktop.device as never)?.user, next.user)
  t.notOk(friend.agent.revoked.has(desktop.device as never))
  await lab.until('friends learning what was not kept', () => friend.agent.book.revocations.some(({ device }) => device === tablet.device))
  t.equal(notices(laptop), '')

  await t.test('a thief with the old CA key takes, and gets nothing', async t => {
    const { privateKey } = await generateKey()
    const { privateKey: thiefCaKey } = await generateKey()
    const thiefCa = await createUserCa(thiefCaKey, lab.clock.now())
    const cert = await issueDevice({ ca: old.ca, caKey: old.caKey, spki: spkiOf(privateKey), now: lab.clock.now() })
    for (const device of all) t.equal(await knock(device, privateKeyToPem(privateKey), cert), 'cut', `${device.name} does not let in what the old CA signs`)
    const standing = (device: LabDevice): unknown => { const { state, ca } = device.agent.cas.standing(oldUser); return { state, ca } }
    const forged = signSuccession({ ca: oldUser, recoveryKey: old.caKey, newCa: thiefCa, newCaKey: thiefCaKey, nextRecoveryKey: spkiOf(thiefCaKey), seq: 9, issuedAt: Math.floor(lab.clock.now()) })
    const revocation = signRevocation({ ca: oldUser, device: deviceIdOf(spkiOf(privateKey)), issuedAt: 0, reason: 1 }, old.caKey)
    for (const device of all) {
      const from = device === friend ? desktop : friend
      device.agent.life.received(from.device as never, { statements: [forged, signRetirement(old.caKey, 5)], revocations: [revocation] }, 'admitted', device.agent.book.known.get(from.device as never)!.user)
      await lab.until('the mail being read', () => device.agent.book.revocations.some(one => one.device === deviceIdOf(spkiOf(privateKey))))
      t.strictSame(standing(device), { state: 'good', ca: next.user })
    }
    t.ok(connected(desktop, friend) && connected(laptop, desktop))
  })

  await live(25)
  await patiently(lab, all, 'the connections', () => connected(laptop, desktop) && connected(desktop, friend) && connected(friend, desktop))
  t.comment(`${renewals} renewals`)
})

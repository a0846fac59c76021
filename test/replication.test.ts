import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Lab, type LabDevice } from '../src/testing.js'
import type { DatabaseName, DeviceId } from '../src/core/ids.js'
import { askPeer } from '../src/sync/peer-agent.js'
import type { DatabaseStatus } from '../src/control/operations.js'
import { silentLogger } from '../src/core/log.js'
import { Receiving, type Receiver, type ReceiverListeners } from '../src/agent/receiving.js'

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
  await lab.connected(laptop, desktop)
  const { link } = laptop.agent.peers.peer(desktop.agent.keystore.identity.device)!
  for (const [near, far] of [[laptop, desktop], [desktop, laptop]] as const) (await far.relayFrom(near)).freeze()
  lab.clock.sleep(3_600_000)
  await lab.until('the laptop noticing', () => !link.connected)
  for (const [near, far] of [[laptop, desktop], [desktop, laptop]] as const) (await far.relayFrom(near)).thaw()
  await lab.connected(laptop, desktop)
  t.ok(link.connected)
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

/** A CouchDB that answers what it likes: behind the open port of a device that was paired, and so the whole of a peer
 * that turned. `rows` are announced, `answer` is what `_bulk_get` says whatever was asked. */
async function hostileCouch (t: Test, rows: ReadonlyArray<{ id: string, rev: string }>, answer: readonly object[]): Promise<{ url: string, asked: string[] }> {
  const asked: string[] = []
  const http = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (chunk: string) => { body += chunk }).on('end', () => {
      const { pathname, searchParams } = new URL(request.url!, 'http://x')
      const say = (value: unknown, status = 200): void => { response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value)) }
      if (pathname === '/_all_dbs') return say(['theirs'])
      if (pathname === '/_session') return say({ ok: true, userCtx: { name: 'u', roles: [] } })
      if (pathname.endsWith('/_bulk_get')) {
        asked.push(...(JSON.parse(body) as { docs: Array<{ id: string }> }).docs.map(({ id }) => id))
        return say({ results: answer })
      }
      if (pathname.endsWith('/_changes')) {
        if (searchParams.get('since') === '0') return say({ results: rows.map(({ id, rev }, at) => ({ seq: at + 1, id, changes: [{ rev }] })), last_seq: rows.length, pending: 0 })
        // A long-poll that waits until its client goes.
        if (searchParams.get('feed') !== 'longpoll') say({ results: [], last_seq: rows.length, pending: 0 })
        return
      }
      if (request.method === 'PUT') return say({ ok: true, id: '_local/x', rev: '0-1' }, 201)
      if (pathname.includes('/_local/')) return say({ error: 'not_found', reason: 'missing' }, 404)
      return say({ couchdb: 'Welcome', version: '3.5.0', uuid: 'u', db_name: 'theirs', update_seq: rows.length, doc_count: rows.length, sizes: { file: 0 } })
    })
  }).listen({ host: '::1', port: 0 })
  await once(http, 'listening')
  t.teardown(() => {
    http.closeAllConnections()
    http.close()
  })
  return { url: `http://[::1]:${(http.address() as AddressInfo).port}`, asked }
}

await t.test('a whole hostile device: nothing unasked, no design document and no absurd revision arrives', async t => {
  const hash = (letter: string): string => letter.repeat(32)
  const made = (id: string, rev: string, revisions: object = { start: Number(rev.split('-')[0]), ids: [rev.split('-')[1]] }): object => ({ id, docs: [{ ok: { _id: id, _rev: rev, _revisions: revisions, text: 'hostile' } }] })
  const rows = [
    { id: 'honest', rev: `1-${hash('a')}` }, { id: '_design/evil', rev: `1-${hash('b')}` }, { id: '_local/evil', rev: `1-${hash('b')}` },
    { id: 'switched', rev: `1-${hash('c')}` }, { id: 'empty', rev: `1-${hash('c')}` }, { id: 'short', rev: `3-${hash('c')}` },
  ]
  const { url, asked } = await hostileCouch(t, rows, [
    made('honest', `1-${hash('a')}`), made('_design/evil', `1-${hash('b')}`), made('_local/evil', `1-${hash('b')}`), made('unannounced', `1-${hash('a')}`),
    made('switched', `99999999999-${hash('d')}`), made('switched', `1-${hash('e')}`), made('switched', `1-${hash('c')}`, { start: 1, ids: [hash('f')] }),
    made('precious', `999-${hash('f')}`), made('short', `3-${hash('c')}`, { start: 4, ids: [hash('c')] }),
    { id: 'honest', docs: [{ ok: { _id: 'smuggled', _rev: `1-${hash('a')}` } }, { ok: { _id: 'honest', _rev: `2-${hash('a')}`, _deleted: true } }] },
  ])
  const credentialsFile = join(t.testdir({}), 'login.json')
  await writeFile(credentialsFile, '{"username":"u","password":"p"}', { mode: 0o600 })
  const enemy = await lab.device({ user: 'u3', name: 'enemy', couch: { url, credentialsFile } })
  await lab.pair(laptop, enemy)
  await enemy.call('share', { database: 'theirs', with: 'laptop', write: true })
  await lab.until('the offer', async () => (await laptop.call('shares', {})).shares.some(({ database }) => database === 'theirs'))
  await laptop.call('db-create', { name: 'mine' })
  const { value } = await laptop.db('PUT', '/mine/precious', { text: 'mine' })
  await laptop.call('accept', { peer: 'enemy', database: 'theirs', as: 'mine', merge: true })
  await lab.until('the honest document', () => has(laptop, '/mine/honest'))
  await lab.until('the pull being through', async () => /^(?:in sync|failed)/.test((await received(laptop, 'enemy', 'mine'))!.state))
  const { rows: found } = (await laptop.db('GET', '/mine/_all_docs?conflicts=true&include_docs=true')).value as { rows: Array<{ id: string, value: { rev: string }, doc: { _conflicts?: string[] } }> }
  t.strictSame(found.map(({ id, value: { rev }, doc }) => [id, rev, doc._conflicts]), [['honest', `1-${hash('a')}`, undefined], ['precious', (value as { rev: string }).rev, undefined]])
  for (const id of ['_design/evil', '_local/evil', 'smuggled', 'unannounced']) t.equal((await laptop.db('GET', `/mine/${id}`)).status, 404, id)
  t.notOk(asked.some(id => id.startsWith('_')), 'what must not come in is not even asked for')
  for (const database of await laptop.agent.couch.databases()) t.equal((await laptop.db('GET', `/${database}/_design/evil`)).status, 404, database)
})

await t.test('a pull that fails over and over is retried ever later, one that the cable cut is not', async t => {
  const delays: number[] = []
  let failures = 0
  const waiting: Array<() => void> = []
  const clock = { now: Date.now, monotonic: () => 0, after: (delay: number, task: () => void) => { delays.push(delay); waiting.push(task); return { cancel: () => undefined } } }
  const runs: Array<{ receiver: { -readonly [key in keyof Receiver]: Receiver[key] }, listeners: ReceiverListeners }> = []
  const notes = 'notes' as DatabaseName
  const receiving = new Receiving({
    device: laptop.device as DeviceId, clock, logger: silentLogger(), isConnected: () => true, onFailed: () => { failures += 1 }, conflicts: () => 0, emit: () => undefined, accepted: () => [],
    wanted: () => [{ database: notes, as: notes }], createDatabase: async () => undefined,
    begin: (one, listeners) => {
      const receiver = { as: one.as, state: 'active' as const, lag: 7, rate: 0, problem: 'the connection ended', stop: async () => undefined }
      runs.push({ receiver, listeners })
      return receiver
    },
  })
  const fail = async (how: Partial<Receiver> = {}): Promise<number> => {
    const before = runs.length
    waiting.shift()?.()
    await receiving.reconcile()
    await lab.until('the next one', () => runs.length > before)
    const { receiver, listeners } = runs.at(-1)!
    Object.assign(receiver, { state: 'failed', ...how })
    listeners.onEnd()
    return delays.at(-1)!
  }
  const ever: number[] = []
  for (let at = 0; at < 8; at++) ever.push(await fail())
  t.strictSame(ever, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000])
  t.equal(await fail({ rate: 50 }), 1_000, 'documents came in until it failed')
  for (let at = 0; at < 3; at++) await fail()
  t.equal(await fail({ lag: 0 }), 1_000, 'it was in sync until it failed')
  for (let at = 0; at < 3; at++) await fail()
  waiting.length = 0
  await receiving.lost()
  t.equal(await fail(), 1_000, 'on a connection that is new')
  t.equal(failures, delays.length, 'each asks whether the device is there at all')
  await receiving.stop()
})

import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { chmod, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pino } from 'pino'
import t from 'tap'
import { parseContentId, parseDatabaseName } from '../src/core/ids.js'
import { LEAF_BYTES } from '../src/files/content-id.js'
import { Lab, type LabDevice } from '../src/testing.js'

/** What following on the laptop says of files that it was not given. */
const refusals: Array<{ database: string, id: string }> = []
const logger = pino({ level: 'debug' }, { write: (line: string) => {
  const entry = JSON.parse(line) as { msg: string, lab: string, database: string, id: string }
  if (entry.lab === 'laptop' && entry.msg === 'a file was not fetched') refusals.push(entry)
} })
const lab = await Lab.start({ logger })
t.teardown(() => lab.stop())
const folder = t.testdir({})

async function add (device: LabDevice, bytes: Buffer, to?: string): Promise<string> {
  const path = join(folder, randomBytes(6).toString('hex'))
  await writeFile(path, bytes)
  let id = ''
  await device.call('add', { paths: [path], ...to === undefined ? {} : { to } }, event => { if (event.event === 'added') id = event.id })
  return id
}

const has = (device: LabDevice, id: string): Promise<boolean> => device.agent.store.has(parseContentId(id))
const records = (device: LabDevice, id: string): Promise<string[]> => device.agent.store.records(parseContentId(id))
const file = (id: string, size: number): object => ({ _id: id, type: 'file', size, names: ['x'], contentType: 'application/octet-stream' })
const missing = async (device: LabDevice, of: string): Promise<number> => (await device.call('status', {})).peers.find(({ name }) => name === of)!.files.missing
/** Long enough for a wrong record to be made, were it made: what failed is tried again, several times over. */
async function patience (): Promise<void> {
  for (let turn = 0; turn < 3; turn++) {
    lab.clock.advance(4_000)
    await new Promise(resolve => { setTimeout(resolve, 250) })
  }
}

const laptop = await lab.device({ user: 'u1', name: 'laptop' })
const desktop = await lab.device({ user: 'u1', name: 'desktop' })
const friend = await lab.device({ user: 'u2', name: 'friend' })
await lab.pair(laptop, desktop)
await lab.pair(laptop, friend)

async function share (database: string, write = false): Promise<void> {
  await laptop.call('db-create', { name: database })
  await laptop.call('share', { database, with: 'friend', write })
  await lab.until('the offer', async () => (await friend.call('shares', {})).shares.some(offer => offer.database === database))
  await friend.call('accept', { peer: 'laptop', database })
}

await t.test('own devices fetch everything, with its record; peers what they ask for', async t => {
  await share('album')
  const bytes = [randomBytes(10), randomBytes(2_500_000)]
  const ids = [await add(laptop, bytes[0]!, 'album'), await add(laptop, bytes[1]!, 'album'), await add(laptop, Buffer.alloc(0), 'album')]
  for (const id of ids) await lab.until('the file on the desktop', async () => await has(desktop, id) && (await records(desktop, id)).includes('album'))
  await lab.until('nothing missing', async () => await missing(desktop, 'laptop') === 0)
  await lab.until('the document at the friend', async () => (await friend.db('GET', `/album/${ids[1]}`)).status === 200)
  await patience()
  t.equal(await has(friend, ids[1]!), false, 'on demand is the default for what others share')
  t.equal(await missing(friend, 'laptop'), 0, 'what nobody wants is not missing')
  await friend.call('get', { id: ids[1]!, output: join(folder, 'got') })
  t.strictSame(await records(friend, ids[1]!), ['album'], 'what was fetched from a device of the database is recorded for it')

  t.match(await friend.call('follow', { database: 'album', policy: { fetch: 'up-to', bytes: 1000 } }), { policy: { fetch: 'up-to', bytes: 1000 } })
  await lab.until('the small file at the friend', () => has(friend, ids[0]!))
  const big = await add(laptop, randomBytes(1001), 'album')
  await lab.until('its document', async () => (await friend.db('GET', `/album/${big}`)).status === 200)
  await patience()
  t.equal(await has(friend, big), false)
  await friend.call('follow', { database: 'album', policy: { fetch: 'all' } })
  await lab.until('all files', () => has(friend, big))
})

await t.test('a record goes when the document goes, also while the service is down', async t => {
  const ids = [await add(laptop, randomBytes(20), 'album'), await add(laptop, randomBytes(20), 'album')]
  const remove = async (id: string): Promise<void> => {
    const { value } = await laptop.db('GET', `/album/${id}`)
    t.equal((await laptop.db('DELETE', `/album/${id}?rev=${(value as { _rev: string })._rev}`)).status, 200)
  }
  await lab.until('the record on the desktop', async () => (await records(desktop, ids[0]!)).includes('album'))
  await remove(ids[0]!)
  await lab.until('the record gone on the laptop', async () => (await records(laptop, ids[0]!)).length === 0)
  await lab.until('the record gone on the desktop', async () => (await records(desktop, ids[0]!)).length === 0)
  t.ok(await has(laptop, ids[0]!), 'the file stays')
  t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${ids[0]}` }), { allowed: false, rule: 'file: no record' })
  // A record that was left by a process that died between the two.
  await laptop.agent.store.record(parseContentId(ids[0]!), parseDatabaseName('album'))
  await laptop.stop()
  await laptop.start()
  await lab.until('the left-over record gone', async () => (await records(laptop, ids[0]!)).length === 0)
  t.strictSame(await records(laptop, ids[1]!), ['album'], 'others stay')
  await lab.connected(laptop, friend)
  await lab.connected(laptop, desktop)
})

await t.test('documents gain nothing: written by a peer, planted in its copy, or replicated on', async t => {
  await share('project', true)
  const secrets = [randomBytes(30), randomBytes(3_000_000)]
  const ids = [await add(laptop, secrets[0]!), await add(laptop, secrets[1]!)]
  const other = await add(desktop, randomBytes(40))
  // The friend knows the IDs and plants documents in its own copy, which the laptop pulls, and the desktop from it.
  for (const id of [...ids, other]) t.equal((await friend.db('PUT', `/project/${id}`, file(id, id === ids[1] ? 3_000_000 : id === other ? 40 : 30))).status, 201)
  for (const id of [...ids, other]) {
    await lab.until('the planted document on the laptop', async () => (await laptop.db('GET', `/project/${id}`)).status === 200)
    await lab.until('and on the desktop', async () => (await desktop.db('GET', `/project/${id}`)).status === 200)
  }
  for (const device of [laptop, desktop]) await device.call('follow', { database: 'project', policy: { fetch: 'all' } })
  await lab.until('own devices fetching from each other', async () => await has(laptop, other) && await has(desktop, ids[1]!))
  await patience()
  for (const id of [...ids, other]) {
    t.strictSame(await records(laptop, id), [], 'no record on the laptop')
    t.strictSame(await records(desktop, id), [], 'no record on the desktop')
    await t.rejects(friend.call('get', { id, output: join(folder, 'gained'), from: 'laptop' }), { code: 'not-found' })
    t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${id}` }), { allowed: false })
  }
  // The control: a file that the friend really has gains its record, by being given whole.
  const real = randomBytes(2_000_000)
  const given = await add(friend, real, 'project')
  await lab.until('the friend\'s file and its record', async () => await has(laptop, given) && (await records(laptop, given)).includes('project'))
  // One that is here already is fetched once more, and only then recorded.
  const both = randomBytes(1_500_000)
  const had = await add(laptop, both)
  t.strictSame(await records(laptop, had), [])
  await add(friend, both, 'project')
  await lab.until('the record of what was here already', async () => (await records(laptop, had)).includes('project'))
})

await t.test('others are asked only for what they share', async t => {
  await lab.until('the link', () => laptop.agent.peers.peer(friend.agent.keystore.identity.device)?.link.connected === true)
  const unknown = parseContentId('mcpw4nwsibkykgenlt6xmh2apr6mi2t5h4yuzcbharu53yyv7tiq')
  const sources = await laptop.agent.sources.of(unknown)
  t.strictSame(sources().map(({ device }) => device), [desktop.device], 'own devices for any, others for nothing they did not share')
})

await t.test('a private file of a third party: planted, fetched on two accounts, gone on with, pieced together: nobody gains it', async t => {
  // Everybody may write "common"; the friend and the colleague share nothing with each other. The colleague has files
  // that he shares with the laptop alone, in a database of his own, and the friend has come by their IDs.
  const colleague = await lab.device({ user: 'u3', name: 'colleague' })
  await lab.pair(laptop, colleague)
  await laptop.call('db-create', { name: 'common' })
  for (const [peer, device] of [['friend', friend], ['colleague', colleague]] as const) {
    await laptop.call('share', { database: 'common', with: peer, write: true })
    await lab.until('the offer', async () => (await device.call('shares', {})).shares.some(offer => offer.database === 'common'))
    // By another name, so that names of both sides are told apart.
    await device.call('accept', { peer: 'laptop', database: 'common', as: `of-${peer}` })
  }
  await colleague.call('db-create', { name: 'private' })
  await colleague.call('share', { database: 'private', with: 'laptop' })
  await lab.until('the offer', async () => (await laptop.call('shares', {})).shares.some(offer => offer.database === 'private'))
  await laptop.call('accept', { peer: 'colleague', database: 'private' })

  const gains = async (id: string, why: string, hasSome = false): Promise<void> => {
    t.strictSame((await records(laptop, id)).filter(database => database !== 'private'), [], `${why}: no record`)
    t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${id}` }), { allowed: false }, why)
    t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${id}?database=common` }), { allowed: false }, why)
    if (!hasSome) await t.rejects(friend.call('get', { id, output: join(folder, 'gained'), from: 'laptop', force: true }), { code: 'not-found' }, why)
  }
  const plant = async (id: string, size: number): Promise<void> => {
    t.equal((await friend.db('PUT', `/of-friend/${id}`, file(id, size))).status, 201)
    await lab.until('the planted document', async () => (await laptop.db('GET', `/common/${id}`)).status === 200)
  }
  /** The laptop asked on account of "common", and was given nothing, `times` over. */
  const refused = (id: string, times = 1): Promise<void> => lab.until('the refusal', () => refusals.filter(line => line.database === 'common' && line.id === id).length >= times)
  await laptop.call('follow', { database: 'common', policy: { fetch: 'all' } })

  const small = randomBytes(50)
  const big = randomBytes(2_500_000)
  for (const bytes of [small, big]) {
    const id = await add(colleague, bytes, 'private')
    await lab.until('the private document', async () => (await laptop.db('GET', `/private/${id}`)).status === 200)
    await plant(id, bytes.length)
    await refused(id)
    t.equal(await has(laptop, id), false, 'the colleague does not give it on account of the common database')
    await gains(id, 'planted')
    // A person here may have it all the same, and that makes a record for the private database alone.
    await laptop.call('get', { id, output: join(folder, 'mine'), force: true })
    t.strictSame(await records(laptop, id), ['private'])
    const before = refusals.length
    laptop.agent.following.retry()
    await lab.until('another refusal', () => refusals.slice(before).some(line => line.database === 'common' && line.id === id))
    await gains(id, 'here already, and planted')
  }

  // A friend whose program is not ours has all of a file but its first leaf, and says that it is recorded.
  const mostOf = async (bytes: Buffer): Promise<string> => {
    const id = await add(friend, bytes)
    const path = friend.agent.store.path(parseContentId(id))
    await chmod(path, 0o644)
    await writeFile(path, Buffer.concat([Buffer.alloc(LEAF_BYTES), bytes.subarray(LEAF_BYTES)]))
    await friend.agent.store.record(parseContentId(id), parseDatabaseName('of-friend'))
    await plant(id, bytes.length)
    return id
  }
  const pieces = randomBytes(6 * LEAF_BYTES)
  const id = await add(colleague, pieces, 'private')
  await lab.until('the private document', async () => (await laptop.db('GET', `/private/${id}`)).status === 200)
  await laptop.call('follow', { database: 'private', policy: { fetch: 'all' } })
  await lab.until('the file', async () => (await records(laptop, id)).includes('private'))
  await mostOf(pieces)
  await refused(id)
  await gains(id, 'pieced together from the private account and the friend', true)
  await laptop.call('follow', { database: 'private', policy: { fetch: 'on-demand' } })
  // The friend was caught at a wrong leaf, and that lasts for as long as the service runs.
  const { value } = await friend.db('GET', `/of-friend/${id}`)
  await friend.db('DELETE', `/of-friend/${id}?rev=${(value as { _rev: string })._rev}`)
  await lab.until('the planted document gone', async () => (await laptop.db('GET', `/common/${id}`)).status === 404)
  await laptop.stop()
  await laptop.start()
  for (const device of [friend, colleague]) await lab.connected(laptop, device)

  // A download that began on the private account, and that the friend's bytes would end.
  const half = randomBytes(12 * LEAF_BYTES)
  const halfId = await add(colleague, half, 'private')
  await lab.until('the private document', async () => (await laptop.db('GET', `/private/${halfId}`)).status === 200)
  await lab.slow(laptop, colleague, 2 * LEAF_BYTES)
  await lab.cut(laptop, colleague)
  await lab.heal(laptop, colleague)
  const begun = laptop.call('get', { id: halfId, output: join(folder, 'half') })
  let isOver = false
  begun.catch(() => undefined).finally(() => { isOver = true })
  const state = laptop.agent.store.partialPath(parseContentId(halfId)).replace('.partial', '.bitmap')
  // Leaf 0 tells the size; the next comes from a source at work.
  const written = (): number => existsSync(state) ? readFileSync(state).subarray(40 + 12 * 32, 40 + 12 * 33).filter(leaf => leaf !== 0).length : 0
  await lab.until('its first leaves', () => written() >= 2)
  await lab.cut(laptop, colleague)
  t.ok(written() < 12, 'cut in the middle')
  // The desktop has said that it does not have it, but the colleague may come back: that is waited for.
  await lab.until('the download having waited', () => {
    lab.clock.advance(1_000)
    return isOver
  })
  await t.rejects(begun, { code: 'unreachable' })
  t.equal(await mostOf(half), halfId)
  await refused(halfId)
  t.ok(await has(laptop, halfId), 'the friend gave the rest')
  await gains(halfId, 'begun on the private account', true)

  // The control: what the colleague puts into the common database is given on its account.
  await lab.heal(laptop, colleague)
  const common = await add(colleague, randomBytes(2_000_000), 'of-colleague')
  await lab.until('the common file and its record', async () => (await records(laptop, common)).includes('common'))
  t.match(await laptop.call('explain', { device: 'friend', method: 'GET', path: `/files/${common}?database=common` }), { allowed: true, rule: 'file: account' })
})

import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { Agent } from 'node:https'
import { join } from 'node:path'
import { promisify } from 'node:util'
import nano from 'nano'
import tap, { t } from 'tap'
import { Lab, type LabDevice } from '../src/testing.js'
import { localPouch, pouchAt, type ClientPouch } from './embedded/harness.js'

// What programs that know CouchDB do, over the port or the bridge, against the database of a whole device: the
// embedded one, and the CouchDB that PATCHCORD_TEST_COUCHDB_URL names (`http://admin:password@127.0.0.1:5984`; its
// databases `contract-…` are made and deleted). Where the two differ is in docs/embedded-differences.md.

const GIVEN = process.env['PATCHCORD_TEST_COUCHDB_URL']
const run = promisify(execFile)

interface World {
  readonly lab: Lab
  readonly server: LabDevice
  readonly own: Client
  readonly writer: Client
  readonly reader: Client
  readonly database: string
  readonly kind: 'embedded' | 'couchdb'
}

/** A device as its programs use it: the port by certificate, the bridge by token. */
interface Client {
  readonly device: LabDevice
  readonly agent: Agent
  readonly key: string
  readonly certificate: string
  readonly bridge: string
}

async function world (t: Pick<typeof tap, 'teardown'>, folder: string, given: string | undefined): Promise<World> {
  const lab = await Lab.start()
  const server = await lab.device({ user: 'u1', name: 'server' })
  const database = `contract-${randomBytes(5).toString('hex')}`
  if (given !== undefined) {
    const { username, password, host } = new URL(given)
    await server.call('couch-setup', { url: `http://${host}`, login: { username, password }, allowExposed: true })
    await server.stop()
    await server.start()
  }
  await server.call('db-create', { name: database })
  const devices = { own: await lab.device({ user: 'u1', name: 'own' }), writer: await lab.device({ user: 'u2', name: 'writer' }), reader: await lab.device({ user: 'u3', name: 'reader' }) }
  for (const device of Object.values(devices)) await lab.pair(server, device)
  await server.call('share', { database, with: 'writer', write: true })
  await server.call('share', { database, with: 'reader' })
  t.teardown(async () => {
    for (const { agent } of Object.values(clients)) agent.destroy()
    if (given !== undefined) {
      await server.db('DELETE', `/${database}`)
      await server.call('couch-undo', {})
    }
    await lab.stop()
  })
  const client = async (device: LabDevice): Promise<Client> => {
    const key = join(folder, `${device.name}.key`)
    const certificate = join(folder, `${device.name}.pem`)
    const { keystore } = device.agent
    await writeFile(key, await keystore.deviceKey(), { mode: 0o600 })
    await writeFile(certificate, keystore.identity.deviceCertificate)
    const { url, username, token } = await device.call('bridge', {})
    return {
      device, key, certificate,
      agent: new Agent({ keepAlive: true, key: await keystore.deviceKey(), cert: keystore.identity.deviceCertificate, rejectUnauthorized: false }),
      bridge: `${url.replace('://', `://${username}:${token}@`)}/peer/${server.device}/couch`,
    }
  }
  const clients = { own: await client(devices.own), writer: await client(devices.writer), reader: await client(devices.reader) }
  return { lab, server, database, kind: server.agent.couch.kind, ...clients }
}

/** nano reads the last segment of a URL as a database unless it is told not to; its types do not know. */
const nanoAt = (url: string): nano.ServerScope => nano({ url, parseUrl: false } as nano.Configuration)

/** As an error of nano's says it. */
const status = (statusCode: number): Error => Object.assign(new Error(), { statusCode, message: /./ as unknown as string })

const portOf = ({ server }: World): string => `https://[::1]:${server.address.port}/couch`

interface Revision { id: string, rev: string }
async function revisions (pouch: ClientPouch): Promise<Revision[]> {
  return (await pouch.allDocs()).rows.map(({ id, value: { rev } }) => ({ id, rev })).toSorted((one, other) => one.id < other.id ? -1 : 1)
}

const DOCUMENT = readFileSync(new URL('../../docs/embedded-differences.md', import.meta.url), 'utf8')

/** What the document says, a request that shows it, and the status of either. */
const DIFFERENCES: ReadonlyArray<[said: string, method: string, path: string, body: unknown, embedded: number, couchdb: number]> = [
  ['`_session`', 'GET', '/_session', undefined, 404, 200],
  ['`_compact`', 'POST', '/db/_compact', {}, 404, 202],
  ['`_security`', 'GET', '/db/_security', undefined, 404, 200],
  ['writing design documents', 'POST', '/db/_bulk_docs', { docs: [{ _id: '_design/differs', language: 'query' }] }, 403, 201],
  ['views', 'GET', '/db/_design/differs/_view/v', undefined, 501, 404],
  ['`$regex` in selectors', 'POST', '/db/_find', { selector: { a: { $regex: 'x' } } }, 400, 200],
  ['Mango indexes', 'POST', '/db/_index', { index: { fields: ['a'] } }, 404, 200],
  ['filters of design documents', 'GET', '/db/_changes?filter=differs/f', undefined, 400, 404],
  ['nesting and values of a body', 'PUT', '/db/deep', JSON.parse(`${'{"a":'.repeat(80)}1${'}'.repeat(80)}`), 400, 201],
  ['a member called `__proto__`', 'PUT', '/db/proto', JSON.parse('{"a":{"__proto__":{}}}'), 400, 201],
]

for (const given of [undefined, ...GIVEN === undefined ? [] : [GIVEN]]) {
  await t.test(given === undefined ? 'the embedded database' : 'the CouchDB that was named', async t => {
    const folder = t.testdir({})
    const w = await world(t, folder, given)
    const open = (client: Client): ClientPouch => pouchAt(portOf(w), w.database, { agent: client.agent })
    const fresh = (): ClientPouch => {
      const pouch = localPouch(join(folder, randomBytes(4).toString('hex')))
      t.teardown(() => pouch.close())
      return pouch
    }
    t.equal(w.kind, given === undefined ? 'embedded' : 'couchdb')

    await t.test('PouchDB 9, once in both directions, with attachments, deletions and conflicts', async t => {
      const source = fresh()
      await source.bulkDocs(Array.from({ length: 230 }, (_, n) => ({ _id: `doc-${String(n).padStart(3, '0')}`, n, kind: n % 3 === 0 ? 'third' : 'other', text: 'ä☃'.repeat(n) })))
      const photo = randomBytes(300_001)
      await source.put({ _id: 'with/slash and space', _attachments: { 'a b/c.bin': { content_type: 'application/octet-stream', data: photo.toString('base64') }, 'text.txt': { content_type: 'text/plain', data: Buffer.from('small').toString('base64') } } })
      const gone = await source.put({ _id: 'gone' })
      await source.put({ _id: 'gone', _rev: gone.rev, _deleted: true })
      await source.bulkDocs([{ _id: '_design/view', views: {} }])
      const up = await source.replicate.to(open(w.writer), { batch_size: 50 }).catch((error: unknown) => error as Error)
      // A design document is nobody's to write: the batch that holds it fails, the rest can go by selector.
      t.notOk((await revisions(open(w.own))).some(({ id }) => id.startsWith('_design/')), `no design document went in (${up instanceof Error ? up.message : 'reported per document'})`)
      const again = await source.replicate.to(open(w.writer), { batch_size: 50, selector: { _id: { $gt: 'a' } } })
      t.ok(again.ok)
      const target = fresh()
      const down = await target.replicate.from(open(w.reader), { batch_size: 77 })
      t.equal(down.doc_write_failures, 0)
      t.same(await revisions(target), (await revisions(source)).filter(({ id }) => !id.startsWith('_design/')), 'the same revisions arrive')
      const got = await target.get('with/slash and space', { attachments: true })
      t.ok(Buffer.from(got._attachments['a b/c.bin']!.data, 'base64').equals(photo), 'and the same bytes')
      t.equal((await source.replicate.to(open(w.writer), { batch_size: 50, selector: { _id: { $gt: 'a' } } })).docs_read, 0, 'a second time it goes on from its checkpoint')
      await t.rejects(fresh().replicate.to(open(w.reader)).then(async () => { await open(w.reader).put({ _id: 'x' }) }), 'a reader cannot write')
    })

    await t.test('filters and batch sizes', async t => {
      const ids = ['doc-001', 'doc-100', 'with/slash and space', 'none']
      const some = fresh()
      await some.replicate.from(open(w.reader), { doc_ids: ids })
      t.same((await revisions(some)).map(({ id }) => id), ids.slice(0, 3))
      const third = fresh()
      await third.replicate.from(open(w.reader), { selector: { kind: 'third' } })
      t.equal((await revisions(third)).length, 77)
      for (const batch_size of [1, 1000]) {
        const all = fresh()
        const { ok } = await all.replicate.from(open(w.reader), batch_size === 1 ? { batch_size, doc_ids: ids } : { batch_size })
        t.ok(ok, `batch_size ${batch_size}`)
      }
    })

    await t.test('PouchDB 9, live in both directions', async t => {
      const near = fresh()
      const far = fresh()
      const options = { live: true, retry: true, heartbeat: 2_000 }
      const running = [near.replicate.to(open(w.writer), { ...options, selector: { live: true } }), far.replicate.from(open(w.reader), { ...options, doc_ids: ['live-1', 'live-2'] })]
      t.teardown(() => { for (const replication of running) replication.cancel() })
      for (const id of ['live-1', 'live-2']) {
        await near.put({ _id: id, live: true })
        await w.lab.until(`${id} at the other end`, async () => (await far.get(id).catch(() => undefined))?.['live'] === true)
      }
      for (const replication of running) replication.cancel()
      await Promise.all(running.map(replication => replication.catch(() => undefined)))
      t.pass('both arrived')
    })

    await t.test('nano', async t => {
      const couch = nanoAt(w.own.bridge)
      t.ok((await couch.db.list()).includes(w.database))
      const db = couch.use<{ word?: string, n?: number }>(w.database)
      const { rev } = await db.insert({ word: 'one' }, 'nano-1')
      t.match(await db.get('nano-1'), { word: 'one', _rev: rev })
      await t.rejects(db.insert({ word: 'two' }, 'nano-1'), status(409))
      const bulk = await db.bulk({ docs: [{ _id: 'nano-2', n: 2 }, { _id: 'nano-3', n: 3 }] })
      t.equal(bulk.filter(({ error }) => error === undefined).length, 2)
      t.equal((await db.list({ keys: ['nano-2', 'nano-3'], include_docs: true } as nano.DocumentListParams)).rows.length >= 2, true)
      t.same((await db.fetch({ keys: ['nano-2'] })).rows.map(row => 'doc' in row ? row.doc?.n : undefined), [2])
      t.same((await db.find({ selector: { n: { $gte: 3 } }, fields: ['n'], limit: 5 })).docs.map(({ n }) => n).includes(3), true)
      const attached = await db.attachment.insert('nano-2', 'a.txt', Buffer.from('attached'), 'text/plain', { rev: bulk[0]!.rev! })
      t.equal(String(await db.attachment.get('nano-2', 'a.txt')), 'attached')
      t.ok((await db.changes({ since: 0, limit: 3 })).results.length === 3)
      t.ok((await db.destroy('nano-2', attached.rev)).ok)
      await t.rejects(db.get('nano-2'), status(404))
      await t.rejects(couch.db.create('made-by-nano'), status(404), 'databases are made by their own device')
      await t.rejects(couch.use('_users').list(), status(404))
      await t.rejects(nanoAt(w.reader.bridge).use(w.database).insert({}, 'by-reader'), status(403))
      await t.rejects(nanoAt(w.writer.bridge).use(w.database).find({ selector: {} }), status(403))
    })

    await t.test('curl', async t => {
      const curl = async (client: Client, ...args: string[]): Promise<{ status: number, body: string }> => {
        const { stdout } = await run('curl', ['-sgk', '--max-time', '20', '--key', client.key, '--cert', client.certificate, '-w', '\n%{http_code}', ...args.slice(0, -1), `${portOf(w)}${args.at(-1)!}`])
        const cut = stdout.lastIndexOf('\n')
        return { status: Number(stdout.slice(cut + 1)), body: stdout.slice(0, cut) }
      }
      const json = ['-H', 'Content-Type: application/json']
      t.match(JSON.parse((await curl(w.reader, '/')).body), { couchdb: 'Welcome' })
      t.same(JSON.parse((await curl(w.reader, '/_all_dbs')).body), [w.database])
      t.equal((await curl(w.reader, '-I', `/${w.database}`)).status, 200)
      t.equal((await curl(w.writer, '-X', 'PUT', ...json, '-d', '{"by":"curl"}', `/${w.database}/curl`)).status, 201)
      const { _rev: rev } = JSON.parse((await curl(w.reader, `/${w.database}/curl`)).body) as { _rev: string }
      const file = join(folder, 'up.bin')
      const bytes = randomBytes(100_000)
      await writeFile(file, bytes)
      t.equal((await curl(w.writer, '-X', 'PUT', '-H', 'Content-Type: application/x-test', '--data-binary', `@${file}`, `/${w.database}/curl/up.bin?rev=${rev}`)).status, 201)
      t.equal((await curl(w.reader, '-o', join(folder, 'down.bin'), `/${w.database}/curl/up.bin`)).status, 200)
      t.ok((await readFile(join(folder, 'down.bin'))).equals(bytes))
      const compressed = await curl(w.reader, '--compressed', `/${w.database}/_all_docs?limit=2`)
      t.equal((JSON.parse(compressed.body) as { rows: unknown[] }).rows.length, 2)
      t.equal((await curl(w.reader, '-X', 'POST', ...json, '-d', '{"docs":[]}', `/${w.database}/_bulk_docs`)).status, 403)
      t.equal((await curl(w.writer, '-X', 'COPY', '-H', 'Destination: _design/x', `/${w.database}/curl`)).status, 404)
      t.equal((await curl(w.writer, '-X', 'DELETE', `/${w.database}`)).status, 404)
      t.equal((await curl(w.reader, `/${w.database}x/`)).body, (await curl(w.reader, '/_users')).body, 'absent and not granted are the same')
    })

    if (given !== undefined) {
      await t.test('CouchDB\'s replicator, through the bridge', async t => {
        const local = `${w.database}-pulled`
        t.teardown(() => w.server.db('DELETE', `/${local}`))
        await w.server.db('PUT', `/${local}`)
        const { username, password, host } = new URL(given)
        // The CouchDB replicates from itself, by way of the bridge and the port.
        const target = `http://${username}:${password}@${host}/${local}`
        const replicate = (from: string, to: string): Promise<{ status: number, value: unknown }> => w.server.db('POST', '/_replicate', { source: from, target: to, selector: { _id: { $gt: 'a' } } })
        t.match(await replicate(`${w.reader.bridge}/${w.database}`, target), { status: 200, value: { ok: true } })
        const count = async (name: string): Promise<unknown[]> => ((await w.server.db('GET', `/${name}/_all_docs`)).value as { rows: unknown[] }).rows
        t.same(await count(local), await count(w.database))
        await w.server.db('PUT', `/${local}/from-the-replicator`, { pushed: true })
        t.match(await replicate(target, `${w.writer.bridge}/${w.database}`), { status: 200, value: { ok: true } })
        t.equal((await w.server.db('GET', `/${w.database}/from-the-replicator`)).status, 200)
      })
    }

    await t.test('where the embedded one differs', async t => {
      for (const [said, method, path, body, embedded, couchdb] of DIFFERENCES) {
        t.ok(DOCUMENT.includes(said), `docs/embedded-differences.md says ${said}`)
        t.equal((await w.server.db(method, path.replace('/db', `/${w.database}`), body)).status, w.kind === 'embedded' ? embedded : couchdb, `${method} ${path}`)
      }
    })
  })
}

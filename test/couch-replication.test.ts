import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { CouchClient, type CouchLogin } from '../src/agent/couch-client.js'
import { CouchReplicator } from '../src/agent/couch-replication.js'
import type { Receiver } from '../src/agent/receiving.js'
import { systemClock } from '../src/core/clock.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DatabaseName, DeviceId } from '../src/core/ids.js'
import { silentLogger } from '../src/core/log.js'
import { startBridge, type BridgeToken } from '../src/sync/bridge.js'
import { Lab } from '../src/testing.js'

const SELF = `${'a'.repeat(51)}q` as DeviceId
const PEER = `${'b'.repeat(51)}q` as DeviceId
const WANTED = { database: 'notes' as DatabaseName, as: 'theirs' as DatabaseName }

async function until (what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 30_000
  while (!await holds()) {
    if (performance.now() > deadline) throw new Error(`waited 30 s for ${what}`)
    await new Promise(resolve => { setTimeout(resolve, 20) })
  }
}

interface Asked { readonly method: string, readonly path: string, readonly user: string, readonly body: Record<string, unknown> | undefined }

/** Records what a CouchDB is asked, and keeps `_replicator` documents; it replicates nothing. */
async function recorder (t: Test, roles: readonly string[]): Promise<{ client: CouchClient, asked: Asked[], docs: Map<string, Record<string, unknown>>, scheduled: { state: string, error?: string } }> {
  const asked: Asked[] = []
  const docs = new Map<string, Record<string, unknown>>([[`patchcord-${SELF.slice(0, 12)}-old-notes`, { _rev: '1-a' }], [`patchcord-${PEER.slice(0, 12)}-old-notes`, { _rev: '1-a' }]])
  const scheduled: { state: string, error?: string } = { state: 'running' }
  const http = createServer((request, response) => {
    let text = ''
    request.setEncoding('utf8').on('data', (chunk: string) => { text += chunk }).on('end', () => {
      const { pathname, searchParams } = new URL(request.url!, 'http://x')
      const user = Buffer.from(request.headers.authorization!.slice(6), 'base64').toString().split(':')[0]!
      const body = text === '' ? undefined : JSON.parse(text) as Record<string, unknown>
      asked.push({ method: request.method!, path: pathname, user, body })
      const say = (status: number, value: unknown): void => { response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value)) }
      const id = decodeURIComponent(pathname.split('/').at(-1)!)
      if (pathname === '/_session') return say(200, { userCtx: { name: user, roles } })
      if (pathname === '/_replicator/_all_docs') {
        const [from, to] = ['startkey', 'endkey'].map(name => JSON.parse(searchParams.get(name)!) as string)
        return say(200, { rows: [...docs].filter(([id]) => id >= from! && id <= to!).map(([id, { _rev }]) => ({ id, value: { rev: _rev } })) })
      }
      if (pathname.startsWith('/_scheduler/')) return docs.has(id) ? say(200, { state: scheduled.state, info: { error: scheduled.error ?? null, docs_written: 3, changes_pending: 0 } }) : say(404, {})
      if (request.method === 'GET') return docs.has(id) ? say(200, docs.get(id)) : say(404, {})
      if (request.method === 'DELETE') docs.delete(id)
      else docs.set(id, { ...body, _rev: '1-a' })
      say(201, { ok: true })
    })
  }).listen({ host: '::1', port: 0 })
  await once(http, 'listening')
  const client = new CouchClient(`http://[::1]:${(http.address() as AddressInfo).port}`, { username: 'admin', password: 'pw' })
  t.teardown(() => {
    client.close()
    http.close()
  })
  return { client, asked, docs, scheduled }
}

const login: CouchLogin = { username: 'sync', password: 'limited' }

function replicator (client: CouchClient): { replicator: CouchReplicator, tokens: () => readonly BridgeToken[] } {
  let inForce: readonly BridgeToken[] = []
  return {
    replicator: new CouchReplicator(SELF, { clock: systemClock, logger: silentLogger(), couch: () => client, bridgeUrl: () => 'http://127.0.0.1:5000', setTokens: tokens => { inForce = tokens } }),
    tokens: () => inForce,
  }
}

await t.test('refused: a login that may write design documents, no room, a replication that CouchDB gave up', async t => {
  for (const [what, roles, room, state, message] of [
    ['an administrator', ['_admin'], true, 'failed', /administrator's/],
    ['no room', [], false, 'paused', /no room/],
    ['given up', [], true, 'failed', /it crashed/],
  ] as const) {
    const { client, docs, scheduled } = await recorder(t, roles)
    if (what === 'given up') Object.assign(scheduled, { state: 'crashing', error: 'it crashed' })
    const { replicator: made, tokens } = replicator(client)
    let ended: Receiver | undefined
    const checkRoom = async (): Promise<void> => { if (!room) throw new PatchcordError('disk-full', 'there is no room') }
    const receiver = made.begin(PEER, WANTED, login, checkRoom, { onChange: () => undefined, onEnd: () => { ended = receiver } })
    await until(what, () => ended !== undefined)
    t.equal(ended?.state, state, what)
    t.match(ended?.problem, message, what)
    t.equal([...docs.keys()].filter(id => id.includes('notes')).length, 2, `${what}: no document of it is left`)
    t.strictSame(tokens(), [], `${what}: nor a token`)
  }
})

await t.test('a document while it runs: source the bridge, target with limited rights; left-overs of this device go', async t => {
  const { client, asked, docs } = await recorder(t, ['reader'])
  const { replicator: made, tokens } = replicator(client)
  await made.clear()
  t.strictSame([...docs.keys()].filter(id => id.startsWith('patchcord-')), [`patchcord-${PEER.slice(0, 12)}-old-notes`], 'another device\'s stay')
  const receiver = made.begin(PEER, WANTED, login, async () => undefined, { onChange: () => undefined, onEnd: () => undefined })
  await until('it running', () => receiver.state === 'in sync')
  t.equal(receiver.lag, 0)
  const [token] = tokens()
  t.strictSame(token?.scope, { device: PEER, database: 'notes', mode: 'read' })
  t.match(docs.get(`patchcord-${SELF.slice(0, 12)}-${PEER.slice(0, 12)}-notes`), {
    continuous: true, create_target: false,
    source: { url: `http://127.0.0.1:5000/peer/${PEER}/couch/notes`, auth: { basic: { username: 'patchcord', password: token!.token } } },
    target: { url: `${client.url}/theirs`, auth: { basic: login } },
  })
  t.notOk(asked.some(({ path }) => path.includes(token!.token) || path.includes('limited')), 'no secret in a URL')
  await receiver.stop()
  t.equal(docs.has(`patchcord-${SELF.slice(0, 12)}-${PEER.slice(0, 12)}-notes`), false)
  t.strictSame(tokens(), [])
})

const given = process.env['PATCHCORD_TEST_COUCHDB_URL']
if (given !== undefined) {
  await t.test('a real CouchDB pulls by its own scheduler, through the bridge', async t => {
    const url = new URL(given)
    const admin = new CouchClient(`${url.protocol}//${url.host}`, { username: decodeURIComponent(url.username), password: decodeURIComponent(url.password) })
    const as = `patchcord-test-${randomBytes(6).toString('hex')}` as DatabaseName
    const user = { username: as, password: randomBytes(12).toString('hex') }
    await admin.ask('PUT', '/_users')
    const account = `/_users/org.couchdb.user:${user.username}`
    await admin.ask('PUT', account, { name: user.username, password: user.password, type: 'user', roles: [] })
    await admin.ask('PUT', `/${as}`)
    await admin.ask('PUT', `/${as}/_security`, { admins: { names: [], roles: [] }, members: { names: [user.username], roles: [] } })
    const lab = await Lab.start()
    t.teardown(async () => {
      await lab.stop()
      await admin.ask('DELETE', `/${as}`)
      const { _rev } = (await admin.ask('GET', account)).value as { _rev: string }
      await admin.ask('DELETE', `${account}?rev=${_rev}`)
      admin.close()
    })
    const credentialsFile = join(t.testdir({}), 'login.json')
    await writeFile(credentialsFile, JSON.stringify({ username: decodeURIComponent(url.username), password: decodeURIComponent(url.password) }), { mode: 0o600 })
    const laptop = await lab.device({ user: 'u1', name: 'laptop', couch: { url: admin.url, credentialsFile } })
    const friend = await lab.device({ user: 'u2', name: 'friend' })
    await lab.pair(laptop, friend)
    await friend.call('db-create', { name: 'notes' })
    await friend.call('share', { database: 'notes', with: 'laptop' })
    const docs = (from: number): object => ({ docs: Array.from({ length: 500 }, (_, at) => ({ _id: `doc${from + at}`, _attachments: { note: { content_type: 'text/plain', data: Buffer.from(`note ${from + at}`).toString('base64') } } })) })
    await friend.db('POST', '/notes/_bulk_docs', docs(0))
    const bridge = await startBridge({ port: 0, tokens: [], logger: silentLogger(), peerAgent: id => laptop.agent.peers.peer(id)?.link.agent })
    t.teardown(() => bridge.stop())
    const made = new CouchReplicator(laptop.device as DeviceId, { clock: systemClock, logger: silentLogger(), couch: () => admin, bridgeUrl: () => bridge.url, setTokens: tokens => { bridge.setTokens(tokens) } })
    await made.clear()
    const begin = (): Receiver => {
      const receiver: Receiver = made.begin(friend.device as DeviceId, { database: 'notes' as DatabaseName, as }, user, async () => undefined, { onChange: () => undefined, onEnd: () => { t.fail(receiver.problem ?? 'it ended') } })
      return receiver
    }
    const count = async (): Promise<number> => ((await admin.ask('GET', `/${as}`)).value as { doc_count: number }).doc_count
    const first = begin()
    // Each step towards it has the hang guard's time: a CouchDB on a busy machine takes longer for the whole.
    const settled = async (all: number): Promise<void> => {
      for (let held = -1; held < all;) {
        const before = held
        await until(`more than ${before} of ${all} documents`, async () => (held = await count()) > before)
      }
    }
    await settled(500)
    t.match((await admin.ask('GET', `/${as}/doc7?attachments=true`)).value, { _attachments: { note: { data: Buffer.from('note 7').toString('base64') } } })
    await until('no lag', () => first.state === 'in sync')
    await first.stop()
    await friend.db('POST', '/notes/_bulk_docs', docs(500))
    await new Promise(resolve => { setTimeout(resolve, 2_000) })
    t.equal(await count(), 500, 'nothing comes after it was stopped')
    const second = begin()
    await settled(1_000)
    await second.stop()

    // The same by PouchDB in the agent, into the same CouchDB.
    await laptop.call('accept', { peer: 'friend', database: 'notes', as, merge: true })
    await friend.db('POST', '/notes/_bulk_docs', docs(1_000))
    await settled(1_500)
    await lab.until('no lag', async () => (await laptop.call('status', {})).peers[0]?.databases.find(({ name }) => name === as)?.state === 'in sync')
  })
}

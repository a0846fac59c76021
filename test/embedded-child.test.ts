import { readdir, readFile, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { startEmbedded } from '../src/embedded/front.js'
import { startEmbeddedChild, type EmbeddedChild, type EmbeddedEvent } from '../src/embedded/supervise.js'
import { ACCOUNTS, ask, authorization, openFeed, seeded, temporary } from './embedded/harness.js'
import { fuzzChild } from './fixtures/child-fuzz.js'

async function startChild (t: Test, dir?: string): Promise<{ child: EmbeddedChild, events: EmbeddedEvent[], dir: string, restarted: () => Promise<void> }> {
  const home = dir ?? join(await temporary(t), 'couch')
  const events: EmbeddedEvent[] = []
  let again: () => void = () => undefined
  const child = await startEmbeddedChild({
    dir: home, accounts: ACCOUNTS, listen: { host: '::1', port: 0 },
    onEvent: event => {
      events.push(event)
      if (event.kind === 'restarted') again()
    },
  })
  t.teardown(() => child.stop())
  return { child, events, dir: home, restarted: () => new Promise(resolve => { again = resolve }) }
}

void t.test('a child that is killed is mended at the same address', async t => {
  const { child, events, restarted } = await startChild(t)
  const { url } = child
  const lists: string[][] = []
  child.onDatabases(names => { lists.push(names) })
  await child.createDatabase('notes')
  await t.rejects(child.createDatabase('notes'), { code: 'already-exists' })
  await t.rejects(child.createDatabase('No'), { code: 'usage' })
  t.equal((await ask(url, 'PUT', '/made')).status, 201)
  t.equal((await ask(url, 'PUT', '/notes/doc', { body: { n: 1 } })).status, 201)
  t.same(await child.databases(), ['made', 'notes'])
  t.same(lists, [['notes'], ['made', 'notes']])
  const first = child.pid!
  const feed = await openFeed(url, '/notes/_changes?feed=continuous')
  const mended = restarted()
  process.kill(first, 'SIGKILL')
  t.equal(await feed.ended, false)
  // Asked while there is no process: the socket is the agent's, so it waits instead of being refused.
  const waiting = ask(url, 'GET', '/notes/doc')
  await t.rejects(startEmbedded({ dir: await temporary(t), accounts: [], listen: { host: '::1', port: Number(new URL(url).port) } }), { code: 'port-in-use' }, 'nobody else gets the port in between')
  t.match((await waiting).json, { n: 1 })
  await mended
  t.equal(child.url, url)
  t.not(child.pid, first)
  t.match(events, [{ kind: 'exit', signal: 'SIGKILL' }, { kind: 'restarted', pid: child.pid! }])
  t.same(await child.databases(), ['made', 'notes'])
  await child.deleteDatabase('made')
  t.equal((await ask(url, 'GET', '/made')).status, 404)
})

void t.test('accounts reach the child, and the one that comes after it', async t => {
  const { child, restarted } = await startChild(t)
  await child.createDatabase('notes')
  const feed = await openFeed(child.url, '/notes/_changes?feed=continuous', 'reader')
  await child.setAccounts(ACCOUNTS.filter(({ username }) => username !== 'reader'))
  t.equal(await feed.ended, false)
  t.equal((await ask(child.url, 'GET', '/notes', { as: 'reader' })).status, 401)
  // One that does not answer is killed: what was taken away must not linger in it.
  const mended = restarted()
  process.kill(child.pid!, 'SIGSTOP')
  await child.setAccounts(ACCOUNTS.filter(({ username }) => username !== 'writer'))
  await mended
  t.equal((await ask(child.url, 'GET', '/notes', { as: 'writer' })).status, 401)
  t.equal((await ask(child.url, 'GET', '/notes', { as: 'reader' })).status, 200)
})

void t.test('signals, the end of the agent, and what is left', async t => {
  const { child, events, restarted } = await startChild(t)
  const pid = child.pid!
  process.kill(pid, 'SIGINT')
  t.equal((await ask(child.url, 'GET', '/')).status, 200, 'SIGINT is the agent\'s')
  const mended = restarted()
  process.kill(pid, 'SIGTERM')
  await mended
  t.match(events[0], { kind: 'exit', code: 0, signal: null }, 'SIGTERM is a clean stop')
  const environment = await readFile(`/proc/${child.pid}/environ`, 'utf8')
  t.notMatch(environment, /(?:^|\0)(?:HOME|USER|PATH)=/, 'nothing of our environment is in it')
  const last = child.pid!
  await child.stop()
  t.throws(() => process.kill(last, 0), { code: 'ESRCH' })
  await t.rejects(ask(child.url, 'GET', '/'), { code: 'ECONNREFUSED' })
  await delay(50)
  t.notOk(process.getActiveResourcesInfo().some(name => name.startsWith('TCP') || name === 'ProcessWrap'), 'no listener and no process')
  const path = join(await temporary(t), 'file')
  await writeFile(path, '')
  await t.rejects(startEmbeddedChild({ dir: path, accounts: [], listen: { host: '::1', port: 0 } }), 'a folder that is none is told')
})

void t.test('damage that shows only while reading ends one database, not the process', async t => {
  const { child, events, dir } = await startChild(t)
  for (const name of ['fine', 'torn']) {
    await child.createDatabase(name)
    const docs = Array.from({ length: 300 }, (_, index) => ({ _id: `d${index}`, text: `${index}`.repeat(2000) }))
    for (let round = 0; round < 3; round++) await ask(child.url, 'POST', `/${name}/_bulk_docs`, { body: { docs: docs.map(doc => ({ ...doc, _id: `${round}${doc._id}` })) } })
  }
  const { url } = child
  await child.stop()
  const folder = join(dir, 'torn')
  for (const file of (await readdir(folder)).filter(name => name.endsWith('.ldb') || name.endsWith('.log'))) {
    const bytes = await readFile(join(folder, file))
    await writeFile(join(folder, file), Uint8Array.from(bytes.fill(0x5a, Math.floor(bytes.length / 4), Math.floor(bytes.length / 2))))
  }
  const again = await startChild(t, dir)
  const reads = ['', '/_changes?include_docs=true', '/_all_docs?include_docs=true', '/0d7', '/1d250', '/_changes?since=200&include_docs=true']
  for (const path of reads) {
    const answer = await ask(again.child.url, 'GET', `/torn${path}`).catch((error: unknown) => String(error))
    t.ok(typeof answer === 'string' || [200, 404, 500].includes(answer.status), `/torn${path} is answered or cut: ${typeof answer === 'string' ? answer : answer.status}`)
  }
  t.equal((await ask(again.child.url, 'GET', '/fine/2d299')).status, 200)
  t.same(again.events.concat(events), [], 'no process ended')
  t.not(url, '')
})

// ---- fuzz

const SEED = 20_260_101

void t.test('fuzz: nothing that is asked ends the process (npm run test:fuzz asks for as long as it is told)', async t => {
  const { requests, outliers, statuses } = await fuzzChild(1_000, SEED)
  t.comment(`${requests} requests: ${[...statuses].toSorted(([a], [b]) => a - b).map(([status, count]) => `${count}×${status}`).join(' ')}`)
  t.same(outliers.slice(0, 10), [], 'every answer is one that was meant, and the process never ended')
  t.ok([200, 201, 400, 409].every(status => statuses.has(status)), 'the mutations reach the handlers')
})

void t.test('fuzz: bytes that are not HTTP', async t => {
  const { child, events } = await startChild(t)
  const below = seeded(SEED + 1)
  const head = `PUT /notes/doc HTTP/1.1\r\nHost: [::1]\r\nAuthorization: ${authorization('me')}\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}`
  await Promise.all(Array.from({ length: 150 }, async () => {
    const bytes = Buffer.from(head)
    for (let round = 1 + below(4); round > 0; round--) bytes[below(bytes.length)] = below(256)
    const socket = connect({ host: '::1', port: Number(new URL(child.url).port) })
    socket.on('error', () => undefined)
    socket.end(Uint8Array.from(bytes.subarray(0, below(3) === 0 ? below(bytes.length) : bytes.length)))
    socket.resume()
    await Promise.race([new Promise(resolve => socket.once('close', resolve)), delay(1000).then(() => socket.destroy())])
  }))
  t.equal((await ask(child.url, 'GET', '/')).status, 200)
  t.same(events, [])
})

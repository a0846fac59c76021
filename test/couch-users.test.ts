import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import tap, { t } from 'tap'
import { OWN_ROLE } from '../src/agent/couch-users.js'
import { Lab } from '../src/testing.js'
import { CouchDouble } from './fixtures/couch-double.js'

// Limited credentials in a CouchDB of the person's own: `couch setup`, what shares and revocations make of users and
// members, and `couch undo`. Against the double; what a whole CouchDB does is in clients.test.ts, where one is named.

const ROOT = 'root:of the person'
const login = { username: 'root', password: 'of the person' }
const memberNames = (couch: CouchDouble, database: string): string[] => couch.security.get(database)!.members.names

async function world (t: Pick<typeof tap, 'testdir' | 'teardown'>): Promise<{ lab: Lab, couch: CouchDouble }> {
  const couch = await CouchDouble.start(t.testdir({}))
  const lab = await Lab.start()
  t.teardown(async () => {
    await lab.stop()
    await couch.stop()
  })
  return { lab, couch }
}

await t.test('setup refuses, and changes nothing', async t => {
  const { lab, couch } = await world(t)
  const device = await lab.device({ user: 'u1', name: 'laptop' })
  couch.system.add('_users')
  await couch.ask(ROOT, 'PUT', '/_users/org.couchdb.user:bob', { name: 'bob', type: 'user', roles: [], password: 'b' })
  const folder = t.testdir({})
  const open = join(folder, 'open.json')
  await writeFile(open, JSON.stringify(login), { mode: 0o644 })
  const setup = (args: object): Promise<unknown> => device.call('couch-setup', { url: couch.url, login, ...args })
  const refused = async (code: string, args: object, what: string): Promise<void> => {
    await t.rejects(setup(args), { code }, what)
    t.same([...couch.administrators.keys()].filter(name => name !== 'root'), [], `${what}: no administrator was made`)
    t.same([...couch.system], ['_users'], `${what}: no database was made`)
  }
  await refused('refused', { login: { ...login, password: 'wrong' } }, 'a wrong password')
  await refused('refused', { login: { username: 'bob', password: 'b' } }, 'no administrator')
  await refused('unsafe-mode', { login: { file: open } }, 'a file that others can read')
  await refused('usage', { login: { username: 'a:b', password: 'c' } }, 'a colon')
  await refused('bad-env', { url: 'http://192.0.2.1:5984' }, 'another machine')
  await refused('upstream-down', { url: 'http://127.0.0.1:1' }, 'nobody there')
  couch.bindAddress = '0.0.0.0'
  await refused('refused', {}, 'a CouchDB that listens beyond loopback')
  couch.bindAddress = '127.0.0.1'
  await t.rejects(device.call('couch-undo', {}), { code: 'not-found' })
  couch.isBroken = true
  await t.rejects(setup({}), { code: 'upstream-down' })
})

await t.test('setup, shares, revocation, and undo', async t => {
  const { lab, couch } = await world(t)
  const laptop = await lab.device({ user: 'u1', name: 'laptop' })
  const prefix = `patchcord-${laptop.device.slice(0, 12)}`
  await couch.ask(ROOT, 'PUT', '/everybody')
  await couch.ask(ROOT, 'PUT', '/everybody/_security', { admins: { names: [], roles: [] }, members: { names: [], roles: [] } })
  await couch.ask(ROOT, 'PUT', '/theirs')
  await couch.ask(ROOT, 'PUT', '/theirs/_security', { admins: { names: ['ann'], roles: [] }, members: { names: ['bob'], roles: [] }, kept: { as: 'it is' } })

  const done = await laptop.call('couch-setup', { url: couch.url, login })
  t.same(done, { url: couch.url, administrator: prefix, created: ['database _users', 'database _replicator', 'database _global_changes', `administrator ${prefix}`], closed: [], public: ['everybody'], warnings: [], restart: true })
  t.same((await laptop.call('couch-setup', { url: couch.url, login })).created, [], 'again makes nothing')
  t.equal((await stat(join(laptop.home.root, 'couch-admin.json'))).mode & 0o777, 0o600)
  t.notMatch(await readFile(join(laptop.home.root, 'couch-admin.json'), 'utf8'), /of the person/, 'the person\'s password is kept nowhere')
  await laptop.stop()
  couch.seen.length = 0
  await laptop.start()
  t.match(await laptop.call('status', {}), { couch: { url: couch.url, kind: 'couchdb' } })
  t.notOk(couch.seen.some(({ user }) => user === 'root'), 'the person\'s administrator is not used again')
  t.same(couch.security.get('everybody')!.members, { names: [], roles: [] }, 'a public database stays as it is')
  t.same(couch.security.get('theirs'), { admins: { names: ['ann'], roles: [] }, members: { names: ['bob'], roles: [OWN_ROLE] }, kept: { as: 'it is' } })

  // The program's login: every database, no administration.
  const { username, password } = laptop.couch
  t.equal(username, `${prefix}-me`)
  t.equal((await couch.ask(`${username}:${password}`, 'GET', '/theirs/_all_docs')).status, 200)
  t.equal((await couch.ask(`${username}:${password}`, 'PUT', '/more')).status, 401)

  // A share makes a member of one database, and documents travel.
  const friend = await lab.device({ user: 'u2', name: 'friend' })
  await lab.pair(laptop, friend)
  const grant = `${prefix}-grant-${friend.device}`
  await laptop.call('db-create', { name: 'notes' })
  t.same(couch.security.get('notes')!.members, { names: [], roles: ['_admin', OWN_ROLE] }, 'what is made here is own devices\'')
  await laptop.db('PUT', '/notes/one', { n: 1 })
  await laptop.call('share', { database: 'notes', with: 'friend', write: true })
  t.same(memberNames(couch, 'notes'), [grant, `${prefix}-sync-${friend.device}`])
  t.same(memberNames(couch, 'theirs'), ['bob'])
  await lab.until('the offer', async () => (await friend.call('shares', {})).shares.length > 0)
  await friend.call('accept', { peer: 'laptop', database: 'notes' })
  await lab.until('the document at the friend', async () => (await friend.db('GET', '/notes/one')).status === 200)
  await friend.db('PUT', '/notes/two', { n: 2 })
  await lab.until('the friend\'s document here', async () => (await laptop.db('GET', '/notes/two')).status === 200)
  const asFriend = couch.seen.filter(({ user }) => user === grant)
  t.ok(asFriend.length > 0, 'the friend\'s requests come with a login of their own')
  t.same(asFriend.filter(({ path }) => !path.startsWith('/notes/') && !path.startsWith('/notes?') && path !== '/notes'), [], 'and go to that database alone')
  t.same(couch.seen.filter(({ user, path }) => user === prefix && /^\/notes\/(?:_changes|_bulk_get|_revs_diff|_local)/.test(path) && !path.includes('include_docs=true')).map(({ path }) => path), [], 'nothing of theirs by the administrator')

  // What CouchDB makes and deletes by itself is known at once, without asking every few seconds.
  await couch.ask(ROOT, 'PUT', '/made-elsewhere')
  await lab.until('the new database', async () => (await laptop.call('db-ls', {})).databases.includes('made-elsewhere') && couch.security.get('made-elsewhere')!.members.roles.includes(OWN_ROLE))
  const before = couch.seen.length
  await couch.ask(ROOT, 'DELETE', '/made-elsewhere')
  await lab.until('the database gone', () => !laptop.agent.databases.includes('made-elsewhere' as never))
  t.ok(couch.seen.slice(before).some(({ path }) => path === '/_all_dbs'))

  // A CouchDB that fails does not keep a share alive, and is put in step when it is back.
  couch.isBroken = true
  await laptop.call('unshare', { database: 'notes', with: 'friend' })
  t.same(memberNames(couch, 'notes'), [grant, `${prefix}-sync-${friend.device}`], 'CouchDB did not hear of it')
  couch.isBroken = false
  lab.clock.advance(6_000)
  await lab.until('the membership ending', () => !memberNames(couch, 'notes').includes(grant))

  await laptop.call('revoke', { device: 'friend' })
  await lab.until('the login ending', () => !couch.users.has(grant))

  const undone = await laptop.call('couch-undo', {})
  t.ok(undone.removed.includes(`administrator ${prefix}`))
  t.same([...couch.administrators.keys()], ['root'])
  t.same([...couch.users.keys()], [])
  t.same(couch.security.get('theirs'), { admins: { names: ['ann'], roles: [] }, members: { names: ['bob'], roles: [] }, kept: { as: 'it is' } }, 'as it was')
  t.same(couch.security.get('notes')!.members, { names: [], roles: ['_admin'] }, 'a database that patchcord made does not become everybody\'s')
  t.match((await laptop.call('status', {})).stopped, { reason: /undone/ }, 'it serves no longer')
  await laptop.stop()
  await laptop.start()
  t.match(await laptop.call('status', {}), { couch: { kind: 'embedded' }, stopped: null })
  await t.rejects(laptop.call('couch-undo', {}), { code: 'not-found' })
})

await t.test('an administrator\'s login with --couch is never the server\'s; members of public databases change by word alone', async t => {
  const { lab, couch } = await world(t)
  const credentialsFile = join(t.testdir({}), 'admin.json')
  await writeFile(credentialsFile, JSON.stringify(login), { mode: 0o600 })
  couch.system.add('_users')
  await couch.ask(ROOT, 'PUT', '/only-others')
  await couch.ask(ROOT, 'PUT', '/only-others/_security', { admins: { names: [], roles: [] }, members: { names: [], roles: [] } })
  const laptop = await lab.device({ user: 'u1', name: 'laptop', couch: { url: couch.url, credentialsFile } })
  const desktop = await lab.device({ user: 'u1', name: 'desktop' })
  await lab.pair(laptop, desktop)
  await laptop.call('db-create', { name: 'own' })
  await laptop.db('PUT', '/own/doc', {})
  await lab.until('the document at the own device', async () => (await desktop.db('GET', '/own/doc')).status === 200)
  const prefix = `patchcord-${laptop.device.slice(0, 12)}`
  t.ok(couch.seen.some(({ user, path }) => user === `${prefix}-grant-own` && path.startsWith('/own/_changes')))
  t.notOk(couch.seen.some(({ user, path }) => user === 'root' && path.includes('_bulk_get')))

  // Without `_global_changes` there is no feed: the list is asked for.
  await couch.ask(ROOT, 'PUT', '/later')
  lab.clock.advance(11_000)
  await lab.until('the new database', () => laptop.agent.databases.includes('later' as never))

  const closed = await laptop.call('couch-setup', { login, closePublic: true })
  t.match(closed, { url: couch.url, closed: ['only-others'], public: [] })
  t.same(couch.security.get('only-others')!.members.roles, [OWN_ROLE])
})

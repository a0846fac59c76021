import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { takeLock } from '../src/agent/lock.js'
import { ControlClient } from '../src/control/client.js'
import { answer, isAlive, patchcord, patchcordHere, up, until, type Run, type Service } from './fixtures/processes.js'

const home = t.testdir({})
const at = (name: string): string => join(home, name)

await t.test('bad command lines end with 2, name the thing, and start nothing', async t => {
  const none = at('none')
  for (const [args, said] of [
    [[], /Usage: patchcord/],
    [['frobnicate'], /unknown command 'frobnicate'/],
    [['statsu'], /Did you mean status/],
    [['up', '--frob'], /unknown option '--frob'/],
    [['get', 'x'], /required option '-o, --output/],
    [['trust', '--name', 'x'], /missing required argument 'bundle.pem'/],
    [['up', '--listen', 'nowhere'], /"nowhere" is not an address/],
    [['up', '--listen', '127.0.0.1:0'], /takes an IPv6 address/],
    [['up', '--listen', '[fe80::1]:1'], /names no interface/],
    [['up', '--log-level', 'loud'], /--log-level/],
    [['up', '--couch', 'http://[::1]:1'], /go together/],
    [['up', '--home', at('x'.repeat(120))], /control socket's path has \d+ bytes/],
  ] as const) {
    const run = await (args[0] === 'up' ? patchcord : patchcordHere)([...args, ...(args as readonly string[]).includes('--home') ? [] : ['--home', none]])
    t.equal(run.code, 2, args.join(' '))
    t.match(run.stderr, said)
    t.equal(run.stdout, '', 'stdout is for answers')
  }
  t.notOk(existsSync(none), 'nothing was made')
  t.equal((await patchcord(['--version'])).code, 0)
  for (const command of ['up', 'get', 'device', 'db', 'share', 'explain']) {
    const help = await patchcordHere([command, '--help'])
    t.equal(help.code, 0)
    t.match(help.stdout, /example:\n {2}patchcord /, `${command} --help shows an example`)
  }
})

await t.test('without a service, commands say so and exit with 4', async t => {
  for (const args of [['status'], ['devices'], ['ls'], ['couch'], ['identity']]) {
    const run = await (args[0] === 'status' ? patchcord : patchcordHere)([...args, '--json', '--home', at('none')])
    t.equal(run.code, 4)
    t.match(answer(run), { event: 'failed', code: 'not-running', hint: /patchcord up/ })
  }
  // One that is killed in the middle of an answer.
  mkdirSync(at('cut-off'))
  const killed = createServer((_, response) => { response.write('{"event":"file"', () => { response.destroy() }) }).listen(at('cut-off/control.sock'))
  await once(killed, 'listening')
  t.teardown(() => killed.close())
  const run = await patchcordHere(['ls', '--json', '--home', at('cut-off')])
  t.equal(run.code, 4)
  t.match(answer(run), { event: 'failed', code: 'stopped', hint: /patchcord up/ })
})

await t.test('up ends where its home cannot be made, also where the system denies that the parent is there', { skip: process.platform !== 'linux' && 'NOT TESTED: it takes /proc' }, async t => {
  for (const home of ['/proc/no-such-folder', '/proc/no-such-folder/below']) {
    const run = await patchcord(['up', '--no-discovery', '--home', home])
    t.equal(run.code, 1)
    t.match(run.stderr, /\/proc\/no-such-folder cannot be made: the system takes no new folder in \/proc\n {2}hint: choose another folder/)
  }
})

await t.test('up refuses what it cannot trust or use, and leaves nothing running', async t => {
  const busy = createTcpServer().listen({ host: '::1', port: 0 })
  t.teardown(() => busy.close())
  await until('the busy port', () => busy.listening)
  const credentials = at('credentials')
  writeFileSync(credentials, '{"username":"me","password":"s3cr3t-0"}', { mode: 0o600 })
  const loose = at('loose-credentials')
  writeFileSync(loose, '{"username":"me","password":"s3cr3t-1"}', { mode: 0o644 })
  const broken = at('broken-credentials')
  writeFileSync(broken, '{"username":"me","password":"s3cr3t-2"', { mode: 0o600 })
  const refusing = createServer((_request, response) => { response.writeHead(401, { 'content-type': 'application/json' }).end('{"error":"unauthorized"}') }).listen({ host: '::1', port: 0 })
  const other = createServer((_request, response) => { response.end('<html>hello') }).listen({ host: '::1', port: 0 })
  t.teardown(() => { refusing.close(); other.close() })
  await until('the servers', () => refusing.listening && other.listening)
  const portOf = (server: { address (): unknown }): number => (server.address() as AddressInfo).port

  const fresh = (name: string): string => at(`bad-${name}`)
  const made = async (name: string, spoil: (home: string) => void): Promise<string> => {
    const home = fresh(name)
    const service = await up(home)
    service.child.kill('SIGTERM')
    t.equal(await service.ended, 0)
    spoil(home)
    return home
  }
  const spoilt = at('spoilt')
  const first = await made('spoilt', () => undefined)
  const copy = async (name: string, spoil: (home: string) => void): Promise<string> => {
    const home = `${spoilt}-${name}`
    await promisify(execFile)('cp', ['-a', first, home])
    spoil(home)
    return home
  }
  const rows: Array<[string, string[], number, RegExp]> = [
    ['a port in use', ['--home', fresh('port'), '--listen', `[::1]:${portOf(busy)}`], 1, /port \d+ is in use/],
    ['CouchDB down', ['--home', fresh('down'), '--couch', 'http://[::1]:1', '--couch-credentials-file', credentials], 4, /http:\/\/\[::1\]:1 does not answer: ECONNREFUSED/],
    ['CouchDB refuses', ['--home', fresh('refuse'), '--couch', `http://[::1]:${portOf(refusing)}`, '--couch-credentials-file', credentials], 3, /refuses the user name or password/],
    ['no CouchDB', ['--home', fresh('other'), '--couch', `http://[::1]:${portOf(other)}`, '--couch-credentials-file', credentials], 4, /it is no CouchDB/],
    ['CouchDB elsewhere', ['--home', fresh('far'), '--couch', 'http://192.0.2.1:5984', '--couch-credentials-file', credentials], 2, /not a literal loopback address/],
    ['a login others can read', ['--home', fresh('loose'), '--couch', 'http://[::1]:1', '--couch-credentials-file', loose], 1, /others can read .*loose-credentials/],
    ['a damaged login', ['--home', fresh('broken'), '--couch', 'http://[::1]:1', '--couch-credentials-file', broken], 1, /broken-credentials is not JSON/],
    ['a key others can read', ['--home', await copy('mode', home => { chmodSync(join(home, 'identity/device.key'), 0o640) })], 1, /others can read .*device\.key/],
    ['a damaged key', ['--home', await copy('key', home => { writeFileSync(join(home, 'identity/server.key'), 'no key') })], 1, /server\.key/],
    ['a damaged whitelist', ['--home', await copy('whitelist', home => { writeFileSync(join(home, 'whitelist.json'), '{"version":1,"entries":[{"name":"x"}]}', { mode: 0o600 }) })], 1, /whitelist\.json: entries\.0/],
    ['damaged grants', ['--home', await copy('grants', home => { writeFileSync(join(home, 'grants.json'), '{', { mode: 0o600 }) })], 1, /grants\.json is not JSON/],
    ['missing revocations', ['--home', await copy('revoked', home => { rmSync(join(home, 'revoked.json')) })], 1, /revoked\.json is missing/],
    ['damaged revocations', ['--home', await copy('revoked2', home => { writeFileSync(join(home, 'revoked.json'), '[]', { mode: 0o600 }) })], 1, /revoked\.json/],
    ['damaged settings', ['--home', await copy('settings', home => { writeFileSync(join(home, 'settings.json'), '{"version":7}', { mode: 0o600 }) })], 1, /settings\.json: version/],
  ]
  // Three at once: each is a whole service that starts.
  const left = [...rows]
  const refuse = async ([what, args, code, said]: typeof rows[number]): Promise<void> => {
    const run = await patchcord(['up', '--json', ...args.includes('--listen') ? [] : ['--listen', '[::1]:0'], ...args])
    t.equal(run.code, code, what)
    t.match(run.stderr, said, what)
    t.match(run.stderr, /\n {2}hint: \S/, `${what}: the next step`)
    t.notMatch(run.stdout + run.stderr, /s3cr3t|PRIVATE KEY/, `${what}: no secret`)
    t.notOk(existsSync(join(args[1]!, 'control.sock')), `${what}: no socket is left`)
  }
  await Promise.all([1, 2, 3].map(async () => {
    for (let row = left.shift(); row !== undefined; row = left.shift()) await refuse(row)
  }))
  const again = await up(`${spoilt}-mode`.replace('-mode', '-again')).then(service => service, (error: unknown) => error)
  t.notOk(again instanceof Error, 'a good home still starts')
  if (!(again instanceof Error)) {
    (again as Service).child.kill('SIGTERM')
    await (again as Service).ended
  }
})

await t.test('a service, its files and databases, by command line', async t => {
  const dir = at('one')
  const service = await up(dir, ['--name', 'laptop'])
  t.teardown(() => { service.child.kill('SIGKILL') })
  const run = (...args: string[]): Promise<Run> => patchcordHere([...args, '--home', dir])
  const json = async <Answer>(...args: string[]): Promise<Answer> => answer<Answer>(await run(...args, '--json'))

  t.equal(statSync(dir).mode & 0o777, 0o700)
  for (const name of ['identity/device.key', 'identity/server.key', 'identity/current/ca.key', 'revoked.json', 'settings.json']) t.equal(statSync(join(dir, name)).mode & 0o777, 0o600, name)

  const second = await patchcord(['up', '--json', '--home', dir, '--listen', '[::1]:0'])
  t.equal(second.code, 1)
  t.match(answer(second), { code: 'already-running', error: new RegExp(`process ${service.child.pid}`) })

  const status = await json<{ device: string, name: string, server: { pid: number }, couch: object, peers: [] }>('status')
  t.match(status, { device: service.ready.device, name: 'laptop', couch: { kind: 'embedded', url: service.ready.couch.url }, peers: [] })
  t.match((await patchcord(['status', '--home', dir])).stdout, new RegExp(service.ready.device))

  t.match(await json('db', 'create', 'notes'), { event: 'created', name: 'notes' })
  t.equal((await patchcord(['db', 'create', 'notes', '--home', dir])).code, 1)
  t.match((await run('db', 'create', 'Notes')).stderr, /"Notes" is not a database name/)
  t.equal((await run('db', 'ls')).stdout, 'notes\n')
  const login = await json<{ url: string, username: string, password: string }>('couch')
  const put = await fetch(`${login.url}/notes/a`, { method: 'PUT', body: '{}', headers: { 'content-type': 'application/json', authorization: `Basic ${btoa(`${login.username}:${login.password}`)}` } })
  t.equal(put.status, 201)

  const files = at('files')
  mkdirSync(join(files, 'below'), { recursive: true })
  const big = randomBytes(2_500_000)
  writeFileSync(join(files, 'big.bin'), big)
  writeFileSync(join(files, 'below', 'abc.txt'), 'abc')
  symlinkSync('/etc/passwd', join(files, 'link'))
  const added = await patchcord(['add', '--json', files, '--to', 'notes', '--home', dir])
  t.equal(added.code, 0)
  const events = added.stdout.trim().split('\n').map(line => JSON.parse(line) as { event: string, id: string, size: number, path: string, new: boolean })
  t.match(events.at(-1), { event: 'done', files: 2, bytes: big.length + 3 }, 'a link is not followed')
  const abc = events.find(({ path }) => path?.endsWith('abc.txt'))
  t.match(abc, { event: 'added', id: 'mcpw4nwsibkykgenlt6xmh2apr6mi2t5h4yuzcbharu53yyv7tiq', size: 3, new: true })
  const documents = await (await fetch(`${login.url}/notes/${abc!.id}`, { headers: { authorization: `Basic ${btoa(`${login.username}:${login.password}`)}` } })).json()
  t.match(documents, { _id: abc!.id, type: 'file', size: 3, names: ['abc.txt'] })
  t.match((await run('ls')).stdout, /mcpw4nws\S+ +3 B +notes/)
  const missing = await run('add', join(files, 'nothing'), '--json')
  t.equal(missing.code, 1)
  t.match(missing.stdout + missing.stderr, /nothing does not exist/)
  t.equal((await run('add', join(files, 'big.bin'), '--to', 'nowhere')).code, 1)

  const out = at('out.bin')
  const bigId = events.find(({ path }) => path?.endsWith('big.bin'))!.id
  t.match(await json('get', bigId, '-o', out), { event: 'done', id: bigId, size: big.length, sources: [] })
  t.ok(readFileSync(out).equals(big))
  const refused = await run('get', bigId, '-o', out)
  t.equal(refused.code, 1)
  t.match(refused.stderr, /out\.bin is there already/)
  t.equal((await run('get', bigId, '-o', out, '--force')).code, 0)
  t.match((await run('get', 'not-an-id', '-o', at('x'))).stderr, /"not-an-id" is not a content ID/)
  t.equal((await run('get', bigId.replace(/^./, bigId.startsWith('a') ? 'b' : 'a'), '-o', at('x'))).code, 4, 'nobody to ask')
  t.equal((await run('get', bigId, '-o', at('no/such/folder/x'))).code, 1)
  t.strictSame(readdirSync(home).filter(name => name.includes('.part')), [], 'nothing half-written')

  t.match(await json('explain', 'self', 'GET', '/couch/notes/_changes'), { allowed: true, rule: 'couch: changes' })
  t.match(await json('explain', 'self', 'get', '/couch/../x'), { allowed: false, status: 400, rule: 'dot-segment' })
  t.match(await json('explain', service.ready.device, 'DELETE', '/couch/notes'), { allowed: false, status: 404 })
  t.equal((await run('explain', 'nobody', 'GET', '/')).code, 1)

  const bundle = at('laptop.pem')
  t.equal((await run('identity', '--export', bundle)).code, 0)
  t.match(readFileSync(bundle, 'utf8'), /BEGIN CERTIFICATE/)
  t.equal((await run('identity', '--export', bundle)).code, 1, 'an existing file is not overwritten')
  t.match((await run('trust', bundle, '--name', 'me')).stderr, /your own device/)
  t.equal((await run('trust', bundle, '--name', 'me')).code, 3)
  writeFileSync(at('garbage.pem'), '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n')
  t.equal((await run('trust', at('garbage.pem'), '--name', 'x')).code, 5)
  t.match((await run('revoke', service.ready.device)).stderr, /the device you sit at/)
  t.equal((await run('revoke', 'nobody')).code, 1)
  t.equal((await run('share', 'notes', '--with', 'nobody')).code, 1)
  t.equal((await run('connect', 'nobody', '--at', '[::1]:1')).code, 1)

  // kill -9 of the server: another one runs on the same port, and the service did not end.
  process.kill(status.server.pid, 'SIGKILL')
  await until('another server', async () => {
    const now = await json<{ server: { pid: number | null }, listen: unknown }>('status')
    return now.server.pid !== null && now.server.pid !== status.server.pid
  })
  t.strictSame((await json<{ listen: unknown }>('status')).listen, service.ready.listen)

  const { server: { pid } } = await json<{ server: { pid: number } }>('status')
  service.child.kill('SIGINT')
  t.equal(await service.ended, 130)
  await until('the server to be gone', () => !isAlive(pid))
  t.notOk(existsSync(join(dir, 'lock')))
  for (const line of service.log().split('\n').filter(line => line.startsWith('{'))) JSON.parse(line)
  t.notMatch(service.log(), new RegExp(`${login.password}|PRIVATE KEY`))
})

await t.test('after kill -9 of the agent the next up starts with the same identity, port and data', async t => {
  const dir = at('killed')
  // Two devices at once, neither told a port: one of them may have 4984.
  const [first, other] = await Promise.all([up(dir, [], {}, []), up(at('at-once'), [], {}, [])])
  const { port } = first.ready.listen[0]!
  t.not(other.ready.listen[0]!.port, port, 'the other took a port that was free')
  other.child.kill('SIGTERM')
  t.equal(await other.ended, 0)
  t.equal((await patchcordHere(['db', 'create', 'kept', '--home', dir])).code, 0)
  first.child.kill('SIGKILL')
  await first.ended
  const second = await up(dir, [], {}, [])
  t.teardown(() => { second.child.kill('SIGKILL') })
  t.equal(second.ready.device, first.ready.device)
  t.equal(second.ready.listen[0]!.port, port, 'a port that was taken is kept')
  t.equal(second.ready.couch.url, first.ready.couch.url, 'checkpoints of programs depend on it')
  t.equal((await patchcordHere(['db', 'ls', '--home', dir])).stdout, 'kept\n')
  second.child.kill('SIGTERM')
  t.equal(await second.ended, 0)
})

await t.test('each operation has a connection of its own, so that none meets one that is just being closed', async t => {
  const used = new WeakSet<Socket>()
  const service = createServer((request, response) => {
    if (used.has(request.socket)) {
      request.socket.destroy()
      return
    }
    used.add(request.socket)
    request.resume()
    response.end('{"result":{"answered":true}}\n')
  })
  service.listen(at('own.sock'))
  await once(service, 'listening')
  t.teardown(() => { service.close() })
  const client = new ControlClient(at('own.sock'))
  for (let n = 0; n < 3; n++) t.match(await client.call('status', {}), { answered: true })
})

await t.test('the lock: one holder, given back, and taken over from the dead once', async t => {
  const path = at('a.lock')
  const lock = await takeLock(path)
  t.equal(lock.wasLeftBehind, false)
  await lock.release()
  t.notOk(existsSync(path))
  // A holder that is dead, with a process ID that lives on under another start time.
  writeFileSync(path, `${process.pid} 1 dead\n`)
  const taken = await Promise.allSettled(Array.from({ length: 5 }, () => takeLock(path)))
  t.equal(taken.filter(({ status }) => status === 'fulfilled').length, 1, 'of five that see it dead, one takes it')
  for (const result of taken) if (result.status === 'rejected') t.match(result.reason, { code: 'already-running' })
  for (const result of taken) {
    if (result.status === 'fulfilled') {
      t.ok(result.value.wasLeftBehind)
      await result.value.release()
    }
  }
  t.strictSame(readdirSync(home).filter(name => name.startsWith('a.lock')), [])
})

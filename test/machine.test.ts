import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, symlinkSync, readFileSync, readdirSync, rmSync, utimesSync, writeFileSync, chmodSync, existsSync } from 'node:fs'
import { createServer } from 'node:http'
import { createServer as createTcpServer, type AddressInfo } from 'node:net'
import { setPriority, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import t from 'tap'
import { METRICS } from '../src/agent/metrics.js'
import { systemClock } from '../src/core/clock.js'
import { findHome } from '../src/core/home.js'
import { redactFully, redactLine, redactText } from '../src/core/redact.js'
import { limitAnswer, runningOf } from '../src/machine/answer-limit.js'
import { openChannels } from '../src/machine/channels.js'
import { depthOf } from '../src/machine/check-confinement.js'
import { isHeldTo, isOn } from '../src/machine/confinement.js'
import { CHECK_NAMES, examine, type Check, type Examined } from '../src/machine/doctor.js'
import { openDistribution } from '../src/machine/check-couch.js'
import { execOf, unitText } from '../src/machine/unit.js'
import { permissionFlags } from '../src/machine/launch.js'
import { answer, isAlive, patchcord, patchcordHere, up, until } from './fixtures/processes.js'

const BIN = fileURLToPath(new URL('../src/bin/patchcord.js', import.meta.url))
const SEED = 20_300_107
const top = t.testdir({})
const SERVICE = { pid: null, serverPid: process.pid, listen: [{ host: '::', port: 4984 }], couch: { url: 'http://127.0.0.1:5984', kind: 'couchdb' }, stopped: null, notices: [] } as const

// ---- doctor, on machines that are folders

const LISTEN = (address: string, port: number, uid: number): string => `   0: ${address}:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  ${uid}        0 1 1 0 1 1 1`
const GOOD: Readonly<Record<string, string>> = {
  'sys/class/net/lo/type': '772\n', 'sys/class/net/lo/operstate': 'unknown\n',
  'sys/class/net/eth0/type': '1\n', 'sys/class/net/eth0/operstate': 'up\n',
  'proc/net/if_inet6': '00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000001 02 40 20 80     eth0\n',
  'proc/net/tcp': 'header\n', 'proc/net/tcp6': `header\n${LISTEN('00000000000000000000000000000000', 4984, 1000)}\n`,
}
let machines = 0

/** A machine with these files in the place of the good ones; undefined takes one away. */
function machine (change: Readonly<Record<string, string | undefined>>, more: Partial<Examined> = {}): Examined {
  const root = join(top, `machine${++machines}`)
  for (const [path, text] of Object.entries({ ...GOOD, ...change })) {
    if (text === undefined) continue
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  mkdirSync(join(root, 'home'), { mode: 0o700 })
  return { home: findHome(join(root, 'home'), {}), service: SERVICE, problem: undefined, clock: systemClock, root, ...more }
}

async function check (name: string, examined: Examined): Promise<Check> {
  for await (const found of examine(examined)) if (found.name === name) return found
  throw new Error(`there is no check ${name}`)
}

/** A CouchDB's first answers. */
async function couch (t: { teardown (done: () => unknown): void }, answers: Readonly<Record<string, [status: number, body: string]>>): Promise<Examined['service']> {
  const server = createServer(({ url = '' }, response) => {
    const [status, body] = answers[url] ?? [404, '{}']
    response.writeHead(status).end(body)
  }).listen({ host: '127.0.0.1', port: 0 })
  await once(server, 'listening')
  t.teardown(() => server.close())
  return { ...SERVICE, couch: { kind: 'couchdb', url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` } }
}

await t.test('doctor finds what is wrong, names it, and says what to do', async t => {
  const port = { listen: [{ host: '::', port: 4984 }] }
  const rows: Array<[what: string, name: string, found: RegExp, hint: RegExp, examined: Examined]> = [
    ['no service', 'service', /is not running/, /patchcord up/, machine({}, { service: undefined, problem: 'the service is not running' })],
    ['a service that does not serve', 'service', /was revoked/, /pair it again/, machine({}, { service: { ...SERVICE, stopped: { reason: 'this device was revoked', hint: 'pair it again' } } })],
    ['a server that is down', 'service', /its server does not/, /patchcord logs/, machine({}, { service: { ...SERVICE, serverPid: null } })],
    ['something that waits', 'trust', /two lineages/, /choose/, machine({}, { service: { ...SERVICE, notices: [{ text: 'two lineages', hint: 'choose' }] } })],
    ['no interface', 'link', /no network interface/, /network card/, machine({ 'sys/class/net/eth0/type': undefined, 'sys/class/net/eth0/operstate': undefined })],
    ['no link', 'link', /no interface has a link: eth0/, /cable/, machine({ 'sys/class/net/eth0/operstate': 'down\n' })],
    ['no IPv6', 'link-local', /IPv6 is switched off/, /ipv6\.disable/, machine({ 'proc/net/if_inet6': undefined })],
    ['no link-local address', 'link-local', /eth0 has a link and no fe80::/, /addr_gen_mode|NetworkManager/, machine({ 'proc/net/if_inet6': '' })],
    ['a duplicate address', 'link-local', /no fe80::/, /IPv6/, machine({ 'proc/net/if_inet6': 'fe800000000000000000000000000001 02 40 20 c8     eth0\n' })],
    ['no multicast', 'multicast', /no link to try/, /link/, machine({ 'proc/net/if_inet6': '' })],
    ['nobody listens', 'port', /nothing listens at \[::\]:4984/, /logs/, machine({ 'proc/net/tcp6': 'header\n' }, { service: { ...SERVICE, ...port } })],
    ['ufw keeps the port shut', 'firewall', /ufw is on and does not let port 4984 in/, /ufw allow/, machine({ 'etc/ufw/ufw.conf': 'ENABLED=yes\n', 'etc/ufw/user6.rules': '-A ufw6-user-input -p tcp --dport 22 -j ACCEPT\n' })],
    ['ufw lets it in from one source alone', 'firewall', /does not let/, /ufw allow/, machine({ 'etc/ufw/ufw.conf': 'ENABLED=yes\n', 'etc/ufw/user6.rules': '-A ufw6-user-input -p tcp --dport 4984 -s fd00::1 -j ACCEPT\n' })],
    ['firewalld that cannot be asked', 'firewall', /firewalld is on/, /firewall-cmd/, machine({ 'run/firewalld.pid': '1\n' })],
    ['an admin party', 'couchdb', /admin party/, /\[admins\]/, machine({}, { service: await couch(t, { '/_all_dbs': [200, '[]'], '/_session': [200, '{"userCtx":{"name":null,"roles":["_admin"]}}'] }) })],
    ['databases without a password', 'couchdb', /without a password/, /require_valid_user/, machine({}, { service: await couch(t, { '/_all_dbs': [200, '[]'], '/_session': [200, '{"userCtx":{"name":null,"roles":[]}}'] }) })],
    ['CouchDB down', 'couchdb', /does not answer/, /start it/, machine({}, { service: { ...SERVICE, couch: { kind: 'couchdb', url: 'http://127.0.0.1:1' } } })],
  ]
  const closed = await couch(t, { '/_all_dbs': [401, '{}'] })
  const couchPort = Number(new URL(closed!.couch.url).port)
  rows.push(
    ['CouchDB for everybody', 'couchdb', /open beyond this machine/, /bind_address/, machine({ 'proc/net/tcp': `header\n${LISTEN('00000000', couchPort, 106)}\n` }, { service: closed })],
    ['epmd for everybody', 'couchdb', /distribution is open.* 4369/, /ERL_EPMD_ADDRESS/, machine({ 'proc/net/tcp6': `header\n${LISTEN('00000000000000000000000000000000', 4369, 106)}\n` }, { service: closed })],
    ['epmd at an address that ends in 127', 'couchdb', /distribution is open.* 4369/, /ERL_EPMD_ADDRESS/, machine({ 'proc/net/tcp': `header\n${LISTEN('7F01A8C0', 4369, 106)}\n` }, { service: closed })],
    ['Erlang for everybody', 'couchdb', /distribution is open.* 40001/, /inet_dist_use_interface/, machine({ 'proc/77/comm': 'beam.smp\n', 'proc/net/tcp': `header\n${LISTEN('00000000', 40_001, process.getuid!() || 0)}\n` }, { service: closed })],
  )
  for (const [what, name, found, hint, examined] of rows) {
    // The machine's folders are this user's; root's sockets are not taken for Erlang's.
    if (what === 'Erlang for everybody' && process.getuid!() === 0) continue
    const { ok, detail, hint: next } = await check(name, examined)
    t.equal(ok, false, what)
    t.match(detail, found, what)
    t.match(next, hint, `${what}: what to do`)
  }
  const good = machine({}, { service: closed })
  for (const name of ['link', 'link-local', 'port', 'firewall', 'couchdb', 'clock', 'permissions', 'store', 'node', 'service', 'trust']) t.match(await check(name, good), { ok: true, hint: '' }, `${name}, where nothing is wrong`)
  t.match(await check('firewall', machine({ 'etc/ufw/ufw.conf': 'ENABLED=yes\n', 'etc/ufw/user6.rules': '-A ufw6-user-input -p tcp -m multiport --dports 80,4000:5000 -j ACCEPT\n' })), { ok: true })
  t.match(await check('couchdb', machine({ 'proc/net/tcp': `header\n${LISTEN('0100007F', couchPort, 106)}\n`, 'proc/net/tcp6': `header\n${LISTEN('0000000000000000FFFF00000100007F', 4369, 106)}\n` }, { service: closed })), { ok: true })
})

await t.test('whose port is open beyond this machine, as couch setup asks', t => {
  const mine = process.getuid!()
  const erlang = machine({ 'proc/77/comm': 'beam.smp\n', 'proc/net/tcp': `header\n${LISTEN('00000000', 40_001, mine)}\n` }).root
  t.equal(openDistribution(erlang, [mine]), undefined, 'what this user listens with may be this service')
  t.equal(openDistribution(erlang, []), 40_001)
  t.equal(openDistribution(machine({ 'proc/net/tcp': `header\n${LISTEN('0100007F', 4369, 106)}\n` }).root, []), undefined)
  t.equal(openDistribution(t.testdir({}), []), undefined, 'where there is no /proc nothing is known')
  t.end()
})

await t.test('doctor looks at the state of this device', async t => {
  const examined = (change: (root: string) => void, now = Date.now()): Examined => {
    const made = machine({}, { clock: { ...systemClock, now: () => now } })
    change(made.home.root)
    return made
  }
  const file = (root: string, name: string, mode = 0o600): void => {
    mkdirSync(dirname(join(root, name)), { recursive: true, mode: 0o700 })
    writeFileSync(join(root, name), '{}', { mode })
    chmodSync(join(root, name), mode)
  }
  t.match(await check('permissions', examined(root => { file(root, 'identity/device.key', 0o640) })), { ok: false, detail: /device\.key: others may .* \(mode 640\)/, hint: /chmod/ })
  t.match(await check('permissions', examined(root => { file(root, 'settings.json', 0o604) })), { ok: false, detail: /settings\.json/ })
  t.match(await check('permissions', examined(root => { chmodSync(root, 0o755) })), { ok: false, detail: /mode 755/ })
  t.match(await check('clock', examined(root => {
    file(root, 'settings.json')
    utimesSync(join(root, 'settings.json'), new Date(), new Date(Date.now() + 86_400_000))
  })), { ok: false, detail: /was written on/, hint: /timedatectl/ })
  t.match(await check('store', examined(root => { file(root, 'quarantine/abc'); mkdirSync(join(root, 'files')) })), { ok: false, detail: /1 damaged file was put aside/, hint: /patchcord get/ })
  t.match(await check('certificate', examined(() => undefined)), { ok: false, detail: /no identity yet/ })

  // A real identity, and the days before and after its dates.
  const home = join(top, 'real')
  const service = await up(home)
  const names = answer<{ checks: Check[] }>(await patchcord(['doctor', '--json', '--home', home])).checks
  t.same(names.map(({ name }) => name), CHECK_NAMES)
  for (const one of names) t.ok(one.ok || one.hint !== '', `${one.name}: what fails says what to do`)
  t.match(names.find(({ name }) => name === 'service'), { ok: true })
  t.match(names.find(({ name }) => name === 'confinement'), { detail: isOn() ? /AppArmor/ : /no AppArmor.*no new privileges/ })
  service.child.kill('SIGTERM')
  await service.ended
  const real = (now: number): Examined => ({ ...machine({}, { clock: { ...systemClock, now: () => now } }), home: findHome(home, {}) })
  t.match(await check('certificate', real(Date.now())), { ok: true, detail: /in \d+ days/ })
  t.match(await check('certificate', real(Date.now() + 360 * 86_400_000)), { ok: false, detail: /ends in \d days/, hint: /CA key/ })
  t.match(await check('certificate', real(Date.now() + 400 * 86_400_000)), { ok: false, detail: /ended on/ })
  t.match(await check('clock', real(0)), { ok: false, detail: /its own certificate begins on/ })
  // The port that peers know this device by is another program's now.
  const squatter = createTcpServer().listen({ host: '::', port: 0, ipv6Only: true })
  await once(squatter, 'listening')
  t.teardown(() => squatter.close())
  const settings = JSON.parse(readFileSync(join(home, 'settings.json'), 'utf8')) as object
  const { port } = squatter.address() as AddressInfo
  writeFileSync(join(home, 'settings.json'), JSON.stringify({ ...settings, port }))
  t.match(await check('port', { ...real(Date.now()), service: undefined }), { ok: false, detail: new RegExp(`another program listens at port ${port}`), hint: /ss -ltnp/ })
  // Without a service: exit 1, and each line says what it is.
  const run = await patchcordHere(['doctor', '--home', home])
  t.equal(run.code, 1)
  t.match(run.stdout, /FAIL {2}service: .*\n {8}hint: start it/)
})

// ---- confinement

await t.test('what the kernel says is read as it is', t => {
  for (const [label, held] of [
    ['patchcord-server (enforce)', true], ['patchcord-agent//&patchcord-server (enforce)', true],
    ['patchcord-server (complain)', false], ['unconfined', false], [null, false], ['patchcord-server', false], ['patchcord-server-start (enforce)', false], ['my-patchcord-server (enforce)', false], ['patchcord-server//&other (mixed)', false],
  ] as const) t.equal(isHeldTo(label, 'patchcord-server'), held, String(label))
  t.end()
})

await t.test('a confined child’s pipes: no name is left, and their end is its end', async t => {
  const folder = t.testdir({})
  const channels = openChannels(folder)
  const child = spawn(process.execPath, ['-e', 'process.stdin.on("data", data => process.stdout.write(data)).on("end", () => { process.stderr.write("end"); process.exitCode = 7 })'], { stdio: channels.stdio, env: {} })
  channels.started()
  t.strictSame(readdirSync(folder), [])
  const sent = Buffer.alloc(500_000, 'x')
  const got: Buffer[] = []
  let said = ''
  channels.stdout.on('data', (chunk: Buffer) => { got.push(chunk) })
  channels.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
  channels.stdin.end(sent)
  const [code] = await once(child, 'close') as [number]
  await until('all that it wrote', () => said === 'end' && Buffer.concat(got).length === sent.length)
  t.equal(code, 7)
  t.ok(Buffer.concat(got).equals(sent))
})

await t.test('Node’s permission model holds a server: the same attempts with and without it', async t => {
  const folder = t.testdir({ allowed: { file: 'yes' }, secret: 'no' })
  const script = join(folder, 'allowed', 'attempt.mjs')
  writeFileSync(script, `import * as fs from 'node:fs'; import { spawnSync } from 'node:child_process'; import { Worker } from 'node:worker_threads'
const attempt = task => { try { const { error } = task() ?? {}; if (error) throw error; return 'done' } catch (error) { return error.code } }
console.log(JSON.stringify([() => fs.readFileSync(${JSON.stringify(join(folder, 'allowed/file'))}), () => fs.readFileSync(${JSON.stringify(join(folder, 'secret'))}), () => fs.writeFileSync(${JSON.stringify(join(folder, 'allowed/new'))}, ''), () => spawnSync('true'), () => { new Worker('', { eval: true }) }].map(attempt))); process.exit(0)`)
  const results = async (flags: string[]): Promise<unknown> => {
    // Without the code that tap loads into every process: it is refused as well.
    const child = spawn('env', ['-i', process.execPath, ...flags, script], { stdio: ['ignore', 'pipe', 'pipe'] })
    let [out, said] = ['', '']
    child.stdout.on('data', (chunk: Buffer) => { out += chunk.toString() })
    child.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
    await once(child, 'close')
    t.equal(said, '', 'no warning reaches the person')
    return JSON.parse(out)
  }
  t.strictSame(await results([]), ['done', 'done', 'done', 'done', 'done'])
  rmSync(join(folder, 'allowed/new'))
  const options = process.env['NODE_OPTIONS']
  process.env['NODE_OPTIONS'] = ''
  const flags = permissionFlags([join(folder, 'allowed')])
  process.env['NODE_OPTIONS'] = options
  t.strictSame(await results(flags), ['done', ...Array.from({ length: 4 }, () => 'ERR_ACCESS_DENIED')])

  // The whole service, as a person starts it.
  const home = join(top, 'permission')
  const child = spawn('env', ['-i', process.execPath, BIN, 'up', '--json', '--home', home, '--listen', '[::1]:0', '--no-discovery'], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
  await once(child.stdout, 'data')
  const { server } = answer<{ server: { pid: number } }>(await patchcordHere(['status', '--json', '--home', home]))
  if (!isOn()) t.match(depthOf(server.pid), /permission model.*no new privileges/)
  child.kill('SIGTERM')
  await once(child, 'close')
  t.notMatch(said, /Warning/, 'nor when the service starts')
})

await t.test('from a node_modules that is a link the server starts under the permission model too', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pcml-'))
  t.teardown(() => { rmSync(folder, { recursive: true }) })
  const checkout = fileURLToPath(new URL('../..', import.meta.url))
  for (const part of ['build/src', 'package.json']) cpSync(join(checkout, part), join(folder, part), { recursive: true })
  symlinkSync(join(checkout, 'node_modules'), join(folder, 'node_modules'))
  const child = spawn('env', ['-i', process.execPath, join(folder, 'build/src/bin/patchcord.js'), 'up', '--json', '--home', join(folder, 'h'), '--listen', '[::1]:0', '--no-discovery'], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
  const ended = once(child, 'close')
  const [line] = await Promise.race([once(child.stdout, 'data'), ended]) as [unknown]
  t.match(String(line), /"event":"ready"/, said)
  child.kill('SIGTERM')
  t.strictSame(await ended, [0, null])
})

// ---- the unit

await t.test('the unit starts what was meant, whatever the paths are', t => {
  fc.assert(fc.property(fc.stringMatching(/^\/[^\0\n\r]{1,40}$/), home => {
    const text = unitText({ node: '/opt/node/bin/node', script: '/opt/x/patchcord-agent.js', home, args: [] })
    t.strictSame(execOf(text), ['/opt/x/patchcord-agent.js', '--home', home])
  }), { seed: SEED, numRuns: 200 })
  t.end()
})

await t.test('service: shown, checked, and refused where there is no systemd of this user', async t => {
  const home = t.testdir({})
  const env = { HOME: home, XDG_CONFIG_HOME: join(home, '.config'), XDG_RUNTIME_DIR: join(home, 'none') }
  const shown = await patchcord(['service', 'install', '--dry-run', '--json', '--home', join(home, 'state')], env)
  const { unit, verified, path } = answer<{ unit: string, verified: boolean | null, path: string }>(shown)
  t.equal(shown.code, 0, shown.stderr)
  t.not(verified, false, 'systemd takes it')
  t.match(unit, /NoNewPrivileges=yes/)
  t.notOk(existsSync(path), 'nothing was written')
  t.equal((await patchcord(['service', 'uninstall', '--json'], env)).code, 1, 'what is not there cannot be removed')
  const script = await patchcord(['service', 'apparmor'], env)
  t.match(script.stdout, /cat > \/etc\/apparmor\.d\/patchcord-server <</)
  t.match(script.stdout, /@\{PATCHCORD_CODE\}=\S+/)
  // Longer than a unix socket's path can be: Node 20 and 22 would ask another socket, 24 and 26 throw.
  t.equal((await patchcordHere(['db', 'ls', '--home', join(home, 'x'.repeat(120))], env)).code, 4)
  const firewall = await patchcord(['service', 'firewall', '--home', join(home, 'x'.repeat(120))], env)
  t.equal(firewall.code, 0, firewall.stderr)
  t.match(firewall.stdout, /table inet patchcord/)
})

// ---- the log

await t.test('no secret gets through the log, however it is wrapped', t => {
  const key = '-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\nAgEGCCqGSM49AwEHBG0w\n-----END PRIVATE KEY-----\n'
  const secret = 'hunter2-Correct.Horse'
  const error = new Error(`GET http://me:${secret}@[::1]:5984/ failed`)
  const lines: unknown[] = [
    { password: secret }, { a: { b: { c: { d: { e: { password: secret } } } } } }, { list: [{ Token: secret }] }, { 'x-api-key': secret, privateKey: key },
    { headers: { Authorization: `Basic ${btoa(`me:${secret}`)}`, cookie: `AuthSession=${secret}` } }, { msg: `login with password=${secret}` }, { msg: `{"passphrase":"${secret}"}` },
    { err: { message: error.message, stack: error.stack } }, { [`http://me:${secret}@host/`]: 1 }, { msg: key }, { msg: JSON.stringify(JSON.stringify({ key })) }, { msg: key.slice(0, 50) },
    { credentials: { own: { username: 'me', password: secret } } }, { msg: `Authorization: Bearer ${secret}` }, { url: `HTTP://${secret}@h` }, { env: { identity: { key } } }, { msg: `https://u:a@${secret}@h/x` },
  ]
  for (const line of lines) {
    const clean = redactLine(`${JSON.stringify(line)}\n`)
    t.notMatch(clean, new RegExp(`${secret}|${btoa(`me:${secret}`).slice(0, 12)}|MIGHAg`), clean)
    t.ok(JSON.parse(clean), 'it is a line of JSON still')
  }
  for (const kept of ['request', 'http://[::1]:5984/db', 'the key of the map', '/couch/db/_design/x', 'the password is wrong', 'me@example.org']) t.equal(redactText(kept), kept)
  const plain = { level: 30, device: 'a'.repeat(52), status: 404, decision: 'not granted', problem: 'not-found', code: 'ECONNREFUSED', bytes: 0, signal: null }
  t.strictSame(JSON.parse(redactLine(JSON.stringify(plain))), plain, 'what a log is for is kept')
  // Most lines are only looked at: no line may so escape what the whole work would do to it.
  const part = fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom(secret, 'Bearer ', 'basic abcdef', 'my p12', 'Key', 'apikey', '://a@', 'PIN', 'set-cookie', 'kit', 'passwd=', key, 'file aaaa', 'request'))
  const text = fc.array(part, { maxLength: 3 }).map(parts => parts.join(''))
  fc.assert(fc.property(fc.dictionary(text, fc.oneof(text, fc.dictionary(text, text))), value => {
    const line = `${JSON.stringify(value)}\n`
    t.equal(redactLine(line), redactFully(line))
  }), { seed: SEED, numRuns: 300 })
  const field = fc.constantFrom('password', 'passphrase', 'token', 'secret', 'Authorization', 'cookie', 'serverKey', 'device_key', 'credentials')
  const hidden = fc.stringMatching(/^[A-Z][a-z][0-9][A-Za-z0-9]{12,30}$/)
  fc.assert(fc.property(field, hidden, fc.array(fc.string(), { maxLength: 4 }), (name, value, path) => {
    const line = path.reduce<unknown>((inner, step) => ({ [step]: inner, other: [inner] }), { [name]: value })
    t.notMatch(redactLine(JSON.stringify(line)), value)
  }), { seed: SEED, numRuns: 300 })
  t.end()
})

await t.test('logs, metrics, and what is said when it cannot go on', async t => {
  const home = join(top, 'logs')
  const service = await up(home, ['--log-level', 'debug'])
  const said = await patchcord(['logs', '--json', '--home', home])
  t.match(said.stdout, /the server is ready/)
  for (const line of said.stdout.trim().split('\n')) JSON.parse((JSON.parse(line) as { line: string }).line)
  t.equal((await patchcordHere(['logs', '-n', 'x', '--home', home])).code, 2)
  t.equal((await patchcordHere(['logs', '-n', '1', '--json', '--home', home])).stdout.trim().split('\n').length, 1)
  const { text } = answer<{ text: string }>(await patchcordHere(['metrics', '--json', '--home', home]))
  for (const name of Object.keys(METRICS)) t.match(text, new RegExp(`^# HELP ${name} `, 'm'))
  t.match(text, /^patchcord_server_up 1$/m)
  t.match(text, /^patchcord_process_resident_bytes\{process="server"\} \d{8,}$/m)
  service.child.kill('SIGTERM')
  await service.ended
  t.equal((await patchcordHere(['logs', '--home', home])).code, 4)
})

await t.test('told to end by a signal to all of its processes, it ends in order and calls nothing a fault', async t => {
  const home = join(top, 'group')
  const child = spawn(process.execPath, [BIN, 'up', '--json', '--home', home, '--listen', '[::1]:0', '--no-discovery'], { stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
  await once(child.stdout, 'data')
  t.equal((await patchcordHere(['db', 'create', 'notes', '--home', home])).code, 0)
  process.kill(-child.pid!, 'SIGTERM')
  const [code] = await once(child, 'close')
  t.equal(code, 0)
  t.notMatch(said, /"level":[56]0/)
})

await t.test('what waits for a processor is given time, what hangs is not', async t => {
  const started: ChildProcess[] = []
  t.teardown(() => { for (const child of started) child.kill('SIGKILL') })
  // All on one processor: one that wants it for itself, one that gets the least of it, and two that hang, each in its way.
  const on = (script: string): ChildProcess => {
    const child = spawn('taskset', ['-c', '0', process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    started.push(child)
    return child
  }
  const loop = 'process.stdout.write("on"); setTimeout(() => { for (;;); }, 10)'
  const [starved, stopped] = [on(loop), on('process.stdout.write("on"); setInterval(() => {}, 1000)')]
  for (const child of [starved, stopped]) await once(child.stdout!, 'data')
  stopped.kill('SIGSTOP')
  setPriority(starved.pid!, 19)
  for (let hogs = 0; hogs < 2; hogs++) await once(on(loop).stdout!, 'data')
  const hangs = started.at(-1)!
  const expired: string[] = []
  await new Promise<void>(resolve => {
    const limits = ([['starved', starved], ['stopped', stopped], ['endless', hangs]] as const).map(([name, { pid }]) => limitAnswer(pid, name === 'endless' ? 100 : 400, () => {
      expired.push(name)
      if (expired.length === 2) {
        for (const end of limits) end()
        resolve()
      }
    }))
  })
  t.strictSame(expired.toSorted(), ['endless', 'stopped'], 'the one that got no processor has time left')
  t.ok(runningOf(starved.pid!)!.waited > 0)
  t.equal(runningOf(0x7fffffff), undefined, 'of what is gone nothing is known')
  // And not for good, whatever it waits for.
  await new Promise<void>(resolve => { limitAnswer(starved.pid, 40, resolve) })
  t.pass('after ten times the limit it is over')
})

await t.test('a crash: what to do is said, no secret is, its server ends with it, and nothing is lost', async t => {
  const home = join(top, 'crash')
  const fault = `process.on('SIGUSR2', () => { throw new Error('GET http://me:hunter2-Correct.Horse@[::1]:5984/ failed') })`
  const service = await up(home, [], { NODE_OPTIONS: `--import=data:text/javascript;base64,${btoa(fault)}` })
  t.equal((await patchcordHere(['db', 'create', 'notes', '--home', home])).code, 0)
  const { server } = answer<{ server: { pid: number } }>(await patchcordHere(['status', '--json', '--home', home]))
  service.child.kill('SIGUSR2')
  await service.ended
  t.equal(service.child.signalCode, 'SIGKILL', 'a supervisor sees that it failed')
  t.match(service.log(), /^patchcord: something happened that should not have: GET http:\/\/.*\n {2}hint: .*`patchcord up`.*`patchcord doctor`/m)
  t.notMatch(service.log(), /hunter2/)
  await until('the end of its server', () => !isAlive(server.pid))
  const again = await up(home)
  t.equal((await patchcordHere(['db', 'ls', '--home', home])).stdout, 'notes\n')
  again.child.kill('SIGTERM')
  t.equal(await again.ended, 0)
})

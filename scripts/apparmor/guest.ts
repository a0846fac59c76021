// Runs inside the virtual machine, as root: whole devices under the profiles, then the attempts. Each finding is a line
// `PATCHCORD {"ok","what"}` on the console.
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { ControlClient } from '../../src/control/client.js'
import { openChannels } from '../../src/machine/channels.js'
import { confinementOf } from '../../src/machine/confinement.js'
import type { Attempts } from './attempts.js'

const CODE = '/usr/lib/patchcord'
const USER = { uid: 1000, gid: 1000 }
const ENV = { HOME: '/home/u', PATH: '/usr/bin:/bin', LANG: 'C' }
const HOMES = ['/home/u/.local/share/patchcord', '/home/u/desktop'] as const
const TROUBLE = 60_000

const say = (ok: boolean, what: string): void => { process.stdout.write(`PATCHCORD ${JSON.stringify({ ok, what })}\n`) }
const kernelLog = (): string[] => execFileSync('/bin/busybox', ['dmesg'], { encoding: 'utf8', maxBuffer: 64 << 20 }).split('\n')
const denials = (): string[] => kernelLog().filter(line => /apparmor="DENIED"/.test(line)).map(line => line.replace(/^.*?(apparmor=)/, '$1'))
/** What the agents said, for who looks for the cause of a failure. */
const heard: string[] = []
let seen = 0
/** The denials since the last call. */
const newDenials = (): string[] => {
  const all = denials()
  const fresh = all.slice(seen)
  seen = all.length
  return fresh
}
async function until (what: string, holds: () => unknown): Promise<void> {
  const deadline = performance.now() + TROUBLE
  while (!await holds()) {
    if (performance.now() > deadline) throw new Error(`waited ${TROUBLE / 1000} s for ${what}; refused were ${denials().slice(-10).join('\n')}`)
    await sleep(100)
  }
}

interface Device { readonly home: string, readonly child: ChildProcess, readonly client: ControlClient, readonly port: number, readonly device: string }

/** Starts the agent by its path, as the unit does. */
async function up (home: string, name: string): Promise<Device> {
  const child = spawn(`${CODE}/build/src/bin/patchcord-agent.js`, ['--json', '--home', home, '--listen', '[::1]:0', '--no-discovery', '--name', name], { ...USER, env: ENV, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString()
    heard.push(`${name}: ${chunk.toString()}`)
  })
  const ready = await new Promise<{ device: string, listen: Array<{ port: number }> }>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', line => {
      const event = JSON.parse(line) as { event: string, device: string, listen: Array<{ port: number }> }
      if (event.event === 'ready') resolve(event)
    })
    child.once('exit', code => { reject(new Error(`${name} ended with ${code}: ${said}; refused were ${denials().slice(-10).join('\n')}`)) })
  })
  return { home, child, client: new ControlClient(`${home}/control.sock`), port: ready.listen[0]!.port, device: ready.device }
}

/** The real service under the profiles: databases, files, updates and shutdown, with no denial. */
async function work (): Promise<void> {
  const laptop = await up(HOMES[0], 'laptop')
  const desktop = await up(HOMES[1], 'desktop')
  for (const { client, child } of [laptop, desktop]) {
    const { server } = await client.call('status', {})
    say(server.confined === 'patchcord-server (enforce)', `status says what holds the server: ${server.confined}`)
    say(confinementOf(child.pid!) === 'patchcord-agent (enforce)', `the agent is held to ${confinementOf(child.pid!)}`)
  }
  const children = fs.readdirSync('/proc').filter(name => /^\d+$/.test(name)).map(pid => [confinementOf(Number(pid)), pid])
  say(children.filter(([label]) => label === 'patchcord-database (enforce)').length === 2, 'the databases are held to their profile')

  const { bundle } = await laptop.client.call('identity', {})
  const { bundle: other } = await desktop.client.call('identity', {})
  await laptop.client.call('db-create', { name: 'notes' })
  await laptop.client.call('trust', { bundle: other, name: 'desktop', share: ['notes:read'] })
  await desktop.client.call('trust', { bundle, name: 'laptop', at: `[::1]:${laptop.port}` })
  await until('the share', async () => (await desktop.client.call('shares', {})).shares.length > 0)
  await desktop.client.call('accept', { peer: 'laptop', database: 'notes' })
  const { url, username, password } = await laptop.client.call('couch', {})
  const authorization = `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  await fetch(`${url}/notes/a`, { method: 'PUT', body: '{"text":"hello"}', headers: { authorization, 'content-type': 'application/json' } })
  const login = await desktop.client.call('couch', {})
  await until('the document', async () => (await fetch(`${login.url}/notes/a`, { headers: { authorization: `Basic ${Buffer.from(`${login.username}:${login.password}`).toString('base64')}` } })).status === 200)
  say(true, 'couch: a document went from one confined server to the other device')

  const ids: string[] = []
  const since = performance.now()
  await laptop.client.call('add', { paths: ['/home/u/big.bin'], to: 'notes' }, event => { if (event.event === 'added') ids.push(event.id) })
  // A device of somebody else may have the file because it is recorded for the database that was shared.
  // The emulated machine is slow enough for the agent to take its server for dead now and then: the link comes back.
  await until('the file', async () => {
    try {
      await desktop.client.call('get', { id: ids[0]!, output: '/home/u/copy.bin', force: true })
      return true
    } catch (error) {
      if (performance.now() - since > TROUBLE) throw error
      return false
    }
  })
  say(fs.readFileSync('/home/u/copy.bin').equals(fs.readFileSync('/home/u/big.bin')), 'files: a file of several leaves went the same way')

  await until('a connection', async () => (await desktop.client.call('status', {})).peers.some(({ connected }) => connected))
  const { connectionsCut } = await laptop.client.call('revoke', { device: 'desktop' })
  // A server that does not answer the update in time is replaced by one that begins with it: then none was cut.
  await until('the end of the connection', async () => (await desktop.client.call('status', {})).peers.every(({ connected }) => !connected))
  say(true, `updates: a revocation ended every connection (${connectionsCut} were cut)`)
  for (const device of [laptop, desktop]) {
    const { server } = await device.client.call('status', {})
    device.child.kill('SIGTERM')
    const [code] = await once(device.child, 'exit') as [number | null]
    say(code === 0, `shutdown: the agent ended with ${code}`)
    say(!fs.existsSync(`/proc/${server.pid}`), 'shutdown: its server is gone')
  }
  const refused = newDenials()
  say(refused.length === 0, `no denial in the kernel log while all of this worked${refused.length === 0 ? '' : `:\n${refused.join('\n')}`}`)
}

/** Runs the attempts in the server: started by its path, or by hand and so unconfined. */
async function attempt (isByPath: boolean): Promise<Attempts> {
  const script = `${CODE}/build/src/bin/patchcord-server.js`
  const [command, args]: [string, string[]] = isByPath ? [script, []] : ['/usr/bin/node', [script]]
  const channels = openChannels(HOMES[0])
  const child = spawn(command, args, { ...USER, env: ENV, stdio: channels.stdio })
  channels.started()
  let said = ''
  channels.stderr.on('data', (chunk: Buffer) => { said += chunk.toString() })
  await new Promise(resolve => { channels.stderr.once('close', resolve) })
  child.unref()
  const line = said.split('\n').find(text => text.startsWith('{'))
  if (line === undefined) throw new Error(`the attempts said nothing but ${said}; refused were ${denials().slice(-5).join('\n')}`)
  return JSON.parse(line) as Attempts
}

const BUS = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><policy context="default"><allow user="*"/><allow send_destination="*"/><allow own="*"/></policy></busconfig>
`
const REFUSED = new Set(['EACCES', 'EPERM', 'ERR_DLOPEN_FAILED'])
/** What a server is for: not refused. */
const ALLOWED = new Set(['ask a CouchDB at 127.0.0.1'])
const undone = (results: Attempts): string[] => Object.entries(results).filter(([name, result]) => !ALLOWED.has(name) && !REFUSED.has(result)).map(([name, result]) => `${name}: ${result}`)

async function attack (): Promise<void> {
  const agent = spawn('/bin/busybox', ['sleep', '600'], { ...USER, env: ENV, stdio: 'ignore' })
  const couch = createServer((_, response) => { response.end('{}') }).listen({ host: '127.0.0.1', port: 0 })
  await once(couch, 'listening')
  const folder = fs.readdirSync(`${HOMES[0]}/files`).find(name => name.length === 2)!
  const stored = `${HOMES[0]}/files/${folder}/${fs.readdirSync(`${HOMES[0]}/files/${folder}`)[0]!}`
  const addon = execFileSync('/bin/busybox', ['find', `${CODE}/node_modules`, '-name', 'node.napi.glibc.node', '-path', '*linux-x64*'], { encoding: 'utf8' }).split('\n')[0]!
  fs.writeFileSync(`${CODE}/build/src/attempts.json`, JSON.stringify({ agent: agent.pid, stored, addon, couchPort: (couch.address() as AddressInfo).port, control: `${HOMES[0]}/control.sock`, bus: '/run/dbus/system_bus_socket' }))
  fs.writeFileSync(`${CODE}/build/src/target.txt`, '')
  for (const path of [stored, `${CODE}/build/src/target.txt`]) fs.chmodSync(path, 0o666)
  fs.copyFileSync(`${CODE}/build/scripts/apparmor/attempts.js`, `${CODE}/build/src/attempts.js`)
  const runs = `${CODE}/build/src/server/run.js`
  fs.writeFileSync(runs, `import '../attempts.js'\n${fs.readFileSync(runs, 'utf8')}`)
  fs.writeFileSync('/tmp/bus.conf', BUS)
  // Whether the control socket refuses is only known where there is one, and a D-Bus where there is one.
  const control = spawn('/usr/bin/node', ['-e', `require('net').createServer().listen('${HOMES[0]}/control.sock')`], { ...USER, env: ENV, stdio: 'ignore' })
  const bus = spawn('/usr/bin/dbus-daemon', ['--config-file=/tmp/bus.conf', '--nofork', '--nopidfile'], { stdio: 'inherit' })
  await until('D-Bus and a control socket', () => fs.existsSync('/run/dbus/system_bus_socket') && fs.existsSync(`${HOMES[0]}/control.sock`))

  const free = await attempt(false)
  for (const [name, result] of Object.entries(free)) say(result === 'done', `unconfined: ${name}: ${result}`)
  say(newDenials().length === 0, 'unconfined: nothing was refused')
  const held = await attempt(true)
  for (const [name, result] of Object.entries(held)) say(ALLOWED.has(name) ? result === 'done' : REFUSED.has(result), `confined: ${name}: ${result}`)
  const refused = newDenials()
  say(refused.length >= Object.keys(held).length / 2 && refused.every(line => line.includes('profile="patchcord-server"')), `confined: the kernel log names the profile in ${refused.length} denials`)

  for (const [rule, name] of [['owner @{HOME}/.ssh/* r,', 'read an SSH key'], ['network unix stream,', 'listen on an abstract socket'], ['/{,usr/}bin/busybox mrix,', 'execute a shell']] as const) {
    loosen(rule)
    const loose = undone(await attempt(true))
    say(loose.some(text => text.startsWith(`${name}:`)), `loosened by \`${rule}\` this test fails: ${loose.join(', ') || 'it does not'}`)
  }
  loosen('')
  say(undone(await attempt(true)).length === 0, 'with the rules as they were it passes again')
  for (const child of [agent, control, bus]) child.kill('SIGKILL')
}

function loosen (rule: string): void {
  fs.writeFileSync('/etc/apparmor.d/local/patchcord-server', `${rule}\n`)
  execFileSync('/sbin/apparmor_parser', ['-r', '-K', '/etc/apparmor.d/patchcord-server'])
}

for (const part of [work, attack]) {
  try {
    await part()
  } catch (error) {
    say(false, `${(error as Error).stack ?? String(error)}\nrefused were ${newDenials().join('\n')}\nthe agents said ${heard.slice(-30).join('')}`)
  }
}
process.stdout.write('PATCHCORD-END\n')
// What was started and still runs ends with the machine.
process.exit(0)

// Runs inside the virtual machine, as root, started by a real systemd: the unit as `patchcord service install` writes it,
// under a real `systemd --user` of an ordinary user, without AppArmor's profiles first and then with them. Each finding is a
// line `PATCHCORD {"ok","what"}` on the console.
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { confinementOf } from '../../src/machine/confinement.js'
import type { Attempts } from './attempts.js'

const CODE = '/usr/lib/patchcord'
const CLI = `${CODE}/build/src/bin/patchcord.js`
const STATE = '/home/u/.local/share/patchcord'
const RUNTIME = '/run/user/1000'
const DROP_INS = '/etc/systemd/user/patchcord.service.d'
const TROUBLE = 400_000
const ENV = { HOME: '/home/u', PATH: '/usr/bin:/bin', LANG: 'C', XDG_RUNTIME_DIR: RUNTIME, DBUS_SESSION_BUS_ADDRESS: `unix:path=${RUNTIME}/bus` }
/** What the unit's sandbox refuses to code in the server by itself: the system is read-only, other programs' secrets are out
 * of reach, and the memory of processes outside it is not there. All else is for AppArmor or Node's permission model. */
const UNIT_REFUSES = ['read an SSH key', 'read the agent\'s memory', 'read the agent\'s environment', 'write into the code']

const say = (ok: boolean, what: string): void => { process.stdout.write(`PATCHCORD ${JSON.stringify({ ok, what })}\n`) }
/** What a command said: `json` is stdout alone. */
interface Ran { readonly code: number | null, readonly text: string, readonly json: string }
const run = (command: string, ...args: string[]): Ran => {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', timeout: TROUBLE, maxBuffer: 64 << 20 })
  return { code: status, text: `${stdout}${stderr}`, json: stdout }
}
const asUser = (...words: string[]): Ran => run('/usr/bin/setpriv', '--reuid=1000', '--regid=1000', '--clear-groups', '/usr/bin/env', '-i', ...Object.entries(ENV).map(([name, value]) => `${name}=${value}`), ...words)
const patchcord = (...args: string[]): Ran => asUser('/usr/bin/node', CLI, ...args)
const user = (...args: string[]): Ran => asUser('/bin/systemctl', '--user', ...args)
const property = (name: string): string => user('show', 'patchcord.service', '--value', `--property=${name}`).text.trim()
const journal = (): string => run('/bin/journalctl', '--no-pager', '--output=cat', '_SYSTEMD_USER_UNIT=patchcord.service').text
const denials = (): string[] => run('/bin/busybox', 'dmesg').text.split('\n').filter(line => /apparmor="DENIED"/.test(line) && !/label not found/.test(line))
async function until (what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + TROUBLE
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`waited ${TROUBLE / 1000} s for ${what}`)
    await sleep(500)
  }
}
const status = (): { server: { pid: number, confined: string | null }, device: string } => JSON.parse(patchcord('status', '--json').json) as never
const parentOf = (pid: string): string | undefined => {
  try {
    return /^PPid:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  } catch {
    return undefined
  }
}
const childrenOf = (pid: string): string[] => fs.readdirSync('/proc').filter(name => /^\d+$/.test(name) && parentOf(name) === pid)

/** Installed, ready, held. */
function installed (): void {
  // An emulated machine is slow.
  fs.mkdirSync(DROP_INS, { recursive: true })
  fs.writeFileSync(`${DROP_INS}/slow.conf`, '[Service]\nTimeoutStartSec=600\n')
  const install = patchcord('service', 'install')
  say(install.code === 0, `service install: ${install.text.trim().split('\n').join(' / ')}`)
  say(property('ActiveState') === 'active' && property('Type') === 'notify', `systemd was told that it is ready: ${property('ActiveState')}, ${property('SubState')}`)
  const { server } = status()
  const agent = property('MainPID')
  const family = [agent, ...childrenOf(agent)]
  say(family.length >= 3 && family.includes(String(server.pid)), `agent, server and database run: ${family.join(', ')}`)
  for (const pid of family) {
    const text = fs.readFileSync(`/proc/${pid}/status`, 'utf8')
    say(/^NoNewPrivs:\s*1$/m.test(text) && /^Seccomp:\s*2$/m.test(text) && /^CapBnd:\s*0+$/m.test(text), `process ${pid}: no new privileges, a filter of system calls, no capability`)
  }
  say(/FAIL +confinement: AppArmor is on, and the server is unconfined; what holds it: Node's permission model .*no new privileges, a filter/.test(patchcord('doctor').text), 'doctor says what holds the server, and that AppArmor does not')
}

/** Killed, it is started again. */
async function killed (): Promise<void> {
  user('start', 'patchcord.service')
  const { device } = status()
  const agent = property('MainPID')
  const family = [agent, ...childrenOf(agent)]
  process.kill(Number(agent), 'SIGKILL')
  await until('another agent', () => property('ActiveState') === 'active' && property('MainPID') !== agent)
  const restarts = property('NRestarts')
  say(restarts === '1' && status().device === device, `killed with kill -9 it is started again, as the same device (${restarts} restart)${restarts === '1' ? '' : `\n${journal()}`}`)
  say(family.every(pid => parentOf(pid) === undefined), 'nothing of the one that was killed is left')
}

/** The watchdog, the log, and an end in order. */
async function watched (): Promise<void> {
  fs.writeFileSync(`${DROP_INS}/watchdog.conf`, '[Service]\nWatchdogSec=20\nTimeoutAbortSec=5\n')
  user('daemon-reload')
  user('restart', 'patchcord.service')
  const second = property('MainPID')
  await sleep(45_000)
  say(property('MainPID') === second, 'for longer than twice its time the watchdog finds it alive')
  process.kill(Number(second), 'SIGSTOP')
  await until('the watchdog', () => property('ActiveState') === 'active' && property('MainPID') !== second)
  say(journal().length > 0 && /[Ww]atchdog/.test(run('/bin/journalctl', '--no-pager', '--output=cat').text), 'a service that stands still is ended by the watchdog and started again')
  fs.rmSync(`${DROP_INS}/watchdog.conf`)
  user('daemon-reload')

  const heard = patchcord('service', 'logs', '-n', '50')
  say(heard.code === 0 && heard.text.includes('patchcord is running'), `service logs: ${heard.text.trim().split('\n').length} lines of the journal`)
  say(patchcord('logs').code === 0, 'logs: those of the running service')

  const before = journal().length
  user('stop', 'patchcord.service')
  const said = journal().slice(before)
  say(property('Result') === 'success' && !/"level":(50|60)/.test(said), `stopped, it ends in order: ${property('Result')}${/.*"level":(50|60).*/.exec(said)?.[0] ?? ''}`)
}

/** Code in the server, held by the unit alone: by the very unit, whose command is the server in place of the agent. */
async function attack (): Promise<void> {
  // A process of its own: this one stands still while it waits for another.
  const couch = spawn('/usr/bin/node', ['-e', 'require("http").createServer((_, response) => { response.end("{}") }).listen(0, "127.0.0.1", function () { console.log(this.address().port) })'], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [couchPort] = await once(couch.stdout, 'data') as [Buffer]
  user('start', 'patchcord.service')
  const adding = patchcord('add', '--json', '/home/u/letter.txt')
  if (adding.code !== 0) throw new Error(adding.text)
  const added = JSON.parse(adding.json.split('\n')[0]!) as { id: string }
  const stored = `${STATE}/files/${added.id.slice(0, 2)}/${added.id.slice(2)}`
  const agent = Number(property('MainPID'))
  const addon = run('/bin/busybox', 'find', `${CODE}/node_modules`, '-name', 'node.napi.glibc.node', '-path', '*linux-x64*').text.split('\n')[0]!
  const runs = `${CODE}/build/src/server/run.js`
  const unharmed = fs.readFileSync(runs, 'utf8')
  fs.copyFileSync(`${CODE}/build/scripts/apparmor/attempts.js`, `${CODE}/build/src/attempts.js`)
  fs.writeFileSync(`${CODE}/build/src/attempts.json`, JSON.stringify({ agent, stored, addon, couchPort: Number(couchPort.toString()), control: `${RUNTIME}/patchcord/control.sock`, bus: `${RUNTIME}/bus` }))
  fs.writeFileSync(`${CODE}/build/src/target.txt`, '')
  for (const path of [stored, `${CODE}/build/src/target.txt`]) fs.chmodSync(path, 0o666)
  fs.mkdirSync(`${STATE}/couch`, { recursive: true })
  fs.writeFileSync(`${STATE}/whitelist.json`, '{"version":1,"entries":[]}', { mode: 0o600 })
  fs.chownSync(`${STATE}/whitelist.json`, 1000, 1000)
  fs.writeFileSync(`${STATE}/couch/secret.json`, '{}')
  fs.chownSync(`${STATE}/couch/secret.json`, 1000, 1000)
  fs.writeFileSync(runs, `import '../attempts.js'\n${unharmed}`)

  const script = `${CODE}/build/src/bin/patchcord-server.js`
  const free = JSON.parse(asUser('/usr/bin/node', script).text.split('\n').find(text => text.startsWith('{'))!) as Attempts
  for (const [name, result] of Object.entries(free)) if (result !== 'done') say(false, `without the unit: ${name}: ${result}`)
  say(true, `without the unit ${Object.values(free).filter(result => result === 'done').length} attempts succeed`)
  const unit = fs.readFileSync('/home/u/.config/systemd/user/patchcord.service', 'utf8')
  const hostile = unit.replace(/^ExecStart=.*$/m, `ExecStart=/usr/bin/node ${script}`).replace(/^Type=.*$/m, 'Type=oneshot').replace(/^RuntimeDirectory.*\n/gm, '').replace(/^Restart=.*$/m, 'Restart=no').replace(/^WatchdogSec=.*$/m, '').replace('[Service]', '[Service]\nStandardError=append:/home/u/attempts.txt')
  fs.writeFileSync('/home/u/.config/systemd/user/hostile.service', hostile)
  user('daemon-reload')
  const started = user('start', 'hostile.service')
  if (started.code !== 0) say(false, `the hostile server did not start: ${started.text}${run('/bin/journalctl', '--no-pager', '--output=cat', '--lines=20').text}`)
  const held = JSON.parse(fs.readFileSync('/home/u/attempts.txt', 'utf8').split('\n').find(text => text.startsWith('{'))!) as Attempts
  for (const [name, result] of Object.entries(held)) say((result !== 'done') === UNIT_REFUSES.includes(name), `held by the unit alone: ${name}: ${result}`)
  fs.rmSync('/home/u/.config/systemd/user/hostile.service')
  fs.writeFileSync(runs, unharmed)
  user('daemon-reload')
  user('stop', 'patchcord.service')
  couch.kill()
}

/** The profiles and the unit together. */
async function confined (): Promise<void> {
  // For this test alone it can be made to hang.
  fs.writeFileSync('/etc/apparmor.d/local/patchcord-server', 'signal (receive) set=(stop) peer=unconfined,\n')
  const loaded = run('/sbin/apparmor_parser', '-K', '-r', ...fs.readdirSync('/etc/apparmor.d').filter(name => name.startsWith('patchcord-')).map(name => `/etc/apparmor.d/${name}`))
  say(loaded.code === 0, `the profiles are loaded ${loaded.text}`)
  const before = denials().length
  const started = user('start', 'patchcord.service')
  say(started.code === 0, `the unit starts with the profiles ${started.text}`)
  const { server } = status()
  const agent = property('MainPID')
  say(confinementOf(Number(agent)) === 'patchcord-agent (enforce)', `the agent is held to ${confinementOf(Number(agent))}`)
  const held = confinementOf(server.pid)
  say(/patchcord-server/.test(held ?? '') && /enforce/.test(held ?? ''), `the server is held to ${held}`)
  say(/ok +confinement: .*AppArmor/.test(patchcord('doctor').text), 'doctor says so')
  say(patchcord('db', 'create', 'notes').code === 0 && patchcord('db', 'ls').json === 'notes\n', 'it works')
  process.kill(server.pid, 'SIGKILL')
  await until('another server', () => ![server.pid, null].includes(status().server.pid))
  const again = confinementOf(status().server.pid)
  say(again === held, `a server that was killed is started again, held to ${again}`)
  // One that hangs is killed by the agent, which the profiles must let it do.
  const hung = status().server.pid
  process.kill(hung, 'SIGSTOP')
  say(patchcord('db', 'create', 'more').code === 0 && ![hung, null].includes(status().server.pid), 'a server that hangs is replaced')
  const fresh = denials().slice(before)
  say(fresh.length === 0, `nothing was denied${fresh.map(line => `\n${line}`).join('')}`)
  const removed = patchcord('service', 'uninstall')
  say(removed.code === 0 && property('ActiveState') === 'inactive' && !fs.existsSync('/home/u/.config/systemd/user/patchcord.service'), `service uninstall: ${removed.text.trim()}`)
  say(fs.existsSync(`${STATE}/settings.json`), 'state stays')
}

run('/bin/systemctl', 'start', 'user@1000.service')
const parts: ReadonlyArray<() => void | Promise<void>> = [installed, attack, killed, watched, confined]
for (const part of parts) {
  try {
    await part()
  } catch (error) {
    say(false, `${(error as Error).stack ?? String(error)}\n${user('status', '--no-pager', 'patchcord.service').text}\n${journal().split('\n').slice(-30).join('\n')}`)
  }
}
process.stdout.write('PATCHCORD-END\n')
process.exit(0)

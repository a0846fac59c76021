// What somebody tries who executes code of their own in the server. The test puts it into the server's own code, in
// the virtual machine; it runs when the server is loaded and writes one line on stderr.
import { execFileSync } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { Agent } from 'node:http'
import { connect, createServer, type Server } from 'node:net'
import { Readable } from 'node:stream'
import type { sendUpstream } from '../../src/couch/quiet-http-proxy.js'

export type Attempts = Record<string, string>

const HOME = '/home/u'
const DEVICE = `${HOME}/.local/share/patchcord`
const { agent, stored, addon, couchPort, control, bus } = JSON.parse(fs.readFileSync('/usr/lib/patchcord/build/src/attempts.json', 'utf8')) as { agent: number, stored: string, addon: string, couchPort: number, control: string, bus: string }

const listening = async (server: Server, where: object): Promise<void> => {
  server.listen(where)
  await once(server, 'listening')
  server.close()
}
const datagrams = async (type: 'udp4' | 'udp6'): Promise<void> => {
  const socket = createSocket(type)
  socket.bind(0)
  await once(socket, 'listening')
  socket.close()
}
const talk = async (path: string): Promise<void> => {
  const socket = connect({ path })
  await once(socket, 'connect')
  socket.destroy()
}
/** As the server does it, with its own code. */
const askCouch = async (): Promise<void> => {
  const proxy = await import('/usr/lib/patchcord/build/src/couch/quiet-http-proxy.js' as string) as { sendUpstream: typeof sendUpstream }
  await new Promise<void>((resolve, reject) => {
    proxy.sendUpstream({ host: '127.0.0.1', port: couchPort }, { method: 'GET', path: '/', headers: { host: '127.0.0.1' } }, { body: Readable.from([]), agent: new Agent() }, {
      answered: () => undefined, data: () => undefined, caughtUp: () => undefined,
      ended: resolve,
      failed: reject,
    })
  })
}
const write = (path: string): void => { fs.writeFileSync(path, 'x', { flag: 'a' }) }

// A child is started without pipes: Node's are unix sockets, and that they are refused proves nothing about exec.
const ATTEMPTS: Readonly<Record<string, () => unknown>> = {
  'read the device key': () => fs.readFileSync(`${DEVICE}/identity/device.key`),
  'read the CA key': () => fs.readFileSync(`${DEVICE}/identity/current/ca.key`),
  'read the whitelist': () => fs.readFileSync(`${DEVICE}/whitelist.json`),
  'read the database': () => fs.readFileSync(`${DEVICE}/couch/secret.json`),
  'read an SSH key': () => fs.readFileSync(`${HOME}/.ssh/id_ed25519`),
  'read a document of this home': () => fs.readFileSync(`${HOME}/letter.txt`),
  'read another home': () => fs.readFileSync('/home/v/letter.txt'),
  'list the home': () => fs.readdirSync(HOME),
  'read /etc/passwd': () => fs.readFileSync('/etc/passwd'),
  'read the agent\'s environment': () => fs.readFileSync(`/proc/${agent}/environ`),
  'read the agent\'s memory': () => fs.closeSync(fs.openSync(`/proc/${agent}/mem`, 'r')),
  'write into the home': () => { write(`${HOME}/.bashrc`) },
  'write into /tmp': () => { write('/tmp/dropped') },
  'write into /dev/shm': () => { write('/dev/shm/dropped') },
  'write into the store': () => { write(stored) },
  'write into the code': () => { write('/usr/lib/patchcord/build/src/target.txt') },
  'make a pipe\'s folder anew': () => { fs.mkdirSync(`${DEVICE}/.pipes-${process.pid}`) },
  'make a folder': () => fs.mkdirSync(`${DEVICE}/files/new-${process.pid}`),
  'make a hard link to a key': () => fs.linkSync(`${DEVICE}/identity/device.key`, `${DEVICE}/files/link-${process.pid}`),
  'make a symbolic link': () => fs.symlinkSync('/etc/passwd', `${DEVICE}/files/link2-${process.pid}`),
  'change a mode': () => fs.chmodSync(stored, 0o600),
  'execute a shell': () => execFileSync('/bin/busybox', ['sh', '-c', 'true'], { stdio: 'ignore' }),
  'execute Node': () => execFileSync(process.execPath, ['--version'], { stdio: 'ignore' }),
  'load a native addon': () => { process.dlopen({ exports: {} } as unknown as NodeJS.Module, addon) },
  'talk to D-Bus': () => talk(bus),
  'talk to the control socket': () => talk(control),
  'listen on a unix socket': () => listening(createServer(), { path: `/tmp/${process.pid}.sock` }),
  'listen on an abstract socket': () => listening(createServer(), { path: `\0patchcord-${process.pid}` }),
  'listen on TCP over IPv4': () => listening(createServer(), { host: '127.0.0.1', port: 0 }),
  'listen on UDP over IPv6': () => datagrams('udp6'),
  'listen on UDP over IPv4': () => datagrams('udp4'),
  'signal the agent': () => process.kill(agent, 'SIGCONT'),
  'ask a CouchDB at 127.0.0.1': askCouch,
}

const results: Attempts = {}
for (const [name, attempt] of Object.entries(ATTEMPTS)) {
  try {
    await attempt()
    results[name] = 'done'
  } catch (error) {
    results[name] = (error as NodeJS.ErrnoException).code ?? String(error)
  }
}
fs.writeSync(2, `${JSON.stringify(results)}\n`)
process.exit(0)

// What serving files costs, against nginx (Debian: apt install nginx-light) with the same key, cipher and client: the
// contestant on core 0, curl on core 1, alternating. Then memory for each connection, and importing against
// `openssl dgst`. `npm run build && node build/scripts/measure-serving.js [rounds]`. Exits 1 where a floor is missed.
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect, type TLSSocket } from 'node:tls'
import { parseContentId } from '../src/core/ids.js'
import { Node } from '../test/fixtures/fault-world.js'
import { patchcord } from '../test/fixtures/processes.js'
import { median, mibPerSecond, writeMaterial } from './bench/material.js'
import { nginxServer, patchcordServer, type FileServer } from './bench/serving.js'

const ROUNDS = Number(process.argv[2] ?? 5)
const BYTES = 1_073_741_824
const AT_ONCE = 64
const EACH = 33_554_432
const IDLE = 500
const CIPHER = 'TLS_AES_256_GCM_SHA384'
const SERVER_CORE = 0
const CLIENT_CORE = Math.min(1, availableParallelism() - 1)

const folder = mkdtempSync(join(tmpdir(), 'pcm-'))
let missed = 0
const judge = (ratio: number, floor: number): string => {
  if (!(ratio >= floor)) missed += 1
  return `${ratio.toFixed(2)}, floor ${floor}${ratio >= floor ? '' : ': MISSED'}`
}
const seconds = async (task: () => unknown): Promise<number> => {
  const started = performance.now()
  await task()
  return (performance.now() - started) / 1000
}

writeMaterial(folder, { files: 1, fileBytes: BYTES })
const path = join(folder, 'f0')
const node = new Node(join(folder, 'home'))
await node.start()
const device = node.service!.ready.device

// Importing: hash and copy, against hashing alone on every core.
const imports: number[] = []
const digests: number[] = []
let id = parseContentId('4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq')
for (let round = 0; round < ROUNDS; round++) {
  // Another file each time: what is there already is hashed and not written.
  const file = openSync(path, 'r+')
  writeSync(file, randomBytes(16), 0, 16, 0)
  closeSync(file)
  digests.push(await seconds(() => { execFileSync('openssl', ['dgst', '-sha256', path], { stdio: 'ignore' }) }))
  const run = await patchcord(['add', path, '--json', '--home', node.home], {}, 600_000)
  if (run.code !== 0) throw new Error(run.stderr)
  const [added, done] = run.stdout.trim().split('\n').map(line => JSON.parse(line) as { id: string, seconds: number })
  imports.push(done!.seconds)
  id = parseContentId(added!.id)
}
await node.stop()
const cores = availableParallelism()
process.stdout.write(`import: ${mibPerSecond(BYTES, median(imports))}; openssl dgst -sha256: ${mibPerSecond(BYTES, median(digests))} on one core; import over openssl times ${cores} cores: ${judge(median(digests) / cores / median(imports), 0.8)}\n`)

const keys = join(node.home, 'identity')
const identity = { device, key: join(keys, 'server.key'), certificate: join(keys, 'current', 'server.pem'), userCa: join(keys, 'current', 'ca.pem') }
const client = { key: join(keys, 'device.key'), certificate: join(keys, 'current', 'device.pem') }
const servers = [
  await patchcordServer(identity, join(node.home, 'files'), id, SERVER_CORE, 2 * IDLE),
  await nginxServer(identity, join(folder, 'nginx'), node.storePath(id), SERVER_CORE, 22_790),
]

async function curl (...args: string[]): Promise<void> {
  const child = spawn('taskset', ['-c', String(CLIENT_CORE), 'curl', '-sfk', '--tls13-ciphers', CIPHER, '--cert', client.certificate, '--key', client.key, ...args], { stdio: 'ignore' })
  const [code] = await once(child, 'exit') as [number]
  if (code !== 0) throw new Error(`curl ended with ${code}`)
}

async function compare (what: string, bytes: number, download: (server: FileServer) => Promise<void>): Promise<void> {
  const took = servers.map(() => [] as number[])
  for (let round = -1; round < ROUNDS; round++) {
    for (const [at, server] of servers.entries()) {
      const one = await seconds(() => download(server))
      // The first is for the page cache and the compiler.
      if (round >= 0) took[at]!.push(one)
    }
  }
  const [mine, other] = took.map(median) as [number, number]
  process.stdout.write(`${what}: patchcord ${mibPerSecond(bytes, mine)}, nginx ${mibPerSecond(bytes, other)}: ${judge(other / mine, 0.85)}\n`)
}

async function open (server: FileServer, head: string): Promise<TLSSocket> {
  const { port } = new URL(server.url)
  const socket = connect({ host: '::1', port: Number(port), key: readFileSync(client.key), cert: readFileSync(client.certificate), rejectUnauthorized: false, minVersion: 'TLSv1.3', ALPNProtocols: ['http/1.1'], servername: '' })
  await once(socket, 'secureConnect')
  if (head !== '') {
    socket.pause()
    socket.write(head)
  }
  return socket
}

/** What each connection adds, after the buffers of earlier work have been made. */
async function memory (what: string, count: number, head: (server: FileServer) => string): Promise<void> {
  for (const server of servers) {
    const before = server.memory()
    const sockets: TLSSocket[] = []
    for (let n = 0; n < count; n++) sockets.push(await open(server, head(server)))
    await new Promise(resolve => { setTimeout(resolve, 1_000) })
    process.stdout.write(`memory for each ${what} connection (${count}): ${server.name} ${((server.memory() - before) / count / 1024).toFixed(0)} KiB\n`)
    for (const socket of sockets) socket.destroy()
    await new Promise(resolve => { setTimeout(resolve, 500) })
  }
}

try {
  await compare('one download of 1 GiB', BYTES, server => curl('-o', '/dev/null', server.url))
  const many = (server: FileServer): string[] => ['-Z', '--parallel-immediate', '--parallel-max', String(AT_ONCE), '-r', `0-${EACH - 1}`, ...Array.from({ length: AT_ONCE }, () => ['-o', '/dev/null', server.url]).flat()]
  await compare(`${AT_ONCE} downloads of 32 MiB at once`, AT_ONCE * EACH, server => curl(...many(server)))
  await memory('idle', IDLE, () => '')
  await memory('busy', AT_ONCE, server => `GET ${new URL(server.url).pathname} HTTP/1.1\r\nHost: [::1]\r\n\r\n`)
} finally {
  for (const server of servers) await server.stop()
  rmSync(folder, { recursive: true, force: true })
}
process.exitCode = missed === 0 ? 0 : 1

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import t from 'tap'
import { envOf } from './fixtures/server-world.js'

// The executable, given what is no env: it ends with 2, says one line, and never listened.

const SERVER = fileURLToPath(new URL('../src/bin/patchcord-server.js', import.meta.url))
const SEED = 20_300_108

interface Ended { readonly code: number | null, readonly stdout: string, readonly stderr: string, readonly listened: boolean }

/** Runs the server on these bytes and looks all the while whether anything answers at `port`. */
async function run (input: Buffer | string, port: number): Promise<Ended> {
  const child = spawn(process.execPath, [SERVER], { stdio: ['pipe', 'pipe', 'pipe'], env: {} })
  let [stdout, stderr, listened] = ['', '', false]
  child.stdout.on('data', (chunk: Buffer) => { stdout += chunk.toString() })
  child.stderr.on('data', (chunk: Buffer) => { stderr += chunk.toString() })
  // It may end before all was written.
  child.stdin.on('error', () => undefined)
  const look = setInterval(() => {
    const socket = connect({ host: '::1', port }, () => { listened = true })
    socket.on('error', () => undefined).on('connect', () => { socket.destroy() })
  }, 20)
  child.stdin.end(input)
  const [code] = await once(child, 'close') as [number | null]
  clearInterval(look)
  return { code, stdout, stderr, listened }
}

await t.test('what is no env ends the server with 2, and nothing was listened on', async t => {
  // A port that was free a moment ago.
  const probe = createServer().listen({ host: '::1', port: 0 })
  await once(probe, 'listening')
  const { port } = probe.address() as AddressInfo
  probe.close()
  const good = envOf({ listen: [{ host: '::1', port }] })
  const line = JSON.stringify(good)
  const rows: Array<[what: string, input: Buffer | string]> = [
    ['nothing', ''], ['an empty line', '\n'], ['half a line', line.slice(0, line.length / 2)], ['a line without its end', line], ['half a line and its end', `${line.slice(0, -2)}\n`],
    ['no JSON', 'listen on everything\n'], ['null', 'null\n'], ['a list', `[${line}]\n`], ['two at once', `${line}${line}\n`], ['bytes', Buffer.from([0, 1, 254, 255, 10])], ['a mark of byte order', `\ufeff${line}\n`],
    ['more than 64 MiB', Buffer.concat([Buffer.from('{"version":1,"x":"'), Buffer.alloc(64 * 1024 * 1024 + 1, 'x'), Buffer.from('"}\n')])],
    ['deep nesting', `${'['.repeat(200_000)}\n`], ['a key twice, and wrong', `${line.slice(0, -1)},"version":2}\n`], ['a field that is not known', `${JSON.stringify({ ...good, whitelists: [] })}\n`],
    ['no address that can be bound', `${JSON.stringify({ ...good, listen: [{ host: '127.0.0.1', port }] })}\n`],
  ]
  const results = await Promise.all(rows.map(async row => ({ row, ended: await run(row[1], port) })))
  for (const { row: [what], ended } of results) {
    t.equal(ended.code, 2, what)
    t.equal(ended.stdout, '', `${what}: it was never ready`)
    t.match(ended.stderr, /^patchcord-server: .+\n$/, `${what}: one line`)
    t.notMatch(ended.stderr, /PRIVATE KEY|\n {4}at /, `${what}: no secret, no stack`)
    t.notOk(ended.listened, `${what}: nothing listened`)
  }
  await fc.assert(fc.asyncProperty(fc.nat({ max: line.length - 1 }), fc.constantFrom('', '"', '}', '\\', '\u0000', '9e999'), async (at, put) => {
    // A change may leave another good env, such as within a name: then it listens, and is ended by the end of stdin.
    const changed = `${line.slice(0, at)}${put}${line.slice(at + 1)}`
    const ended = await run(`${changed}\n`, port)
    if (ended.code === 0) t.match(ended.stdout, /^\{"event":"ready"/)
    else t.match(ended, { code: 2, stdout: '', listened: false }, `${put} at ${at}`)
  }), { seed: SEED, numRuns: 4 })
})

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { systemClock } from '../src/core/clock.js'
import { parseDatabaseName, parseDeviceId, type ContentId } from '../src/core/ids.js'
import { silentLogger } from '../src/core/log.js'
import { contentIdOf, LEAF_BYTES, leafHash } from '../src/files/content-id.js'
import { PartialFile } from '../src/files/partial.js'
import { FileStore } from '../src/files/store.js'
import type { Source } from '../src/sync/ask-file.js'
import type { Exchange } from '../src/sync/byte-connection.js'
import { BytePool } from '../src/sync/byte-pool.js'
import { Distrust } from '../src/sync/distrust.js'
import { Downloads } from '../src/sync/downloads.js'
import { download, type DownloadEvent, type DownloadOptions, type Downloaded } from '../src/sync/download.js'
import { LeafPlan, type Span } from '../src/sync/leaf-plan.js'
import { until } from './fixtures/processes.js'
import { mountSmall, NO_SMALL_DISK } from './fixtures/small-disk.js'

// The engine against peers that misbehave, over plain HTTP on loopback: TLS and admission are tested elsewhere.

interface FakePeer {
  readonly source: Source
  /** The leaves that were asked for, in order, one entry for each time. */
  readonly asked: number[]
  readonly requests: string[]
  /** Changes the body that is about to be sent. */
  spoil: ((bytes: Buffer, start: number) => Buffer) | undefined
  /** Instead of sending `bytes` at once. */
  send: ((response: ServerResponse, bytes: Buffer) => void) | undefined
  tellSize: number | undefined
  /** The database that it says it answers on account of. */
  account: string | undefined
  close (): void
}

let peers = 0

async function fakePeer (t: Test, files: Record<string, Buffer>): Promise<FakePeer> {
  const device = parseDeviceId(String.fromCharCode(97 + peers++ % 26).repeat(51) + 'a')
  const peer: FakePeer = { source: undefined as never, asked: [], requests: [], spoil: undefined, send: undefined, tellSize: undefined, account: undefined, close: () => { server.closeAllConnections(); server.close(); bytes.destroy() } }
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
    peer.requests.push(`${request.url} ${request.headers.range ?? ''}`.trim())
    const [, , id = '', part] = (request.url ?? '').replace(/\?.*$/, '').split('/')
    if (peer.account !== undefined) response.setHeader('Patchcord-Database', peer.account)
    const file = files[id]
    if (file === undefined) {
      response.writeHead(404).end()
      return
    }
    if (part === 'leaves') {
      const leaves = leavesOf(file)
      response.writeHead(200, { 'Patchcord-File-Size': peer.tellSize ?? file.length, 'Content-Length': leaves.length }).end(leaves)
      return
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
    const start = Number(range?.[1] ?? 0)
    const end = Math.min(file.length, Number(range?.[2] ?? file.length - 1) + 1)
    for (let leaf = Math.floor(start / LEAF_BYTES); leaf * LEAF_BYTES < end; leaf++) peer.asked.push(leaf)
    if (range !== null && start >= file.length) {
      response.writeHead(416, { 'Content-Range': `bytes */${file.length}`, 'Content-Length': 0 }).end()
      return
    }
    let bytes: Buffer = Buffer.from(file.subarray(start, end))
    if (peer.spoil !== undefined) bytes = peer.spoil(bytes, start)
    if (file.length === 0) response.writeHead(200, { 'Content-Length': 0 })
    else response.writeHead(206, { 'Content-Range': `bytes ${start}-${end - 1}/${peer.tellSize ?? file.length}`, 'Content-Length': bytes.length })
    response.on('error', () => undefined)
    if (peer.send !== undefined) peer.send(response, bytes)
    else response.end(bytes)
  }
  const server = createServer(answer)
  server.listen({ host: '::1', port: 0 })
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const bytes = new BytePool(async (onread, signal) => {
    const socket = connect({ host: '::1', port, noDelay: true, onread, signal })
    await once(socket, 'connect')
    return socket
  }, { host: 'peer', who: `device ${device}` })
  Object.assign(peer, { source: { device, bytes } })
  t.teardown(() => { peer.close() })
  return peer
}

function leavesOf (file: Buffer): Buffer {
  const leaves = []
  for (let at = 0; at < Math.max(1, file.length); at += LEAF_BYTES) leaves.push(leafHash(file.subarray(at, at + LEAF_BYTES)))
  return Buffer.concat(leaves)
}

const idOf = (file: Buffer): ContentId => contentIdOf(leavesOf(file))

async function openStore (t: Test): Promise<{ store: FileStore, partial: string }> {
  const home = t.testdir({})
  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  return { store, partial: join(home, 'partial') }
}

interface Fetch { readonly done: Promise<Downloaded>, readonly events: DownloadEvent[], readonly distrust: Distrust }

function fetchFrom (store: FileStore, id: ContentId, from: readonly FakePeer[], options: Partial<DownloadOptions> = {}, distrust = new Distrust()): Fetch {
  const events: DownloadEvent[] = []
  const done = download(store, id, { sources: () => from.map(({ source }) => source), waitMs: 500, onEvent: event => { events.push(event) }, ...options }, { clock: systemClock, logger: silentLogger(), distrust })
  return { done, events, distrust }
}

const kinds = (events: readonly DownloadEvent[]): string[] => events.map(({ event }) => event).filter(kind => kind !== 'progress')

await t.test('the plan: every missing leaf is done once, whatever is taken, split, doubled, lost and dropped', t => {
  fc.assert(fc.property(
    fc.integer({ min: 1, max: 40 }), fc.array(fc.boolean(), { minLength: 40, maxLength: 40 }),
    fc.array(fc.tuple(fc.constantFrom('take', 'split', 'double', 'come', 'drop', 'lose'), fc.nat(20), fc.integer({ min: 1, max: 8 })), { maxLength: 120 }),
    (count, have, steps) => {
      const missing = Array.from({ length: count }, (_, index) => index).filter(index => !have[index])
      const plan = new LeafPlan<string>(count, missing)
      const done = new Set<number>()
      const pick = (at: number): Span<string> | undefined => [...plan.spans][at % Math.max(1, plan.spans.size)]
      for (const [step, at, most] of steps) {
        const span = pick(at)
        if (step === 'take') plan.take('a', most)
        else if (span === undefined) continue
        else if (step === 'split') plan.split(span, 'b')
        else if (step === 'double' && span.next < span.end) plan.double(span, 'b')
        else if (step === 'drop') plan.drop(span)
        else if (span.next < span.end) {
          const index = span.next++
          if (step === 'lose') plan.lost(index)
          else {
            plan.done(index)
            done.add(index)
          }
        }
      }
      // Whoever still has a span gives up; one that is free must then be given every leaf that is not done.
      for (const span of [...plan.spans]) plan.drop(span)
      const given: number[] = []
      for (let span = plan.take('z', 3); span !== undefined; span = plan.take('z', 3)) for (let index = span.next; index < span.end; index++) given.push(index)
      return given.join() === missing.filter(index => !done.has(index)).join() && plan.left === given.length && plan.isDone === (given.length === 0)
    }), { numRuns: 300 })
  t.pass('the property holds')
  t.end()
})

interface Answered { readonly status: number, readonly body: string }

/** A pool towards whatever takes each connection that is made. */
async function poolTo (t: Test, take: (socket: Socket) => void, { most, dialled }: { readonly most: number, readonly dialled?: ((signal: AbortSignal) => Promise<void>) | undefined }): Promise<BytePool> {
  const sockets = new Set<Socket>()
  const server = createTcpServer(socket => {
    sockets.add(socket)
    take(socket.setNoDelay(true).on('error', () => undefined))
  }).listen({ host: '::1', port: 0 })
  await once(server, 'listening')
  const pool = new BytePool(async (onread, signal) => {
    await dialled?.(signal)
    const socket = connect({ host: '::1', port: (server.address() as AddressInfo).port, noDelay: true, onread })
    await once(socket, 'connect')
    return socket
  }, { host: 'peer', who: 'the peer', most })
  t.teardown(() => {
    pool.destroy()
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return pool
}

async function askOn (pool: BytePool, exchange: Pick<Exchange, 'path' | 'signal' | 'isShort'>): Promise<Answered> {
  let [status, body] = [0, '']
  await pool.get({ ...exchange, onHead: head => {
    status = head.status
    if (status >= 400) throw new Error(`refused with ${status}`)
  }, onBytes: piece => {
    body += piece.toString('latin1')
    return true
  } })
  return { status, body }
}

/** A pool towards something that answers each request in these pieces; a request is whatever ends with an empty line. */
async function scripted (t: Test, answer: (socket: Socket, count: number) => void): Promise<{ ask: () => Promise<Answered>, connections: () => number, pool: BytePool }> {
  let connections = 0
  const pool = await poolTo(t, socket => {
    connections += 1
    let count = 0
    socket.on('data', (asked: Buffer) => { if (asked.toString('latin1').endsWith('\r\n\r\n')) answer(socket, ++count) })
  }, { most: 1 })
  return { ask: () => askOn(pool, { path: '/', signal: new AbortController().signal }), connections: () => connections, pool }
}

await t.test('the connection for bytes: what is no plain answer is refused, and its connection not used again', async t => {
  for (const [what, answer, problem] of [
    ['another protocol', 'HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na', /form that is not taken/],
    ['no HTTP at all', 'hello\r\n\r\n', /form that is not taken/],
    ['no length', 'HTTP/1.1 200 OK\r\n\r\na', /form that is not taken/],
    ['chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\na\r\n', /form that is not taken/],
    ['a length that is no number', 'HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n', /form that is not taken/],
    ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab', /form that is not taken/],
    ['a length behind a bare line end', 'HTTP/1.1 200 OK\r\nX: y\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab', /form that is not taken/],
    ['a folded line', 'HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 1\r\nContent-Length: 2\r\n\r\nab', /form that is not taken/],
    ['a space behind a name', 'HTTP/1.1 200 OK\r\nContent-Length : 1\r\nContent-Length: 2\r\n\r\nab', /form that is not taken/],
    ['more than it said', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab', /more than it said/],
    ['a head without an end', `HTTP/1.1 200 OK\r\n${'X: y\r\n'.repeat(4_000)}`, /too long/],
    ['a refusal without a length', 'HTTP/1.1 404 Not Found\r\n\r\nno', /refused with 404/],
    ['a long refusal', `HTTP/1.1 404 Not Found\r\nContent-Length: 99999999\r\n\r\n`, /refused with 404/],
  ] as const) {
    const { ask, connections } = await scripted(t, (socket, count) => { socket.write(connections() > 1 && count === 1 ? 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n' : answer) })
    await t.rejects(ask(), { message: problem }, what)
    t.strictSame([await ask(), connections()], [{ status: 200, body: '' }, 2], `${what}: the next has a connection of its own`)
  }
  const early = await scripted(t, socket => { socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na') })
  await t.rejects(early.ask(), { code: 'unreachable' }, 'an answer that ends early')
  const cut = await scripted(t, () => { cut.pool.destroy() })
  await t.rejects(cut.ask(), { code: 'unreachable' }, 'a pool that is cut')
})

await t.test('the connection for bytes: used again, in whatever pieces an answer comes', async t => {
  const { ask, connections } = await scripted(t, (socket, count) => { socket.write(count % 2 === 0 ? 'HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno' : 'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc') })
  t.strictSame(await ask(), { status: 200, body: 'abc' })
  await t.rejects(ask(), { message: /refused with 404/ })
  t.strictSame(await Promise.all([ask(), ask().catch(() => 'refused'), ask()]), [{ status: 200, body: 'abc' }, 'refused', { status: 200, body: 'abc' }], 'in turn')
  t.equal(connections(), 1)
  const closing = await scripted(t, (socket, count) => {
    if (count === 1) socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na')
    else socket.destroy()
  })
  t.strictSame([await closing.ask(), await closing.ask()].map(({ body }) => body), ['a', 'a'], 'one that the server had closed meanwhile costs nothing')
  t.equal(closing.connections(), 2)
  let pieces: string[] = []
  const split = await scripted(t, socket => {
    const left = [...pieces]
    const next = (): void => {
      const piece = left.shift()
      if (piece !== undefined) socket.write(piece, () => { setImmediate(next) })
    }
    next()
  })
  await fc.assert(fc.asyncProperty(fc.string({ unit: fc.constantFrom('a', '\r', '\n', ':'), maxLength: 60 }), fc.array(fc.nat(140), { maxLength: 5 }), async (body, cuts) => {
    const text = `HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: ${body.length}\r\n\r\n${body}`
    const at = [0, ...cuts.map(cut => Math.min(cut, text.length)).toSorted((one, other) => one - other), text.length]
    pieces = at.slice(1).map((end, index) => text.slice(at[index], end))
    return (await split.ask()).body === body
  }), { numRuns: 60 })
  t.pass('the property holds')
})

await t.test('the connection for bytes: puts them where they are to lie, and never there once the request is over', async t => {
  let pieces: Buffer[] = []
  const { pool, connections } = await scripted(t, socket => {
    const left = [...pieces]
    const next = (): void => {
      const piece = left.shift()
      if (piece !== undefined) socket.write(piece, () => { setImmediate(next) })
    }
    next()
  })
  // The sizes of places, 0 where there is none; the body ends in the middle of the last one, which has room for more.
  await fc.assert(fc.asyncProperty(fc.array(fc.nat(9), { minLength: 1, maxLength: 8 }), fc.nat(60), fc.array(fc.nat(140), { maxLength: 4 }), fc.boolean(), async (sizes, length, cuts, isLong) => {
    const body = randomBytes(length)
    const answer = Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${length}\r\n\r\n`), body, ...isLong ? [Buffer.from('unasked')] : []])
    const at = [0, ...cuts.map(cut => Math.min(cut, answer.length)).toSorted((one, other) => one - other), answer.length]
    pieces = at.slice(1).map((end, index) => answer.subarray(at[index], end))
    const got: Buffer[] = []
    const memory: Buffer[] = []
    let turn = 0
    const before = connections()
    const asked = pool.get({
      path: '/', signal: new AbortController().signal, onHead: () => undefined,
      place: () => {
        const size = sizes[turn++ % sizes.length]!
        if (size === 0) return undefined
        memory.push(Buffer.alloc(size))
        return memory.at(-1)
      },
      onPlaced: count => {
        got.push(Buffer.from(memory.at(-1)!.subarray(0, count)))
        return true
      },
      onBytes: piece => {
        got.push(Buffer.from(piece))
        return true
      },
    })
    // What comes unasked in one piece with the body makes the answer too long; in another it comes too late.
    const failed = await asked.then(() => false, () => true)
    const there = memory.map(place => place.toString('hex'))
    await pool.get({ path: '/', signal: new AbortController().signal, onHead: () => undefined, onBytes: () => true }).catch(() => undefined)
    return failed ? isLong && connections() > before : Buffer.concat(got).equals(body) && memory.every((place, index) => place.toString('hex') === there[index])
  }), { numRuns: 100 })
  t.pass('the property holds')
})

/** A pool towards something that is told of every request, on whichever connection. */
async function pipelined (t: Test, answer: (socket: Socket, path: string, connection: number) => void, most = 8, dialled?: (signal: AbortSignal) => Promise<void>): Promise<{ ask: (path: string, signal?: AbortSignal) => Promise<Answered>, pool: BytePool, asked: string[][] }> {
  const asked: string[][] = []
  const pool = await poolTo(t, socket => {
    const connection = asked.push([]) - 1
    let text = ''
    socket.on('data', (piece: Buffer) => {
      text += piece.toString('latin1')
      for (let end = text.indexOf('\r\n\r\n'); end !== -1; end = text.indexOf('\r\n\r\n')) {
        const path = text.split(' ')[1]!
        text = text.slice(end + 4)
        asked[connection]!.push(path)
        answer(socket, path, connection)
      }
    })
  }, { most, dialled })
  const ask = (path: string, signal = new AbortController().signal): Promise<Answered> => askOn(pool, { path, signal, isShort: true })
  return { ask, pool, asked }
}

const plainAnswer = (body: string, status = '200 OK'): string => `HTTP/1.1 ${status}\r\nContent-Length: ${body.length}\r\n\r\n${body}`

await t.test('short answers do not wait for each other: each gets its own, in whatever pieces they come', async t => {
  let [left, cuts]: [string, number[]] = ['', []]
  let due = 0
  const { ask, asked } = await pipelined(t, (socket, path) => {
    left += path.includes('no') ? plainAnswer('no', '404 Not Found') : plainAnswer(`of ${path}${'z'.repeat(path.length % 5)}`)
    if (--due > 0) return
    // All were asked for before the first was answered: they waited for nothing.
    const at = [0, ...cuts.map(cut => cut % left.length).toSorted((one, other) => one - other), left.length]
    const pieces = at.slice(1).map((end, index) => left.slice(at[index], end))
    left = ''
    const next = (): void => {
      const piece = pieces.shift()
      if (piece !== undefined) socket.write(piece, 'latin1', () => { setImmediate(next) })
    }
    next()
  }, 1)
  await fc.assert(fc.asyncProperty(fc.array(fc.stringMatching(/^(?:no)?[a-m]{0,9}$/), { minLength: 1, maxLength: 16 }), fc.array(fc.nat(), { maxLength: 6 }), async (paths, at) => {
    cuts = at
    due = paths.length
    const answers = await Promise.all(paths.map(path => ask(`/${path}`).then(({ body }) => body, (error: Error) => error.message)))
    return answers.every((answer, index) => answer === (paths[index]!.includes('no') ? 'refused with 404' : `of /${paths[index]}${'z'.repeat((paths[index]!.length + 1) % 5)}`))
  }), { numRuns: 100 })
  t.equal(asked.length, 1, 'on one connection')
})

await t.test('short answers: what ends one does not end the others', async t => {
  const silent = await pipelined(t, () => undefined)
  const many = Array.from({ length: 100 }, (_, at) => silent.ask(`/${at}`).catch((error: unknown) => error))
  await until('64 having been asked for', () => silent.asked.flat().length >= 64)
  t.strictSame(silent.asked.map(({ length }) => length), [16, 16, 16, 16], 'no more than the other side takes of one at once, on four connections')
  silent.pool.destroy()
  t.match(await Promise.all(many.slice(0, 64)), Array.from({ length: 64 }, () => ({ code: 'unreachable' })), 'cut, with all that were under way')
  await until('the others having been asked', () => silent.asked.flat().length === 100)
  silent.pool.destroy()
  await Promise.all(many)

  const mute = await pipelined(t, () => undefined, 1)
  const kept = mute.ask('/kept').catch((error: unknown) => error)
  for (let n = 0; n < 100; n++) {
    const over = new AbortController()
    const asking = mute.ask(`/${n}`, over.signal).catch((error: unknown) => error)
    await new Promise(resolve => { setImmediate(resolve) })
    over.abort(new Error('not wanted any more'))
    t.match(await asking, { message: 'not wanted any more' })
  }
  await until('a connection for those behind', () => mute.asked.length >= 3)
  t.ok(mute.asked.every(({ length }) => length <= 33), 'what is given up does not pile up behind one that answers nothing')
  mute.pool.destroy()
  await kept

  let [first, other]: [Socket | undefined, Socket | undefined] = [undefined, undefined]
  const leaving = await pipelined(t, (socket, path, connection) => {
    if (connection === 0) first = socket
    else other = socket
    if (path === '/2') first!.write(plainAnswer('0'))
  }, 1)
  const over = new AbortController()
  const [zero, one, two] = [leaving.ask('/0'), leaving.ask('/1', over.signal).catch((error: unknown) => error), leaving.ask('/2')]
  t.equal((await zero).body, '0')
  over.abort(new Error('not wanted any more'))
  t.match(await one, { message: 'not wanted any more' }, 'at once')
  first!.write(plainAnswer('1') + plainAnswer('2'))
  t.equal((await two).body, '2', 'what came for the one that was given up is not told to the next')
  t.equal(other, undefined)

  const long = new AbortController()
  const huge = await pipelined(t, (socket, path, connection) => {
    if (path === '/b' && connection === 0) socket.write(`${plainAnswer('0')}HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\nx`)
    else if (path === '/b') socket.write(plainAnswer('b'))
  }, 1)
  const asks = [huge.ask('/0'), huge.ask('/a', long.signal).catch((error: unknown) => error), huge.ask('/b')]
  await asks[0]
  long.abort(new Error('not wanted any more'))
  t.match(await Promise.all(asks), [{ body: '0' }, { message: 'not wanted any more' }, { body: 'b' }], 'one that is long is not read to its end: those behind it are asked again')
  t.strictSame(huge.asked, [['/0', '/a', '/b'], ['/b']])
})

await t.test('short answers: what ends one on a connection that was of no use yet is not told to the others', async t => {
  const over = new AbortController()
  const abandoned = await pipelined(t, (socket, path, connection) => {
    if (connection > 0) socket.write(plainAnswer(path))
    else if (path === '/b') over.abort(new Error('not wanted any more'))
    else if (path === '/c') socket.write(plainAnswer('a'.repeat(100_000)))
  }, 1)
  const first = [abandoned.ask('/a', over.signal).catch((error: unknown) => error), abandoned.ask('/b'), abandoned.ask('/c')]
  t.match(await Promise.all(first), [{ message: 'not wanted any more' }, { body: '/b' }, { body: '/c' }], 'a long answer that nobody wants any more')
  const refusing = await pipelined(t, (socket, path) => { socket.write(path === '/a' ? 'HTTP/1.1 404 Not Found\r\n\r\nno' : plainAnswer(path)) }, 1)
  t.match(await Promise.all([refusing.ask('/a').catch((error: unknown) => error), refusing.ask('/b')]), [{ message: 'refused with 404' }, { body: '/b' }], 'a refusal that has no end')
})

await t.test('short answers: nobody is given a connection that is over, and nobody\'s connection takes no turn', async t => {
  const silent = await pipelined(t, (socket, path, connection) => { if (connection > 3) socket.write(plainAnswer(path)) }, 4)
  const wanted = Array.from({ length: 4 }, () => new AbortController())
  const asks = wanted.map(({ signal }, at) => silent.ask(`/${at}`, signal).catch((error: unknown) => error))
  await until('all having been asked', () => silent.asked.flat().length === 4)
  wanted[0]!.abort(new Error('not wanted any more'))
  t.equal((await silent.ask('/next')).body, '/next', 'asked in the very moment')
  silent.pool.destroy()
  t.match(await Promise.all(asks), [{ message: 'not wanted any more' }, { code: 'unreachable' }, { code: 'unreachable' }, { code: 'unreachable' }])

  let hangs = true
  const stopped = await pipelined(t, (socket, path) => { socket.write(plainAnswer(path)) }, 2, async signal => {
    if (hangs) await new Promise((_resolve, reject) => { signal.addEventListener('abort', () => { reject(signal.reason as Error) }) })
  })
  for (let n = 0; n < 3; n++) {
    const over = new AbortController()
    const asking = stopped.ask('/a', over.signal).catch((error: unknown) => error)
    setImmediate(() => { over.abort(new Error('not wanted any more')) })
    t.match(await asking, { message: 'not wanted any more' })
  }
  hangs = false
  t.equal((await stopped.ask('/b', AbortSignal.timeout(5000))).body, '/b', 'what was being dialled for nobody is given up')
})

await t.test('short answers: a connection that ends is no failure of what it had not begun to answer, where it was of use', async t => {
  const steps = await pipelined(t, (socket, path, connection) => {
    // Three on each connection, then it goes; the third is the last that it reads.
    if (steps.asked[connection]!.length > 3) return
    socket.write(plainAnswer(path))
    if (steps.asked[connection]!.length === 3) socket.end()
  }, 1)
  const paths = Array.from({ length: 12 }, (_, at) => `/${at}`)
  t.strictSame((await Promise.all(paths.map(path => steps.ask(path)))).map(({ body }) => body), paths)
  t.equal(steps.asked.length, 4)
  const half = await pipelined(t, socket => { socket.end('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab') })
  t.match(await Promise.all([half.ask('/a'), half.ask('/b')].map(asking => asking.catch((error: unknown) => error))), [{ code: 'unreachable' }, { code: 'unreachable' }], 'one that was of no use is not asked again')
  const lying = await pipelined(t, (socket, path) => { socket.write(path === '/lie' ? 'HTTP/1.1 200 OK\r\n\r\n' : plainAnswer(path)) }, 1)
  const lied = await Promise.all(['/a', '/lie', '/b'].map(path => lying.ask(path).then(({ body }) => body, (error: { code: string }) => error.code)))
  t.strictSame(lied, ['/a', 'verification', '/b'])
  const closing = await pipelined(t, (socket, path) => { socket.write(path === '/last' ? `HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx` : plainAnswer(path)) }, 1)
  t.strictSame((await Promise.all(['/a', '/last', '/b'].map(path => closing.ask(path)))).map(({ body }) => body), ['/a', 'x', '/b'], 'nothing is expected behind the last')
  t.strictSame(closing.asked.map(paths => paths.at(-1)), ['/b', '/b'])
})

await t.test('one source: small files in one request, large ones leaf by leaf', async t => {
  const { store, partial } = await openStore(t)
  const files = [Buffer.alloc(0), randomBytes(1), randomBytes(LEAF_BYTES), randomBytes(LEAF_BYTES + 1), randomBytes(40 * LEAF_BYTES + 7)]
  const peer = await fakePeer(t, Object.fromEntries(files.map(file => [idOf(file), file])))
  for (const file of files) {
    peer.requests.length = 0
    const { done, events } = fetchFrom(store, idOf(file), [peer])
    t.match(await done, { size: file.length, sources: new Set([peer.source.device]) })
    t.ok(readFileSync(store.path(idOf(file))).equals(file), `${file.length} bytes`)
    if (file.length <= LEAF_BYTES) t.equal(peer.requests.length, 1, 'the leaf list of one leaf is the ID')
    const last = events.filter(event => event.event === 'progress').at(-1)
    t.match(last, { done: file.length, total: file.length })
  }
  t.strictSame(readdirSync(partial), [])
  await t.rejects(fetchFrom(store, idOf(randomBytes(9)), [peer]).done, { code: 'not-found' })
  await t.rejects(fetchFrom(store, idOf(randomBytes(9)), []).done, { code: 'unreachable' })
  const known = randomBytes(2 * LEAF_BYTES)
  const other = await fakePeer(t, { [idOf(known)]: known })
  await t.rejects(fetchFrom(store, idOf(known), [other], { size: known.length + 1 }).done, { code: 'not-found' }, 'the document said another size')
  await t.rejects(fetchFrom(store, idOf(known), [other], { most: known.length - 1 }).done, { code: 'too-large' })
  t.strictSame(other.asked.filter(leaf => leaf > 0), [], 'nothing was fetched of it')
})

await t.test('two sources share the work, each leaf fetched once', async t => {
  const { store } = await openStore(t)
  const file = randomBytes(60 * LEAF_BYTES)
  const [one, two] = [await fakePeer(t, { [idOf(file)]: file }), await fakePeer(t, { [idOf(file)]: file })]
  // As a network would: some milliseconds for each MiB.
  for (const peer of [one, two]) peer.send = (response, bytes) => { setTimeout(() => { response.end(bytes) }, bytes.length / LEAF_BYTES * 4) }
  const { sources } = await fetchFrom(store, idOf(file), [one, two]).done
  t.equal(sources.size, 2)
  t.ok(readFileSync(store.path(idOf(file))).equals(file))
  for (const peer of [one, two]) t.ok(new Set(peer.asked).size >= 12, `${new Set(peer.asked).size} of 60 leaves from each`)
})

await t.test('a source that lies in one leaf is dropped and named, and the file comes from the other', async t => {
  const { store } = await openStore(t)
  const file = randomBytes(50 * LEAF_BYTES + 5)
  const id = idOf(file)
  const [liar, honest] = [await fakePeer(t, { [id]: file }), await fakePeer(t, { [id]: file })]
  const at = 7 * LEAF_BYTES + 4711
  liar.spoil = (bytes, start) => {
    if (at >= start && at < start + bytes.length) bytes[at - start]! ^= 1
    return bytes
  }
  honest.send = (response, bytes) => { setTimeout(() => { response.end(bytes) }, 20) }
  const { done, events } = fetchFrom(store, id, [liar, honest])
  await done
  t.ok(readFileSync(store.path(id)).equals(file))
  // Which of the two is asked for that leaf is chance; when it is the liar, it is named.
  if (liar.asked.includes(7)) t.match(events.find(({ event }) => event === 'source-dropped'), { device: liar.source.device, leaf: 7 })
  // Alone it is caught for certain, and asked no more.
  const again = await openStore(t)
  const alone = fetchFrom(again.store, id, [liar])
  await t.rejects(alone.done, { code: 'verification' })
  t.match(alone.events.find(({ event }) => event === 'source-dropped'), { device: liar.source.device, leaf: 7 })
  t.match(alone.distrust.of(liar.source.device), { id })
  t.equal(await again.store.has(id), false)
  const before = liar.requests.length
  await t.rejects(fetchFrom(again.store, id, [liar], {}, alone.distrust).done, { code: 'unreachable', message: /sent wrong bytes before, and is not asked again: leaf 7 / })
  t.equal(liar.requests.length, before, 'a liar is not asked again in this session')
  // What it gave that was right stays, and the honest one is asked for the rest alone.
  honest.asked.length = 0
  await fetchFrom(again.store, id, [liar, honest], {}, alone.distrust).done
  t.ok(honest.asked.length < 51, `${honest.asked.length} of 51 leaves were asked for again`)
  t.ok(readFileSync(again.store.path(id)).equals(file))
})

await t.test('lies about the list, the size, and small files', async t => {
  const file = randomBytes(3 * LEAF_BYTES)
  const id = idOf(file)
  const small = randomBytes(100)
  for (const [what, lie] of [
    ['a size that its list does not fit', (peer: FakePeer) => { peer.tellSize = 9 * LEAF_BYTES }],
    ['a size that is a few bytes off', (peer: FakePeer) => { peer.tellSize = file.length - 3 }],
    ['a range that is longer than it says', (peer: FakePeer) => { peer.spoil = bytes => Buffer.concat([bytes, Buffer.alloc(1)]) }],
    ['nothing but zeros', (peer: FakePeer) => { peer.spoil = bytes => bytes.fill(0) }],
  ] as const) {
    const { store } = await openStore(t)
    const [liar, honest] = [await fakePeer(t, { [id]: file, [idOf(small)]: small }), await fakePeer(t, { [id]: file, [idOf(small)]: small })]
    lie(liar)
    await fetchFrom(store, id, [liar, honest]).done
    t.ok(readFileSync(store.path(id)).equals(file), what)
  }
  const { store } = await openStore(t)
  const liar = await fakePeer(t, { [idOf(small)]: small })
  liar.spoil = bytes => bytes.fill(0)
  const { done, distrust } = fetchFrom(store, idOf(small), [liar])
  await t.rejects(done, { code: 'verification' })
  t.ok(distrust.of(liar.source.device))
  t.equal(await store.has(idOf(small)), false)
})

await t.test('a source that stalls is overtaken, one that vanishes is replaced', async t => {
  const file = randomBytes(24 * LEAF_BYTES)
  const id = idOf(file)
  const { store } = await openStore(t)
  const [stalled, good] = [await fakePeer(t, { [id]: file }), await fakePeer(t, { [id]: file })]
  stalled.send = (response, bytes) => { response.write(bytes.subarray(0, 100_000)) }
  const started = performance.now()
  const { done, events } = fetchFrom(store, id, [stalled, good])
  await done
  const took = performance.now() - started
  t.ok(readFileSync(store.path(id)).equals(file))
  t.ok(kinds(events).every(kind => kind === 'overtaken'))
  // Nothing else tells it from a source that was waited for until it was cut, after 30 s.
  t.ok(took < 25_000, `${took} ms`)

  const second = await openStore(t)
  const [vanishing, stays] = [await fakePeer(t, { [id]: file }), await fakePeer(t, { [id]: file })]
  let sent = 0
  vanishing.send = (response, bytes) => {
    if (++sent > 1) vanishing.close()
    else response.end(bytes)
  }
  await fetchFrom(second.store, id, [vanishing, stays]).done
  t.ok(readFileSync(second.store.path(id)).equals(file))

  // Alone, it fails, and what came is kept for the next attempt.
  const third = await openStore(t)
  const alone = await fakePeer(t, { [id]: file })
  let answers = 0
  alone.send = (response, bytes) => {
    if (++answers > 1) response.destroy()
    else response.end(bytes)
  }
  await t.rejects(fetchFrom(third.store, id, [alone]).done, { code: 'unreachable' })
  t.strictSame(readdirSync(third.partial).toSorted(), [`${id}.bitmap`, `${id}.partial`])
  stays.asked.length = 0
  await fetchFrom(third.store, id, [stays]).done
  t.ok(stays.asked.length < 24, `only ${stays.asked.length} of 24 leaves were asked for again`)
  t.strictSame(readdirSync(third.partial), [])
})

await t.test('a slow source gives its leaves away', async t => {
  const file = randomBytes(32 * LEAF_BYTES)
  const id = idOf(file)
  const { store } = await openStore(t)
  const [slow, fast] = [await fakePeer(t, { [id]: file }), await fakePeer(t, { [id]: file })]
  let given = 0
  slow.send = (response, bytes) => {
    let at = 0
    const timer = setInterval(() => {
      given += 16_384
      response.write(bytes.subarray(at, at += 16_384))
      if (at >= bytes.length || response.destroyed) {
        clearInterval(timer)
        response.end()
      }
    }, 50)
  }
  await fetchFrom(store, id, [slow, fast]).done
  t.ok(given < file.length / 4, `of ${file.length} bytes it gave ${given}`)
  t.ok(readFileSync(store.path(id)).equals(file))
})

await t.test('going on: what was recorded is not asked for again, unless the disk lost it', async t => {
  const file = randomBytes(20 * LEAF_BYTES + 3)
  const id = idOf(file)
  const { store, partial } = await openStore(t)
  const peer = await fakePeer(t, { [id]: file })
  const abort = new AbortController()
  let sent = 0
  peer.send = (response, bytes) => { if (++sent > 1) setTimeout(() => { abort.abort(new Error('enough')) }, 100); else response.end(bytes) }
  await t.rejects(fetchFrom(store, id, [peer], { signal: abort.signal }).done, { message: 'enough' })
  const had = await PartialFile.resume(store, id)
  const missing = had!.missing()
  t.ok(missing.length > 0 && missing.length < 21)
  t.strictSame([...had!.givers], [peer.source.device])
  await had!.suspend()
  // The disk loses one that was recorded.
  const kept = Array.from({ length: 21 }, (_, index) => index).filter(index => !missing.includes(index))
  const lost = kept[0]!
  const data = readFileSync(join(partial, `${id}.partial`))
  data[lost * LEAF_BYTES]! ^= 1
  writeFileSync(join(partial, `${id}.partial`), data)
  peer.send = undefined
  peer.asked.length = 0
  const { givers } = await fetchFrom(store, id, [peer]).done
  t.strictSame(peer.asked.toSorted((a, b) => a - b), [lost, ...missing].toSorted((a, b) => a - b))
  t.strictSame([...givers], [peer.source.device])
  t.ok(readFileSync(store.path(id)).equals(file))
  t.notOk(existsSync(join(partial, `${id}.bitmap`)))
})

await t.test('what is remembered of a download and is damaged is not believed', async t => {
  const file = randomBytes(3 * LEAF_BYTES)
  const id = idOf(file)
  const { store, partial } = await openStore(t)
  const begin = async (): Promise<Buffer> => {
    const begun = await PartialFile.create(store, { id, size: file.length, leaves: leavesOf(file) })
    await begun.writeLeaf(1, file.subarray(LEAF_BYTES, 2 * LEAF_BYTES))
    await begun.suspend()
    return readFileSync(join(partial, `${id}.bitmap`))
  }
  const good = await begin()
  t.strictSame((await resumed())?.missing, [0, 2])
  const rows: Array<[string, (state: Buffer) => Buffer]> = [
    ['empty', () => Buffer.alloc(0)],
    ['no such version', state => Buffer.concat([Buffer.from('patchcord-partial/2'), state.subarray(19)])],
    ['another size', state => { state.write('9', 38, 'latin1'); return state }],
    ['another list', state => { state[50]! ^= 1; return state }],
    ['cut short', state => state.subarray(0, state.length - 1)],
    ['a giver that is none', state => Buffer.concat([state, Buffer.from('x\n')])],
  ]
  for (const [what, damage] of rows) {
    writeFileSync(join(partial, `${id}.bitmap`), damage(Buffer.from(good)))
    t.equal(await resumed(), undefined, what)
  }
  const lies = Buffer.from(good)
  lies.fill(2, lies.length - 3)
  writeFileSync(join(partial, `${id}.bitmap`), lies)
  t.strictSame(await resumed(), { missing: [0, 2], damaged: [0, 2] }, 'a record that says more than the disk has')

  async function resumed (): Promise<{ missing: number[], damaged: number[] } | undefined> {
    const partial = await PartialFile.resume(store, id)
    const found = partial && { missing: partial.missing(), damaged: partial.damaged.toSorted((one, other) => one - other) }
    await partial?.suspend()
    return found
  }
})

await t.test('on account of a database, only who says the account back is believed to have understood', async t => {
  const { store } = await openStore(t)
  const account = parseDatabaseName('shared')
  for (const file of [randomBytes(10), randomBytes(2 * LEAF_BYTES)]) {
    const peer = await fakePeer(t, { [idOf(file)]: file })
    const source = { ...peer.source, account }
    for (const says of [undefined, 'other', 'Shared']) {
      peer.account = says
      await t.rejects(fetchFrom(store, idOf(file), [{ ...peer, source }]).done, { code: 'not-found' }, `an answer that names ${says}`)
      t.ok(peer.requests.every(request => request.includes('?database=shared')))
      t.equal(await store.has(idOf(file)), false)
    }
    peer.account = account
    t.match(await fetchFrom(store, idOf(file), [{ ...peer, source }]).done, { givers: new Set([`${peer.source.device} ${account}`]) })
  }
})

await t.test('a download of an earlier run waits for who has it, though others who are there do not', async t => {
  const { store, partial } = await openStore(t)
  const home = join(partial, '..')
  for (const file of [randomBytes(10), randomBytes(3 * LEAF_BYTES)]) {
    const id = idOf(file)
    writeFileSync(join(home, 'downloads.json'), JSON.stringify({ version: 1, downloads: [{ id, size: file.length }] }), { mode: 0o600 })
    const [without, giver] = [await fakePeer(t, {}), await fakePeer(t, { [id]: file })]
    const downloads = await Downloads.open(home, store, { clock: systemClock, logger: silentLogger() }, () => undefined)
    const connected = [without]
    await new Promise<void>(resolve => {
      downloads.goOn(() => () => connected.map(({ source }) => source), async () => { resolve() })
      // Asked more than once, it said no each time, and then the giver comes.
      const looking = setInterval(() => {
        if (new Set(without.requests).size < without.requests.length && !connected.includes(giver)) connected.push(giver)
      }, 20)
      t.teardown(() => { clearInterval(looking) })
    })
    t.ok(readFileSync(store.path(id)).equals(file))
    t.match(JSON.parse(readFileSync(join(home, 'downloads.json'), 'utf8')), { downloads: [] })
    await downloads.stop()
  }
})

await t.test('a disk without any room: what was asked for waits, goes on, and is listed then', async t => {
  const disk = mountSmall(t, '8m')
  if (disk === undefined) return void t.pass('a small disk', { skip: NO_SMALL_DISK })
  const store = await FileStore.open(join(disk, 'files'))
  t.teardown(() => store.close())
  const fill = (): void => {
    try {
      for (;;) writeFileSync(join(disk, 'ballast'), Buffer.alloc(4_096), { flag: 'a' })
    } catch {
      // ENOSPC: what was wanted.
    }
  }
  const list = (): string => readFileSync(join(disk, 'downloads.json'), 'utf8')
  for (const file of [randomBytes(1_000), randomBytes(3 * LEAF_BYTES)]) {
    const id = idOf(file)
    const giver = await fakePeer(t, { [id]: file })
    const downloads = await Downloads.open(disk, store, { clock: systemClock, logger: silentLogger() }, () => undefined)
    fill()
    const events: DownloadEvent[] = []
    const done = downloads.fetchAsked(id, {
      size: file.length,
      sources: () => [giver.source],
      onEvent: event => {
        events.push(event)
        if (event.event === 'paused') setTimeout(() => { unlinkSync(join(disk, 'ballast')) }, 100)
      },
    })
    let isListed = false
    giver.send = (response, bytes) => {
      const waiting = setInterval(() => {
        isListed = existsSync(join(disk, 'downloads.json')) && list().includes(id)
        if (file.length > LEAF_BYTES && !isListed) return
        clearInterval(waiting)
        response.end(bytes)
      }, 10)
    }
    t.match(await done, { size: file.length })
    t.strictSame(kinds(events), ['paused', 'resumed'])
    t.match(events.find(({ event }) => event === 'paused'), { reason: 'disk-full', needed: file.length })
    t.equal(isListed, file.length > LEAF_BYTES)
    t.ok(readFileSync(store.path(id)).equals(file))
    t.notOk(list().includes(id))
    await downloads.stop()
    await store.remove(id)
  }
})

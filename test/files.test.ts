import { createHash } from 'node:crypto'
import 'reflect-metadata'
import { X509CertificateGenerator } from '@peculiar/x509'
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, linkSync, mkdirSync, readdirSync, readFileSync, readlinkSync, renameSync, rmSync, statSync, symlinkSync, truncateSync, unlinkSync, utimesSync, writeFileSync, appendFileSync } from 'node:fs'
import { createServer, request as httpRequest, type IncomingHttpHeaders, type Server } from 'node:http'
import { createServer as createTlsServer, request as tlsRequest } from 'node:https'
import { connect, type AddressInfo, type Socket } from 'node:net'
import { Writable } from 'node:stream'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { encodeBase32 } from '../src/core/base32.js'
import type { Clock } from '../src/core/clock.js'
import { PatchcordError, type ErrorCode } from '../src/core/errors.js'
import { parseDatabaseName, type ContentId } from '../src/core/ids.js'
import { CHUNK_BYTES } from '../src/files/buffers.js'
import { checkLeaves, contentIdOf, EMPTY_ID, inclusionProof, LEAF_BYTES, leafCount, leafHash, leafLength, rootOf, verifyInclusion } from '../src/files/content-id.js'
import { leafBuffer } from '../src/files/leaf-hashes.js'
import { PartialFile } from '../src/files/partial.js'
import { matchFails, noneMatchHits, parseRange, rangeStands, type RangeDecision } from '../src/files/range.js'
import { FileReader } from '../src/files/reader.js'
import { formatRecords, parseRecords } from '../src/files/records.js'
import { serveFile, type FileRequest, type Served } from '../src/files/serve.js'
import { perform } from '../src/files/small-turn.js'
import { SMALL_MOST, type SmallAsked, type SmallDone, type SmallWork } from '../src/files/small-work.js'
import { FileStore } from '../src/files/store.js'
import { walk } from '../src/files/walk.js'
import { ManualClock } from './fixtures/manual-clock.js'
import { mountSmall, NO_SMALL_DISK } from './fixtures/small-disk.js'

const sha256 = (...parts: Uint8Array[]): Buffer => {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest()
}

/** RFC 9162 section 2.1.1, word for word. */
function naiveRoot (hashes: Buffer[]): Buffer {
  if (hashes.length === 0) return sha256()
  if (hashes.length === 1) return hashes[0] as Buffer
  let k = 1
  while (k * 2 < hashes.length) k *= 2
  return sha256(Buffer.from([1]), naiveRoot(hashes.slice(0, k)), naiveRoot(hashes.slice(k)))
}

const leavesOf = (bytes: Buffer): Buffer => Buffer.concat(Array.from({ length: leafCount(bytes.length) }, (_, index) =>
  leafHash(bytes.subarray(index * LEAF_BYTES, (index + 1) * LEAF_BYTES))))

const pattern = (size: number): Buffer => {
  const once = Buffer.from(Array.from({ length: 251 }, (_, i) => i))
  return Buffer.alloc(size, once)
}

const raises = async (test: Pick<typeof t, 'equal' | 'match' | 'fail'>, code: ErrorCode, action: () => unknown, says?: RegExp, why = ''): Promise<void> => {
  try {
    await action()
  } catch (error) {
    if (!(error instanceof PatchcordError)) throw error
    test.equal(error.code, code, `${why} ${error.message}`)
    if (says !== undefined) test.match(error.message, says)
    return
  }
  test.fail(`${why}: nothing was raised instead of ${code}`)
}

const KNOWN: Array<[name: string, bytes: Buffer, root: string, id: string]> = [
  ['the empty file', Buffer.alloc(0), 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', '4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq'],
  ['abc', Buffer.from('abc'), '609f6e36d2405585188d5cfd761f407c7cc46a7d3f314c88270469dde315fcd1', 'mcpw4nwsibkykgenlt6xmh2apr6mi2t5h4yuzcbharu53yyv7tiq'],
  ['1 MiB of 0', Buffer.alloc(LEAF_BYTES), '2cb74edba754a81d121c9db6833704a8e7d417e5b13d1a19f4a52f007d644264', 'fs3u5w5hksub2eq4tw3ignyevdt5if7fwe6rugpuuuxqa7leijsa'],
  ['1 MiB of 0 and a 1', Buffer.concat([Buffer.alloc(LEAF_BYTES), Buffer.from([1])]), 'ad4a8e842d5d6adfa815c4f2b5306bc337fb2e8a32ce30f24982fa0822d99a23', 'vvfi5bbnlvvn7kavytzlkmdlym37wlukglhdb4sjql5aqiwztirq'],
  ['3 MiB of i mod 251', pattern(3 * LEAF_BYTES), '062d9057692524803edcdf17d4b5465325bbb35d99cc9c65907aa4f0dfa4449c', 'aywzav3jeusiapw434l5jnkgkms3xm25thgjyzmqpkspbx5eisoa'],
  ['5 MiB + 7 of i mod 251', pattern(5 * LEAF_BYTES + 7), 'a8cf7b705ecfcbad9ea17052bd5ea6b41c5e02466f6268f2492b786854fa6b1e', 'vdhxw4c6z7f23hvbobjl2xvgwqof4asgn5rgr4sjfn4gqvh2nmpa'],
]

void t.test('known answers of the content ID, computed and imported', async t => {
  const home = t.testdir({ source: {} })
  const store = await FileStore.open(join(home, 'files'))
  for (const [name, bytes, root, id] of KNOWN) {
    const leaves = leavesOf(bytes)
    t.equal(rootOf(leaves).toString('hex'), root, name)
    t.equal(contentIdOf(leaves), id, name)
    t.doesNotThrow(() => { checkLeaves(id as ContentId, bytes.length, leaves) }, name)
    const path = join(home, 'source', 'x')
    writeFileSync(path, bytes)
    t.strictSame(await store.add(path), { id, size: bytes.length, isNew: true }, name)
    t.strictSame(await store.reader.leaves(id as ContentId), { size: bytes.length, leaves }, name)
    t.ok(readFileSync(store.path(id as ContentId)).equals(bytes), name)
    const read: Buffer[] = []
    for await (const chunk of store.read(id as ContentId)) read.push(chunk as Buffer)
    t.ok(Buffer.concat(read).equals(bytes), `${name}, read back`)
  }
  t.strictSame(readdirSync(join(home, 'partial')), [])
  const listed = new Map<string, number>()
  for await (const { id, size } of store.list()) listed.set(id, size)
  t.strictSame(listed, new Map(KNOWN.map(([, bytes, , id]) => [id, bytes.length])))
})

void t.test('the leaf list: sizes and lists that do not fit are refused', async t => {
  const three = leavesOf(pattern(3 * LEAF_BYTES))
  const id = contentIdOf(three)
  const wrong = Buffer.from(three)
  wrong.writeUInt8(wrong.readUInt8(40) ^ 1, 40)
  const zeroLeaf = sha256(Buffer.from([0]))
  const rows: Array<[why: string, id: ContentId, size: number, leaves: Buffer]> = [
    ['a leaf too few', id, 3 * LEAF_BYTES, three.subarray(0, 64)],
    ['a leaf too many for the size', id, 2 * LEAF_BYTES, three],
    ['a size one over', id, 3 * LEAF_BYTES + 1, three],
    ['half an entry', id, 3 * LEAF_BYTES, three.subarray(0, 95)],
    ['no entry', EMPTY_ID, 0, Buffer.alloc(0)],
    ['a changed entry', id, 3 * LEAF_BYTES, wrong],
    ['another ID', contentIdOf(wrong), 3 * LEAF_BYTES, three],
    ['the empty ID for one byte', EMPTY_ID, 1, sha256()],
    ['the hash of an empty leaf for no bytes', contentIdOf(zeroLeaf), 0, zeroLeaf],
    ['a leaf for the empty file', contentIdOf(leafHash(Buffer.from('a'))), 0, leafHash(Buffer.from('a'))],
    ['a node as a leaf', id, 2 * LEAF_BYTES, Buffer.concat([sha256(Buffer.from([1]), three.subarray(0, 64)), three.subarray(64)]).subarray(0, 63)],
    ['a negative size', id, -1, three],
    ['a fraction', id, 3 * LEAF_BYTES - 0.5, three],
    ['a size past 2^53', id, 2 ** 53, three],
    ['not a number', id, NaN, three],
  ]
  for (const [why, rowId, size, leaves] of rows) await raises(t, 'verification', () => { checkLeaves(rowId, size, leaves) }, undefined, why)
  t.doesNotThrow(() => { checkLeaves(id, 3 * LEAF_BYTES, three) })
  t.doesNotThrow(() => { checkLeaves(id, 2 * LEAF_BYTES + 1, three) }, 'the last leaf alone tells how long it is')
  t.throws(() => leafHash(Buffer.alloc(LEAF_BYTES + 1)), RangeError)
  t.throws(() => rootOf(Buffer.alloc(0)), RangeError)
  t.throws(() => rootOf(Buffer.alloc(33)), RangeError)
  t.throws(() => leafLength(0, 1), RangeError)
  t.equal(leafLength(0, 0), 0)
  t.equal(leafLength(LEAF_BYTES, 0), LEAF_BYTES)
  t.equal(leafLength(LEAF_BYTES + 1, 1), 1)
})

const hashLists = fc.array(fc.uint8Array({ minLength: 32, maxLength: 32 }).map(bytes => Buffer.from(bytes)), { minLength: 1, maxLength: 40 })

void t.test('the root is the one of RFC 9162, and inclusion proofs prove exactly their leaf', async t => {
  fc.assert(fc.property(hashLists, hashes => naiveRoot(hashes).equals(rootOf(Buffer.concat(hashes)))))
  fc.assert(fc.property(hashLists, fc.nat(), fc.nat(), fc.nat({ max: 255 }), (hashes, pick, other, bit) => {
    const leaves = Buffer.concat(hashes)
    const id = contentIdOf(leaves)
    const size = hashes.length * LEAF_BYTES
    const index = pick % hashes.length
    const leaf = hashes[index] as Buffer
    const proof = inclusionProof(leaves, index)
    if (!verifyInclusion(id, size, index, leaf, proof)) return false
    const flipped = Buffer.from(leaf)
    flipped.writeUInt8(flipped.readUInt8(bit % 32) ^ (1 << (bit % 8)), bit % 32)
    if (verifyInclusion(id, size, index, flipped, proof)) return false
    if (verifyInclusion(id, size, index, leaf, [...proof, leaf])) return false
    if (proof.length > 0 && verifyInclusion(id, size, index, leaf, proof.slice(1))) return false
    if (proof.length > 0 && verifyInclusion(id, size, index, leaf, proof.map((hash, at) => at === other % proof.length ? flipped : hash)) && !flipped.equals(proof[other % proof.length] as Buffer)) return false
    const elsewhere = other % hashes.length
    if (verifyInclusion(id, size, elsewhere, leaf, proof)) return hashes[elsewhere]?.equals(leaf) === true
    return true
  }))
  t.equal(verifyInclusion(EMPTY_ID, 0, 0, sha256(), []), true)
  t.equal(verifyInclusion(EMPTY_ID, 1, 0, sha256(), []), false, 'the empty ID has size 0 alone')
  t.equal(verifyInclusion(EMPTY_ID, 0, 1, sha256(), []), false)
  const one = leafHash(Buffer.from('abc'))
  t.equal(verifyInclusion(contentIdOf(one), 3, 0, one, []), true)
  t.equal(verifyInclusion(contentIdOf(one), 0, 0, one, []), false)
  t.equal(verifyInclusion(contentIdOf(one), NaN, 0, one, []), false)
  t.throws(() => inclusionProof(one, 1), RangeError)
})

/** Against the position-by-position reading of RFC 9110: which offsets of the file are asked for. */
function modelRange (first: number | undefined, last: number | undefined, size: number): RangeDecision {
  if (first === undefined && last === undefined) return { kind: 'none' }
  if (first !== undefined && last !== undefined && last < first) return { kind: 'none' }
  if (first === undefined && last !== 0 && size === 0) return { kind: 'none' }
  const wanted = Array.from({ length: size }, (_, at) => at).filter(at => first === undefined ? at >= size - (last ?? 0) : at >= first && at <= (last ?? Infinity))
  const [start] = wanted
  const end = wanted.at(-1)
  return start === undefined || end === undefined ? { kind: 'unsatisfiable' } : { kind: 'range', start, end }
}

void t.test('Range: every form', async t => {
  const none = { kind: 'none' as const }
  const unsatisfiable = { kind: 'unsatisfiable' as const }
  const range = (start: number, end: number): RangeDecision => ({ kind: 'range', start, end })
  const huge = '9'.repeat(400)
  const rows: Array<[header: string | undefined, size: number, answer: RangeDecision]> = [
    [undefined, 10, none], ['', 10, none], ['bytes', 10, none], ['bytes=', 10, none], ['bytes=-', 10, none], ['bytes=,', 10, none],
    ['bytes=0-1,3-4', 10, none], ['bytes=0-1, 3-4', 10, none], ['bytes=0-0,-1', 10, none], ['items=0-1', 10, none], ['bytes =0-1', 10, none],
    ['bytes=5-4', 10, none], [`bytes=${huge}1-${huge}0`, 10, none], ['bytes=9007199254740993-9007199254740992', 10, none],
    ['bytes=0 -1', 10, none], ['bytes=0- 1', 10, none], ['bytes=+0-1', 10, none], ['bytes=0x1-2', 10, none], ['bytes=a-b', 10, none], ['bytes=1', 10, none],
    ['bytes=1-2-3', 10, none], ['bytes=--1', 10, none], ['bytes=1e1-', 100, none], ['bytes=\u0661-', 10, none], ['0-1', 10, none], ['bytes:0-1', 10, none], ['bytes=0-1;', 10, none],
    ['bytes=0-1\n', 10, none], ['bytes=0-1,x', 10, none],
    ['bytes=10-', 10, unsatisfiable], ['bytes=10-20', 10, unsatisfiable], ['bytes=-0', 10, unsatisfiable], [`bytes=${huge}-`, 10, unsatisfiable], ['bytes=0-', 0, unsatisfiable], ['bytes=0-0', 0, unsatisfiable], ['bytes=-0', 0, unsatisfiable],
    ['bytes=-1', 0, none], ['bytes=-000', 10, unsatisfiable],
    ['bytes=0-', 10, range(0, 9)], ['bytes=5-9', 10, range(5, 9)], ['bytes=9-9', 10, range(9, 9)], ['bytes=9-', 10, range(9, 9)], ['bytes=5-10', 10, range(5, 9)],
    ['bytes=-5', 10, range(5, 9)], ['bytes=-10', 10, range(0, 9)], ['bytes=-11', 10, range(0, 9)], [`bytes=-${huge}`, 10, range(0, 9)], [`bytes=0-${huge}`, 10, range(0, 9)],
    ['BYTES=0-1', 10, range(0, 1)], ['Bytes=0-1', 10, range(0, 1)], ['bytes=0-1,', 10, range(0, 1)], ['bytes=, ,0-1', 10, range(0, 1)], ['bytes= 0-1\t', 10, range(0, 1)], [' bytes=0-1', 10, range(0, 1)], ['bytes=000-001', 10, range(0, 1)],
    ['bytes=4294967296-', 2 ** 40, range(2 ** 32, 2 ** 40 - 1)], [`bytes=-1`, Number.MAX_SAFE_INTEGER, range(Number.MAX_SAFE_INTEGER - 1, Number.MAX_SAFE_INTEGER - 1)],
  ]
  for (const [header, size, answer] of rows) t.strictSame(parseRange(header, size), answer, `${header?.slice(0, 40)} of ${size}`)
  const position = fc.option(fc.nat({ max: 40 }), { nil: undefined })
  fc.assert(fc.property(position, position, fc.nat({ max: 30 }), (first, last, size) => {
    t.strictSame(parseRange(`bytes=${first ?? ''}-${last ?? ''}`, size), modelRange(first, last, size), `${first}-${last}/${size}`)
  }), { numRuns: 300 })
  fc.assert(fc.property(fc.oneof(fc.string(), fc.string().map(text => `bytes=${text}`)), fc.nat(), (header, size) => {
    const decision = parseRange(header, size)
    return decision.kind !== 'range' || (decision.start >= 0 && decision.start <= decision.end && decision.end < size)
  }))
  const started = process.cpuUsage()
  for (const evil of [`bytes=${' '.repeat(16_000)}x`, `bytes=${','.repeat(16_000)}`, `bytes=${'0-1,'.repeat(4_000)}`, `bytes=0-${'9'.repeat(16_000)}`]) parseRange(evil, 10)
  for (const evil of [`${' '.repeat(16_000)}x`, ','.repeat(16_000), '"'.repeat(16_000), '"a",'.repeat(4_000), `"${'a'.repeat(16_000)}`]) noneMatchHits(evil, '"x"')
  t.ok(process.cpuUsage(started).user < 500_000, 'the longest header that a request may have costs little')
})

void t.test('preconditions: strong, weak, lists, dates', async t => {
  const tag = '"abc"'
  const ifRange: Array<[string | undefined, boolean]> = [
    ['W/"abc"', false], ['abc', false], ['"abd"', false], ['Wed, 21 Oct 2015 07:28:00 GMT', false], ['', false], ['*', false], ['"abc", "abd"', false], ['"ABC"', false],
    [undefined, true], ['"abc"', true], [' "abc" ', true],
  ]
  for (const [header, stands] of ifRange) t.equal(rangeStands(header, tag), stands, `If-Range: ${header}`)
  const ifMatch: Array<[string | undefined, boolean]> = [
    ['W/"abc"', true], ['"x"', true], ['', true], ['abc', true], ['"x", W/"abc"', true], ['"abc', true], ['"x" "abc"', true], ['*, "x"', true],
    [undefined, false], ['*', false], [' * ', false], ['"abc"', false], ['"x", "abc"', false], ['"x,", "abc",', false],
  ]
  for (const [header, fails] of ifMatch) t.equal(matchFails(header, tag), fails, `If-Match: ${header}`)
  const ifNoneMatch: Array<[string | undefined, boolean]> = [
    [undefined, false], ['', false], ['"x"', false], ['abc', false], ['"abc', false], ['"x" "abc"', false], ['w/"abc"', false], ['"x,"abc""', false], ['" "abc"', false],
    ['*', true], ['"abc"', true], ['W/"abc"', true], ['"x","abc"', true], ['"x" , W/"abc" , "y"', true], [',, "abc"', true], ['"a,b","abc"', true],
  ]
  for (const [header, hits] of ifNoneMatch) t.equal(noneMatchHits(header, tag), hits, `If-None-Match: ${header}`)
  const opaque = fc.array(fc.constantFrom('a', 'b', 'c', ',', '!', '~', '*'), { maxLength: 4 }).map(parts => parts.join(''))
  const tags = fc.array(fc.tuple(fc.boolean(), opaque), { minLength: 1, maxLength: 5 })
  fc.assert(fc.property(tags, opaque, fc.constantFrom(',', ', ', ' ,\t', ',,'), (list, own, comma) => {
    const header = list.map(([weak, text]) => `${weak ? 'W/' : ''}"${text}"`).join(comma)
    return noneMatchHits(header, `"${own}"`) === list.some(([, text]) => text === own) &&
      matchFails(header, `"${own}"`) !== list.some(([weak, text]) => !weak && text === own)
  }))
})

interface Answer {
  status: number
  headers: IncomingHttpHeaders
  body: Buffer
  /** Whether the connection ended before the promised length. */
  isCut: boolean
}

interface Serving {
  port: number
  /** What serveFile returned or threw, in order of ending. */
  outcomes: Array<Served | PatchcordError>
  server: Server
  /** Requests whose outcome is not in yet. */
  running: () => number
}

/** A plain HTTP server whose only route is serveFile: `/<id>` and `/<id>/leaves`. */
/** Of a clock that a test moves. */
const STALL_MS = 1_000

async function serving (t: { teardown (close: () => unknown): void }, reader: FileReader, clock?: Clock): Promise<Serving> {
  const outcomes: Serving['outcomes'] = []
  let running = 0
  const server = createServer((request, response) => {
    running++
    const [, id = '', part = 'content'] = (request.url ?? '').split('/')
    const headers = new Map(Object.entries(request.headers).map(([name, value]) => [name, String(value)]))
    const asked: FileRequest = { id: id as ContentId, part: part as 'content', method: request.method as 'GET', headers }
    serveFile(reader, asked, response, { stallMs: clock === undefined ? 30_000 : STALL_MS }, clock).then(served => { outcomes.push(served) }, (error: unknown) => {
      if (!(error instanceof PatchcordError)) throw error
      outcomes.push(error)
      response.writeHead(error.status).end()
    }).finally(() => { running-- })
  })
  await new Promise<void>(resolve => { server.listen(0, '::1', resolve) })
  t.teardown(() => new Promise(resolve => {
    server.close(resolve)
    server.closeAllConnections()
  }))
  return { port: (server.address() as AddressInfo).port, outcomes, server, running: () => running }
}

function ask (port: number, path: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ host: '::1', port, path, headers, method, agent: false }, response => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => { chunks.push(chunk) })
      response.on('error', () => { /* 'close' follows and says all */ })
      response.on('close', () => {
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks), isCut: !response.complete })
      })
    })
    request.on('error', reject)
    request.end()
  })
}

const until = async (isSo: () => boolean): Promise<boolean> => {
  for (const started = performance.now(); performance.now() - started < 30_000;) {
    if (isSo()) return true
    await sleep(5)
  }
  return isSo()
}

/** Paths of the descriptors of this process that lie under `folder`. */
function openUnder (folder: string): string[] {
  return readdirSync('/proc/self/fd').flatMap(fd => {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`)
      return path.startsWith(folder) ? [path] : []
    } catch {
      return []
    }
  })
}

void t.test('what is not a file of the store is never served, and the answer is that of absence', async t => {
  const home = t.testdir({ outside: 'secret' })
  const store = await FileStore.open(join(home, 'files'))
  const { port } = await serving(t, store.reader)
  const idFor = (n: number): ContentId => encodeBase32(sha256(Buffer.from([n]))) as ContentId
  const rows: Array<[what: string, plant: (path: string) => void]> = [
    ['nothing', () => {}],
    ['a symlink', path => { symlinkSync(join(home, 'outside'), path) }],
    ['a FIFO', path => { execFileSync('mkfifo', [path]) }],
    ['a folder', path => { mkdirSync(path) }],
    ['a file with two links', path => { linkSync(join(home, 'outside'), path) }],
    ['a socket', path => { execFileSync(process.execPath, ['-e', `require('net').createServer().listen(${JSON.stringify(basename(path))}, () => process.kill(process.pid, 9))`], { stdio: 'ignore', cwd: dirname(path) }) }],
  ]
  for (const [n, [what, plant]] of rows.entries()) {
    const id = idFor(n)
    const path = store.path(id)
    mkdirSync(join(path, '..'), { recursive: true })
    try {
      plant(path)
    } catch (error) {
      // The socket's maker kills itself so that its file stays; anything else is a failure of the test.
      if ((error as { signal?: string }).signal !== 'SIGKILL') throw error
    }
    for (const beside of ['', '/leaves']) {
      for (const method of ['GET', 'HEAD']) {
        const { status, headers, body } = await ask(port, `/${id}${beside}`, {}, method)
        t.equal(status, 404, `${method} ${beside} of ${what}`)
        t.notOk('etag' in headers)
        t.equal(body.length, 0)
      }
    }
    t.equal(await store.has(id), false, what)
    await raises(t, 'not-found', () => store.record(id, parseDatabaseName('db')), undefined, what)
  }
  const listed: string[] = []
  for await (const { id } of store.list()) listed.push(id)
  t.strictSame(listed, [])
  t.equal(existsSync(store.path(idFor(5))), true, 'the socket was there')

  // The list and the records are files like any other.
  writeFileSync(join(home, 'big'), pattern(2 * LEAF_BYTES))
  const { id } = await store.add(join(home, 'big'))
  t.equal((await ask(port, `/${id}/leaves`)).status, 200)
  const list = `${store.path(id)}.leaves`
  renameSync(list, join(home, 'list'))
  t.equal((await ask(port, `/${id}/leaves`)).status, 404, 'no list')
  symlinkSync(join(home, 'list'), list)
  t.equal((await ask(port, `/${id}/leaves`)).status, 404, 'the list is a symlink')
  unlinkSync(list)
  writeFileSync(list, Buffer.alloc(32))
  t.equal((await ask(port, `/${id}/leaves`)).status, 404, 'the list has another length')
  symlinkSync(join(home, 'refs'), `${store.path(id)}.refs`)
  writeFileSync(join(home, 'refs'), 'db\n')
  t.strictSame(await store.records(id), [], 'a symlink records nothing')
  t.ok(await until(() => openUnder(home).length === 0))
})

void t.test('serve: refusals, conditions, ranges', async t => {
  const home = t.testdir({ empty: '' })
  const store = await FileStore.open(join(home, 'files'))
  const bytes = pattern(2 * LEAF_BYTES + 5)
  writeFileSync(join(home, 'big'), bytes)
  writeFileSync(join(home, 'small'), 'abc')
  const { id } = await store.add(join(home, 'big'))
  const { id: small } = await store.add(join(home, 'small'))
  await store.add(join(home, 'empty'))
  const { port, outcomes } = await serving(t, store.reader)
  const size = bytes.length
  const tag = `"${id}"`
  const everywhere = { 'x-content-type-options': 'nosniff', 'content-security-policy': 'sandbox', 'accept-ranges': 'bytes' }
  const known = { 'etag': tag, 'cache-control': 'private, immutable, max-age=31536000' }
  const rows: Array<[headers: Record<string, string>, status: number, body: Buffer, contentRange?: string]> = [
    [{ 'if-match': '"x"' }, 412, Buffer.alloc(0)],
    [{ 'if-match': `W/${tag}` }, 412, Buffer.alloc(0)],
    [{ 'if-match': '"x"', 'if-none-match': tag, 'range': 'bytes=0-1' }, 412, Buffer.alloc(0)],
    [{ 'range': `bytes=${size}-` }, 416, Buffer.alloc(0), `bytes */${size}`],
    [{ 'range': 'bytes=-0' }, 416, Buffer.alloc(0), `bytes */${size}`],
    [{ 'if-none-match': tag }, 304, Buffer.alloc(0)],
    [{ 'if-none-match': '*', 'range': 'bytes=0-1' }, 304, Buffer.alloc(0)],
    [{ 'if-none-match': `"x", W/${tag}` }, 304, Buffer.alloc(0)],
    [{ 'if-none-match': tag, 'range': `bytes=${size}-` }, 304, Buffer.alloc(0)],
    [{}, 200, bytes],
    [{ 'range': 'bytes=0-0,2-2' }, 200, bytes],
    [{ 'range': 'lines=0-1' }, 200, bytes],
    [{ 'range': 'bytes=0-1', 'if-range': '"x"' }, 200, bytes],
    [{ 'range': 'bytes=0-1', 'if-range': `W/${tag}` }, 200, bytes],
    [{ 'range': 'bytes=0-1', 'if-range': new Date().toUTCString() }, 200, bytes],
    [{ 'range': `bytes=${size}-`, 'if-range': '"x"' }, 200, bytes],
    [{ 'if-modified-since': new Date().toUTCString() }, 200, bytes],
    [{ 'if-none-match': '"x"' }, 200, bytes],
    [{ 'if-match': tag }, 200, bytes],
    [{ 'range': 'bytes=0-1', 'if-range': tag }, 206, bytes.subarray(0, 2), `bytes 0-1/${size}`],
    [{ 'range': 'bytes=0-' }, 206, bytes, `bytes 0-${size - 1}/${size}`],
    [{ 'range': 'bytes=-5' }, 206, bytes.subarray(-5), `bytes ${size - 5}-${size - 1}/${size}`],
    [{ 'range': 'bytes=524280-1048600' }, 206, bytes.subarray(524_280, 1_048_601), `bytes 524280-1048600/${size}`],
    [{ 'range': 'bytes=524288-1048575', 'if-match': '*' }, 206, bytes.subarray(524_288, 1_048_576), `bytes 524288-1048575/${size}`],
    [{ 'range': `bytes=1-${'9'.repeat(30)}` }, 206, bytes.subarray(1), `bytes 1-${size - 1}/${size}`],
  ]
  for (const [headers, status, body, contentRange] of rows) {
    const name = JSON.stringify(headers)
    const answer = await ask(port, `/${id}`, headers)
    t.equal(answer.status, status, name)
    t.ok(answer.body.equals(body), `${name}: the body`)
    t.equal(answer.headers['content-range'], contentRange, name)
    t.equal(answer.headers['content-length'], status === 304 ? undefined : String(body.length), name)
    t.hasStrict(answer.headers, status < 400 ? { ...everywhere, ...known } : everywhere, name)
    t.equal(answer.headers['content-type'], status < 300 ? 'application/octet-stream' : undefined, name)
    t.notOk('last-modified' in answer.headers, name)
    if (status >= 400) t.notOk('cache-control' in answer.headers, name)
    await until(() => outcomes.length > 0)
    t.strictSame(outcomes.splice(0), [{ status, bytes: body.length, ending: 'whole' }], name)

    const head = await ask(port, `/${id}`, headers, 'HEAD')
    const headStatus = status === 206 || status === 416 ? 200 : status
    t.equal(head.status, headStatus, `HEAD ${name}`)
    t.equal(head.body.length, 0)
    t.equal(head.headers['content-length'], headStatus === 304 ? undefined : String(headStatus === 200 ? size : 0), `HEAD ${name}`)
    t.notOk('content-range' in head.headers, `HEAD ${name}`)
    await until(() => outcomes.length > 0)
    t.strictSame(outcomes.splice(0), [{ status: headStatus, bytes: 0, ending: 'whole' }], `HEAD ${name}`)
  }
  t.strictSame(await ask(port, `/${small}`).then(({ status, body }) => [status, body.toString()]), [200, 'abc'])
  t.equal((await ask(port, `/${EMPTY_ID}`)).headers['content-length'], '0')
  t.equal((await ask(port, `/${EMPTY_ID}`, { range: 'bytes=0-' })).status, 416)
  t.equal((await ask(port, `/${EMPTY_ID}`, { range: 'bytes=-1' })).status, 200)

  for (const [asked, content] of [[id, bytes], [small, Buffer.from('abc')], [EMPTY_ID, Buffer.alloc(0)]] as const) {
    const { status, headers, body } = await ask(port, `/${asked}/leaves`)
    t.equal(status, 200)
    t.equal(headers['patchcord-file-size'], String(content.length))
    t.equal(headers['content-length'], String(body.length))
    t.doesNotThrow(() => { checkLeaves(asked, Number(headers['patchcord-file-size']), body) })
    t.ok(body.equals(leavesOf(content)))
  }
  t.ok((await ask(port, `/${id}/leaves`, { range: 'bytes=32-63' })).body.equals(leavesOf(bytes).subarray(32, 64)))
  t.notOk('patchcord-file-size' in (await ask(port, `/${id}`)).headers)
  t.ok(await until(() => openUnder(home).length === 0), 'no handle stays open')
})

/** A client that sends one request and reads nothing until told. */
async function silentClient (port: number, path: string): Promise<Socket> {
  const socket = connect({ host: '::1', port })
  socket.on('error', () => { /* being cut off is what is tested */ })
  socket.pause()
  await new Promise<void>(resolve => { socket.once('connect', resolve) })
  socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`)
  return socket
}

const LARGE = 48 * LEAF_BYTES

async function largeStore (home: string): Promise<{ store: FileStore, id: ContentId }> {
  const store = await FileStore.open(join(home, 'files'))
  writeFileSync(join(home, 'large'), pattern(LARGE))
  const { id } = await store.add(join(home, 'large'))
  return { store, id }
}

void t.test('a file that shrinks under a transfer cuts the connection and is never padded', async t => {
  const home = t.testdir({})
  const { store, id } = await largeStore(home)
  const { port, outcomes } = await serving(t, store.reader)
  const socket = await silentClient(port, `/${id}`)
  t.ok(await until(() => openUnder(home).length > 0), 'the transfer has begun')
  await sleep(50)
  chmodSync(store.path(id), 0o600)
  truncateSync(store.path(id), 20 * LEAF_BYTES)
  let received = 0
  socket.on('data', chunk => { received += chunk.length })
  socket.resume()
  await new Promise<void>(resolve => { socket.once('close', () => { resolve() }) })
  t.ok(received > 0 && received < 21 * LEAF_BYTES, `${received} bytes came`)
  t.ok(await until(() => outcomes.length === 1))
  t.hasStrict(outcomes[0], { status: 200, ending: 'cut' })
  t.ok(await until(() => openUnder(home).length === 0))
  const { status, headers } = await ask(port, `/${id}/leaves`)
  t.equal(status, 404, `a list that does not fit the size is not handed out ${headers['content-length']}`)
})

void t.test('a client that goes away ends the transfer at once, and no handle stays', async t => {
  const home = t.testdir({})
  const { store, id } = await largeStore(home)
  const { port, outcomes } = await serving(t, store.reader)
  const sockets = await Promise.all(Array.from({ length: 8 }, () => silentClient(port, `/${id}`)))
  t.ok(await until(() => openUnder(home).length === 8), 'eight transfers are under way')
  await sleep(50)
  t.equal(outcomes.length, 0)
  for (const socket of sockets) socket.destroy()
  t.ok(await until(() => outcomes.length === 8))
  for (const outcome of outcomes) t.hasStrict(outcome, { status: 200, ending: 'gone' })
  t.ok(outcomes.every(outcome => 'bytes' in outcome && outcome.bytes < LARGE))
  t.ok(await until(() => openUnder(home).length === 0), 'every handle is closed')
  const whole = await ask(port, `/${id}`)
  t.ok(whole.body.equals(pattern(LARGE)), 'buffers of aborted transfers spoil no other')
})

/** So many quarters of stallMs pass, one after the other. */
async function quarters (clock: ManualClock, count: number): Promise<void> {
  for (let n = 0; n < count; n++) {
    clock.advance(STALL_MS / 4)
    await sleep(5)
  }
}

/** Takes `bytes` from a connection that reads nothing else. More than the system holds for it: the other side has moved. */
async function take (socket: Socket, bytes: number): Promise<void> {
  await new Promise<void>(resolve => {
    let left = bytes
    const taken = (chunk: Buffer): void => {
      left -= chunk.length
      if (left > 0) return
      socket.off('data', taken).pause()
      resolve()
    }
    socket.on('data', taken).once('close', () => { resolve() }).resume()
  })
}

/** Linux holds 10 MiB between two programs of one machine. */
const MORE_THAN_HELD = 11 * LEAF_BYTES

void t.test('a client that stops reading is cut after stallMs; one that reads slowly is not', async t => {
  const home = t.testdir({})
  const { store, id } = await largeStore(home)
  const clock = new ManualClock(0)
  const { port, outcomes, running } = await serving(t, store.reader, clock)
  const silent = await silentClient(port, `/${id}`)
  t.ok(await until(() => openUnder(home).length > 0), 'the transfer has begun')
  await sleep(50)
  await quarters(clock, 3)
  t.strictSame(outcomes, [], 'three quarters of stallMs')
  // Where the system took something at first, a quarter or two later.
  await quarters(clock, 4)
  t.hasStrict(outcomes.splice(0), [{ status: 200, ending: 'stalled' }])
  t.ok(await until(() => openUnder(home).length === 0))
  silent.destroy()

  // A chatty client that sends requests and reads nothing is stalled all the same.
  const chatty = await silentClient(port, `/${id}`)
  t.ok(await until(() => openUnder(home).length > 0))
  for (let n = 0; n < 12 && outcomes.length === 0; n++) {
    chatty.write(`GET /${id} HTTP/1.1\r\nHost: x\r\n\r\n`)
    await sleep(20)
    await quarters(clock, 1)
  }
  t.ok(outcomes.some(outcome => 'ending' in outcome && outcome.ending === 'stalled'))
  chatty.destroy()
  await sleep(20)
  t.ok(await until(() => running() === 0 && openUnder(home).length === 0), 'the requests behind it ended with it')
  outcomes.splice(0)

  const slow = await silentClient(port, `/${id}`)
  for (let n = 0; n < 3; n++) {
    await take(slow, MORE_THAN_HELD)
    await quarters(clock, 3)
  }
  t.strictSame(outcomes, [], 'twice stallMs later it is still served')
  slow.resume()
  t.ok(await until(() => outcomes.length === 1))
  t.hasStrict(outcomes[0], { ending: 'whole', bytes: LARGE })
  slow.destroy()
})

void t.test('a buffer that the stack below still holds is not used again', async t => {
  const home = t.testdir({})
  const { store, id } = await largeStore(home)
  const held: Buffer[] = []
  const done: Array<() => void> = []
  // A connection that takes what it is given and, like TLS with a full socket, is not done with it.
  class Holding extends Writable {
    readonly socket = this
    writeHead (): void {}
    flushHeaders (): void {}
    override _write (chunk: Buffer, _: string, callback: () => void): void {
      held.push(chunk)
      done.push(callback)
    }
  }
  const response = new Holding({ highWaterMark: 1 })
  const served = serveFile(store.reader, { id, part: 'content', method: 'GET', headers: new Map() }, response as never, { stallMs: 30_000 })
  t.ok(await until(() => response.writableLength === 2 * CHUNK_BYTES), 'two buffers are on their way')
  await sleep(50)
  t.equal(response.writableLength, 2 * CHUNK_BYTES, 'and no more')
  const first = Buffer.from(held[0] as Buffer)
  t.ok(first.equals(pattern(LARGE).subarray(0, CHUNK_BYTES)))
  response.destroy()
  t.strictSame(await served, { status: 200, bytes: 0, ending: 'gone' })
  const again = [store.reader.buffers.take(), store.reader.buffers.take()]
  for (const buffer of again) t.not(buffer.buffer, held[0]?.buffer, 'the one that was not called back is dropped')
  for (const buffer of again) buffer.fill(0xff)
  t.ok(held[0]?.equals(first), 'what is still being sent is unchanged')
  t.strictSame(openUnder(home), [])
})

void t.test('a buffer that leaves bit by bit is progress; one that stands still is not', async t => {
  const home = t.testdir({})
  const { store, id } = await largeStore(home)
  const handle = { writeQueueSize: 1_000 }
  class Trickling extends Writable {
    readonly socket = this
    readonly _handle = handle
    writeHead (): void {}
    flushHeaders (): void {}
    override _write (): void {}
  }
  // Time moves when the test says: four checks are due per stallMs.
  let now = 0
  let due: Array<() => void> = []
  const clock: Clock = { now: () => now, monotonic: () => now, after: (_, task) => {
    due.push(task)
    return { cancel: () => { due = due.filter(other => other !== task) } }
  } }
  const pass = (): void => {
    now += 250
    for (const task of due.splice(0)) task()
  }
  const response = new Trickling()
  const served = serveFile(store.reader, { id, part: 'content', method: 'GET', headers: new Map() }, response as never, { stallMs: 1_000 }, clock)
  t.ok(await until(() => response.writableLength === 2 * CHUNK_BYTES))
  for (let n = 0; n < 40; n++) {
    handle.writeQueueSize--
    pass()
  }
  t.equal(response.destroyed, false, 'ten times stallMs, and a byte each quarter')
  for (let n = 0; n < 3; n++) pass()
  t.equal(response.destroyed, false, 'three quarters of stallMs without one')
  pass()
  t.equal(response.destroyed, true, 'stallMs without one')
  t.strictSame(await served, { status: 200, bytes: 0, ending: 'stalled' })
  t.strictSame([due.length, openUnder(home)], [0, []])
})

void t.test('over TLS, to many clients of different speeds, every byte is right', async t => {
  const home = t.testdir({})
  const { store, id } = await largeStore(home)
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await X509CertificateGenerator.createSelfSigned({ serialNumber: '01', name: [{ CN: ['x'] }], notBefore: new Date(Date.now() - 1e6), notAfter: new Date(Date.now() + 1e8), signingAlgorithm: algorithm, keys })
  const key = `-----BEGIN PRIVATE KEY-----\n${Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey)).toString('base64')}\n-----END PRIVATE KEY-----\n`
  const server = createTlsServer({ key, cert: certificate.toString('pem'), minVersion: 'TLSv1.3' }, (_, response) => {
    void serveFile(store.reader, { id, part: 'content', method: 'GET', headers: new Map() }, response, { stallMs: 5_000 })
  })
  await new Promise<void>(resolve => { server.listen(0, '::1', resolve) })
  t.teardown(() => new Promise(resolve => { server.close(resolve) }))
  const { port } = server.address() as AddressInfo
  const expected = createHash('sha256').update(pattern(LARGE)).digest('hex')
  const fetchOne = (pause: number): Promise<string> => new Promise((resolve, reject) => {
    tlsRequest({ host: '::1', port, agent: false, rejectUnauthorized: false }, response => {
      const hash = createHash('sha256')
      let since = 0
      response.on('data', (chunk: Buffer) => {
        hash.update(chunk)
        since += chunk.length
        if (pause === 0 || since < 4 * LEAF_BYTES) return
        since = 0
        response.pause()
        setTimeout(() => { response.resume() }, pause)
      })
      response.on('end', () => { resolve(hash.digest('hex')) })
      response.on('error', reject)
      response.on('close', () => { resolve('aborted') })
      if (pause === 7) setTimeout(() => { response.destroy() }, 30)
    }).on('error', reject).end()
  })
  const aborted = fetchOne(7)
  const sums = await Promise.all([0, 0, 5, 20].map(fetchOne))
  t.strictSame(sums, sums.map(() => expected))
  t.equal(await aborted, 'aborted')
  t.ok(await until(() => openUnder(home).length === 0))
})

void t.test('pipelined requests wait for their turn without being cut', async t => {
  const home = t.testdir({ a: 'abc' })
  const { store, id } = await largeStore(home)
  const { id: small } = await store.add(join(home, 'a'))
  const clock = new ManualClock(0)
  const { port, outcomes } = await serving(t, store.reader, clock)
  const socket = await silentClient(port, `/${id}`)
  socket.write(`GET /${id} HTTP/1.1\r\nHost: x\r\n\r\nGET /${small} HTTP/1.1\r\nHost: x\r\n\r\n`)
  // The first takes longer than stallMs, moving all the time.
  for (let n = 0; n < 3; n++) {
    await take(socket, MORE_THAN_HELD)
    await quarters(clock, 3)
  }
  t.strictSame(outcomes, [{ status: 200, bytes: 3, ending: 'whole' }], 'the small one was handed down, and waits; the others have not ended')
  socket.resume()
  t.ok(await until(() => outcomes.length === 3))
  t.hasStrict(outcomes, [{ ending: 'whole' }, { ending: 'whole' }, { ending: 'whole' }])
  socket.destroy()
})

void t.test('import: refusals leave nothing behind', async t => {
  const home = t.testdir({ target: 'x', folder: {} })
  const store = await FileStore.open(join(home, 'files'))
  symlinkSync(join(home, 'target'), join(home, 'link'))
  execFileSync('mkfifo', [join(home, 'fifo')])
  const rows: Array<[path: string, says: RegExp]> = [
    [join(home, 'absent'), /absent does not exist/],
    [join(home, 'folder'), /folder is a folder, not a regular file/],
    [join(home, 'link'), /link is a symbolic link, not a regular file/],
    [join(home, 'fifo'), /fifo is a FIFO or a device, not a regular file/],
    ['/dev/zero', /zero is a FIFO or a device, not a regular file/],
    [join(home, 'target', 'x'), /target\/x: ENOTDIR/],
  ]
  for (const [path, says] of rows) await raises(t, 'unreadable', () => store.add(path), says, path)
  await raises(t, 'usage', () => FileStore.open('files'), /not an absolute path/)
  await raises(t, 'usage', () => new FileReader('./files'), /not an absolute path/)

  const large = join(home, 'large')
  writeFileSync(large, pattern(20 * LEAF_BYTES))
  const aborting = new AbortController()
  const reason = new Error('enough')
  await t.rejects(store.add(large, { signal: aborting.signal, onProgress: done => { if (done > 3 * LEAF_BYTES) aborting.abort(reason) } }), reason)
  await t.rejects(store.add(join(home, 'target'), { signal: aborting.signal }), reason)
  t.strictSame([readdirSync(store.root), readdirSync(join(home, 'partial')), openUnder(home)], [[], [], []])
})

void t.test('import: a file that changes while it is read is not taken in', async t => {
  const home = t.testdir({})
  const store = await FileStore.open(join(home, 'files'))
  const path = join(home, 'large')
  const changes: Array<[how: string, change: () => void]> = [
    ['it grows', () => { appendFileSync(path, 'x') }],
    ['it shrinks', () => { truncateSync(path, 10 * LEAF_BYTES) }],
    ['it loses its last leaf', () => { truncateSync(path, 20 * LEAF_BYTES - 1) }],
    ['it is written over, and its mtime set back', () => {
      execFileSync('touch', ['-r', path, join(home, 'times')])
      writeFileSync(path, Buffer.alloc(20 * LEAF_BYTES, 1))
      execFileSync('touch', ['-r', join(home, 'times'), path])
    }],
  ]
  for (const [how, change] of changes) {
    writeFileSync(path, pattern(20 * LEAF_BYTES))
    await sleep(10)
    let isChanged = false
    await raises(t, 'changed-while-read', () => store.add(path, {
      onProgress: () => {
        if (!isChanged) change()
        isChanged = true
      },
    }), /large changed while it was read/, how)
    t.equal(isChanged, true, how)
    t.strictSame([readdirSync(store.root), readdirSync(join(home, 'partial')), openUnder(home)], [[], [], []], how)
  }
  // Files of the system that say that they are empty, and are not.
  const told = '/proc/cpuinfo'
  t.equal(statSync(told).size, 0)
  await raises(t, 'changed-while-read', () => store.add(told), /cpuinfo has more than the 0 bytes/)
  for await (const added of store.addAll([told])) t.match(added, { error: { code: 'changed-while-read' } })
  t.strictSame([readdirSync(store.root), readdirSync(join(home, 'partial')), openUnder(home)], [[], [], []])
})

void t.test('import: what is there already costs one pass and no write', async t => {
  const home = t.testdir({ small: 'abc' })
  const store = await FileStore.open(join(home, 'files'))
  const large = join(home, 'large')
  writeFileSync(large, pattern(8 * LEAF_BYTES + 1))
  const marks = (): unknown => readdirSync(store.root).flatMap(shard => readdirSync(join(store.root, shard)).map(name => {
    const { ino, ctimeNs, mode, nlink } = statSync(join(store.root, shard, name), { bigint: true })
    return [name, ino, ctimeNs, mode & 0o777n, nlink]
  }))
  const first = [await store.add(join(home, 'small')), await store.add(large)]
  t.strictSame(first.map(({ isNew }) => isNew), [true, true])
  const before = marks()
  t.equal((before as unknown[]).length, 3, 'two files, and one list')
  for (const mark of before as Array<[string, bigint, bigint, bigint, bigint]>) t.strictSame([mark[3], mark[4]], [0o444n, 1n], 'mode 0444, one link')
  for (const opened of [store, await FileStore.open(store.root)]) {
    const [reads, writes] = processIo()
    const progress: number[] = []
    t.strictSame(await opened.add(large, { onProgress: done => { progress.push(done) } }), { ...first[1], isNew: false })
    const [readsAfter, writesAfter] = processIo()
    t.equal(progress.length, 9, 'one pass')
    t.ok(readsAfter - reads < 12 * LEAF_BYTES, `${readsAfter - reads} bytes read`)
    // Threads wake each other by writes of a few bytes.
    t.ok(writesAfter - writes < 131_072, `${writesAfter - writes} bytes written`)
    t.strictSame(await opened.add(join(home, 'small')), { ...first[0], isNew: false })
    t.strictSame(marks(), before)
  }
  // Another of the same size is taken in all the same.
  writeFileSync(large, Buffer.alloc(8 * LEAF_BYTES + 1, 7))
  t.equal((await store.add(large)).isNew, true)
  // The source is a copy, not a link.
  writeFileSync(large, 'changed')
  for await (const { id, size } of store.list()) t.equal(readFileSync(store.path(id)).length, size)

  // What is visibly damaged is not there, and is replaced.
  const [, { id, size }] = first as [unknown, { id: ContentId, size: number }]
  chmodSync(store.path(id), 0o600)
  truncateSync(store.path(id), 100)
  writeFileSync(large, pattern(size))
  t.equal((await store.add(large)).isNew, true)
  t.equal(statSync(store.path(id)).size, size)

  // The same file many times at once is one file.
  writeFileSync(large, Buffer.alloc(3 * LEAF_BYTES, 9))
  const many = await Promise.all(Array.from({ length: 6 }, () => store.add(large)))
  t.equal(many.filter(({ isNew }) => isNew).length, 1)
  t.strictSame([readdirSync(join(home, 'partial')), openUnder(home)], [[], []])
})

/** Bytes this process has read and written by system calls so far. */
function processIo (): [number, number] {
  const text = readFileSync('/proc/self/io', 'utf8')
  return [Number(/rchar: (\d+)/.exec(text)?.[1]), Number(/wchar: (\d+)/.exec(text)?.[1])]
}

void t.test('a full disk: disk-full, and nothing half-written', async t => {
  const disk = mountSmall(t, '4m')
  if (disk === undefined) return void t.pass('a small disk', { skip: NO_SMALL_DISK })
  const home = t.testdir({})
  const store = await FileStore.open(join(disk, 'files'))
  const large = join(home, 'large')
  writeFileSync(large, pattern(6 * LEAF_BYTES))
  await raises(t, 'disk-full', () => store.add(large))
  t.strictSame([readdirSync(store.root), readdirSync(join(disk, 'partial'))], [[], []])

  const leaves = leavesOf(pattern(6 * LEAF_BYTES))
  const partial = await PartialFile.create(store, { id: contentIdOf(leaves), size: 6 * LEAF_BYTES, leaves })
  await raises(t, 'disk-full', async () => {
    for (let index = 0; index < 6; index++) await partial.writeLeaf(index, pattern(6 * LEAF_BYTES).subarray(index * LEAF_BYTES, (index + 1) * LEAF_BYTES))
  })
  t.ok(partial.missing().length > 0 && partial.missing().length < 6, 'the leaf without room is still missing')
  await partial.discard()
  t.strictSame(readdirSync(join(disk, 'partial')), [])

  // Small files until there is no room: each is whole or an error, and there is room again once some go.
  for (const [count, size] of [[24, 300_000], [80, 100_000]] as const) {
    const paths = Array.from({ length: count }, (_, n) => {
      writeFileSync(join(home, `small${n}`), Buffer.alloc(size, n))
      return join(home, `small${n}`)
    })
    const there: ContentId[] = []
    let full = 0
    for await (const added of store.addAll(paths)) {
      if ('error' in added) {
        t.equal(added.error.code, 'disk-full')
        full++
      } else {
        there.push(added.id)
      }
    }
    t.ok(there.length > 0 && full > 0 && there.length + full === count, `${there.length} fit`)
    t.strictSame(readdirSync(join(disk, 'partial')), [])
    for await (const one of store.list()) t.equal(one.size, size)
    for (const id of there) await store.remove(id)
  }
  writeFileSync(large, pattern(2 * LEAF_BYTES))
  t.equal((await store.add(large)).isNew, true, 'there is room again')
})

void t.test('records: durable lines, concurrent changes, damage', async t => {
  const home = t.testdir({ a: 'abc', b: 'def' })
  const store = await FileStore.open(join(home, 'files'))
  const { id } = await store.add(join(home, 'a'))
  const { id: other } = await store.add(join(home, 'b'))
  const names = Array.from({ length: 30 }, (_, n) => parseDatabaseName(`db-${n}`))
  const absent = encodeBase32(sha256(Buffer.from('absent'))) as ContentId
  await raises(t, 'not-found', () => store.record(absent, names[0] as never))
  await store.unrecord(absent, names[0] as never)
  await Promise.all(names.map(name => store.record(id, name)))
  t.strictSame(await store.records(id), [...names].sort(), 'none is lost')
  await Promise.all(names.slice(3).map((name, n) => n % 2 === 0 ? store.unrecord(id, name) : store.record(other, name)))
  t.equal((await store.records(id)).length, 30 - 14)
  t.equal((await store.records(other)).length, 13)
  const shared: string[] = []
  for await (const found of store.recordsOf(names[4] as never)) shared.push(found)
  t.strictSame(shared.sort(), [id, other].sort())
  for await (const found of store.recordsOf(parseDatabaseName('db'))) t.fail(`${found} is recorded for db-…, not for db`)
  await Promise.all(names.map(name => store.unrecord(id, name)))
  t.strictSame(await store.records(id), [])
  t.equal(existsSync(`${store.path(id)}.refs`), false)
  t.strictSame(readdirSync(dirname(store.path(other))).filter(name => name.includes('.tmp')), [])

  const damaged: Array<[text: string, grants: string[], line: number | undefined]> = [
    ['novacut-0-fo', [], 1], ['a\nb', ['a'], 2], ['a\n\nb\n', ['a', 'b'], 2], ['A\nb\n', ['b'], 1], ['a \n', [], 1], ['a\r\n', [], 1], ['_users\n', [], 1], ['a\n*\n', ['a'], 2], ['\0\n', [], 1],
    [`${'a'.repeat(239)}\n`, [], 1], ['', [], undefined], ['b\na\na\n', ['a', 'b'], undefined],
  ]
  const damage: Array<[string, number]> = []
  const reader = new FileReader(store.root, { onDamage: (path, line) => { damage.push([path, line]) } })
  for (const [text, grants, line] of damaged) {
    t.strictSame(parseRecords(text), line === undefined ? { databases: grants } : { databases: grants, damagedLine: line }, JSON.stringify(text))
    writeFileSync(`${store.path(id)}.refs`, text)
    t.strictSame(await reader.records(id), grants)
    t.strictSame(damage.splice(0), line === undefined ? [] : [[`${store.path(id)}.refs`, line]])
  }
  writeFileSync(`${store.path(id)}.refs`, 'a\n'.repeat(600_000))
  t.strictSame([await reader.records(id), damage.length], [[], 1], 'larger than any honest one')
  fc.assert(fc.property(fc.uniqueArray(fc.constantFrom(...names)), list => {
    t.strictSame(parseRecords(formatRecords(list)), { databases: [...list].sort() })
  }))

  t.equal(await store.remove(other), true)
  t.strictSame([await store.has(other), await store.remove(other)], [false, false])
  // Many at once: what is recorded, even in the same moment, stays.
  await store.add(join(home, 'b'))
  await store.record(id, names[0] as never)
  await store.removeUnrecorded([id, other, absent], () => false)
  t.strictSame([await store.has(id), await store.has(other)], [true, false])
  await store.add(join(home, 'b'))
  const [recorded] = await Promise.all([store.record(other, names[0] as never).then(() => true, () => false), store.removeUnrecorded([other], () => false)])
  t.strictSame([await store.has(other), (await store.records(other)).length], recorded ? [true, 1] : [false, 0])
  await store.remove(other)
  await store.add(join(home, 'b'))
  t.strictSame(await store.records(other), [], 'no record outlives its file')
  t.strictSame(openUnder(home), [])
})

void t.test('opening the store clears what an earlier process left, and nothing else', async t => {
  const home = t.testdir({ a: 'abc', partial: {} })
  const store = await FileStore.open(join(home, 'files'))
  const { id } = await store.add(join(home, 'a'))
  await store.record(id, parseDatabaseName('db'))
  const shard = dirname(store.path(id))
  const old = [join(home, 'partial', 'abc.tmp'), join(shard, `.${basename(store.path(id))}.refs.0011.tmp`)]
  const kept = [join(home, 'partial', `${id}.partial`), join(home, 'partial', `${id}.bitmap`)]
  for (const path of [...old, ...kept]) {
    writeFileSync(path, 'x')
    utimesSync(path, 1e9, 1e9)
  }
  const young = join(home, 'partial', 'young.tmp')
  writeFileSync(young, 'x')
  utimesSync(store.path(id), 1e9, 1e9)
  await FileStore.open(store.root)
  for (const path of old) t.equal(existsSync(path), false, path)
  for (const path of [...kept, young, store.path(id), `${store.path(id)}.refs`]) t.equal(existsSync(path), true, path)
})

void t.test('downloads: only right leaves are written', async t => {
  const home = t.testdir({})
  const store = await FileStore.open(join(home, 'files'))
  const size = 4 * LEAF_BYTES + 10
  const bytes = pattern(size)
  const leaves = leavesOf(bytes)
  const id = contentIdOf(leaves)
  const leaf = (index: number): Buffer => bytes.subarray(index * LEAF_BYTES, (index + 1) * LEAF_BYTES)
  await raises(t, 'verification', () => PartialFile.create(store, { id, size: size + LEAF_BYTES, leaves }))
  await raises(t, 'verification', () => PartialFile.create(store, { id, size, leaves: leaves.subarray(32) }))
  await raises(t, 'verification', () => PartialFile.create(store, { id: EMPTY_ID, size, leaves }))
  t.strictSame(readdirSync(join(home, 'partial')), [], 'nothing was created for them')

  writeFileSync(store.partialPath(id), 'left by an earlier process')
  const partial = await PartialFile.create(store, { id, size, leaves })
  await raises(t, 'already-exists', () => PartialFile.create(store, { id, size, leaves }))
  t.strictSame(partial.missing(), [0, 1, 2, 3, 4])
  const flipped = Buffer.from(leaf(1))
  flipped.writeUInt8(flipped.readUInt8(5) ^ 1, 5)
  const wrong: Array<[index: number, bytes: Buffer]> = [[1, flipped], [1, leaf(0)], [1, leaf(1).subarray(1)], [4, Buffer.concat([leaf(4), Buffer.alloc(1)])], [4, Buffer.alloc(0)], [0, leaf(4)], [0, bytes.subarray(0, LEAF_BYTES + 1)]]
  for (const [index, data] of wrong) await raises(t, 'verification', () => partial.writeLeaf(index, data), new RegExp(`^leaf ${index} of ${id}`))
  await t.rejects(partial.writeLeaf(5, leaf(0)), RangeError)
  await t.rejects(partial.writeLeaf(-1, leaf(0)), RangeError)
  t.ok(readFileSync(store.partialPath(id)).equals(Buffer.alloc(size)), 'nothing of them was written')
  await Promise.all([3, 0, 4].map(index => partial.writeLeaf(index, leaf(index))))
  await partial.writeLeaf(3, leaf(3))
  t.strictSame(partial.missing(), [1, 2])
  await raises(t, 'verification', () => partial.complete(), /2 of 5 leaves .* are missing/)
  t.equal(await store.has(id), false, 'a partial is not in the store')
  await Promise.all([1, 2].map(index => partial.writeLeaf(index, leaf(index))))
  await partial.complete()
  t.ok(readFileSync(store.path(id)).equals(bytes))
  t.equal(statSync(store.path(id)).mode & 0o777, 0o444)
  t.strictSame(await store.reader.leaves(id), { size, leaves })
  await raises(t, 'stopped', () => partial.writeLeaf(0, leaf(0)))
  await raises(t, 'stopped', () => partial.complete())
  await partial.discard()
  t.equal(await store.has(id), true, 'discarding what is complete does nothing')

  const again = await PartialFile.create(store, { id, size, leaves })
  for (let index = 0; index < 5; index++) await again.writeLeaf(index, leaf(index))
  const { ino } = statSync(store.path(id))
  await again.complete()
  t.equal(statSync(store.path(id)).ino, ino, 'it was there')
  const given = await PartialFile.create(store, { id, size, leaves })
  await given.discard()
  await raises(t, 'stopped', () => given.writeLeaf(0, leaf(0)))
  const nothing = await PartialFile.create(store, { id: EMPTY_ID, size: 0, leaves: sha256() })
  t.strictSame(nothing.missing(), [])
  await nothing.complete()
  t.equal(await store.has(EMPTY_ID), true)
  t.strictSame([readdirSync(join(home, 'partial')), openUnder(home)], [[], []])
})

void t.test('downloads: a leaf of a large file costs what one of a small file does', async t => {
  const store = await FileStore.open(join(t.testdir({}), 'files'))
  t.teardown(() => store.close())
  const leaf = leafBuffer().fill(0)
  const hash = leafHash(leaf)
  const costOf = async (count: number): Promise<number> => {
    const leaves = Buffer.concat(Array.from({ length: count }, () => hash))
    const partial = await PartialFile.create(store, { id: contentIdOf(leaves), size: count * LEAF_BYTES, leaves })
    await partial.writeLeaf(0, leaf)
    const start = process.cpuUsage()
    for (let index = 1; index < 40; index++) await partial.writeLeaf(index, leaf)
    const { user, system } = process.cpuUsage(start)
    await partial.discard()
    return (user + system) / 1000
  }
  // 128 GiB have a list of 4 MiB, which a message to a thread must not take along.
  const [small, large] = [await costOf(40), await costOf(131_072)]
  t.ok(large < 2 * small + 50, `${large.toFixed()} ms of CPU for 39 leaves, ${small.toFixed()} where the file is small`)
})

void t.test('downloads: what is left of one is dropped, or gone on with, never both', async t => {
  const home = t.testdir({})
  const store = await FileStore.open(join(home, 'files'))
  const size = 2 * LEAF_BYTES
  const leaves = leavesOf(pattern(size))
  const id = contentIdOf(leaves)
  const begin = (): Promise<PartialFile> => PartialFile.create(store, { id, size, leaves })
  await (await begin()).suspend()
  const dropping = store.dropPartial(id)
  // It waits, and has what it makes to itself.
  const partial = await begin()
  t.equal(await dropping, true)
  t.strictSame(readdirSync(join(home, 'partial')).toSorted(), [`${id}.bitmap`, `${id}.partial`])
  await raises(t, 'already-exists', begin)
  t.equal(await store.dropPartial(id), false, 'it runs')
  await partial.suspend()
  const resuming = PartialFile.resume(store, id)
  t.equal(await store.dropPartial(id), false)
  await (await resuming)?.suspend()
  t.strictSame([await store.partials(), await store.dropPartial(id), await store.dropPartial(id)], [[id], true, false])
})

void t.test('a stored file that rots is told when it is read', async t => {
  const home = t.testdir({ a: 'abc' })
  const store = await FileStore.open(join(home, 'files'))
  const { id } = await store.add(join(home, 'a'))
  chmodSync(store.path(id), 0o600)
  writeFileSync(store.path(id), 'abd')
  await raises(t, 'verification', async () => { for await (const chunk of store.read(id)) t.fail(`${String(chunk)} was passed on`) }, /leaf 0 of .* is damaged/)
  await raises(t, 'not-found', async () => { for await (const chunk of store.read(EMPTY_ID)) t.fail(String(chunk)) })
  t.strictSame(openUnder(home), [])
})

void t.test('what a crash left unsettled: a list that is torn is made of the bytes, and what is not right goes', async t => {
  const home = t.testdir({})
  const names = ['zeros', 'short', 'missing', 'damaged', 'damaged too']
  const files: Array<{ id: ContentId, list: Buffer }> = []
  const before = await FileStore.open(join(home, 'files'))
  for (const [n, name] of names.entries()) writeFileSync(join(home, name), pattern(2 * LEAF_BYTES + n))
  for await (const added of before.addAll(names.map(name => join(home, name)), { isLater: true })) {
    if ('error' in added) throw added.error
    files.push({ id: added.id, list: readFileSync(`${before.path(added.id)}.leaves`) })
  }
  const [zeros, short, missing, damaged, damagedToo] = files.map(({ id }) => before.path(id)) as [string, string, string, string, string]
  for (const path of [zeros, short, missing, damaged, damagedToo]) for (const each of [path, `${path}.leaves`]) chmodSync(each, 0o600)
  writeFileSync(`${zeros}.leaves`, Buffer.alloc(3 * 32))
  truncateSync(`${short}.leaves`, 40)
  unlinkSync(`${missing}.leaves`)
  writeFileSync(damaged, Buffer.alloc(2 * LEAF_BYTES + 3))
  writeFileSync(damagedToo, Buffer.alloc(2 * LEAF_BYTES + 4))
  writeFileSync(`${damagedToo}.leaves`, Buffer.alloc(3 * 32))
  await before.hashes.close()

  const store = await FileStore.open(join(home, 'files'))
  t.teardown(() => store.close())
  t.strictSame(store.lost.toSorted(), files.slice(3).map(({ id }) => id).toSorted())
  for (const { id, list } of files.slice(0, 3)) t.strictSame((await store.reader.leaves(id))?.leaves, list)
  t.equal(statSync(join(home, 'partial/unsettled')).size, 0)
  t.strictSame(openUnder(home), [])
})

void t.test('addAll: in order, errors of one file alone', async t => {
  const home = t.testdir({ tree: { b: '1', a: { z: '2', y: '3' }, 'a-': '4', same: '1' } })
  const tree = join(home, 'tree')
  symlinkSync(join(tree, 'b'), join(tree, 'link'))
  symlinkSync('/', join(tree, 'root'))
  execFileSync('mkfifo', [join(tree, 'fifo')])
  const relatives: string[] = []
  for await (const { path, relative } of walk(tree)) {
    t.equal(path, join(tree, relative))
    relatives.push(relative)
  }
  t.strictSame(relatives, ['a/y', 'a/z', 'a-', 'b', 'same'])
  const odd = Buffer.concat([Buffer.from(join(tree, 'a/')), Buffer.of(0x66, 0xfc)])
  writeFileSync(odd, 'x')
  const passed: string[] = []
  const again: string[] = []
  for await (const { relative } of walk(tree, { passedOver: (path, reason) => { passed.push(`${path.slice(tree.length)} is ${reason}`) } })) again.push(relative)
  t.strictSame([again, passed.toSorted()], [relatives, ['/a/f\ufffd is a name that is not UTF-8', '/fifo is a FIFO, a socket or a device', '/link is a symbolic link', '/root is a symbolic link']])
  const empty: string[] = []
  for (const name of ['a/hollow', 'x/deep', 'links']) mkdirSync(join(tree, name), { recursive: true })
  symlinkSync('/', join(tree, 'links/root'))
  for (const path of [tree, join(tree, 'x/deep')]) for await (const { relative } of walk(path, { empty: relative => { empty.push(relative) } })) again.push(relative)
  t.strictSame(empty, ['a/hollow', 'links', 'x/deep', ''], 'folders of which there is neither a file nor a folder')
  for (const name of ['a/hollow', 'x', 'links']) rmSync(join(tree, name), { recursive: true })
  for await (const found of walk(join(tree, 'b'))) t.strictSame(found, { path: join(tree, 'b'), relative: 'b' })
  for (const [path, says] of [[join(tree, 'link'), /neither a regular file nor a folder/], [join(tree, 'absent'), /does not exist/]] as const) {
    await raises(t, 'unreadable', async () => { for await (const found of walk(path)) t.fail(found.path) }, says)
  }
  const store = await FileStore.open(join(home, 'files'))
  const paths = [...relatives.map(relative => join(tree, relative)), join(tree, 'absent'), join(tree, 'link'), join(tree, 'b')]
  const results = []
  for await (const added of store.addAll(paths, { concurrency: 3 })) results.push(added)
  t.strictSame(results.map(({ path }) => path), paths)
  t.strictSame(results.map(added => 'error' in added ? added.error.code : 'added'), ['added', 'added', 'added', 'added', 'added', 'unreadable', 'unreadable', 'added'])
  t.equal(results.filter(added => 'isNew' in added && added.isNew).length, 4, 'the same content is one file')
  for await (const added of store.addAll(paths)) {
    t.equal(added.path, paths[0])
    break
  }
  await t.rejects(async () => { for await (const added of store.addAll(paths, { signal: AbortSignal.abort(new Error('enough')) })) t.fail(added.path) }, new Error('enough'))
  t.strictSame([readdirSync(join(home, 'partial')), openUnder(home)], [[], []])
})

void t.test('addAll: many small files by turns of a thread, as one by one', async t => {
  const home = t.testdir({ in: { folder: {}, empty: '', target: 'x' }, alone: {} })
  const inside = (name: string): string => join(home, 'in', name)
  symlinkSync(inside('target'), inside('link'))
  execFileSync('mkfifo', [inside('fifo')])
  const sizes = [SMALL_MOST, SMALL_MOST + 1, 4_096, LEAF_BYTES + 1, ...Array.from({ length: 60 }, (_, n) => n * 7)]
  const files = sizes.map((size, n) => {
    writeFileSync(inside(`f${n}`), pattern(size))
    return inside(`f${n}`)
  })
  // The same bytes under names that come at the same moment, and at others.
  const same = Array.from({ length: 200 }, (_, n) => {
    writeFileSync(inside(`same${n}`), 'the same')
    return inside(`same${n}`)
  })
  const refused = ['fifo', 'link', 'folder', 'absent'].map(inside)
  const paths = [...same.slice(0, 90), ...refused, ...files, inside('empty'), ...same.slice(90), ...refused]
  const [store, alone] = [await FileStore.open(join(home, 'files')), await FileStore.open(join(home, 'alone/files'))]
  t.teardown(async () => { await Promise.all([store.close(), alone.close()]) })
  const results = []
  let bytes = 0
  for await (const added of store.addAll(paths, { isLater: true, onBytes: more => { bytes += more } })) results.push(added)
  t.strictSame(results.map(({ path }) => path), paths, 'in order')
  const expected = new Map<string, string>()
  for (const path of new Set(paths)) expected.set(path, await alone.add(path).then(({ id }) => id, (error: PatchcordError) => `${error.code} ${error.message}`))
  for (const added of results) t.equal('error' in added ? `${added.error.code} ${added.error.message}` : added.id, expected.get(added.path), added.path)
  t.equal(results.filter(added => 'isNew' in added && added.isNew).length, new Set(results.flatMap(added => 'id' in added ? [added.id] : [])).size, 'each is new once')
  t.equal(bytes, results.reduce((sum, added) => sum + ('size' in added ? added.size : 0), 0))
  for await (const { id, size } of store.list()) {
    const { mode, nlink } = statSync(store.path(id))
    t.strictSame([mode & 0o777, nlink, contentIdOf(leavesOf(readFileSync(store.path(id)))), size], [0o444, 1, id, statSync(store.path(id)).size])
  }
  for await (const added of store.addAll(paths)) t.equal('isNew' in added && added.isNew, false)
  t.strictSame([readdirSync(join(home, 'partial')), openUnder(home)], [['unsettled'], []])
  t.equal(statSync(join(home, 'partial/unsettled')).size, 0, 'who adds what was there for later waits until it is on the disk')
})

void t.test('a turn of small files: what it refuses is as it was, and what is in the way stays', async t => {
  const home = t.testdir({ in: { folder: {}, abc: 'abc', other: 'abc' }, files: {}, partial: {}, to: { taken: 'theirs', damaged: 'xy' } })
  const at = (path: string): string => join(home, path)
  symlinkSync(at('in/abc'), at('in/link'))
  symlinkSync(at('to/nowhere'), at('to/dangling'))
  execFileSync('mkfifo', [at('in/fifo')])
  writeFileSync(at('in/large'), pattern(SMALL_MOST + 1))
  const turn = async (...asked: SmallAsked[]): Promise<readonly SmallDone[]> => (await perform({ asked, bytes: Buffer.from('abcdef') })).done
  const take = (name: string): SmallAsked => ({ kind: 'take', path: at(`in/${name}`), root: at('files'), folder: at('partial'), isSynced: true })
  t.strictSame(await turn(...['folder', 'link', 'fifo', 'large', 'absent', 'abc/x'].map(take)), Array.from({ length: 6 }))
  t.strictSame(readdirSync(at('partial')), [])

  const umask = process.umask(0o077)
  const [one, other] = await turn(take('abc'), take('other')) as Array<SmallWork['take']['done']>
  process.umask(umask)
  t.equal(one?.id, contentIdOf(leafHash(Buffer.from('abc'))))
  t.equal(statSync(one!.temporary!).mode & 0o777, 0o444, 'whatever the umask is')
  const to = at(`files/${one!.id.slice(0, 2)}/${one!.id.slice(2)}`)
  const place = (taken: typeof one, to: string): SmallAsked => ({ kind: 'place', temporary: taken!.temporary!, to, size: 3 })
  t.strictSame(await turn(place(one, to)), ['in a new folder'])
  const { ino } = statSync(to)
  t.strictSame(await turn(place(other, to)), ['there'])
  t.equal(statSync(to).ino, ino, 'the first stays')
  t.strictSame(await turn(take('abc')), [{ id: one!.id, size: 3, temporary: undefined }], 'nothing is written of what is there')
  t.strictSame(readdirSync(at('partial')), [])

  const write = (to: string, from = 3): SmallAsked => ({ kind: 'write', to: at(to), at: from, length: 3 })
  t.strictSame(await turn(write('to/taken'), write('to/dangling'), write('to/absent/x'), write('to/new')), [undefined, undefined, undefined, true])
  t.strictSame([readFileSync(at('to/taken'), 'utf8'), readFileSync(at('to/new'), 'utf8'), readdirSync(at('to')).includes('nowhere')], ['theirs', 'def', false])
  const link = (from: string, to: string): SmallAsked => ({ kind: 'link', from: at(from), to: at(to) })
  t.strictSame(await turn(link('to/new', 'to/taken'), link('to/new', 'to/dangling'), link('to/new', 'to/given'), link('to/new', 'to/again'), link('to/absent', 'to/b')), [undefined, undefined, true, undefined, undefined], 'given once, and over nothing')
  t.equal(readFileSync(at('to/taken'), 'utf8'), 'theirs')
  const has = (path: string, size: number): SmallAsked => ({ kind: 'has', path: at(path), size })
  t.strictSame(await turn(has('in/abc', 3), has('in/abc', 4), has('in/link', 3), has('to/new', 3), has('in/absent', 0), has('in/folder', 4096)), [true, false, false, false, false, false])
  t.strictSame(await turn({ kind: 'remove', path: at('to/given') }, { kind: 'remove', path: at('to/given') }, { kind: 'remove', path: at('in/folder') }), [true, false, undefined])
  t.strictSame(await turn({ kind: 'sync', path: at('to') }, { kind: 'sync', path: at('in/abc') }, { kind: 'sync', path: at('in/link') }, { kind: 'sync', path: at('absent') }), [true, true, undefined, undefined])
  t.strictSame(openUnder(home), [])
  t.end()
})

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { ChildProcess } from 'node:child_process'
import fc from 'fast-check'
import t from 'tap'
import { encodeBase32 } from '../src/core/base32.js'
import { parseDeviceId, type DeviceId } from '../src/core/ids.js'
import { systemClock } from '../src/core/clock.js'
import { silentLogger } from '../src/core/log.js'
import { Bucket } from '../src/core/bucket.js'
import { Candidates } from '../src/discovery/candidates.js'
import { startDiscovery } from '../src/discovery/discovery.js'
import { Gate, wireLabel } from '../src/discovery/gate.js'
import { DISCOVERY_LIMITS } from '../src/discovery/limits.js'
import { readLinks } from '../src/discovery/links.js'
import { readQuestions, readServices, type DnsRecord, type Packet } from '../src/discovery/packets.js'
import { makeHint, parseHint, Recogniser } from '../src/discovery/recognition.js'
import { PEER_TYPE, recordsOf } from '../src/discovery/records.js'
import { fuzzSession } from './fixtures/mdns-fuzz.js'
import { cable, Machine, whyNoNamespaces } from './fixtures/network.js'

// dns-packet comes with multicast-dns; it has no types.
const dns = createRequire(createRequire(import.meta.url).resolve('bonjour-service'))('multicast-dns/../dns-packet') as { encode (packet: object): Buffer, decode (bytes: Buffer): Packet }

const someDevice = (): DeviceId => parseDeviceId(encodeBase32(randomBytes(32)))
const strings = ({ r, h }: { r: string, h: string }): Buffer[] => [Buffer.from(`r=${r}`), Buffer.from(`h=${h}`)]

await t.test('a hint is recognised by who knows the device, and by nobody else', async t => {
  const [device, other] = [someDevice(), someDevice()]
  const recogniser = new Recogniser(() => 0)
  const hint = makeHint(device)
  t.equal(recogniser.recognise(hint), undefined)
  recogniser.setKnown([other])
  t.equal(recogniser.recognise(hint), undefined)
  recogniser.setKnown([other, device])
  t.equal(recogniser.recognise(hint), device)
  t.equal(recogniser.recognise(hint), device, 'also out of what is remembered')
  t.equal(recogniser.recognise({ ...hint, r: makeHint(device).r }), undefined, 'a tag belongs to its random bytes')
  t.not(makeHint(device).r, hint.r)
  t.match(parseHint(strings(hint)), hint)
})

await t.test('a known answer, for other implementations', async t => {
  // HMAC-SHA-256(32 bytes 00…1f, 16 bytes 00…0f), its first 8 bytes.
  const device = parseDeviceId(encodeBase32(Uint8Array.from({ length: 32 }, (_, at) => at)))
  const recogniser = new Recogniser(() => 0)
  recogniser.setKnown([device])
  const r = Buffer.from(Uint8Array.from({ length: 16 }, (_, at) => at)).toString('base64url')
  t.equal(recogniser.recognise({ r, h: '2LmfJwmjynQ' }), device)
})

await t.test('a hint has one spelling', async t => {
  const good = makeHint(someDevice())
  t.match(parseHint(strings(good)), good)
  const bad: Array<[string, Buffer[]]> = [
    ['nothing', []],
    ['one part', strings(good).slice(0, 1)],
    ['padding', strings({ ...good, r: `${good.r}==` })],
    ['short', strings({ ...good, h: good.h.slice(1) })],
    ['long', strings({ ...good, h: `${good.h}A` })],
    ['plain base64', strings({ ...good, r: `+${good.r.slice(1)}` })],
    ['spare bits', strings({ ...good, r: `${good.r.slice(0, -1)}B` })],
    ['spare bits of the tag', strings({ ...good, h: `${good.h.slice(0, -1)}B` })],
    ['another key', [Buffer.from(`R=${good.r}`), Buffer.from(`h=${good.h}`)]],
  ]
  for (const [what, txt] of bad) t.equal(parseHint(txt), undefined, what)
})

await t.test('recognition costs a bounded share, and is remembered in bounded memory', async t => {
  let now = 0
  const recogniser = new Recogniser(() => now)
  const device = someDevice()
  recogniser.setKnown([...Array.from({ length: 999 }, someDevice), device])
  let done = 0
  const from = process.cpuUsage()
  for (let at = 0; at < 5_000; at++) if (recogniser.recognise(makeHint(device)) === device) done++
  t.equal(done, DISCOVERY_LIMITS.hmacBurst / 1000, 'past the budget nothing is computed')
  t.ok(process.cpuUsage(from).user < 5_000_000)
  now += 1_000
  t.equal(recogniser.recognise(makeHint(device)), device, 'a second later there is a budget again')
  recogniser.setKnown([device])
  for (let at = 0; at < 3_000; at++) {
    now += 100
    recogniser.recognise(makeHint(someDevice()))
  }
  t.equal(recogniser.size, DISCOVERY_LIMITS.remembered)
})

await t.test('a bucket', async t => {
  const bucket = new Bucket(2, 4, 0)
  t.same([1, 2, 3, 4, 5].map(() => bucket.take(0)), [true, true, true, true, false])
  t.same([bucket.take(499), bucket.take(500), bucket.take(500)], [false, true, false])
  t.notOk(bucket.take(100), 'time that goes back gives nothing')
  t.notOk(bucket.take(1e9, 5), 'more than the burst is never there')
})

await t.test('candidates: bounded, by source, and a flood evicts no honest one', async t => {
  const device = someDevice()
  const table = new Candidates()
  t.ok(table.hear(device, 'fe80::1', 'eth0', 4984, 0))
  t.notOk(table.hear(device, 'fe80::1', 'eth0', 4984, 10), 'nothing new')
  t.same(table.of(device), [{ host: 'fe80::1', zone: 'eth0', port: 4984 }])
  // One source that says another port each time.
  for (let port = 1; port < 1_000; port++) table.hear(device, 'fe80::bad', 'eth0', port, 20)
  t.equal(table.of(device).length, 1 + DISCOVERY_LIMITS.ports)
  // Sources that are all made up.
  for (let at = 1; at < 1_000; at++) table.hear(device, `fe80::${at.toString(16)}:1`, 'eth0', 1, 30)
  const after = table.of(device)
  t.equal(new Set(after.map(({ host }) => host)).size, DISCOVERY_LIMITS.candidates)
  t.equal(after[0]!.host, 'fe80::3e7:1', 'the newest is first')
  t.equal(after[1]!.host, 'fe80::1', 'who was there before the flood is second')
  table.hear(device, 'fe80::2', 'eth0', 4984, 40)
  t.equal(table.of(device)[0]!.host, 'fe80::2', 'who comes in the middle of it is first')
  t.same(table.expire(40 + DISCOVERY_LIMITS.candidateMs - 1), [device])
  t.same(table.of(device), [{ host: 'fe80::2', zone: 'eth0', port: 4984 }], 'what is not heard of expires')
  t.same(table.dropZone('eth1'), [])
  t.same(table.dropZone('eth0'), [device])
  t.same(table.of(device), [])
})

await t.test('candidates: whatever is heard, the bounds hold', async t => {
  const device = someDevice()
  fc.assert(fc.property(fc.array(fc.record({ source: fc.integer({ min: 0, max: 20 }), port: fc.integer({ min: 1, max: 5 }), wait: fc.integer({ min: 0, max: 60_000 }) }), { maxLength: 200 }), heard => {
    const table = new Candidates()
    let now = 0
    for (const { source, port, wait } of heard) {
      now += wait
      table.expire(now)
      table.hear(device, `fe80::${source}`, 'eth0', port, now)
      const list = table.of(device)
      if (list.length > DISCOVERY_LIMITS.candidates * DISCOVERY_LIMITS.ports) return false
      if (!list.some(address => address.host === `fe80::${source}` && address.port === port)) return false
    }
    return true
  }))
  t.pass('the property holds')
})

// ---- what is parsed

const NAMES = [wireLabel('_patchcord')]
const hello = (instance = 'a', extra: object = {}): Buffer => dns.encode({ type: 'response', answers: recordsOf({ type: PEER_TYPE, instance, host: 'h', port: 4984, txt: ['r=1'] }, ['fe80::1']), ...extra })
const near = (address = 'fe80::5%eth0', port = 5353): { address: string, port: number } => ({ address, port })

await t.test('the gate', async t => {
  const gate = (): Gate => new Gate('eth0', () => 0)
  t.ok(gate().admits(hello(), near(), NAMES))
  const refused: Array<[string, Buffer, { address: string, port: number }]> = [
    ['nothing', Buffer.alloc(0), near()],
    ['a header cut off', hello().subarray(0, 11), near()],
    ['an oversized packet', Buffer.concat([hello(), Buffer.alloc(9_000)]), near()],
    ['another interface', hello(), near('fe80::5%eth1')],
    ['no zone', hello(), near('fe80::5')],
    ['an off-link source', hello(), near('2001:db8::5')],
    ['a unique local source', hello(), near('fd00::5%eth0')],
    ['another port', hello(), near('fe80::5%eth0', 5354)],
    ['65535 records by its header', Buffer.concat([hello().subarray(0, 4), Buffer.from('ffffffffffffffff', 'hex'), hello().subarray(12)]), near()],
    ['somebody else\'s service', dns.encode({ type: 'response', answers: recordsOf({ type: '_ipp._tcp.local', instance: 'printer', host: 'h', port: 631, txt: [] }, []) }), near()],
  ]
  for (const [what, packet, source] of refused) t.notOk(gate().admits(packet, source, NAMES), what)
})

await t.test('the gate: a source that floods uses up its own share alone', async t => {
  let now = 0
  const gate = new Gate('eth0', () => now)
  const from = (host: string): boolean => gate.admits(hello(), near(`${host}%eth0`), NAMES)
  let admitted = 0
  for (let at = 0; at < 10_000; at++) if (from('fe80::bad')) admitted++
  t.equal(admitted, DISCOVERY_LIMITS.sourceBurst)
  t.ok(from('fe80::5'))
  gate.vouch('fe80::5')
  admitted = 0
  for (let at = 0; at < 10_000; at++) if (from(`fe80::${at.toString(16)}:1`)) admitted++
  t.ok(admitted <= DISCOVERY_LIMITS.packetBurst, `${admitted} of made-up sources`)
  t.notOk(from('fe80::6'), 'a stranger has to wait')
  t.ok(from('fe80::5'), 'where a known device was recognised, it is heard all the same')
  now += 1_000
  t.ok(from('fe80::6'))
  t.ok(gate.dropped > 10_000)
})

await t.test('services of a packet', async t => {
  const service = readServices(dns.decode(hello('abc')), PEER_TYPE)
  t.match(service, [{ port: 4984, instance: 'abc' }])
  t.equal(Buffer.from(service[0]!.txt[0]!).toString(), 'r=1')
  const whole = recordsOf({ type: PEER_TYPE, instance: 'a', host: 'h', port: 1, txt: [] }, [])
  const without = (kind: string): DnsRecord[] => whole.filter(({ type }) => type !== kind)
  const none: Array<[string, readonly DnsRecord[]]> = [
    ['SRV without TXT', without('TXT')], ['TXT without SRV', without('SRV')], ['no PTR', without('PTR')],
    ['a goodbye', whole.map(record => ({ ...record, ttl: 0 }))],
    ['port 0', whole.map(record => record.type === 'SRV' ? { ...record, data: { port: 0, target: 'h.local' } } : record)],
    ['another type', recordsOf({ type: '_other._tcp.local', instance: 'a', host: 'h', port: 1, txt: [] }, [])],
  ]
  for (const [what, answers] of none) t.same(readServices({ questions: [], answers, additionals: [] }, PEER_TYPE), [], what)
  const many = Array.from({ length: 20 }, (_, at) => recordsOf({ type: PEER_TYPE, instance: `i${at}`, host: 'h', port: 1, txt: [] }, [])).flat()
  t.equal(readServices({ questions: [], answers: many, additionals: [] }, PEER_TYPE).length, DISCOVERY_LIMITS.packetServices)
  t.equal(readQuestions({ questions: Array.from({ length: 50 }, () => ({ name: PEER_TYPE, type: 'PTR' })), answers: [], additionals: [] }).length, 1)
})

await t.test('mutated packets, all the way through bonjour-service: a seeded sample', async t => {
  // `npm run test:fuzz` runs as many as it is told to.
  const { sent, services, threw } = await fuzzSession(20_000, 1)
  t.ok(sent > 1_000, `${sent} answers; ${services} services found, ${threw} packets threw`)
  t.ok(services > 0)
})

await t.test('starts, tells its interfaces and stops, and leaves nothing behind', async t => {
  const discovery = await startDiscovery({ device: someDevice(), port: 0, logger: silentLogger(), clock: systemClock, onCandidates: () => undefined })
  t.same(discovery.interfaces().map(({ name }) => name), readLinks().map(({ name }) => name))
  const browsing = discovery.browsePairing(20)
  t.type(await browsing, Array)
  await discovery.stop()
  await discovery.stop()
})

// ---- on cables

const CHILD = fileURLToPath(new URL('./fixtures/discovery-child.js', import.meta.url))
const skip = whyNoNamespaces() ?? false

interface Said { event: string, device?: string, addresses?: Array<{ host: string, zone: string, port: number }>, links?: Array<{ name: string, state: string, addresses: string[], dropped: number, problem?: string }>, windows?: Array<{ name: string, address: { port: number } }>, rss?: number, cpuMs?: number }

/** Discovery in a process of its own on one machine. */
class Seeker {
  readonly device = someDevice()
  readonly said: Said[] = []
  readonly #child: ChildProcess

  constructor (machine: Machine, port: number) {
    this.#child = machine.spawn(process.execPath, [CHILD, this.device, String(port)], { stdio: ['pipe', 'pipe', 'inherit'] })
    createInterface({ input: this.#child.stdout! }).on('line', line => { this.said.push(JSON.parse(line) as Said) })
  }

  tell (command: object): void { this.#child.stdin!.write(`${JSON.stringify(command)}\n`) }

  /** The newest thing said of that kind which holds, when there is one; how long that took, in ms. */
  async hears (what: string, holds: (said: Said) => boolean, since = 0): Promise<{ said: Said, ms: number }> {
    const from = performance.now()
    for (;;) {
      const said = this.said.slice(since).findLast(holds)
      if (said !== undefined) return { said, ms: Math.round(performance.now() - from) }
      if (performance.now() - from > 30_000) throw new Error(`waited 30 s for ${what}; said: ${JSON.stringify(this.said.slice(since).slice(-5))}`)
      await new Promise(resolve => { setTimeout(resolve, 10) })
    }
  }

  async measure (): Promise<Said> {
    const since = this.said.length
    this.tell({ memory: true })
    return (await this.hears('its memory', ({ event }) => event === 'memory', since)).said
  }

  async end (): Promise<void> {
    const exited = once(this.#child, 'exit')
    this.#child.stdin!.write('{"stop":true}\n')
    this.#child.stdin!.end()
    await exited
  }
}

const finds = (device: string, host?: string) => ({ event, device: found, addresses }: Said): boolean =>
  event === 'candidates' && found === device && (host === undefined ? addresses!.length > 0 : addresses!.some(address => address.host === host))

await t.test('two machines on one cable', { skip }, async t => {
  const [one, other] = [await Machine.boot(), await Machine.boot()]
  t.teardown(() => { one.close(); other.close() })
  cable(one, 'eth0', other, 'eth1')
  const [near, far] = [new Seeker(one, 4984), new Seeker(other, 5000)]
  near.tell({ known: [far.device] })
  far.tell({ known: [near.device] })
  await near.hears('start', ({ event }) => event === 'started')
  await far.hears('start', ({ event }) => event === 'started')

  await t.test('found when the link is up', async t => {
    one.ip('link', 'set', 'eth0', 'up')
    other.ip('link', 'set', 'eth1', 'up')
    const [found, back] = await Promise.all([near.hears('the other', finds(far.device)), far.hears('the one', finds(near.device))])
    t.match(found.said.addresses, [{ host: await other.address('eth1'), zone: 'eth0', port: 5000 }])
    t.match(back.said.addresses, [{ host: await one.address('eth0'), zone: 'eth1', port: 4984 }])
    t.comment(`link up to found: ${found.ms} ms and ${back.ms} ms, duplicate address detection included`)
  })

  await t.test('a device that becomes known later, and a port that changes', async t => {
    const since = far.said.length
    far.tell({ known: [] })
    far.tell({ known: [near.device] })
    await far.hears('the one again', finds(near.device), since)
    near.tell({ port: 4990 })
    await far.hears('its new port', ({ addresses }) => addresses?.[0]?.port === 4990)
    t.pass('both followed')
  })

  await t.test('an address that changes, an interface that goes and another that comes', async t => {
    const since = far.said.length
    const old = await one.address('eth0')
    one.ip('addr', 'add', 'fe80::abcd/64', 'dev', 'eth0', 'nodad')
    one.ip('addr', 'del', `${old}/64`, 'dev', 'eth0')
    const changed = await far.hears('the new address', finds(near.device, 'fe80::abcd'), since)
    const before = near.said.length
    one.ip('link', 'del', 'eth0')
    const gone = await near.hears('that it is gone', ({ event, links }) => event === 'links' && links!.length === 0, before)
    await near.hears('no candidates', ({ event, addresses }) => event === 'candidates' && addresses!.length === 0, before)
    cable(one, 'eth7', other, 'eth8')
    for (const [machine, end] of [[one, 'eth7'], [other, 'eth8']] as const) {
      machine.ip('link', 'set', end, 'addrgenmode', 'none')
      machine.ip('link', 'set', end, 'up')
      machine.ip('addr', 'add', machine === one ? 'fe80::7:1/64' : 'fe80::7:2/64', 'dev', end, 'nodad')
    }
    const come = await near.hears('the other by the new one', finds(far.device, 'fe80::7:2'), before)
    t.ok(come.said.addresses!.some(({ zone }) => zone === 'eth7'))
    t.comment(`changed after ${changed.ms} ms, gone after ${gone.ms} ms, come after ${come.ms} ms`)
  })

  await t.test('pairing windows', async t => {
    far.tell({ announce: { port: 6000, name: 'window-1' } })
    const since = near.said.length
    near.tell({ browse: 700 })
    t.match((await near.hears('a window', ({ event }) => event === 'windows', since)).said.windows, [{ name: 'window-1', address: { port: 6000, zone: 'eth7' } }])
    far.tell({ withdraw: true })
    // Two processes were told at once: the far one may have answered before it withdrew.
    for (let windows: unknown[] = [true]; windows.length > 0;) {
      const asked = near.said.length
      near.tell({ browse: 700 })
      windows = (await near.hears('what there is', ({ event }) => event === 'windows', asked)).said.windows!
    }
  })

  await Promise.all([near.end(), far.end()])
})

await t.test('an enemy on the cable', { skip }, async t => {
  const [one, other] = [await Machine.boot(), await Machine.boot()]
  t.teardown(() => { one.close(); other.close() })
  cable(one, 'eth0', other, 'eth1')
  for (const [machine, end] of [[one, 'eth0'], [other, 'eth1']] as const) machine.ip('link', 'set', end, 'up')
  const host = await one.address('eth0')
  await other.address('eth1')
  const seeker = new Seeker(one, 4984)
  await seeker.hears('that it is ready', ({ event, links }) => event === 'links' && links!.some(({ state }) => state === 'ready'))
  const friend = someDevice()
  seeker.tell({ known: [friend] })
  const ENEMY = fileURLToPath(new URL('./fixtures/mdns-enemy.js', import.meta.url))
  const attack = async (...args: string[]): Promise<string> => {
    const child = other.spawn(process.execPath, [ENEMY, 'eth1', host, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
    let said = ''
    child.stdout!.on('data', (chunk: Buffer) => { said += chunk.toString() })
    const [code] = await once(child, 'exit') as [number]
    t.equal(code, 0, args.join(' '))
    return said
  }
  const friendAppears = async (): Promise<void> => {
    const since = seeker.said.length
    seeker.tell({ known: [] })
    seeker.tell({ known: [friend] })
    await attack('hello', friend)
    await seeker.hears('the friend', finds(friend), since)
  }
  await friendAppears()
  const calm = await seeker.measure()

  await t.test('mutated packets', async t => {
    await attack('mutate', friend, '20000', '7')
    await friendAppears()
    t.notOk(seeker.said.filter(({ event }) => event === 'links').at(-1)!.links!.some(({ state }) => state !== 'ready'))
  })

  await t.test('a flood of services, and of queries', async t => {
    await attack('services', friend, '2000')
    const said = await attack('queries', friend, '2000')
    const answers = Number(said.trim())
    t.ok(answers <= 200, `${answers} answers to 2,000 queries with eight questions each`)
    await friendAppears()
  })

  const after = await seeker.measure()
  t.ok(after.rss! - calm.rss! < 96 * 1024 * 1024, `${Math.round((after.rss! - calm.rss!) / 1024)} KiB more memory`)
  t.comment(`${Math.round(after.cpuMs! - calm.cpuMs!)} ms of processor time; dropped: ${after.links![0]!.dropped}`)
  await seeker.end()
})

await t.test('port 5353 that another program keeps to itself', { skip }, async t => {
  const [one, other] = [await Machine.boot(), await Machine.boot()]
  t.teardown(() => { one.close(); other.close() })
  cable(one, 'eth0', other, 'eth1')
  for (const [machine, end] of [[one, 'eth0'], [other, 'eth1']] as const) machine.ip('link', 'set', end, 'up')
  await one.address('eth0')
  const hog = (reuseAddr: boolean): ChildProcess => one.spawn(process.execPath, ['-e', `
    const socket = require('node:dgram').createSocket({ type: 'udp6', reuseAddr: ${reuseAddr} })
    socket.bind(5353, '::', () => { socket.addMembership('ff02::fb', '::%eth0'); console.log('bound') })`], { stdio: ['ignore', 'pipe', 'inherit'] })
  const beside = hog(true)
  await once(beside.stdout!, 'data')
  const seeker = new Seeker(one, 4984)
  await seeker.hears('that it works beside another responder', ({ event, links }) => event === 'links' && links![0]?.state === 'ready')
  await seeker.end()
  beside.kill()
  await once(beside, 'exit')
  const selfish = hog(false)
  await once(selfish.stdout!, 'data')
  const second = new Seeker(one, 4984)
  const { said } = await second.hears('that it failed', ({ event, links }) => event === 'links' && links![0]?.state === 'failed')
  t.match(said.links![0]!.problem, /5353/)
  const since = second.said.length
  selfish.kill()
  await second.hears('that it is tried again', ({ event, links }) => event === 'links' && links![0]?.state === 'ready', since)
  await second.end()
})

import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parseRange, rangeStands, type RangeDecision } from '../src/files/range.js'
import { FileStore } from '../src/files/store.js'
import { Client, laptop, start } from './fixtures/server-world.js'

// RFC 9110 section 14 as a plain model, which looks at each position of the file by itself, against the parser and against
// the whole server over a socket, for headers made by the grammar and around it, and for arbitrary bytes.

/** OWS, section 5.6.3. */
const bare = (text: string): string => text.replace(/^[ \t]+/, '').replace(/[ \t]+$/, '')

/** Which bytes the field lines `ranges` ask for of a file of `size`: section 14.1 to 14.2, where this server's choice is to
 * ignore a set of several ranges. */
function model (lines: readonly string[], size: number): RangeDecision {
  const none = { kind: 'none' as const }
  if (lines.length === 0) return none
  // Section 5.3: several lines are one, with commas; Range is no list, so what comes of it is rarely anything.
  const specifier = bare(lines.join(', '))
  const equals = specifier.indexOf('=')
  // Section 14.1: units are told apart without regard to case.
  if (equals < 0 || specifier.slice(0, equals).toLowerCase() !== 'bytes') return none
  const set = specifier.slice(equals + 1).split(',').map(bare).filter(element => element !== '')
  const [range] = set
  if (set.length !== 1 || range === undefined || !/^[0-9]*-[0-9]*$/.test(range) || range === '-') return none
  const [first = '', last = ''] = range.split('-')
  if (first !== '' && last !== '' && BigInt(last) < BigInt(first)) return none
  const asked: number[] = []
  for (let at = 0; at < size; at++) {
    if (first === '' ? BigInt(size - at) <= BigInt(last) : BigInt(at) >= BigInt(first) && (last === '' || BigInt(at) <= BigInt(last))) asked.push(at)
  }
  // A suffix of nothing is satisfiable (section 14.1.2), and 206 could not say which bytes it is.
  if (size === 0 && first === '' && BigInt(last) > 0n) return none
  const start = asked[0]
  const end = asked.at(-1)
  return start === undefined || end === undefined ? { kind: 'unsatisfiable' } : { kind: 'range', start, end }
}

const ows = fc.constantFrom('', '', ' ', '\t', '  \t')
const position = fc.oneof({ weight: 6, arbitrary: fc.nat({ max: 45 }).map(String) }, { weight: 1, arbitrary: fc.nat({ max: 45 }).map(number => `000${number}`) }, { weight: 1, arbitrary: fc.constantFrom('9007199254740991', '9007199254740992', '9007199254740993', '18446744073709551616', '9'.repeat(60), `${'0'.repeat(40)}1`) })
const element = fc.oneof(
  { weight: 6, arbitrary: fc.tuple(position, fc.option(position, { nil: '' })).map(([first, last]) => `${first}-${last}`) },
  { weight: 3, arbitrary: position.map(suffix => `-${suffix}`) },
  { weight: 1, arbitrary: fc.constant('') },
  { weight: 1, arbitrary: fc.constantFrom('-', '--1', '1', 'a-b', '0x1-2', '+1-2', '1-2-3', '1 - 2', '"0-1"', '1-2;q=1', '-1-', '1.5-2', 'bytes=0-1') })
const unit = fc.oneof({ weight: 8, arbitrary: fc.constantFrom('bytes', 'Bytes', 'BYTES') }, { weight: 1, arbitrary: fc.constantFrom('items', 'none', 'byte', 'bytes ', '', 'x-y', 'bytes,') })
const list = fc.oneof({ weight: 3, arbitrary: fc.tuple(element) }, { weight: 1, arbitrary: fc.array(element, { maxLength: 4 }) })
  .chain(elements => fc.tuple(fc.constant(elements), fc.array(fc.tuple(ows, ows), { minLength: elements.length, maxLength: elements.length })))
  .map(([elements, spaces]) => elements.map((text, at) => `${spaces[at]![0]}${text}${spaces[at]![1]}`).join(','))
const grammatical = fc.tuple(ows, unit, list, fc.constantFrom('', '', ',', ', ,'), ows).map(([before, name, set, after, behind]) => `${before}${name}=${set}${after}${behind}`)
/** What a field value may hold besides, and near misses of what it should. */
const bytes = fc.array(fc.oneof({ weight: 3, arbitrary: fc.constantFrom('bytes', '=', '-', ',', '0', '1', '9', ' ', '\t') }, { weight: 1, arbitrary: fc.integer({ min: 0x20, max: 0xff }).filter(code => code !== 0x7f).map(code => String.fromCharCode(code)) }), { maxLength: 12 }).map(parts => parts.join(''))
const field = fc.oneof({ weight: 3, arbitrary: grammatical }, { weight: 1, arbitrary: bytes })
const lines = fc.oneof({ weight: 6, arbitrary: fc.tuple(field) }, { weight: 1, arbitrary: fc.array(field, { maxLength: 3 }) })

void t.test('the parser does what the model does', async t => {
  const kinds = new Map<string, number>()
  fc.assert(fc.property(field, fc.constantFrom(0, 1, 2, 37, 45), (header, size) => {
    const expected = model([header], size)
    kinds.set(expected.kind, (kinds.get(expected.kind) ?? 0) + 1)
    const found = parseRange(header, size)
    return JSON.stringify(found) === JSON.stringify(expected)
  }), { numRuns: 5_000 })
  for (const kind of ['none', 'range', 'unsatisfiable']) t.ok((kinds.get(kind) ?? 0) > 0, `${kinds.get(kind)} of 5,000 headers are ${kind}`)
})

void t.test('the server does what the model does, over a socket', async t => {
  const folder = t.testdir({})
  const store = await FileStore.open(join(folder, 'files'))
  const files: Array<{ id: string, content: Buffer }> = []
  for (const content of [Buffer.alloc(0), randomBytes(1), randomBytes(37)]) {
    writeFileSync(join(folder, 'x'), content)
    files.push({ id: (await store.add(join(folder, 'x'))).id, content })
  }
  const { port } = await start(t, { files: { root: store.root } })
  let client = new Client(port, laptop)
  t.teardown(() => { client.end() })
  const statuses = new Map<number, number>()

  const ifRange = (id: string): fc.Arbitrary<readonly string[]> => fc.oneof(
    { weight: 5, arbitrary: fc.constant([]) },
    { weight: 3, arbitrary: fc.constantFrom([`"${id}"`], [` "${id}"\t`]) },
    { weight: 2, arbitrary: fc.constantFrom([`W/"${id}"`], ['"x"'], [id], ['Wed, 21 Oct 2015 07:28:00 GMT'], [new Date().toUTCString()], ['*'], [''], [`"${id}", "x"`], [`"${id}"`, `"${id}"`]) })
  const asked = fc.constantFrom(...files, files[2]!, files[2]!, files[2]!).chain(file => fc.record({ file: fc.constant(file), method: fc.constantFrom('GET', 'GET', 'GET', 'HEAD'), ranges: lines, validators: ifRange(file.id) }))

  await fc.assert(fc.asyncProperty(asked, async ({ file: { id, content }, method, ranges, validators }) => {
    if (client.isClosed) client = new Client(port, laptop)
    const from = client.text.length
    const head = [`${method} /files/${id} HTTP/1.1`, 'Host: [::1]', ...ranges.map(value => `Range: ${value}`), ...validators.map(value => `If-Range: ${value}`), '', ''].join('\r\n')
    client.write(Buffer.from(head, 'latin1'))
    if (!await client.until(({ text, isClosed }) => isClosed || isWhole(text.slice(from), method), 30_000)) throw new Error(`no answer to ${JSON.stringify(head)}`)
    const answer = readAnswer(client.text.slice(from))
    statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1)
    // What is no canonical request is refused before anybody looks at a range: octets that are no text, or a field of
    // which there may be one.
    if (answer.status === 400) {
      if (!await client.ended()) throw new Error('what is refused is not followed by anything')
      return /[\x80-\xff]/.test(head) || ranges.length > 1 || validators.length > 1
    }
    const stands = validators.length === 0 || (validators.length === 1 && bare(validators[0]!) === `"${id}"`)
    if (ranges.length === 1 && validators.length < 2 && rangeStands(validators[0], `"${id}"`) !== stands) return false
    const expected = method === 'GET' && stands ? model(ranges, content.length) : { kind: 'none' as const }
    const body = method === 'HEAD' ? '' : undefined
    switch (expected.kind) {
      case 'none':
        return answer.status === 200 && answer.length === content.length && answer.range === undefined && answer.body === (body ?? content.toString('latin1'))
      case 'range':
        return answer.status === 206 && answer.length === expected.end - expected.start + 1 && answer.range === `bytes ${expected.start}-${expected.end}/${content.length}` && answer.body === content.toString('latin1', expected.start, expected.end + 1)
      case 'unsatisfiable':
        return answer.status === 416 && answer.length === 0 && answer.range === `bytes */${content.length}` && answer.body === ''
    }
  }), { numRuns: 500 })
  for (const status of [200, 206, 416]) t.ok((statuses.get(status) ?? 0) > 0, `${statuses.get(status)} of 500 answers are ${status}; ${statuses.get(400) ?? 0} were refused as no canonical request`)
})

interface Read { status: number, length: number | undefined, range: string | undefined, body: string }

/** One answer with a Content-Length. */
function readAnswer (text: string): Read {
  const end = text.indexOf('\r\n\r\n')
  const head = text.slice(0, end)
  const value = (name: string): string | undefined => new RegExp(`^${name}: (.*)$`, 'im').exec(head)?.[1]?.trim()
  const length = value('content-length')
  return { status: Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1]), length: length === undefined ? undefined : Number(length), range: value('content-range'), body: text.slice(end + 4) }
}

function isWhole (text: string, method: string): boolean {
  if (!text.includes('\r\n\r\n')) return false
  const { length = 0, body } = readAnswer(text)
  return method === 'HEAD' || body.length >= length
}

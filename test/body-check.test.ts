import fc from 'fast-check'
import t from 'tap'
import { PatchcordError, type ErrorCode } from '../src/core/errors.js'
import { createBodyCheck } from '../src/couch/body-check.js'
import { LONGEST_TEXT } from '../src/couch/json-scanner.js'
import { Utf8Check } from '../src/couch/utf8-check.js'
import type { BodyForm } from '../src/policy/surface.js'

const LIMITS = { bodyBytes: 1_000_000, checkpointBytes: 1000 }
type Verdict = 'taken' | ErrorCode

function judge (form: BodyForm, chunks: Iterable<Buffer>, relation: 'own' | 'peer' = 'peer', limits = LIMITS): Verdict {
  const check = createBodyCheck(form, limits, relation)
  try {
    for (const chunk of chunks) check.write(chunk)
    check.end()
    return 'taken'
  } catch (error) {
    if (!(error instanceof PatchcordError)) throw error
    return error.code
  }
}

const bytewise = (bytes: Buffer): Buffer[] => Array.from(bytes, (_, at) => bytes.subarray(at, at + 1))

function cutAt (bytes: Buffer, places: readonly number[]): Buffer[] {
  const borders = [0, ...places.map(place => place % (bytes.length + 1)).toSorted((a, b) => a - b), bytes.length]
  return borders.slice(1).map((border, index) => bytes.subarray(borders[index], border))
}

const nested = (depth: number): string => `${'['.repeat(depth)}${']'.repeat(depth)}`
const selector = (depth: number): string => depth === 1 ? '{"a":1}' : `{"$not":${selector(depth - 1)}}`

const REFUSED = 'refused'
const MALFORMED = 'not-canonical'

const TABLE: ReadonlyArray<[form: BodyForm, body: string | Buffer, verdict: Verdict]> = [
  // Writes: nothing with an underscore in front, in any spelling.
  ['document', '{"_id":"_design/x"}', REFUSED],
  ['document', '{"_id":"_local/x"}', REFUSED],
  ['document', '{"_id":"_security"}', REFUSED],
  ['document', '{"_id":"_"}', REFUSED],
  ['document', '{"\\u005fid":"_design/x"}', REFUSED],
  ['document', '{"_id":"\\u005fdesign/x"}', REFUSED],
  ['document', '{"_id":"_d\\u0065sign\\/x"}', REFUSED],
  ['document', ' \n{ "a" : [1, {"b":2}] , "_id" : "_design/x" } ', REFUSED],
  ['document', '{"_id":"a","_id":"_design/x"}', MALFORMED],
  ['document', '{"_id":"a","_id":"b"}', MALFORMED],
  ['document', '{"_id":"a","\\u005f\\u0069d":"b"}', MALFORMED],
  ['document', '{"_id":null}', MALFORMED],
  ['document', '{"_id":["_design/x"]}', MALFORMED],
  ['document', '{"_id":{"a":1}}', MALFORMED],
  ['document', '{"_id":1}', MALFORMED],
  ['document', '[{"_id":"a"}]', MALFORMED],
  ['document', '"a"', MALFORMED],
  ['document', '{"_id":"\\ud800_design"}', MALFORMED],
  ['document', `{"_id":"${'x'.repeat(LONGEST_TEXT + 1)}"}`, MALFORMED],
  ['bulk-docs', '{"docs":[{"_id":"a"},{"_id":"_design/x"}]}', REFUSED],
  ['bulk-docs', '{"docs":[{"x":{"_id":"_design/fine"},"_id":"_design/x"}]}', REFUSED],
  ['bulk-docs', '{"new_edits":false,"\\u0064ocs":[{"_id":"_local/x"}]}', REFUSED],
  ['bulk-docs', '{"docs":[],"docs":[{"_id":"_design/x"}]}', MALFORMED],
  ['bulk-docs', '{"docs":[],"new_edits":true,"new_edits":false}', MALFORMED],
  ['bulk-docs', '{"docs":[{"_id":"a","_id":"a"}]}', MALFORMED],
  ['bulk-docs', '{"docs":{"0":{"_id":"_design/x"}}}', MALFORMED],
  ['bulk-docs', '{"docs":[[{"_id":"_design/x"}]]}', MALFORMED],
  ['bulk-docs', '{"docs":["_design/x"]}', MALFORMED],
  ['bulk-docs', '{"docs":null}', MALFORMED],
  // Reads: _design yes, _local no, nothing else with an underscore.
  ['bulk-get', '{"docs":[{"id":"_local/x"}]}', REFUSED],
  ['bulk-get', '{"docs":[{"id":"a"},{"rev":"1-a","i\\u0064":"\\u005flocal/x"}]}', REFUSED],
  ['bulk-get', '{"docs":[{"id":"_security"}]}', REFUSED],
  ['bulk-get', '{"docs":[{"id":"a","id":"_local/x"}]}', MALFORMED],
  ['bulk-get', '{"docs":[{"id":7}]}', MALFORMED],
  ['revisions', '{"_local/x":["1-a"]}', REFUSED],
  ['revisions', '{"a":[],"\\u005flocal/x":[]}', REFUSED],
  ['revisions', `{"${'x'.repeat(LONGEST_TEXT + 1)}":[]}`, MALFORMED],
  ['revisions', '["_local/x"]', MALFORMED],
  ['keys', '{"keys":["a","_local/x"]}', REFUSED],
  ['keys', '{"keys":[["_local/x"]]}', REFUSED],
  ['keys', '{"keys":[{"a":"_local/x"}]}', REFUSED],
  ['keys', '{"queries":[{"keys":["_local/x"]}]}', REFUSED],
  ['keys', '{"queries":[{"startkey":"_local/"}]}', REFUSED],
  ['keys', '{"start_key":"_local/"}', REFUSED],
  ['keys', '{"keys":[],"keys":["_local/x"]}', MALFORMED],
  ['keys', '{"queries":[],"queries":[]}', MALFORMED],
  ['keys', '{"queries":[{"keys":[],"keys":[]}]}', MALFORMED],
  ['keys', '{"namespace":"_local"}', MALFORMED],
  ['keys', '{"queries":[{"namespace":"x"}]}', MALFORMED],
  ['changes-filter', '{"doc_ids":["_local/x"]}', REFUSED],
  ['changes-filter', '{"doc_ids":[],"doc_ids":[]}', MALFORMED],
  ['changes-filter', '{"selector":{"a":{"$regex":"(a+)+$"}}}', REFUSED],
  ['changes-filter', '{"selector":{"$or":[{"a":{"\\u0024regex":"x"}}]}}', REFUSED],
  ['changes-filter', `{"selector":${selector(9)}}`, REFUSED],
  ['changes-filter', `{"selector":{"$or":${nested(8)}}}`, REFUSED],
  ['changes-filter', '{"selector":{},"selector":{"a":{"$regex":"x"}}}', MALFORMED],
  ['changes-filter', '{"filter":"ddoc/name"}', MALFORMED],
  ['selector', '{"selector":{"a":{"$regex":"x"}}}', REFUSED],
  ['empty', '{"a":1}', MALFORMED],
  ['empty', '[]', MALFORMED],
  ['none', 'x', 'too-large'],
  // Form.
  ['document', '', MALFORMED],
  ['document', '   ', MALFORMED],
  ['document', '{', MALFORMED],
  ['document', '{"a":1}{"_id":"_design/x"}', MALFORMED],
  ['document', '{"a":1} x', MALFORMED],
  ['document', '{"a":1},', MALFORMED],
  ['document', '\ufeff{"a":1}', MALFORMED],
  ['document', '{"a":01}', MALFORMED],
  ['document', '{"a":1.}', MALFORMED],
  ['document', '{"a":-}', MALFORMED],
  ['document', '{"a":+1}', MALFORMED],
  ['document', '{"a":1e}', MALFORMED],
  ['document', '{"a":NaN}', MALFORMED],
  ['document', '{"a":tru}', MALFORMED],
  ['document', '{\'a\':1}', MALFORMED],
  ['document', '{"a":1,}', MALFORMED],
  ['document', '{"a":[1,]}', MALFORMED],
  ['document', '{"a" "b"}', MALFORMED],
  ['document', '{"a":[1}', MALFORMED],
  ['document', '{"a":"\u0001"}', MALFORMED],
  ['document', '{"a":"\\x41"}', MALFORMED],
  ['document', '{"a":"\\u00g0"}', MALFORMED],
  ['document', '{/**/"a":1}', MALFORMED],
  ['document', `{"a":${'9'.repeat(2000)}}`, MALFORMED],
  ['document', `{"a":${nested(64)}}`, MALFORMED],
  ['document', Buffer.from('{"a":"\xff"}', 'latin1'), MALFORMED],
  ['document', Buffer.from('{"a":"\xc0\xaf"}', 'latin1'), MALFORMED],
  ['document', Buffer.from('{"a":"\xed\xa0\x80"}', 'latin1'), MALFORMED],
  ['document', Buffer.from('{"a":"\xf4\x90\x80\x80"}', 'latin1'), MALFORMED],
  ['document', Buffer.from('{"a":"\xe2\x82"}', 'latin1'), MALFORMED],
  ['document', Buffer.from([0x1f, 0x8b, 8, 0, 0]), MALFORMED],
  ['checkpoint', `{"a":"${'x'.repeat(1000)}"}`, 'too-large'],
  ['checkpoint', '[]', MALFORMED],
  ['document', `{"a":"${'x'.repeat(LIMITS.bodyBytes)}"}`, 'too-large'],
  ['attachment', 'x'.repeat(LIMITS.bodyBytes + 1), 'too-large'],

  // What is fine.
  ['document', '{}', 'taken'],
  ['document', '{"_id":"a","_rev":"1-a","_deleted":true,"_attachments":{"x":{"data":"AAAA"}}}', 'taken'],
  ['document', '{"_id":"a","child":{"_id":"_design/x","docs":[{"_id":"_local/x"}]},"list":[{"_id":1,"_id":2}]}', 'taken'],
  ['document', '{"docs":[{"_id":"_design/x"}]}', 'taken'],
  ['document', '{"a":"_design/x","id":"_local/x"}', 'taken'],
  ['document', `{"${'x'.repeat(LONGEST_TEXT + 1)}":1}`, 'taken'],
  ['document', `{"a":${nested(63)}}`, 'taken'],
  ['document', '{"a":[-0,0.5,1e9,1E+9,1.5e-7,true,false,null,"\\u0000\\ud800\\n\\"",""]}', 'taken'],
  ['document', '{"a":"ž漢😀\u2028","b":1,"b":2}', 'taken'],
  ['bulk-docs', '{"docs":[{"_id":"a"},{"_id":"b"},{}],"new_edits":false,"_id":"_design/x"}', 'taken'],
  ['bulk-docs', '{"docs":[{"x":[{"_id":"_design/x"}],"_id":"a"}]}', 'taken'],
  ['bulk-docs', '{}', 'taken'],
  ['bulk-get', '{"docs":[{"id":"_design/x","rev":"1-a"},{"id":"a"}]}', 'taken'],
  ['revisions', '{"_design/x":["1-a"],"b":["2-b"]}', 'taken'],
  ['keys', '{"keys":["a",["b",1],{"c":null},"_design/x"],"include_docs":true}', 'taken'],
  ['keys', '{"queries":[{"keys":["a"]},{"startkey":"a","limit":5}]}', 'taken'],
  ['changes-filter', '{"doc_ids":["a","_design/x"]}', 'taken'],
  ['changes-filter', `{"selector":${selector(8)}}`, 'taken'],
  ['changes-filter', '{"selector":{"$and":[{"a":{"$gt":1}},{"b":{"$in":["_local/x"]}}]},"fields":["a"]}', 'taken'],
  ['checkpoint', '{"_id":"_local/whatever","history":[{"x":1}]}', 'taken'],
  ['empty', '', 'taken'],
  ['empty', ' {} ', 'taken'],
  ['attachment', Buffer.from([0xff, 0, 0x22]), 'taken'],
  ['attachment', '', 'taken'],
  ['none', '', 'taken'],
]

void t.test('bodies, refusals first', async t => {
  for (const [form, body, verdict] of TABLE) {
    const bytes = Buffer.from(body)
    const name = `${form} ${bytes.toString('latin1').slice(0, 60)}`
    t.equal(judge(form, [bytes]), verdict, name)
    if (bytes.length < 100_000) t.equal(judge(form, bytewise(bytes)), verdict, `${name}, byte by byte`)
  }
})

void t.test('own devices may use regular expressions and deep selectors', async t => {
  t.equal(judge('selector', [Buffer.from('{"selector":{"a":{"$regex":"x"}}}')], 'own'), 'taken')
  t.equal(judge('changes-filter', [Buffer.from(`{"selector":${selector(20)}}`)], 'own'), 'taken')
})

void t.test('the offending byte is enough, and the verdict stays', async t => {
  const check = createBodyCheck('bulk-docs', LIMITS)
  t.throws(() => { check.write(Buffer.from('{"docs":[{"_id":"_design/x"')) }, { code: 'refused' })
  t.throws(() => { check.write(Buffer.from('}]}')) }, { code: 'refused' })
  t.throws(() => { check.end() }, { code: 'refused' })
})

void t.test('what stands before the limit is judged first, however it is cut', async t => {
  const limits = { bodyBytes: 40, checkpointBytes: 0 }
  const body = Buffer.from(`{"_id":"_design/x","a":"${'x'.repeat(100)}"}`)
  t.equal(judge('document', [body], 'peer', limits), REFUSED)
  t.equal(judge('document', bytewise(body), 'peer', limits), REFUSED)
})

void t.test('memory is bounded while one string has no end', async t => {
  const check = createBodyCheck('document', { bodyBytes: 2 ** 31, checkpointBytes: 0 })
  check.write(Buffer.from('{"a":"'))
  const chunk = Buffer.alloc(65_536, 'x')
  const before = process.memoryUsage()
  for (let i = 0; i < 4096; i++) check.write(chunk)
  const after = process.memoryUsage()
  t.ok(after.rss - before.rss < 64 * 1024 * 1024, 'less than 64 MiB for 256 MiB')
})

void t.test('UTF-8 is judged as TextDecoder judges it, however it is cut', async t => {
  const pieces = fc.oneof(
    fc.uint8Array({ maxLength: 6 }),
    fc.string({ unit: 'binary', maxLength: 4 }).map(text => Buffer.from(text)),
    fc.constantFrom([0xe0, 0x80], [0xed, 0xa0, 0x80], [0xf0, 0x8f], [0xf4, 0x90], [0xc1], [0xf5], [0xe2, 0x82]).map(bytes => Buffer.from(bytes)))
  t.doesNotThrow(() => fc.assert(fc.property(fc.array(pieces, { maxLength: 8 }), fc.array(fc.nat(64), { maxLength: 6 }), (parts, places) => {
    const bytes = Buffer.concat(parts)
    const check = new Utf8Check()
    const good = cutAt(bytes, places).every(chunk => check.validUntil(chunk) === chunk.length) && check.complete
    let expected = true
    try {
      new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    } catch {
      expected = false
    }
    return good === expected
  }), { numRuns: 3000 }))
})

// ---- the model: a tree that keeps duplicate members, judged the slow and obvious way

type Tree = null | boolean | number | string | Tree[] | Members
class Members {
  readonly list: ReadonlyArray<readonly [string, Tree]>
  constructor (list: ReadonlyArray<readonly [string, Tree]>) { this.list = list }
}

const NAMES = fc.oneof({ weight: 4, arbitrary: fc.constantFrom('_id', 'id', 'docs', 'keys', 'queries', 'new_edits', 'doc_ids', 'selector', '$regex', 'startkey', '_attachments') }, { weight: 1, arbitrary: fc.string({ unit: 'binary-ascii', maxLength: 5 }) })
const TEXTS = fc.oneof(fc.constantFrom('_design/x', '_local/x', '_local', 'a', '_id', '_'), fc.string({ unit: 'grapheme', maxLength: 6 }))

const { tree } = fc.letrec<{ tree: Tree, members: Members, list: Tree[] }>(tie => ({
  tree: fc.oneof({ maxDepth: 5, depthSize: 'small' }, fc.constant(null), fc.boolean(), fc.double({ noNaN: true, noDefaultInfinity: true }), TEXTS, tie('list'), tie('members')),
  list: fc.array(tie('tree'), { maxLength: 4 }),
  members: fc.array(fc.tuple(NAMES, tie('tree')), { maxLength: 4 }).map(list => new Members(list)),
}))

const IDS = fc.oneof({ weight: 5, arbitrary: fc.constantFrom('a', 'b', '_design/x', '_local/x') }, { weight: 1, arbitrary: tree })
const documents = (name: string): fc.Arbitrary<Tree> => fc.array(fc.array(fc.oneof(fc.tuple(fc.constant(name), IDS), fc.tuple(fc.constant('content'), tree)), { maxLength: 2 }).map(list => new Members(list)), { maxLength: 3 })
const bodies: fc.Arbitrary<Tree> = fc.oneof(
  { weight: 1, arbitrary: tree },
  { weight: 3, arbitrary: fc.oneof(documents('_id'), documents('id')).map(docs => new Members([['docs', docs]])) },
  { weight: 2, arbitrary: fc.tuple(fc.constantFrom('keys', 'keys', 'doc_ids', 'queries'), fc.oneof({ weight: 3, arbitrary: fc.array(IDS, { maxLength: 3 }) }, { weight: 1, arbitrary: tree })).map(member => new Members([member])) },
  { weight: 1, arbitrary: fc.tuple(IDS, tree).map(([id, content]) => new Members([['_id', id], ['content', content]])) })

/** Renders with escapes and white space chosen by `choose`. */
function render (value: Tree, choose: () => number): string {
  const space = ['', '', ' ', '\n\t'][choose() % 4]!
  const text = (plain: string): string => `"${Array.from({ length: plain.length }, (_, at) => {
    const unit = plain.charCodeAt(at)
    const escape = `\\u${unit.toString(16).padStart(4, '0')}`
    return choose() % 4 === 0 ? escape : unit >= 0xd800 && unit < 0xe000 ? escape : JSON.stringify(plain[at]).slice(1, -1)
  }).join('')}"`
  if (typeof value === 'string') return space + text(value)
  if (Array.isArray(value)) return `${space}[${value.map(item => render(item, choose)).join(',')}${space}]`
  if (value instanceof Members) return `${space}{${value.list.map(([name, member]) => `${text(name)}${space}:${render(member, choose)}`).join(',')}${space}}`
  return space + JSON.stringify(value)
}

class Refused extends Error {}
class Malformed extends Error {}


/** The verdict in the order of the text, as a reader of the whole would give it. */
function model (form: BodyForm, body: Tree): Verdict {
  const readable = (id: string): void => { if (id.startsWith('_') && !id.startsWith('_design/')) throw new Refused() }
  const writable = (id: string): void => { if (id.startsWith('_')) throw new Refused() }
  const strings = (value: Tree, judge: (text: string) => void): void => {
    if (typeof value === 'string') judge(value)
    else if (Array.isArray(value)) for (const item of value) strings(item, judge)
    else if (value instanceof Members) for (const [, member] of value.list) strings(member, judge)
  }
  const object = (value: Tree, judges: Record<string, (member: Tree) => void>, others: boolean): void => {
    if (!(value instanceof Members)) throw new Malformed()
    const seen = new Set<string>()
    for (const [name, member] of value.list) {
      if (!Object.hasOwn(judges, name)) {
        if (!others) throw new Malformed()
        continue
      }
      if (seen.has(name)) throw new Malformed()
      seen.add(name)
      judges[name]!(member)
    }
  }
  const each = (judge: (item: Tree) => void) => (value: Tree): void => {
    if (!Array.isArray(value)) throw new Malformed()
    for (const item of value) judge(item)
  }
  const id = (judge: (text: string) => void) => (value: Tree): void => {
    if (typeof value !== 'string') throw new Malformed()
    judge(value)
  }
  const noLocal = (value: Tree): void => { strings(value, text => { if (text.startsWith('_local')) throw new Refused() }) }
  const document = (value: Tree): void => { object(value, { _id: id(writable) }, true) }
  const page = { keys: each(noLocal), startkey: noLocal }
  try {
    switch (form) {
      case 'document': document(body); break
      case 'bulk-docs': object(body, { docs: each(document), new_edits: () => {} }, true); break
      case 'bulk-get': object(body, { docs: each(item => { object(item, { id: id(readable) }, true) }) }, true); break
      case 'keys': object(body, { ...page, queries: each(item => { object(item, page, false) }) }, false); break
      case 'revisions':
        if (!(body instanceof Members)) throw new Malformed()
        for (const [name] of body.list) readable(name)
        break
      default: throw new Error('no model')
    }
    return 'taken'
  } catch (error) {
    if (error instanceof Refused) return REFUSED
    if (error instanceof Malformed) return MALFORMED
    throw error
  }
}

void t.test('the verdict is the model\'s, however the bytes are cut', async t => {
  const verdicts = new Map<string, number>()
  const forms = fc.constantFrom<BodyForm>('document', 'bulk-docs', 'bulk-get', 'keys', 'revisions')
  t.doesNotThrow(() => fc.assert(fc.property(forms, bodies, fc.array(fc.nat(255), { minLength: 1, maxLength: 40 }), fc.array(fc.nat(2000), { maxLength: 8 }), (form, body, choices, places) => {
    let turn = 0
    const bytes = Buffer.from(render(body, () => choices[turn++ % choices.length]!))
    JSON.parse(bytes.toString())
    const expected = model(form, body)
    verdicts.set(`${form} ${expected}`, (verdicts.get(`${form} ${expected}`) ?? 0) + 1)
    return judge(form, [bytes]) === expected && judge(form, cutAt(bytes, places)) === expected && judge(form, bytewise(bytes)) === expected
  }), { numRuns: 4000 }))
  for (const form of ['document', 'bulk-docs', 'bulk-get', 'keys', 'revisions']) {
    for (const verdict of ['taken', REFUSED, MALFORMED]) {
      t.ok((verdicts.get(`${form} ${verdict}`) ?? 0) > 5, `${form}: ${verdict} came up ${verdicts.get(`${form} ${verdict}`)} times`)
    }
  }
})

void t.test('no bytes crash it, and none pass that JSON.parse refuses', async t => {
  const seeds = TABLE.map(([, body]) => Buffer.from(body)).filter(({ length }) => length < 500)
  const mutated = fc.tuple(fc.constantFrom(...seeds), fc.array(fc.tuple(fc.nat(500), fc.nat(255)), { maxLength: 3 }), fc.nat(500)).map(([seed, changes, end]) => {
    const bytes = Buffer.from(seed)
    for (const [at, byte] of changes) if (bytes.length > 0) bytes[at % bytes.length] = byte
    return end % 3 === 0 ? bytes.subarray(0, end) : bytes
  })
  const arbitrary = fc.oneof(mutated, fc.uint8Array({ maxLength: 40 }).map(bytes => Buffer.from(bytes)), fc.string({ unit: fc.constantFrom(...Array.from('{}[]",:\\u0123eE+-.tfn _id\n')), maxLength: 30 }).map(text => Buffer.from(text)))
  const forms = fc.constantFrom<BodyForm>('document', 'bulk-docs', 'bulk-get', 'keys', 'revisions', 'changes-filter', 'selector', 'checkpoint')
  t.doesNotThrow(() => fc.assert(fc.property(forms, arbitrary, fc.array(fc.nat(500), { maxLength: 5 }), (form, bytes, places) => {
    const verdict = judge(form, [bytes])
    if (judge(form, cutAt(bytes, places)) !== verdict || judge(form, bytewise(bytes)) !== verdict) return false
    if (verdict !== 'taken') return ['refused', 'not-canonical', 'too-large'].includes(verdict)
    JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
    return true
  }), { numRuns: 6000 }))
})

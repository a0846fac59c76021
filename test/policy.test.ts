import fc from 'fast-check'
import t from 'tap'
import type { DatabaseName } from '../src/core/ids.js'
import { canonicalise, canonicaliseLoopback, type Canonical, type RawHead } from '../src/policy/canonical.js'
import { decide, needsFacts } from '../src/policy/decide.js'
import { databaseAccess, type DatabaseAccess, type Grant, type Principal } from '../src/policy/principal.js'
import type { QueryRule } from '../src/policy/query.js'
import { couchPath, route, routeCouch, type Action, type CouchAction } from '../src/policy/route.js'
import { SURFACE } from '../src/policy/surface.js'
import { readAsCouchDB } from './policy/couchdb-model.js'
import { actionOf, canonical, database, DEVICE, FILE, head, HOST, NOW, PREFIX, principal, ruleOf } from './policy/fixtures.js'

const SEED = 20_300_101

// ---- canonical requests: targets

/** What decides about a target, by rule. 'taken' targets give the segments that are listed. */
const TARGETS: ReadonlyArray<[target: string, rule: string, segments?: readonly string[]]> = [
  ['', 'target-form'],
  ['*', 'target-form'],
  ['couch/db', 'target-form'],
  ['http://[fe80::1]/couch/db', 'target-form'],
  ['?/couch', 'target-form'],
  ['%2Fcouch', 'target-form'],

  ['//', 'double-slash'],
  ['/couch//db', 'double-slash'],
  ['//couch/db', 'double-slash'],
  ['/couch/db//', 'double-slash'],
  ['/couch/db?since=//', 'double-slash'],
  ['//evil.example/couch/db', 'double-slash'],

  ['/couch\\db', 'target-characters'],
  ['/couch/db#x', 'target-characters'],
  ['/couch/db?since=1#', 'target-characters'],
  ['/couch/db x', 'target-characters'],
  ['/couch/db\t', 'target-characters'],
  ['/couch/db\0', 'target-characters'],
  ['/couch/db\r\n', 'target-characters'],
  ['/couch/db\x7f', 'target-characters'],
  ['/couch/db/\xe9', 'target-characters'],
  ['/couch/db/é', 'target-characters'],
  ['/couch/db/\ud800', 'target-characters'],
  ['/couch/db/\uff0e\uff0e', 'target-characters'],

  ['/couch/db/%', 'percent-escape'],
  ['/couch/db/%4', 'percent-escape'],
  ['/couch/db/%zz', 'percent-escape'],
  ['/couch/db/%u002e', 'percent-escape'],
  ['/couch/db/a?since=%', 'percent-escape'],
  ['/couch/db/a?%g0=1', 'percent-escape'],
  // Overlong, cut off, alone, surrogates, beyond Unicode.
  ['/couch/db/%C0%AF', 'percent-escape'],
  ['/couch/db/%C0%AE%C0%AE', 'percent-escape'],
  ['/couch/db/%E0%80%AF', 'percent-escape'],
  ['/couch/db/%F0%80%80%AF', 'percent-escape'],
  ['/couch/db/%C1%9Fdesign', 'percent-escape'],
  ['/couch/db/%C3', 'percent-escape'],
  ['/couch/db/%80', 'percent-escape'],
  ['/couch/db/%FF', 'percent-escape'],
  ['/couch/db/%ED%A0%80', 'percent-escape'],
  ['/couch/db/%F4%90%80%80', 'percent-escape'],
  ['/couch/db/a?since=%C0%AF', 'percent-escape'],

  ['/couch/db/%00', 'control-character'],
  ['/couch/db/a%00b', 'control-character'],
  ['/couch/db/%0D%0AHost:%20x', 'control-character'],
  ['/couch/db/%1b', 'control-character'],
  ['/couch/db/%7F', 'control-character'],
  ['/couch/db/%C2%85', 'control-character'],
  ['/couch/db/a?since=%00', 'control-character'],
  ['/couch/db/a?%0A=1', 'control-character'],

  ['/.', 'dot-segment'],
  ['/..', 'dot-segment'],
  ['/couch/.', 'dot-segment'],
  ['/couch/../couch/db', 'dot-segment'],
  ['/couch/db/./a', 'dot-segment'],
  ['/couch/db/..', 'dot-segment'],
  ['/couch/db/../', 'dot-segment'],
  ['/couch/db/%2e', 'dot-segment'],
  ['/couch/db/%2e%2e', 'dot-segment'],
  ['/couch/db/%2E.', 'dot-segment'],
  ['/couch/db/.%2e', 'dot-segment'],
  ['/couch/db/%252e', 'dot-segment'],
  ['/couch/db/%252e%252e', 'dot-segment'],
  ['/couch/db/%25252e%25252E', 'dot-segment'],
  ['/couch/db/%2525252525252525252e', 'dot-segment'],
  ['/couch/db/%25%32%65', 'dot-segment'],
  ['/couch/db/%252%65', 'dot-segment'],
  ['/couch/db/%25%2532e', 'dot-segment'],
  ['/couch/db/a%2F..', 'dot-segment'],
  ['/couch/db/..%2Fother', 'dot-segment'],
  ['/couch/db%2F..%2Fother', 'dot-segment'],
  ['/couch/db%2f%2e%2e%2fother', 'dot-segment'],
  ['/couch/db%2F.%2Fother', 'dot-segment'],
  ['/couch/db%252F..%252Fother', 'dot-segment'],
  ['/couch/db/_all_docs%2F..', 'dot-segment'],
  ['/couch/db/_all_docs%2F..%2F_security', 'dot-segment'],
  ['/couch/db/_local%2F..%2Fx', 'dot-segment'],
  ['/couch/db/_design%2F..%2F_local%2Fx', 'dot-segment'],
  ['/couch/db/_design/..%2F..', 'dot-segment'],
  ['/files/..%2Fcouch', 'dot-segment'],
  ['/couch%2F..', 'dot-segment'],

  ['/couch%2Fdb', 'encoded-slash'],
  ['/couch%2fdb/a', 'encoded-slash'],
  ['/files/a%2Fb', 'encoded-slash'],
  ['/mail%2F', 'encoded-slash'],
  ['/%2F', 'encoded-slash'],
  ['/other/a%2Fb', 'encoded-slash'],
  ['/couch/db/a/b%2Fc', 'encoded-slash'],
  ['/couch/db/_design/x/_view%2Fy', 'encoded-slash'],
  ['/couch/db/_design/x/_view/y%2Fz', 'encoded-slash'],
  ['/couch/db/_design%2Fx/_view%2Fy', 'encoded-slash'],
  ['/couch/db/_all_docs/a%2Fb', 'encoded-slash'],

  ['/couch/db/a?rev=1-a&rev=1-a', 'duplicate-parameter'],
  ['/couch/db/a?rev=1-a&r%65v=2-b', 'duplicate-parameter'],
  ['/couch/db/a?a+b=1&a%20b=2', 'duplicate-parameter'],
  ['/couch/db/a?rev&rev', 'duplicate-parameter'],
  ['/couch/db/a?=1&=2', 'duplicate-parameter'],

  ['/', 'taken', []],
  ['/?', 'taken', []],
  ['/couch', 'taken', ['couch']],
  ['/couch/', 'taken', ['couch']],
  ['/%63ouch/db', 'taken', ['couch', 'db']],
  ['/couch/db/', 'taken', ['couch', 'db']],
  ['/couch/%5Fall_dbs', 'taken', ['couch', '_all_dbs']],
  ['/couch/db/%5Fsecurity', 'taken', ['couch', 'db', '_security']],
  ['/couch/db%2Fwith%2Fslash', 'taken', ['couch', 'db/with/slash']],
  ['/couch/db/a%2Fb', 'taken', ['couch', 'db', 'a/b']],
  ['/couch/db/_design%2Fx', 'taken', ['couch', 'db', '_design/x']],
  ['/couch/db/_design/x%2Fy', 'taken', ['couch', 'db', '_design', 'x/y']],
  ['/couch/db/_local%2Fx', 'taken', ['couch', 'db', '_local/x']],
  ['/couch/db/_local/x%2Fy', 'taken', ['couch', 'db', '_local', 'x/y']],
  // Dots inside a name are a name.
  ['/couch/db/a.b', 'taken', ['couch', 'db', 'a.b']],
  ['/couch/db/.a', 'taken', ['couch', 'db', '.a']],
  ['/couch/db/a..', 'taken', ['couch', 'db', 'a..']],
  ['/couch/db/...', 'taken', ['couch', 'db', '...']],
  ['/couch/db/%2e%2e%2e', 'taken', ['couch', 'db', '...']],
  ['/couch/db/a/..b', 'taken', ['couch', 'db', 'a', '..b']],
  ['/couch/db/100%25', 'taken', ['couch', 'db', '100%']],
  ['/couch/db/a%2541', 'taken', ['couch', 'db', 'a%41']],
  // In a path a plus is a plus; CouchDB is sent %2B, which it cannot take for a space.
  ['/couch/db/a+b', 'taken', ['couch', 'db', 'a+b']],
  ['/couch/db/a%2Bb', 'taken', ['couch', 'db', 'a+b']],
  ['/couch/db/a%20b', 'taken', ['couch', 'db', 'a b']],
  ['/couch/db/%C3%A9', 'taken', ['couch', 'db', 'é']],
  ['/couch/db/%F0%9F%98%80', 'taken', ['couch', 'db', '😀']],
  ['/couch/db/a%5Cb', 'taken', ['couch', 'db', 'a\\b']],
  ['/couch/db/a%3Fb%23c', 'taken', ['couch', 'db', 'a?b#c']],
  ['/couch/db/a;b', 'taken', ['couch', 'db', 'a;b']],
]

await t.test('targets are taken or refused by the rule they break', t => {
  for (const [target, rule, segments] of TARGETS) {
    t.equal(ruleOf({ target }), rule, JSON.stringify(target))
    if (segments !== undefined) t.same(canonical('GET', target).segments, segments, `segments of ${target}`)
  }
  t.end()
})

await t.test('the embedded database reads the same targets one segment up', t => {
  const rule = (target: string): string => {
    const result = canonicaliseLoopback(head({ target, rawHeaders: ['Host', '127.0.0.1:5984'] }))
    return 'refusal' in result ? result.refusal.rule : 'taken'
  }
  for (const [target, wanted] of [
    ['/db%2F..%2Fother', 'dot-segment'], ['/db//a', 'double-slash'], ['/db/_local/x/y%2Fz', 'encoded-slash'], ['/db/a/b%2Fc', 'encoded-slash'],
    ['/db/_all_docs%2F..', 'dot-segment'], ['/db%2Fx/a%2Fb', 'taken'], ['/db/_design/a%2Fb', 'taken'], ['/db/_local/a%2Fb', 'taken'],
  ] as const) t.equal(rule(target), wanted, target)
  t.end()
})

const QUERIES: ReadonlyArray<[query: string, read: Record<string, string>]> = [
  ['', {}],
  ['?', {}],
  ['?&&', {}],
  ['?a=1&b=2', { a: '1', b: '2' }],
  ['?a', { a: '' }],
  ['?a=', { a: '' }],
  ['?=1', { '': '1' }],
  ['?a=b=c', { a: 'b=c' }],
  ['?a+b=c+d', { 'a b': 'c d' }],
  ['?a=%2B', { a: '+' }],
  ['?a=%26b%3D1', { a: '&b=1' }],
  // CouchDB also splits at ";": here it is part of the value, and is sent on as %3B.
  ['?a=1;b=2', { a: '1;b=2' }],
  ['?__proto__=1', { ['__proto__']: '1' }],
  ['?a=/../..', { a: '/../..' }],
  ['?a=?', { a: '?' }],
]

await t.test('queries are decoded once', t => {
  for (const [query, read] of QUERIES) t.same([...canonical('GET', `/couch/db/a${query}`).query], Object.entries(read), query || '(none)')
  t.end()
})

await t.test('a trailing slash is told, and only the last one', t => {
  const slash = (target: string): boolean => canonical('GET', target).trailingSlash
  t.equal(slash('/'), false)
  t.equal(slash('/couch'), false)
  t.equal(slash('/couch/'), true)
  t.equal(slash('/couch/db/'), true)
  t.equal(slash('/couch/db/?a=/'), true)
  t.equal(slash('/couch/db?a=/'), false)
  t.end()
})

// ---- canonical requests: the head

const good = (...more: string[]): Partial<RawHead> => ({ rawHeaders: [...HOST, ...more] })
const host = (...values: string[]): Partial<RawHead> => ({ rawHeaders: values.flatMap(value => ['Host', value]) })
const post = (...more: string[]): Partial<RawHead> => ({ method: 'POST', ...good(...more) })

const HEADS: ReadonlyArray<[why: string, change: Partial<RawHead>, rule: string]> = [
  ['HTTP/1.0', { httpVersion: '1.0' }, 'http-version'],
  ['HTTP/2.0', { httpVersion: '2.0' }, 'http-version'],
  ['HTTP/0.9', { httpVersion: '0.9' }, 'http-version'],

  ['no Host', { rawHeaders: [] }, 'host'],
  ['an empty Host', host(''), 'host'],
  ['two Hosts', host('[::1]', '[::1]'), 'duplicate-header'],
  ['two Hosts in two spellings', { rawHeaders: ['Host', '[::1]', 'hOST', 'evil.example'] }, 'duplicate-header'],
  ['a name', host('evil.example'), 'host'],
  ['localhost', host('localhost:4984'), 'host'],
  ['another device\'s name', host(`${'c'.repeat(51)}a.patchcord.invalid`), 'host'],
  ['a name that ends in ours', host('evil.patchcord.invalid'), 'host'],
  ['a name that begins with ours', host('patchcord.invalid.evil.example'), 'host'],
  ['a list of hosts', host('[::1], evil.example'), 'host'],
  ['user info', host('a@[::1]'), 'host'],
  ['an unclosed literal', host('[::1'), 'host'],
  ['an empty literal', host('[]'), 'host'],
  ['brackets around a name', host('[evil]'), 'host'],
  ['an IPv4 address out of range', host('127.0.0.256'), 'host'],
  ['an IPv4 address of three parts', host('127.0.1'), 'host'],
  ['a number for an address', host('2130706433'), 'host'],
  ['a port of six digits', host('[::1]:123456'), 'host'],
  ['a port of letters', host('[::1]:http'), 'host'],
  ['a space', host('[::1] '), 'host'],

  ['chunked GET', good('Transfer-Encoding', 'chunked'), 'body'],
  ['chunked HEAD', { method: 'HEAD', ...good('Transfer-Encoding', 'chunked') }, 'body'],
  ['chunked DELETE: http-proxy would pipe it as a second request', { method: 'DELETE', ...good('Transfer-Encoding', 'chunked') }, 'body'],
  ['chunked OPTIONS', { method: 'OPTIONS', ...good('Transfer-Encoding', 'chunked') }, 'body'],
  ['GET with a body', good('Content-Length', '1'), 'body'],
  ['DELETE with a body', { method: 'DELETE', ...good('Content-Length', '2') }, 'body'],
  ['gzip, chunked', post('Transfer-Encoding', 'gzip, chunked'), 'transfer-encoding'],
  ['identity', post('Transfer-Encoding', 'identity'), 'transfer-encoding'],
  ['Chunked', post('Transfer-Encoding', 'Chunked'), 'transfer-encoding'],
  ['chunked with a space', post('Transfer-Encoding', 'chunked '), 'transfer-encoding'],
  ['chunked twice', post('Transfer-Encoding', 'chunked', 'Transfer-Encoding', 'chunked'), 'duplicate-header'],
  ['both framings', post('Transfer-Encoding', 'chunked', 'Content-Length', '3'), 'framing'],
  ['two lengths', post('Content-Length', '3', 'content-length', '3'), 'duplicate-header'],
  ['a list of lengths', post('Content-Length', '3, 3'), 'content-length'],
  ['a negative length', post('Content-Length', '-1'), 'content-length'],
  ['a length with a sign', post('Content-Length', '+1'), 'content-length'],
  ['a hexadecimal length', post('Content-Length', '0x1'), 'content-length'],
  ['an empty length', post('Content-Length', ''), 'content-length'],
  ['a length beyond exact numbers', post('Content-Length', '9'.repeat(16)), 'content-length'],

  ['method override', good('X-HTTP-Method-Override', 'DELETE'), 'method-override'],
  ['an empty method override', post('x-http-method-OVERRIDE', ''), 'method-override'],
  ['a method override that Connection would drop', good('Connection', 'X-HTTP-Method-Override', 'X-HTTP-Method-Override', 'DELETE'), 'method-override'],
  ['Upgrade', good('Upgrade', 'websocket', 'Connection', 'Upgrade'), 'upgrade'],
  ['Trailer: http-proxy dies of it', good('Trailer', 'Expires'), 'trailer'],
  ['Expect of something else', good('Expect', '200-ok'), 'expect'],
  ['Expect of two things', good('Expect', '100-continue, x'), 'expect'],
  ['two Content-Types', post('Content-Type', 'application/json', 'content-type', 'text/plain'), 'duplicate-header'],
  ['two Authorizations', good('Authorization', 'Basic a', 'Authorization', 'Basic b'), 'duplicate-header'],
  ['two Origins', good('Origin', 'https://[fe80::1]:4984', 'Origin', 'https://evil.example'), 'duplicate-header'],
  ['Connection that names Host', good('Connection', 'Host'), 'connection-header'],
  ['Connection that names Content-Length', post('Connection', 'close, content-length', 'Content-Length', '1'), 'connection-header'],
  ['Connection that names Transfer-Encoding', post('Connection', 'Transfer-Encoding', 'Transfer-Encoding', 'chunked'), 'connection-header'],
  ['Connection that names Expect', post('Connection', 'Expect', 'Expect', '100-continue'), 'connection-header'],
  ['Connection that names Origin', good('Connection', 'Origin', 'Origin', 'https://evil.example'), 'connection-header'],
  ['Connection that names Sec-Fetch-Site', good('Connection', 'keep-alive, sec-fetch-site', 'Sec-Fetch-Site', 'cross-site'), 'connection-header'],

  ['another site\'s Origin', good('Origin', 'https://evil.example'), 'origin'],
  ['an opaque Origin', good('Origin', 'null'), 'origin'],
  ['our Origin without TLS', good('Origin', 'http://[fe80::1]:4984'), 'origin'],
  ['our Origin at another port', good('Origin', 'https://[fe80::1]'), 'origin'],
  ['an empty Origin', good('Origin', ''), 'origin'],
  ['Sec-Fetch-Site: cross-site', good('Sec-Fetch-Site', 'cross-site'), 'sec-fetch-site'],
  ['Sec-Fetch-Site: same-site', good('Sec-Fetch-Site', 'same-site'), 'sec-fetch-site'],
  ['Sec-Fetch-Site in capitals', good('Sec-Fetch-Site', 'None'), 'sec-fetch-site'],

  ['an address', host('[fe80::1]'), 'taken'],
  ['an address with a zone', host('[fe80::1%25eth0]:4984'), 'taken'],
  ['an IPv4 address', host('192.168.1.2:4984'), 'taken'],
  ['our name', host('patchcord.invalid:4984'), 'taken'],
  ['our device\'s name', host(`${DEVICE}.patchcord.invalid`), 'taken'],
  ['our Origin', good('Origin', 'https://[fe80::1]:4984', 'Sec-Fetch-Site', 'same-origin'), 'taken'],
  ['typed into a browser', good('Sec-Fetch-Site', 'none'), 'taken'],
  ['a chunked POST', post('Transfer-Encoding', 'chunked'), 'taken'],
  ['a chunked PUT', { method: 'PUT', ...good('Transfer-Encoding', 'chunked') }, 'taken'],
  ['a POST without a body', post(), 'taken'],
  ['a GET that says it has no body', good('Content-Length', '0'), 'taken'],
  ['Expect: 100-continue', post('Expect', '100-Continue', 'Content-Length', '1'), 'taken'],
  ['two Accepts', good('Accept', 'a/b', 'accept', 'c/d'), 'taken'],
]

await t.test('heads are taken or refused by the rule they break', t => {
  for (const [why, change, rule] of HEADS) t.equal(ruleOf(change), rule, why)
  t.end()
})

await t.test('a refusal of another site is told apart from one of the form', t => {
  const codeOf = (result: Canonical): string => 'refusal' in result ? result.refusal.code : 'taken'
  t.equal(codeOf(canonicalise(head(good('Origin', 'https://evil.example')), DEVICE)), 'foreign-origin')
  t.equal(codeOf(canonicalise(head(good('Sec-Fetch-Site', 'cross-site')), DEVICE)), 'foreign-origin')
  t.equal(codeOf(canonicalise(head({ target: '//' }), DEVICE)), 'not-canonical')
  t.end()
})

await t.test('on loopback, Host is localhost or a literal loopback address', t => {
  const rule = (name: string, ...more: string[]): string => {
    const result = canonicaliseLoopback(head({ rawHeaders: ['Host', name, ...more] }))
    return 'refusal' in result ? result.refusal.rule : 'taken'
  }
  for (const name of ['', 'evil.example', 'localhost.evil.example', '127.0.0.1.evil.example', '192.168.1.2', '[fe80::1]', '[::2]', '0.0.0.0', 'patchcord.invalid', '127.1']) {
    t.equal(rule(name), 'host', name || '(empty)')
  }
  for (const name of ['localhost', 'localhost:5984', '127.0.0.1:5984', '127.9.9.9', '[::1]:5984']) t.equal(rule(name), 'taken', name)
  t.equal(rule('localhost:5984', 'Origin', 'http://localhost:5984'), 'taken')
  t.equal(rule('localhost:5984', 'Origin', 'https://localhost:5984'), 'origin')
  t.equal(rule('localhost:5984', 'Origin', 'http://localhost:8080'), 'origin')
  t.end()
})

await t.test('what Connection names is gone, and lists are joined', t => {
  const result = canonicalise(head(good('Connection', 'X-Secret, Range', 'X-Secret', '1', 'Range', 'bytes=0-1', 'Accept', 'a/b', 'ACCEPT', 'c/d')), DEVICE)
  if ('refusal' in result) throw new Error(result.refusal.reason)
  const { headers } = result.request
  t.notOk(headers.has('x-secret'))
  t.notOk(headers.has('range'))
  t.equal(headers.get('accept'), 'a/b, c/d')
  t.end()
})

await t.test('the body is told by its framing', t => {
  const bodyOf = (change: Partial<RawHead>): unknown => {
    const result = canonicalise(head(change), DEVICE)
    return 'refusal' in result ? result.refusal.rule : result.request.body
  }
  t.same(bodyOf(post('Transfer-Encoding', 'chunked')), { length: undefined })
  t.same(bodyOf(post('Content-Length', '12')), { length: 12 })
  t.same(bodyOf(post()), { length: 0 })
  t.equal(bodyOf({}), undefined)
  t.equal(bodyOf(good('Content-Length', '0')), undefined)
  t.end()
})

// ---- routes

const NO_ACTION: ReadonlyArray<[method: string, target: string]> = [
  ['POST', '/'], ['PUT', '/'], ['OPTIONS', '/'],
  ['GET', '/unknown'], ['GET', '/Couch/db'], ['GET', '/services/x'],
  ['HEAD', '/mail'], ['POST', '/mail'], ['GET', '/mail/'], ['GET', '/mail/x'],
  ['GET', '/files'], ['GET', '/files/'], ['GET', '/files/short'], ['GET', `/files/${FILE.toUpperCase()}`], ['GET', `/files/${FILE.slice(0, -1)}b`],
  ['PUT', `/files/${FILE}`], ['DELETE', `/files/${FILE}`], ['POST', `/files/${FILE}`], ['GET', `/files/${FILE}/`], ['GET', `/files/${FILE}/refs`],
  ['GET', `/files/${FILE}/leaves/`], ['GET', `/files/${FILE}/leaves/0`],
  ['PUT', '/couch/'], ['POST', '/couch/_all_dbs'], ['GET', '/couch/_all_dbs/'], ['GET', '/couch/_all_dbs/x'], ['GET', '/couch/%5Fall_dbs/x'],
  // Every other `/_…`.
  ...['_session', '_users', '_replicator', '_utils', '_config', '_node', '_up', '_active_tasks', '_uuids', '_dbs_info', '_db_updates', '_cluster_setup', '_membership', '_stats', '_replicate', '_scheduler', '_global_changes', '%5Fsession', '%5fusers%2Fx']
    .flatMap(name => ['GET', 'PUT', 'POST'].map((method): [string, string] => [method, `/couch/${name}`])),
  ['GET', '/couch/_users/_all_docs'], ['GET', '/couch/_users/org.couchdb.user:a'], ['GET', '/couch/_node/_local/_config'], ['GET', '/couch/%5Fusers/a'],
  // Names that no database has.
  ['GET', '/couch/Db'], ['GET', '/couch/1db'], ['GET', '/couch/d%20b'], ['GET', '/couch/d.b'], ['GET', '/couch/%2Fdb'], ['GET', '/couch/db%252Fx'],
  ['GET', `/couch/${'d'.repeat(239)}`], ['GET', '/couch/db%5C'], ['GET', '/couch/d%C3%A9'],
  // Databases are not made, removed or administered here.
  ['PUT', '/couch/db'], ['DELETE', '/couch/db'], ['PUT', '/couch/db/'], ['COPY', '/couch/db/a'], ['MOVE', '/couch/db/a'], ['PATCH', '/couch/db/a'], ['OPTIONS', '/couch/db'],
  ['POST', '/couch/db/a'], ['get', '/couch/db/a'], ['', '/couch/db/a'],
  ...['_security', '_purge', '_compact', '_revs_limit', '_purged_infos_limit', '_shards', '_sync_shards', '_view_cleanup', '_explain', '_index', '_local_docs', '_design_docs', '_partition', '_search', '_all_docs%2Fqueries', '_changes%2Fanything', '_temp_view', '_auto_purge', '_design', '_local', '_unknown', '_']
    .flatMap(name => ['GET', 'PUT', 'POST', 'DELETE'].map((method): [string, string] => [method, `/couch/db/${name}`])),
  ['GET', '/couch/db/%5Fsecurity'], ['PUT', '/couch/db/%5fsecurity'], ['GET', '/couch/db/_changes/anything'], ['POST', '/couch/db/_all_docs/queries'], ['GET', '/couch/db/_compact/x'],
  ['PUT', '/couch/db/_changes'], ['DELETE', '/couch/db/_all_docs'], ['GET', '/couch/db/_bulk_docs'], ['GET', '/couch/db/_find'], ['PUT', '/couch/db/_bulk_docs'],
  // Design documents are read, never written; nothing of them runs but views.
  ...['PUT', 'DELETE', 'POST', 'COPY'].flatMap((method): Array<[string, string]> => [
    [method, '/couch/db/_design/x'], [method, '/couch/db/_design%2Fx'], [method, '/couch/db/%5Fdesign/x'], [method, '/couch/db/_design%2fx%2Fy'], [method, '/couch/db/_design/x/a.txt'],
  ]),
  ...['_show/a', '_list/a/b', '_update/a', '_rewrite/a', '_info', '_view', '_view/a/b', '_search/a', '_nouveau/a', '%5Fshow/a', '_view/'].map((path): [string, string] => ['GET', `/couch/db/_design/x/${path}`]),
  ['GET', '/couch/db/_design%2Fx/_show/a'], ['POST', '/couch/db/_design/x/_update/a'], ['PUT', '/couch/db/_design/x/_view/a'], ['GET', '/couch/db/_design%2F'], ['GET', '/couch/db/_design/'],
  // Checkpoints: by name alone, and without attachments.
  ['DELETE', '/couch/db/_local/x'], ['POST', '/couch/db/_local/x'], ['GET', '/couch/db/_local/'], ['GET', '/couch/db/_local%2F'], ['GET', '/couch/db/_local/x/y'], ['GET', '/couch/db/_local%2Fx/y'], ['COPY', '/couch/db/_local/x'],
  // A slash at the end of anything but a database is another name to some and none to others.
  ['GET', '/couch/db/a/'], ['GET', '/couch/db/_changes/'], ['GET', '/couch/db/_local/x/'], ['GET', '/couch/db/_design/x/'], ['GET', '/couch/db/a/b/'], ['GET', '/couch/db/_design/x/_view/y/'],
  ['GET', '/couch/db/a/_b'], ['GET', '/couch/db/a/%5Fb'],
]

await t.test('what is no row has no action', t => {
  for (const [method, target] of NO_ACTION) t.equal(actionOf(method, target), undefined, `${method} ${target}`)
  t.end()
})

await t.test('what is not CouchDB\'s', t => {
  t.same(actionOf('GET', '/'), { kind: 'self' })
  t.same(actionOf('HEAD', '/?x=1'), { kind: 'self' })
  t.same(actionOf('GET', '/mail'), { kind: 'mail' })
  t.same(actionOf('GET', `/files/${FILE}`), { kind: 'file', id: FILE, part: 'content' })
  t.same(actionOf('HEAD', `/files/${FILE}/leaves`), { kind: 'file', id: FILE, part: 'leaves' })
  t.same(actionOf('GET', `/files/${FILE}/records`), { kind: 'file', id: FILE, part: 'records' })
  t.same(actionOf('GET', `/files/${FILE}?database=shared`), { kind: 'file', id: FILE, part: 'content', account: 'shared' })
  t.same(actionOf('GET', `/files/${FILE}/leaves?database=a%2Fb`), { kind: 'file', id: FILE, part: 'leaves', account: 'a/b' })
  for (const bad of ['', 'A', '_', '..', 'x*']) t.equal(actionOf('GET', `/files/${FILE}?database=${bad}`), undefined, `on account of ${bad}`)
  t.equal(actionOf('GET', `/files/${FILE}/records?database=shared`), undefined)
  t.end()
})

// ---- decisions about CouchDB

const WHO = {
  'own device': principal('own', { '*': 'write' }),
  'own device, reading': principal('own', { '*': 'read' }),
  'peer, read': principal('peer', { db: 'read' }),
  'peer, write': principal('peer', { db: 'write' }),
  'stranger to the database': principal('peer', { other: 'write', 'db*': 'write', '*': 'write' }),
} as const

type Verdict = 200 | 403 | 404

/** For each row: what asks for it, and what each of WHO is answered. Every row and method must be here. */
const DECISIONS: ReadonlyArray<[row: string, methods: readonly string[], target: string, verdicts: readonly [Verdict, Verdict, Verdict, Verdict, Verdict]]> = [
  ['create a document', ['POST'], '/couch/db', [200, 403, 403, 200, 404]],
  ['write many documents', ['POST'], '/couch/db/_bulk_docs', [200, 403, 403, 200, 404]],
  ['write a document', ['PUT'], '/couch/db/a?rev=1-a&new_edits=false', [200, 403, 403, 200, 404]],
  ['delete a document', ['DELETE'], '/couch/db/a?rev=1-a', [200, 403, 403, 200, 404]],
  ['write an attachment', ['PUT'], '/couch/db/a/b.txt?rev=1-a', [200, 403, 403, 200, 404]],
  ['delete an attachment', ['DELETE'], '/couch/db/a/b/c.txt?rev=1-a', [200, 403, 403, 200, 404]],
  ['find', ['POST'], '/couch/db/_find', [200, 200, 403, 403, 404]],
  ['view', ['GET', 'HEAD'], '/couch/db/_design/d/_view/v?group=true&key=%22a%22', [200, 200, 403, 403, 404]],
  ['view by key', ['POST'], '/couch/db/_design/d/_view/v', [200, 200, 403, 403, 404]],
  ['database information', ['GET', 'HEAD'], '/couch/db/', [200, 200, 200, 200, 404]],
  ['changes', ['GET'], '/couch/db/_changes?feed=longpoll&since=12-g1AAA_-x&heartbeat=true&style=all_docs&filter=_doc_ids&doc_ids=%5B%22a%22%5D', [200, 200, 200, 200, 404]],
  ['filtered changes', ['POST'], '/couch/db/_changes?filter=_selector', [200, 200, 200, 200, 404]],
  ['list documents', ['GET', 'HEAD'], '/couch/db/_all_docs?startkey=%22_design%2F%22&endkey=%22_design0%22&include_docs=true', [200, 200, 200, 200, 404]],
  ['list documents by key', ['POST'], '/couch/db/_all_docs', [200, 200, 200, 200, 404]],
  ['read many documents', ['POST'], '/couch/db/_bulk_get?revs=true&latest=true&attachments=true', [200, 200, 200, 200, 404]],
  ['compare revisions', ['POST'], '/couch/db/_revs_diff', [200, 200, 200, 200, 404]],
  ['missing revisions', ['POST'], '/couch/db/_missing_revs', [200, 200, 200, 200, 404]],
  ['make durable', ['POST'], '/couch/db/_ensure_full_commit', [200, 200, 200, 200, 404]],
  ['read a document', ['GET', 'HEAD'], '/couch/db/a%2Fb?open_revs=all&revs=true', [200, 200, 200, 200, 404]],
  ['read an attachment', ['GET', 'HEAD'], '/couch/db/a/b', [200, 200, 200, 200, 404]],
  ['read a design document', ['GET', 'HEAD'], '/couch/db/_design%2Fd', [200, 200, 200, 200, 404]],
  ['read a design document\'s attachment', ['GET', 'HEAD'], '/couch/db/_design/d/a.txt', [200, 200, 200, 200, 404]],
  ['read a checkpoint', ['GET', 'HEAD'], '/couch/db/_local/x', [200, 200, 200, 200, 404]],
  ['write a checkpoint', ['PUT'], '/couch/db/_local%2Fx', [200, 200, 200, 200, 404]],
  ['welcome', ['GET', 'HEAD'], '/couch/', [200, 200, 200, 200, 200]],
  ['list databases', ['GET', 'HEAD'], '/couch/_all_dbs', [200, 200, 200, 200, 200]],
]

await t.test('every row, for everybody', t => {
  for (const [row, methods, target, verdicts] of DECISIONS) {
    for (const method of methods) {
      const action = actionOf(method, target)
      if (action?.kind !== 'couch') {
        t.fail(`${method} ${target} has no action`)
        continue
      }
      t.equal(action.row.id, row, `${method} ${target}`)
      Object.entries(WHO).forEach(([who, principal], index) => {
        const decision = decide(principal, action, NOW)
        t.equal(decision.status, verdicts[index], `${row}: ${method} by ${who}`)
        t.equal(decision.allowed, verdicts[index] === 200)
        t.equal(decide({ ...principal, endsAt: NOW }, action, NOW).status, 403, `${row}: ${method} by ${who}, expired`)
      })
    }
  }
  t.end()
})

await t.test('a row or method without a line above is a mistake', t => {
  const held = new Map(DECISIONS.map(([row, methods]) => [row, new Set(methods)]))
  t.same(held, new Map(SURFACE.map(({ id, methods }) => [id, new Set(methods)])))
  t.equal(held.size, DECISIONS.length, 'one line for each row')
  t.equal(held.size, SURFACE.length, 'one ID for each row')
  for (const row of SURFACE) {
    // Nobody writes without being asked for write access, and code of the database runs for own devices alone.
    if (row.methods.includes('PUT') || row.methods.includes('DELETE') || row.body === 'document' || row.body === 'bulk-docs') {
      t.equal(row.needs, row.path === 'local' ? 'read' : 'write', `${row.id} writes`)
    }
    if (row.path === 'view' || row.endpoint === '_find') t.equal(row.who, 'own', `${row.id} computes`)
    if (row.path.startsWith('design')) t.same(row.methods, ['GET', 'HEAD'], `${row.id} only reads`)
    t.equal(row.needs === 'nothing', row.path === 'welcome' || row.path === 'all-dbs', row.id)
  }
  t.end()
})

await t.test('query parameters: what a row does not name is refused, and so is a bad value', t => {
  for (const [method, target] of [
    ['GET', '/couch/db/_changes?filter=_view'], ['GET', '/couch/db/_changes?filter=_design'], ['GET', '/couch/db/_changes?filter=ddoc/name'], ['GET', '/couch/db/_changes?view=a/b'],
    ['GET', '/couch/db/_changes?feed=eventsource'], ['GET', '/couch/db/_changes?heartbeat=-1'], ['GET', '/couch/db/_changes?limit=1e9'], ['GET', '/couch/db/_changes?since=%7B%7D'],
    ['GET', '/couch/db/_changes?doc_ids=%5B%22_local%2Fx%22%5D'], ['GET', '/couch/db/_changes?doc_ids=%5B%22%5Cu005flocal%2Fx%22%5D'], ['GET', '/couch/db/_changes?attachments=yes'],
    ['GET', '/couch/db/_all_docs?keys=%5B%22_local%2Fx%22%5D'], ['GET', '/couch/db/_all_docs?key=%22_local%2Fx%22'], ['GET', '/couch/db/_all_docs?keys=%5B%7B%22a%22%3A%22_local%2Fx%22%7D%5D'],
    ['GET', '/couch/db/_all_docs?keys=x'], ['GET', '/couch/db/_all_docs?startkey_docid=_local%2Fx'], ['GET', '/couch/db/_all_docs?start_key=%22_local%22'],
    ['GET', `/couch/db/_all_docs?keys=${encodeURIComponent('['.repeat(100) + ']'.repeat(100))}`],
    ['GET', '/couch/db/_all_docs?local_seq=true'], ['GET', '/couch/db/_all_docs?__proto__=1'], ['GET', '/couch/db/_all_docs?constructor=1'], ['GET', '/couch/db/_all_docs?toString=true'], ['GET', '/couch/db/_all_docs?=1'],
    ['GET', '/couch/db/a?rev=x'], ['GET', '/couch/db/a?rev=1-'], ['GET', '/couch/db/a?rev=1-a%20'], ['GET', '/couch/db/a?open_revs=%5B1%5D'], ['GET', '/couch/db/a?open_revs=some'], ['GET', '/couch/db/a?show=1'],
    ['PUT', '/couch/db/a?batch=ok'], ['PUT', '/couch/db/a?new_edits=maybe'], ['POST', '/couch/db?batch=ok'], ['POST', '/couch/db/_bulk_docs?w=1'],
    ['GET', '/couch/db?x=1'], ['GET', '/couch/_all_dbs?startkey=%22a%22'], ['GET', '/couch/?x'], ['GET', '/couch/db/_local/x?rev=0-1'],
    ['GET', '/couch/db/_design/d/_view/v?update_seq=2'], ['GET', '/couch/db/_design/d/_view/v?update=now'], ['GET', '/couch/db/_design/d/_view/v?group_level=1001'], ['GET', '/couch/db/_design/d/_view/v?stale=ok'],
  ] as const) {
    t.equal(decide(WHO['own device'], actionOf(method, target)!, NOW).status, 400, `${method} ${target}`)
  }
  // Where the database is not granted, a bad parameter does not tell that it exists.
  t.equal(decide(WHO['stranger to the database'], actionOf('GET', '/couch/db?x=1')!, NOW).status, 404)
  t.end()
})

await t.test('every parameter of every row refuses something, and control over an upstream\'s work', t => {
  for (const row of SURFACE) {
    for (const [name, rule] of Object.entries<QueryRule>(row.query)) {
      const refused = ['', '\ud800', '_local/x', '"_local/x"', '{"$regex":"x"}', '../x', '1;2', '-1'].filter(value => rule(value) !== undefined)
      t.ok(refused.length > 0, `${row.id}: ${name}`)
    }
  }
  t.end()
})

await t.test('a whole number is taken up to what the refusal says', t => {
  const limit = (value: string): number => decide(WHO['own device'], actionOf('GET', `/couch/db/_all_docs?limit=${value}`)!, NOW).status
  for (const value of ['9007199254740992', '9007199254740993', '10000000000000000', '99999999999999999999', '-1', '1.0', '0x10', '%201', '']) t.equal(limit(value), 400, value)
  for (const value of ['0', '007', '9007199254740991']) t.equal(limit(value), 200, value)
  t.end()
})

// ---- decisions about the rest

await t.test('files: refusals first', t => {
  const content = actionOf('GET', `/files/${FILE}`)!
  const leaves = actionOf('GET', `/files/${FILE}/leaves`)!
  const records = actionOf('GET', `/files/${FILE}/records`)!
  const onAccount = actionOf('GET', `/files/${FILE}?database=abc`)!
  const own = principal('own', {})
  const limited = principal('own', { 'a*': 'read' }, { grant: { databases: { 'a*': 'read' }, files: 'referenced' } })
  const peer = principal('peer', { shared: 'read', 'p*': 'read' })
  const greedy = principal('peer', {}, { grant: { databases: {}, files: 'all' } })
  const facts = (records: string[], lentUntil?: number): { records: DatabaseName[], lentUntil: number | undefined } => ({ records: records.map(database), lentUntil })

  for (const [why, who, action, known, status] of [
    ['a peer, no facts', peer, content, undefined, 404],
    ['a peer, no record', peer, content, facts([]), 404],
    ['a peer, recorded for another database', peer, content, facts(['private']), 404],
    ['a peer, recorded for what a pattern would cover', peer, content, facts(['public']), 404],
    ['a peer, lent and over', peer, content, facts([], NOW), 404],
    ['a peer, lent without an end', peer, content, facts([], Number.NaN), 404],
    ['a peer on account of a database that the file is not recorded for, though for another of his', peer, onAccount, facts(['shared'], NOW + 1), 404],
    ['a peer on account of a database that he may not read', peer, onAccount, facts(['abc'], NOW + 1), 404],
    ['a peer on account of a database, no facts', peer, onAccount, undefined, 404],
    ['an own device on account of a database that the file is not recorded for', own, onAccount, facts(['shared']), 404],
    ['an own device on account of a database that it may not read', own, onAccount, facts(['abc']), 404],
    ['an own device on account of a database, no facts', own, onAccount, undefined, 404],
    ['a peer asks for records', peer, records, facts(['shared'], NOW + 1), 404],
    ['a peer with files: all', greedy, content, facts([]), 404],
    ['a peer with files: all asks for records', greedy, records, facts([]), 404],
    ['an own device with files: referenced', limited, content, facts(['b']), 404],
    ['an own device with files: referenced, recorded for _users', limited, content, facts(['_users']), 404],
    ['an own device with files: referenced asks for records', limited, records, facts(['a']), 404],
    ['an expired own device', { ...own, endsAt: NOW }, content, undefined, 403],
    ['an own device without a known end', { ...own, endsAt: Number.NaN }, content, undefined, 403],
    ['a peer on account of a database', principal('peer', { abc: 'read' }), onAccount, facts(['abc', 'shared']), 200],
    ['an own device on account of a database', principal('own', { '*': 'write' }), onAccount, facts(['abc']), 200],
    ['an own device with files: referenced, on account of a database', limited, onAccount, facts(['abc']), 200],
    ['a peer, recorded', peer, content, facts(['private', 'shared']), 200],
    ['a peer, leaves of a recorded file', peer, leaves, facts(['shared']), 200],
    ['a peer, lent', peer, content, facts([], NOW + 1), 200],
    ['an own device', own, content, undefined, 200],
    ['an own device asks for records', own, records, undefined, 200],
    ['an own device with files: referenced, recorded', limited, content, facts(['abc']), 200],
  ] as const) {
    t.equal(decide(who, action, NOW, known).status, status, why)
  }
  t.equal(needsFacts(own, content), false)
  t.equal(needsFacts(own, onAccount), true)
  t.equal(needsFacts(peer, content), true)
  t.equal(needsFacts(greedy, content), true)
  t.equal(needsFacts(limited, content), true)
  t.equal(needsFacts(peer, { kind: 'self' }), false)
  t.end()
})

await t.test('an ended certificate fetches its mail, and nothing else', t => {
  for (const endsAt of [NOW, NOW - 1, 0, Number.NEGATIVE_INFINITY, Number.NaN]) {
    const ended = principal('own', { '*': 'write' }, { endsAt })
    t.equal(decide(ended, { kind: 'self' }, NOW).status, 403, `self, ends at ${endsAt}`)
    t.equal(decide(ended, actionOf('GET', '/couch/')!, NOW).status, 403, `couch, ends at ${endsAt}`)
    t.equal(decide(ended, { kind: 'mail' }, NOW).rule, 'mail: renewal', `mail, ends at ${endsAt}`)
  }
  t.equal(decide(principal('peer', {}), { kind: 'self' }, Number.NaN).status, 403, 'a clock that says nothing')
  t.equal(decide(principal('peer', {}), { kind: 'self' }, NOW).status, 200)
  t.equal(decide(principal('peer', {}), { kind: 'mail' }, NOW).rule, 'mail')
  t.end()
})

// ---- access

const ACCESS: ReadonlyArray<[why: string, relation: 'own' | 'peer', databases: Record<string, 'read' | 'write'>, name: string, access: DatabaseAccess]> = [
  ['nothing granted', 'peer', {}, 'db', 'none'],
  ['nothing granted to own devices either', 'own', {}, 'db', 'none'],
  ['a peer, all', 'peer', { '*': 'write' }, 'db', 'none'],
  ['a peer, a prefix', 'peer', { 'd*': 'write' }, 'db', 'none'],
  ['a prefix of the name', 'peer', { d: 'write' }, 'db', 'none'],
  ['more than the name', 'peer', { dbx: 'write' }, 'db', 'none'],
  ['another case', 'peer', { DB: 'write' }, 'db', 'none'],
  ['a member of Object', 'peer', {}, 'constructor', 'none'],
  ['a member of Object, for own devices', 'own', {}, 'constructor', 'none'],
  ['another prefix', 'own', { 'x*': 'write' }, 'db', 'none'],
  ['a star in the middle', 'own', { 'd*b': 'write' }, 'dxb', 'none'],
  ['a longer prefix than the name', 'own', { 'dbx*': 'write' }, 'db', 'none'],
  ['_users by *', 'own', { '*': 'write' }, '_users', 'none'],
  ['_users by a prefix', 'own', { '_*': 'write' }, '_users', 'none'],
  ['_users by its name', 'own', { _users: 'write' }, '_users', 'none'],
  ['_users by its name, for a peer', 'peer', { _users: 'write' }, '_users', 'none'],
  ['an exact name', 'peer', { db: 'read' }, 'db', 'read'],
  ['an exact name, to write', 'peer', { db: 'write' }, 'db', 'write'],
  ['all', 'own', { '*': 'write' }, 'db', 'write'],
  ['a prefix', 'own', { 'd*': 'read' }, 'db', 'read'],
  ['the prefix itself', 'own', { 'db*': 'read' }, 'db', 'read'],
  ['the longest wins, read', 'own', { '*': 'write', 'd*': 'write', 'db*': 'read' }, 'db', 'read'],
  ['the longest wins, write', 'own', { 'db*': 'write', 'd*': 'read', '*': 'read' }, 'db', 'write'],
  ['the exact name before any pattern', 'own', { '*': 'write', 'db*': 'write', db: 'read' }, 'db', 'read'],
  ['the exact name before any pattern, to write', 'own', { db: 'write', 'db*': 'read' }, 'db', 'write'],
  ['a slash in a name', 'own', { 'a/*': 'write' }, 'a/b', 'write'],
]

await t.test('access to a database', t => {
  for (const [why, relation, databases, name, access] of ACCESS) {
    t.equal(databaseAccess(principal(relation, databases), database(name)), access, why)
  }
  const inherited = Object.create({ db: 'write', '*': 'write' }) as Record<string, 'write'>
  t.equal(databaseAccess(principal('own', inherited), database('db')), 'none', 'what a prototype holds grants nothing')
  t.end()
})

await t.test('access costs what the name is long, not what was granted', t => {
  const many = principal('own', { ...Object.fromEntries(Array.from({ length: 10_000 }, (_, at) => [`prefix-${at}*`, 'read' as const])), '*': 'write' })
  const names = ['db', 'prefix-9999-x', 'd'.repeat(238)].map(database)
  t.same(names.map(name => databaseAccess(many, name)), ['write', 'read', 'write'])
  // By looking at all that was granted, these took 2 s.
  t.ok(cpu(() => { for (let round = 0; round < 1000; round++) databaseAccess(many, names[round % names.length]!) }) < 200)
  t.end()
})

// ---- what CouchDB is sent

function couchAction (method: string, target: string): CouchAction {
  const action = actionOf(method, target)
  if (action?.kind !== 'couch') throw new Error(`${method} ${target} is not CouchDB's`)
  return action
}

const sent = (method: string, target: string): string => {
  const action = couchAction(method, target)
  return couchPath(action, action.query, PREFIX)
}

await t.test('paths are written anew', t => {
  for (const [method, target, path] of [
    ['GET', '/couch', '/'],
    ['GET', '/couch/%5Fall_dbs', '/_all_dbs'],
    ['GET', '/couch/db/', '/db'],
    ['GET', '/couch/db%2fx/', '/db%2Fx'],
    ['GET', '/couch/%64b/%61', '/db/a'],
    ['GET', '/couch/db/a+b', '/db/a%2Bb'],
    ['GET', '/couch/db/a%2Fb', '/db/a%2Fb'],
    ['GET', '/couch/db/...', '/db/...'],
    ['GET', '/couch/db/%5Fdesign%2Fx', '/db/_design/x'],
    ['GET', '/couch/db/_design/x%2F_view%2Fy', '/db/_design/x%2F_view%2Fy'],
    ['GET', '/couch/db/_design%2Fx/_view/y', '/db/_design/x/_view/y'],
    ['GET', '/couch/db/_design%2Fx/a/b', '/db/_design/x/a/b'],
    ['GET', '/couch/db/_local%2Fx', `/db/_local/${PREFIX}-x`],
    ['PUT', '/couch/db/%5Flocal/x%2Fy', `/db/_local/${PREFIX}-x%2Fy`],
    ['PUT', `/couch/db/_local/${PREFIX}-x`, `/db/_local/${PREFIX}-x`],
    ['PUT', `/couch/db/_local/${PREFIX}x`, `/db/_local/${PREFIX}-${PREFIX}x`],
    ['PUT', '/couch/db/_local/yyyy-x', `/db/_local/${PREFIX}-yyyy-x`],
    ['GET', '/couch/db/a/b%20c/d', '/db/a/b%20c/d'],
    ['GET', '/couch/db/a%3Frev=1-a', '/db/a%3Frev%3D1-a'],
    ['GET', '/couch/db/a%23b', '/db/a%23b'],
    ['GET', '/couch/db/a%5Cb', '/db/a%5Cb'],
    ['GET', '/couch/db/a%252Fb', '/db/a%252Fb'],
    ['GET', '/couch/db/a;b', '/db/a%3Bb'],
    ['GET', '/couch/db/_changes?since=0;filter=_view', '/db/_changes?since=0%3Bfilter%3D_view'],
    ['GET', '/couch/db/_all_docs?key=%22a+b%22&&limit=1', '/db/_all_docs?key=%22a%20b%22&limit=1'],
  ] as const) t.equal(sent(method, target), path, `${method} ${target}`)
  t.end()
})

// ---- properties

// The model of the decision, written down from 3-surface.md and not from SURFACE: what a request would do.
const KINDS: ReadonlyArray<[kind: 'open' | 'read' | 'write' | 'own' | 'never', requests: readonly string[]]> = [
  ['open', ['GET /couch/', 'GET /couch/_all_dbs']],
  ['read', [
    'GET /couch/DB', 'HEAD /couch/DB/', 'GET /couch/DB/_changes', 'POST /couch/DB/_changes', 'GET /couch/DB/_all_docs', 'POST /couch/DB/_all_docs', 'POST /couch/DB/_bulk_get', 'POST /couch/DB/_revs_diff',
    'POST /couch/DB/_missing_revs', 'GET /couch/DB/doc', 'HEAD /couch/DB/doc', 'GET /couch/DB/doc/a', 'GET /couch/DB/_design/x', 'GET /couch/DB/_design%2Fx', 'GET /couch/DB/_design/x/a', 'GET /couch/DB/_local/x', 'PUT /couch/DB/_local/x', 'POST /couch/DB/_ensure_full_commit',
  ]],
  ['write', ['POST /couch/DB', 'PUT /couch/DB/doc', 'DELETE /couch/DB/doc', 'PUT /couch/DB/doc/a', 'DELETE /couch/DB/doc/a', 'POST /couch/DB/_bulk_docs']],
  ['own', ['POST /couch/DB/_find', 'GET /couch/DB/_design/x/_view/y', 'POST /couch/DB/_design/x/_view/y']],
  ['never', [
    'PUT /couch/DB', 'DELETE /couch/DB', 'GET /couch/DB/_security', 'PUT /couch/DB/_security', 'POST /couch/DB/_purge', 'POST /couch/DB/_compact', 'PUT /couch/DB/_revs_limit', 'GET /couch/DB/_shards', 'PUT /couch/DB/_design/x',
    'DELETE /couch/DB/_design/x', 'PUT /couch/DB/_design%2Fx', 'COPY /couch/DB/doc', 'DELETE /couch/DB/_local/x', 'GET /couch/DB/_design/x/_show/y', 'GET /couch/DB/_design/x/_list/y/z', 'POST /couch/DB/_design/x/_update/y',
    'GET /couch/_session', 'GET /couch/_users', 'PUT /couch/_node/x', 'GET /couch/%5Fusers/_all_docs', 'GET /couch/DB/_local_docs', 'POST /couch/DB/_index', 'GET /couch/DB/_design_docs',
  ]],
]
const REQUESTS = KINDS.flatMap(([kind, requests]) => requests.map(request => ({ kind, request })))

const vocabulary = fc.constantFrom(
  '/', '//', '%2F', '%2f', '%252F', '%252f', '.', '..', '%2e', '%2E', '%252e', '%25', '%', '_', '%5F', '%5f', '_design', '_local', '_all_docs', '_view', '_security', '_users', '_changes',
  'db', 'other', 'a', 'b', '\\', '%5C', '#', '?', '&', '=', '+', ';', '%20', '%00', '%0a', '%C0%AF', '%C3%A9', '%E2%80%AE', '%ED%A0%80', '\u00e9', '\0', ' ', ':', '@', '%7f', '2', '5', 'e', 'F', 'rev=1-a', 'limit=1', 'keys=%5B%5D',
)
const words = fc.array(vocabulary, { maxLength: 12 }).map(parts => parts.join(''))
const segment = fc.oneof(words.map(text => text.replaceAll('/', '')), fc.constantFrom('db', 'db', 'a', 'x', '_design', '_local', '_view', '%5Fdesign%2Fx', '_local%2Fx', 'a.b', '...'), fc.string({ unit: 'grapheme', maxLength: 6 }).map(encodeURIComponent))
const anyBytes = fc.uint8Array({ maxLength: 200 }).map(bytes => Buffer.from(bytes).toString('latin1'))
const targets = fc.oneof(
  { weight: 1, arbitrary: anyBytes },
  { weight: 1, arbitrary: anyBytes.map(text => `/couch/db/${text}`) },
  { weight: 3, arbitrary: words.map(text => `/couch/${text}`) },
  { weight: 3, arbitrary: words.map(text => `/couch/db${text}`) },
  { weight: 8, arbitrary: fc.array(segment, { maxLength: 6 }).map(segments => `/couch/${segments.join('/')}`) },
  { weight: 2, arbitrary: fc.tuple(fc.array(segment, { maxLength: 5 }), words).map(([segments, query]) => `/couch/db/${segments.join('/')}?${query}`) },
)
const methods = fc.constantFrom('GET', 'GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'COPY')
/** Requests of every kind, with some characters escaped that need not be. */
const disguised = fc.tuple(fc.constantFrom(...REQUESTS), fc.array(fc.constantFrom('', '', 'x', 'X'), { minLength: 1, maxLength: 20 })).map(([{ request }, marks]): [string, string] => {
  const [method, path] = request.replace('DB', 'db').split(' ') as [string, string]
  const escape = (character: string, at: number): string => {
    const mark = marks[at % marks.length]!
    const hex = character.charCodeAt(0).toString(16)
    return mark === '' || character === '/' || character === '%' || path[at - 1] === '%' || path[at - 2] === '%' ? character : `%${mark === 'X' ? hex.toUpperCase() : hex}`
  }
  return [method, `/couch${Array.from(path.slice('/couch'.length), (character, at) => escape(character, at + '/couch'.length)).join('')}`]
})
const requests = fc.oneof({ weight: 3, arbitrary: fc.tuple(methods, targets) }, { weight: 1, arbitrary: disguised })

await t.test('whatever bytes come as a head, the answer is a refusal or a canonical form', t => {
  const names = fc.oneof(fc.constantFrom('Host', 'host', 'Content-Length', 'Transfer-Encoding', 'Connection', 'Origin', 'Sec-Fetch-Site', 'Expect', 'Upgrade', 'Trailer', 'X-HTTP-Method-Override', 'Accept', '__proto__', 'constructor'), anyBytes)
  const values = fc.oneof(fc.constantFrom('[::1]', '127.0.0.1:1', 'chunked', '0', '12', 'close, host', 'https://[::1]', 'none', '100-continue'), anyBytes, fc.string({ unit: 'binary' }))
  fc.assert(fc.property(methods, fc.oneof(targets, fc.string({ unit: 'binary' })), fc.constantFrom('1.1', '1.1', '1.1', '1.0', ''), fc.array(fc.oneof(names, values), { maxLength: 12 }), (method, target, httpVersion, rawHeaders) => {
    const given = { method, target, httpVersion, rawHeaders }
    for (const result of [canonicalise(given, DEVICE), canonicaliseLoopback(given)]) {
      if ('refusal' in result) {
        if (result.refusal.rule === '' || result.refusal.reason === '') throw new Error('a refusal without a reason')
      } else {
        route(result.request)
        routeCouch(method, result.request.segments, result.request.trailingSlash, result.request.query)
      }
    }
  }), { seed: SEED, numRuns: 20_000 })
  t.pass()
  t.end()
})

/** User CPU time of one call, in ms; the least of three where the first was slow, for a collection may run. */
function cpu (task: () => void): number {
  let least = Number.POSITIVE_INFINITY
  for (let round = 0; round < 3 && least > 1; round++) {
    const from = process.cpuUsage()
    task()
    least = Math.min(least, process.cpuUsage(from).user / 1000)
  }
  return least
}

await t.test('no head costs more than 5 ms', t => {
  const MOST = 16_384
  const fill = (unit: string): string => unit.repeat(Math.floor(MOST / unit.length))
  const pieces = ['a', '/', '/a', '/.', '%2e', '%2F', '%25', '%2525', '25', '%252e', '%252F', '.', '&', 'a=&', '&a=1', '=', '+', '%C3%A9', '%E2%82', '?', '/..a', '%2F.', '%2Fa', '%5B', '%22']
  let dearest = 0
  const measure = (why: string, given: RawHead): void => {
    const ms = cpu(() => {
      const result = canonicalise(given, DEVICE)
      if ('request' in result) {
        const action = route(result.request)
        if (action !== undefined) decide(WHO['own device'], action, NOW)
      }
    })
    dearest = Math.max(dearest, ms)
    if (ms >= 5) t.fail(`${why} took ${ms} ms`)
  }
  for (const one of pieces) {
    for (const before of ['/', '/couch/db/', '/couch/', '/couch/db/a?', '/couch/db/_all_docs?keys=', '/couch/db/%25']) {
      for (const after of ['', '2e', '%', '%2e', '/', '.']) measure(`${before}(${one})*${after}`, head({ target: `${before}${fill(one)}${after}` }))
    }
    measure(`Host of ${one}`, head({ rawHeaders: ['Host', fill(one)] }))
    measure(`Connection of ${one}`, head({ rawHeaders: [...HOST, 'Connection', fill(one)] }))
    measure(`Origin of ${one}`, head({ rawHeaders: [...HOST, 'Origin', fill(one)] }))
  }
  for (const one of ['::', ':1', '1.', '[', ']', ',', ', ', 'a,', '9']) {
    measure(`Host of ${one}`, head({ rawHeaders: ['Host', `[${fill(one)}]`] }))
    measure(`Connection of ${one}`, head({ rawHeaders: [...HOST, 'Connection', fill(one)] }))
    measure(`Content-Length of ${one}`, head({ method: 'POST', rawHeaders: [...HOST, 'Content-Length', fill(one)] }))
  }
  measure('many headers', head({ rawHeaders: Array.from({ length: 4000 }, (_, at) => at % 2 === 0 ? 'Accept' : 'a') }))
  fc.assert(fc.property(methods, targets, (method, target) => { measure(target, head({ method, target })) }), { seed: SEED, numRuns: 5_000 })
  t.ok(dearest < 5, `the dearest took ${dearest.toFixed(2)} ms`)
  t.end()
})

/** What our action says in the model's words. */
function named ({ row, target }: CouchAction, checkpoints = ''): Record<string, string> {
  const { database, endpoint, document, attachment, view } = target
  const special = row.path === 'local' ? `_local/${checkpoints}` : row.path.startsWith('design') || row.path === 'view' ? '_design/' : ''
  return {
    ...row.path === 'all-dbs' ? { server: '_all_dbs' } : {},
    ...database === undefined ? {} : { database },
    ...view === undefined ? endpoint === undefined ? {} : { endpoint } : { endpoint: '_view', view },
    ...document === undefined ? {} : { document: `${special}${document}` },
    ...attachment === undefined ? {} : { attachment: attachment.join('/') },
  }
}

await t.test('what is taken means to CouchDB what it means here, before and after it is written anew', t => {
  let taken = 0
  const rows = new Set<string>()
  fc.assert(fc.property(requests, ([method, target]) => {
    const result = canonicalise(head({ method, target }), DEVICE)
    if ('refusal' in result) return
    const action = route(result.request)
    if (action?.kind !== 'couch') return
    taken++
    rows.add(action.row.id)
    const same = (what: string, one: unknown, other: unknown): void => {
      if (JSON.stringify(one) !== JSON.stringify(other)) throw new Error(`${what}: ${JSON.stringify(one)} is not ${JSON.stringify(other)}`)
    }
    const sorted = (fields: object): unknown => Object.entries(fields).toSorted(([one], [other]) => one < other ? -1 : 1)

    // The client's own spelling, as CouchDB would have read it: only "+" differs, which goes out escaped.
    same('read raw', sorted(readAsCouchDB(target.slice('/couch'.length), false)), sorted(named(action)))

    // What goes out: in both of CouchDB's readings of "+", the same thing.
    const path = couchPath(action, action.query, PREFIX)
    const prefix = action.row.path === 'local' && !action.target.document!.startsWith(`${PREFIX}-`) ? `${PREFIX}-` : ''
    for (const plusIsSpace of [true, false]) {
      const read = readAsCouchDB(path, plusIsSpace)
      same('read anew', sorted(read), sorted(named(action, prefix)))
      if (read.server !== undefined && action.row.id !== 'list databases') throw new Error(`${path} is the server's`)
    }
    if (/\/\/|\/\.{1,2}(\/|\?|$)|[#\\+;]|[^!-~]/.test(path)) throw new Error(`${path} holds what another reader may take otherwise`)

    // It is canonical itself, and the same again.
    const again = canonicaliseLoopback({ method, target: path, httpVersion: '1.1', rawHeaders: ['Host', '[::1]'] })
    if ('refusal' in again) throw new Error(`${path}: ${again.refusal.rule}`)
    const repeated = routeCouch(method, again.request.segments, again.request.trailingSlash, again.request.query)
    if (repeated === undefined) throw new Error(`${path} has no action`)
    same('row', repeated.row.id, action.row.id)
    same('target', sorted(named(repeated)), sorted(named(action, prefix)))
    same('query', [...repeated.query], [...action.query])
    same('path', couchPath(repeated, repeated.query, PREFIX), path)
    if (prefix === '' && !/^_(?:design|local)\//.test(result.request.segments[2] ?? '')) same('segments', again.request.segments, result.request.segments.slice(1))
  }), { seed: SEED, numRuns: 40_000 })
  t.ok(taken > 6000, `${taken} targets were taken`)
  t.equal(rows.size, SURFACE.length, 'every row was reached')
  t.end()
})

/** Parameters that reach what nobody may: design code, other principals' checkpoints, writes that are not durable. */
const NEVER_ASKED = ['filter=_view', 'filter=x/y', 'view=x/y', 'feed=eventsource', 'batch=ok', 'keys=%5B%22_local/x%22%5D', 'doc_ids=%5B%22_local/x%22%5D', 'stale=ok', 'w=1', 'r=1', 'x=1']

const databaseNames = fc.constantFrom('db', 'db', 'db', 'dbx', 'd', 'a/b', 'a/')
const grants = fc.dictionary(fc.oneof({ weight: 2, arbitrary: databaseNames }, { weight: 1, arbitrary: fc.constantFrom('*', 'd*', 'db*', 'a/*', 'x*') }), fc.constantFrom('read', 'write'), { noNullPrototype: true, minKeys: 1, maxKeys: 6 }).map(grant => ({ ...grant }))
const relations = fc.constantFrom('own', 'peer')
const ends = fc.constantFrom(NOW + 1, NOW + 1, NOW + 1, NOW, 0, Number.NaN)

/** Access by looking at everything that was granted: what covers the name, the most exact of it first. */
function modelAccess (relation: 'own' | 'peer', grant: Record<string, 'read' | 'write'>, name: string): DatabaseAccess {
  const covering = Object.entries(grant).filter(([entry]) => entry === name || (relation === 'own' && /^[^*]*\*$/.test(entry) && name.startsWith(entry.replace('*', ''))))
  const exactness = (entry: string): number => entry === name ? Number.POSITIVE_INFINITY : entry.length
  return covering.toSorted(([one], [other]) => exactness(other) - exactness(one))[0]?.[1] ?? 'none'
}

function modelAllows (who: Principal, kind: string, name: string, asksForNever: boolean): boolean {
  if (!(who.endsAt > NOW) || kind === 'never' || asksForNever) return false
  if (kind === 'open') return true
  const access = modelAccess(who.relation, who.grant.databases as Record<string, 'read' | 'write'>, name)
  return access !== 'none' && (kind !== 'own' || who.relation === 'own') && (kind !== 'write' || access === 'write')
}

await t.test('a request is allowed exactly where the model allows it', t => {
  let allowed = 0
  const actions = fc.tuple(fc.constantFrom('open', 'read', 'write', 'own', 'never').chain(kind => fc.constantFrom(...REQUESTS.filter(request => request.kind === kind))), databaseNames, fc.oneof({ weight: 3, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: fc.constantFrom(...NEVER_ASKED) }))
  fc.assert(fc.property(relations, grants, ends, actions, (relation, grant, endsAt, [{ kind, request }, name, parameter]) => {
    const [method, path] = request.replace('DB', encodeURIComponent(name)).split(' ') as [string, string]
    const action = actionOf(method, parameter === undefined ? path : `${path}?${parameter}`)
    const who = principal(relation, grant, { endsAt })
    const decided = action !== undefined && decide(who, action, NOW).allowed
    if (decided) allowed++
    const should = modelAllows(who, kind, name, parameter !== undefined)
    if (decided !== should) throw new Error(`${relation} ${JSON.stringify(grant)} ${method} ${path} ${parameter}: ${decided}, and the model says ${should}`)
  }), { seed: SEED, numRuns: 20_000 })
  t.ok(allowed > 1500, `${allowed} were allowed`)
  t.end()
})

const RANK = { none: 0, read: 1, write: 2 } as const

await t.test('taking a database away from a grant never allows more', t => {
  fc.assert(fc.property(relations, grants, databaseNames, fc.constantFrom(...REQUESTS), fc.nat(), (relation, grant, name, { request }, pick) => {
    const entries = Object.entries(grant)
    if (entries.length === 0) return
    const [taken] = entries[pick % entries.length]!
    const less = Object.fromEntries(entries.filter(([entry]) => entry !== taken))
    const before = principal(relation, grant)
    const after = principal(relation, less)
    const [method, path] = request.replace('DB', encodeURIComponent(name)).split(' ') as [string, string]
    const action = actionOf(method, path)
    // An own device's entry may also narrow a shorter pattern ("*" write, "diary" read): to take it away is to
    // fall back to that pattern, which the person wrote too. Nobody gets more than both said.
    const fallback = RANK[databaseAccess(after, database(name))]
    const narrowed = relation === 'own' && fallback > RANK[databaseAccess(before, database(name))]
    if (narrowed) {
      const shorter = Object.entries(less).some(([entry, access]) => entry.endsWith('*') && name.startsWith(entry.slice(0, -1)) && RANK[access] === fallback)
      if (!shorter) throw new Error(`without ${taken}, ${JSON.stringify(less)} gives more of ${name}, and nothing in it says so`)
      return
    }
    if (RANK[databaseAccess(after, database(name))] > RANK[databaseAccess(before, database(name))]) throw new Error(`${JSON.stringify(less)} gives more of ${name} than ${JSON.stringify(grant)}`)
    if (action !== undefined && decide(after, action, NOW).allowed && !decide(before, action, NOW).allowed) throw new Error(`without ${taken}, ${request} is allowed`)
  }), { seed: SEED, numRuns: 20_000 })
  t.pass()
  t.end()
})

await t.test('files: allowed exactly where the model allows it', t => {
  fc.assert(fc.property(relations, grants, ends, fc.constantFrom('all', 'referenced') as fc.Arbitrary<Grant['files']>, fc.array(databaseNames, { maxLength: 4 }), fc.option(fc.constantFrom(NOW - 1, NOW, NOW + 1), { nil: undefined }), fc.constantFrom('content', 'leaves', 'records'), fc.option(databaseNames, { nil: undefined }), (relation, databases, endsAt, files, recorded, lentUntil, part, on) => {
    const who = principal(relation, databases, { endsAt, grant: { databases, files } })
    const account = part === 'records' ? undefined : on
    const action: Action = { kind: 'file', id: FILE, part, ...account === undefined ? {} : { account: database(account) } }
    const all = relation === 'own' && files === 'all'
    const reads = (name: string): boolean => modelAccess(relation, databases, name) !== 'none'
    const should = endsAt > NOW && (account !== undefined ? recorded.includes(account) && reads(account) : all || (part !== 'records' && (recorded.some(reads) || (lentUntil ?? 0) > NOW)))
    const decided = decide(who, action, NOW, { records: recorded.map(database), lentUntil }).allowed
    if (decided !== should) throw new Error(`${decided}, and the model says ${should}`)
    if (needsFacts(who, action) !== (account !== undefined || !all)) throw new Error('the facts are read where they are not needed, or not where they are')
  }), { seed: SEED, numRuns: 10_000 })
  t.pass()
  t.end()
})

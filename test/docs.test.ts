import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Ajv } from 'ajv'
import fc from 'fast-check'
import t from 'tap'
import { generateDocs } from '../scripts/generate-docs.js'
import { PatchcordError } from '../src/core/errors.js'
import { DEFAULT_LIMITS } from '../src/core/limits.js'
import { LOG_LEVELS } from '../src/core/log.js'
import { parseEnv } from '../src/server/env.js'

const TOP = fileURLToPath(new URL('../..', import.meta.url))
const SEED = 20_300_102

await t.test('each generated document is what would be generated now', t => {
  for (const [path, text] of generateDocs()) t.equal(readFileSync(join(TOP, path), 'utf8'), text, `${path} (npm run docs)`)
  t.end()
})

// ---- the schema says what parseEnv says

type Json = null | boolean | number | string | Json[] | { [name: string]: Json }

const validate = new Ajv({ allErrors: true, strict: true, strictRequired: false, allowMatchingProperties: true })
  .compile(JSON.parse(readFileSync(join(TOP, 'docs/env.schema.json'), 'utf8')) as object)

/** Why parseEnv refuses, or undefined. */
function problemOf (env: Json): string | undefined {
  try {
    parseEnv(structuredClone(env))
    return undefined
  } catch (error) {
    if (error instanceof PatchcordError && error.code === 'bad-env') return error.message
    throw error
  }
}

/** What no schema can say: it is between two parts of the env, or about the size of one. */
const BEYOND_A_SCHEMA = /names a grant that is not in grants|must be at most \d+ bytes of JSON/

const ID = `${'a'.repeat(51)}q`
const PEM = '-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n'
const KEY = '-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n'

const SMALL: Json = {
  version: 1,
  listen: [{ host: '::', port: 0 }],
  identity: { device: ID, key: KEY, certificates: PEM, userCa: PEM },
  whitelist: [],
  revoked: [],
  grants: {},
}

const FULL: Json = {
  version: 1,
  listen: [{ host: '::1', port: 4984 }, { host: 'fe80::1%eth0', port: 65535 }, { host: '::ffff:127.0.0.1', port: 1 }],
  identity: { device: ID, key: KEY, certificates: PEM + PEM, userCa: PEM },
  whitelist: [
    { name: 'friend', device: ID, notAfter: '2030-01-31T12:00:00Z', grant: 'friend' },
    { name: '', ca: PEM, grant: 'friend' },
    { name: 'both', device: ID, ca: PEM, notAfter: '2030-01-31T12:00+02:00', grant: 'own' },
  ],
  revoked: [ID, ID],
  grants: {
    own: { databases: { '*': 'write', 'a*': 'read', 'a/b': 'write' }, files: 'all' },
    friend: { databases: { 'dmedia-0': 'read', 'x_$()+/-': 'write' }, files: 'referenced' },
  },
  couch: { url: 'http://[::1]:5984', databases: ['dmedia-0'], credentials: { own: { username: 'u', password: '' } } },
  files: { root: '/home/u/files' },
  mail: { [ID]: { shares: [1, null, { a: 'b' }] } },
  lent: [{ device: ID, files: [ID], until: '2030-01-31T12:00:00.5-11:30' }],
  allowRouted: true,
  limits: { ...DEFAULT_LIMITS },
  log: { level: 'debug' },
}

await t.test('good envs pass both', t => {
  const good: Array<[string, Json]> = [
    ['the smallest', SMALL], ['the fullest', FULL],
    ...LOG_LEVELS.map((level): [string, Json] => [`log level ${level}`, { ...SMALL, log: { level } }]),
    ...['::', '::1', '1::', '1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7::', '::2:3:4:5:6:7:8', 'fd00::1', 'ABCD::EF', '::1.2.3.4', '1::2:1.2.3.4', '1:2:3:4:5:6:1.2.3.4', 'fe80::1%wlan0', 'FE80::1%br-1.2', 'fec0::1'].map((host): [string, Json] => [`host ${host}`, { ...SMALL, listen: [{ host, port: 0 }] }]),
    ...['2030-01-31T24:00:00Z', '2030-01-31T00:00Z', '0000-01-01T00:00:00Z', '2030-12-31T23:59:59.999999999+23:59'].map((until): [string, Json] => [`time ${until}`, { ...SMALL, lent: [{ device: ID, files: [], until }] }]),
  ]
  for (const [why, env] of good) {
    t.equal(problemOf(env), undefined, `parseEnv: ${why}`)
    t.ok(validate(env), `schema: ${why}`)
  }
  t.end()
})

await t.test('bad envs fail both', t => {
  const on = (change: { [name: string]: Json }): Json => ({ ...SMALL as object, ...change })
  const bad: Array<[string, Json]> = [
    ...[null, 1, 'env', [], true].map((env): [string, Json] => [JSON.stringify(env), env]),
    ...Object.keys(SMALL).map((name): [string, Json] => [`no ${name}`, Object.fromEntries(Object.entries(SMALL).filter(([other]) => other !== name))]),
    ['an unknown field', on({ white_list: [] })], ['another version', on({ version: 2 })], ['a version in text', on({ version: '1' })], ['nowhere to listen', on({ listen: [] })],
    ...['', 'localhost', '127.0.0.1', '[::1]', ':::', '1::2::3', '1:2:3:4:5:6:7', '1:2:3:4:5:6:7:8:9', '12345::', '::g', '::1.2.3', '::1.2.3.256', '1:2:3:4:5:6:7:1.2.3.4', 'fe80::1', 'FEBF::1', 'fe80::1%', 'fe80::1%eth 0', ' ::1', '::1\n']
      .map((host): [string, Json] => [`host ${JSON.stringify(host)}`, on({ listen: [{ host, port: 0 }] })]),
    ...[-1, 65536, 1.5, '1', null, 1e300].map((port): [string, Json] => [`port ${port}`, on({ listen: [{ host: '::', port }] })]),
    ...['', ID.toUpperCase(), ID.slice(1), `${ID}a`, `${'a'.repeat(51)}b`, `${'1'.repeat(51)}q`, `${ID}\n`].map((device): [string, Json] => [`device ${JSON.stringify(device)}`, on({ revoked: [device] })]),
    ['an entry of nobody', on({ whitelist: [{ name: 'x', grant: 'own' }], grants: { own: { databases: {}, files: 'all' } } })],
    ['a misspelt notAfter', on({ whitelist: [{ name: 'x', device: ID, notafter: '2030-01-01T00:00Z', grant: 'own' }], grants: { own: { databases: {}, files: 'all' } } })],
    ['a long name', on({ whitelist: [{ name: 'x'.repeat(201), device: ID, grant: 'own' }], grants: { own: { databases: {}, files: 'all' } } })],
    ...['2030-01-01', '2030-01-01T00:00:00', '2030-13-01T00:00:00Z', '2030-01-32T00:00:00Z', '2030-01-01T25:00:00Z', '2030-01-01T24:00:01Z', '2030-01-01T00:60:00Z', '2030-01-01T00:00:60Z', '2030-01-01T00:00:00+24:00', '2030-01-01 00:00:00Z', 'tomorrow', '2030-1-1T00:00:00Z', '2030-01-01T00:00:00z']
      .map((until): [string, Json] => [`time ${until}`, on({ lent: [{ device: ID, files: [], until }] })]),
    ...['_users', '*', 'a*', 'A', '1a', '', 'a.b', 'a'.repeat(239), 'a b'].map((name): [string, Json] => [`a peer's grant for ${JSON.stringify(name.slice(0, 10))}`, on({ grants: { friend: { databases: { [name]: 'read' }, files: 'referenced' } } })]),
    ...['_users', '_*', '**', 'a*b', '*a', 'A*', '', 'a*\n', `${'a'.repeat(239)}*`].map((name): [string, Json] => [`own grant for ${JSON.stringify(name.slice(0, 10))}`, on({ grants: { own: { databases: { [name]: 'read' }, files: 'all' } } })]),
    ['another access', on({ grants: { friend: { databases: { a: 'admin' }, files: 'all' } } })], ['other files', on({ grants: { friend: { databases: {}, files: 'none' } } })],
    ['a user without a name', on({ couch: { url: 'http://[::1]:5984', databases: [], credentials: { own: { username: '', password: '' } } } })],
    ['a database _users', on({ couch: { url: 'http://[::1]:5984', databases: ['_users'], credentials: {} } })],
    ['a relative store', on({ files: { root: 'files' } })], ['mail for nobody', on({ mail: { friend: {} } })], ['an unknown limit', on({ limits: { fast: 1 } })],
    ...[0, -1, 1.5, '10', null, 2 ** 53].map((headers): [string, Json] => [`headers ${headers}`, on({ limits: { headers } })]),
    ['an unknown level', on({ log: { level: 'loud' } })],
  ]
  for (const [why, env] of bad) {
    const problem = problemOf(env)
    t.type(problem, 'string', `parseEnv: ${why}`)
    t.notMatch(problem, BEYOND_A_SCHEMA, why)
    t.notOk(validate(env), `schema: ${why}`)
  }
  t.end()
})

/** The place of every value in `value`, as the names on the way to it. */
function placesIn (value: Json, path: ReadonlyArray<string | number> = []): Array<ReadonlyArray<string | number>> {
  if (value === null || typeof value !== 'object') return [path]
  return [path, ...Object.entries(value).flatMap(([name, inner]) => placesIn(inner, [...path, Array.isArray(value) ? Number(name) : name]))]
}

type Mutation = { readonly kind: 'delete' } | { readonly kind: 'add', readonly name: string, readonly value: Json } | { readonly kind: 'replace', readonly value: Json }

function mutate (env: Json, path: ReadonlyArray<string | number>, mutation: Mutation): Json {
  const [name, ...rest] = path
  if (name === undefined) {
    if (mutation.kind === 'replace') return mutation.value
    return mutation.kind === 'add' && env !== null && typeof env === 'object' && !Array.isArray(env) ? { ...env, [mutation.name]: mutation.value } : env
  }
  const copy = structuredClone(env) as Record<string | number, Json>
  if (rest.length === 0 && mutation.kind === 'delete') {
    if (Array.isArray(copy)) copy.splice(Number(name), 1)
    else delete copy[name]
  } else {
    copy[name] = mutate(copy[name]!, rest, mutation)
  }
  return copy
}

await t.test('deleting, adding or changing anything is judged alike by both', t => {
  const values: fc.Arbitrary<Json> = fc.oneof(
    fc.constantFrom<Json>(null, true, false, 0, 1, -1, 1.5, 65536, 2 ** 53, '', ' ', 'x', 'write', 'read', 'all', 'own', 'nobody', '*', '_users', '::1', 'fe80::1', ID, PEM, KEY, '/x', '2030-02-03T04:05:06Z', [], [null], ['x'], [ID], {}, { x: 1 }, { databases: {}, files: 'all' }),
    fc.string({ maxLength: 8 }),
  )
  const mutations: fc.Arbitrary<Mutation> = fc.oneof(
    fc.constant<Mutation>({ kind: 'delete' }),
    fc.record({ kind: fc.constant('add'), name: fc.constantFrom('x', 'own', 'friend', 'a', ID, '_users', 'a*', 'host', 'notAfter', 'limits'), value: values }),
    fc.record({ kind: fc.constant('replace'), value: values }),
  )
  const places = placesIn(FULL)
  let refused = 0
  let taken = 0
  fc.assert(fc.property(fc.constantFrom(...places), mutations, (place, mutation) => {
    const env = mutate(FULL, place, mutation)
    const problem = problemOf(env)
    const isValid = validate(env)
    if (problem === undefined) taken++
    else refused++
    if (problem !== undefined && BEYOND_A_SCHEMA.test(problem)) return
    // valibot takes a list for an object that requires nothing. The schema is stricter there, never laxer.
    if (problem === undefined && mutation.kind === 'replace' && Array.isArray(mutation.value)) return
    if ((problem === undefined) !== isValid) throw new Error(`${place.join('.')} ${JSON.stringify(mutation)}: parseEnv says ${problem ?? 'yes'}, the schema ${isValid ? 'yes' : JSON.stringify(validate.errors?.slice(0, 2))}`)
  }), { seed: SEED, numRuns: 8_000 })
  t.ok(refused > 2000, `${refused} refused`)
  t.ok(taken > 500, `${taken} taken`)
  t.end()
})

await t.test('what a schema cannot say, parseEnv does', t => {
  const stranger: Json = { ...FULL as object, grants: { own: { databases: {}, files: 'all' } } }
  t.match(problemOf(stranger), /whitelist\.0\.grant names a grant that is not in grants/)
  const full: Json = { ...FULL as object, mail: { [ID]: { text: 'x'.repeat(65_536) } } }
  t.match(problemOf(full), /must be at most 65536 bytes of JSON/)
  t.end()
})

await t.test('every promise of THREATS.md is held by a test that exists', t => {
  const text = readFileSync(new URL('../../THREATS.md', import.meta.url), 'utf8')
  const promises = text.split('\n').filter(line => line.startsWith('| ') && !line.startsWith('| promise') && !line.startsWith('| ---'))
  t.ok(promises.length > 20)
  for (const promise of promises) {
    const held = [...promise.matchAll(/`([a-z-]+): "([^`]+)"`/g)]
    t.ok(held.length > 0, promise.slice(0, 80))
    for (const [, file, name] of held) {
      // What is tried in the virtual machine is no test of tap's.
      const [path, mark] = file === 'apparmor' ? ['scripts/apparmor/attempts.ts', `'${name}': `] : [`test/${file}.test.ts`, `t.test('${name}'`]
      const source = readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')
      t.ok(source.includes(mark), `${file}: ${name}`)
    }
  }
  t.end()
})

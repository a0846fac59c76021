import { readdirSync, readFileSync } from 'node:fs'
import { isBuiltin } from 'node:module'
import { join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { DEFAULT_LIMITS } from '../src/core/limits.js'

// The rooms of src/ and what may import what, as data with reasons, held against the code both ways: an import
// without an arrow fails, and so does an arrow that nothing uses (a room that is not built yet is let be).

const TOP = fileURLToPath(new URL('../..', import.meta.url))

/** Each room's main file opens with a comment that says what the room is for and what it must never do. */
const ROOMS: Readonly<Record<string, string>> = {
  core: 'core/ids.ts',
  policy: 'policy/decide.ts',
  identity: 'identity/index.ts',
  files: 'files/store.ts',
  couch: 'couch/proxy.ts',
  server: 'server/server.ts',
  pairing: 'pairing/index.ts',
  discovery: 'discovery/discovery.ts',
  sync: 'sync/peer-link.ts',
  embedded: 'embedded/front.ts',
  machine: 'machine/doctor.ts',
  control: 'control/operations.ts',
  agent: 'agent/agent.ts',
  cli: 'cli/program.ts',
  bin: 'bin/patchcord-server.ts',
  testing: 'testing.ts',
}
/** The files beside the rooms, which are doors of the package. */
const DOORS = ['index.ts', 'testing.ts', 'pouchdb.d.ts']
/** A door and an executable say what they are in fewer words. */
const FEWEST_LINES: Readonly<Record<string, number>> = { bin: 0 }

const ARROWS: ReadonlyArray<[from: string, to: string, why: string]> = [
  ['policy', 'core', 'branded IDs; nothing else, for it is pure'],
  ['identity', 'core', 'IDs, errors, the clock and the write discipline of state'],
  ['identity', 'policy', 'admission makes the Principal that policy decides about'],
  ['files', 'core', 'content IDs, errors, the clock and the write discipline'],
  ['couch', 'core', 'errors, limits, addresses, the clock and the log'],
  ['couch', 'policy', 'forwards a decided action, along the form of its row'],
  ['embedded', 'core', 'names, errors, addresses, limits and the log'],
  ['embedded', 'policy', 'answers the rows of the one surface, decided by the one decide()'],
  ['pairing', 'core', 'IDs, lv_cat, errors, the clock and state; certificate functions are handed in'],
  ['server', 'core', 'errors, limits, shapes, the clock and the log'],
  ['server', 'policy', 'the way of a request: canonicalise, route, decide'],
  ['server', 'identity', 'admission: the one predicate on who a certificate stands for'],
  ['server', 'files', 'the read-only half of the store'],
  ['server', 'couch', 'the proxy behind /couch'],
  ['sync', 'core', 'IDs, errors, addresses, the clock and the log'],
  ['sync', 'policy', 'the one name that certificates of patchcord carry'],
  ['sync', 'files', 'downloads are written leaf by leaf into the store'],
  ['sync', 'identity', 'the same predicate on the other end of a connection'],
  ['control', 'core', 'errors travel by code; the agent hands in the operations'],
  ['agent', 'core', 'the composition root uses every word there is'],
  ['agent', 'policy', 'explain, and what a grant covers'],
  ['agent', 'identity', 'keeps the keys and writes the books of trust'],
  ['agent', 'files', 'owns the store'],
  ['agent', 'couch', 'reads the address of a CouchDB the way the proxy does'],
  ['agent', 'server', 'its env, and the server in-process for Lab'],
  ['agent', 'sync', 'links, pulls and downloads'],
  ['agent', 'embedded', 'supervises the embedded database'],
  ['discovery', 'core', 'IDs, addresses with zones, the clock and the log'],
  ['agent', 'discovery', 'starts it, and hands its hints to the links'],
  ['agent', 'pairing', 'opens the pairing window and keeps what comes of it'],
  ['machine', 'core', 'errors, addresses, and where the home is'],
  ['agent', 'machine', 'starts the server with as little as this machine lets it be given'],
  ['embedded', 'machine', 'starts its child held to its profile'],
  ['cli', 'machine', 'doctor and service: they work where no service runs'],
  ['agent', 'control', 'serves the local API'],
  ['cli', 'core', 'errors with their exit codes, and where the home is'],
  ['cli', 'control', 'the typed client: the command line does nothing by itself'],
  ['bin', 'core', 'errors and the log, before there is anything else'],
  ['bin', 'server', 'patchcord-server runs it'],
  ['bin', 'agent', 'patchcord up runs it'],
  ['bin', 'machine', 'tells systemd that the service is ready'],
  ['bin', 'cli', 'patchcord is it'],
  ['index.ts', 'core', 'what the types of the public API name'],
  ['index.ts', 'server', 'startServer'],
  ['testing.ts', 'testing', 'the public names of the lab'],
  ['testing', 'core', 'a clock that tests move, addresses, homes'],
  ['testing', 'agent', 'whole devices in one process'],
  ['testing', 'control', 'tests ask a device what a command line would'],
]

/** Files that are started or read by their path, which no import shows. */
const PATHS: ReadonlyArray<[from: string, path: string, why: string]> = [
  ['agent/server-host.ts', '../bin/patchcord-server.js', 'the server is an executable of its own, so that a tight profile fits it'],
  ['files/leaf-hashes.ts', 'hash-worker.js', 'hashing is spread over threads'],
  ['files/small-files.ts', 'small-worker.js', 'small files are read and written many in a turn of a thread'],
  ['machine/installation.ts', '../../..', 'the folder of the package, which is all the code that the server may read'],
  ['embedded/supervise.ts', 'child.js', 'the embedded database is a process of its own'],
  ['bin/main.ts', '../../../package.json', '--version'],
  ['discovery/discovery.ts', './worker.js', 'mDNS is a thread of its own, where a flood blocks nothing'],
]

const PACKAGES: Readonly<Record<string, readonly [rooms: readonly string[], why: string]>> = {
  'pino': [['core'], 'log lines'],
  'valibot': [['core', 'identity', 'server', 'agent', 'pairing', 'sync'], 'the vocabulary of shapes: each room that reads JSON from outside declares what it takes in these words, so no one room owns it'],
  'lru-cache': [['identity'], 'certificates that were read, and who they stand for, bounded'],
  '@peculiar/x509': [['identity'], 'writes certificates and CSRs'],
  'reflect-metadata': [['identity'], '@peculiar/x509 wants it imported first'],
  '@noble/curves': [['pairing'], 'CPace over ristretto255'],
  'bonjour-service': [['discovery'], 'mDNS'],
  'node-forge': [['identity'], 'PKCS#12, over DER that we made'],
  'http-proxy': [['couch'], 'the way to CouchDB for what has a body'],
  'commander': [['cli'], 'command lines'],
  'prom-client': [['agent'], 'metrics'],
  'ora': [['cli'], 'the line of progress on a terminal'],
  'uqr': [['cli'], 'the QR code of a pairing link, drawn in the terminal'],
  'pouchdb-core': [['embedded', 'sync'], 'embedded stores with it, sync replicates with it; each types the part it calls'],
  'pouchdb-adapter-leveldb': [['embedded'], 'the store of the embedded database'],
  'pouchdb-adapter-http': [['sync'], 'both ends of a pull are reached over HTTP'],
  'pouchdb-replication': [['sync'], 'the replicator'],
}

const EXITS: Readonly<Record<string, string>> = {
  'bin/patchcord.ts': 'an executable',
  'bin/patchcord-agent.ts': 'an executable',
  'bin/patchcord-server.ts': 'an executable',
  'embedded/child.ts': 'the main file of the embedded database\'s process: it is forked by path, never imported',
}

// ---- reading imports

interface Import {
  readonly specifier: string
  readonly form: 'from' | 'effect' | 'call'
}

const FORMS: ReadonlyArray<[Import['form'], RegExp]> = [
  ['from', /^[ \t]*(?:import|export)\b[\w$\s,*{}]*?\bfrom\s*(['"])([^'"\n]+)\1/gm],
  ['effect', /^[ \t]*import\s*(['"])([^'"\n]+)\1/gm],
  ['call', /\b(?:import|require|import\.meta\.resolve)\s*\(\s*(['"`])([^'"`\n]+)\1/g],
]

/** Every module that the source names in an import, export-from, dynamic import or require. */
function importsOf (source: string): Import[] {
  return FORMS.flatMap(([form, pattern]) => [...source.matchAll(pattern)].map(match => ({ specifier: match[2]!, form })))
}

/** What looks like an import and is none that `importsOf` can read: it must not be there. */
function unreadable (source: string): string[] {
  const clauses = source.match(/(?:^|[\s}])from\s*['"][^'"\n]+['"];?[ \t]*$/gm)?.length ?? 0
  const found = importsOf(source).filter(({ form }) => form === 'from').length
  const computed = source.match(/\b(?:import|require)\s*\(\s*[^'"`\s)][^)]*\)/g) ?? []
  return [...clauses > found ? [`${clauses - found} from-clauses`] : [], ...computed.filter(call => !/^import\s*\(\s*\{/.test(call))]
}

await t.test('the reader of imports reads them all', t => {
  const sample = [
    "import 'effect'",
    'import "effect-double"',
    "import plain from 'plain'",
    "import type { T } from 'type'",
    "import * as star from './star.js'",
    "import plain2, { other as name } from '../a/both.js'",
    "import {",
    "  one,",
    "  type Two,",
    "} from 'lines'",
    "export { x } from 'export'",
    "export * from 'export-star'",
    "export * as ns from 'export-ns';",
    "export type { Y } from './export-type.js'",
    "const lazy = await import('dynamic')",
    "type Lazy = import('dynamic-type').Name",
    "const old = require('old') as object",
    "const spaced = require( `spaced` )",
    "const where = import.meta.resolve('resolved')",
    "export const from = 'not this'",
    "export interface Z { readonly from: 'nor this' }",
    "const text = 'import x'",
    " * a comment that takes something from 'nowhere' in its midst",
  ].join('\n')
  t.same(importsOf(sample).map(({ specifier }) => specifier).toSorted((one, other) => one < other ? -1 : 1), [
    '../a/both.js', './export-type.js', './star.js', 'dynamic', 'dynamic-type', 'effect', 'effect-double', 'export', 'export-ns', 'export-star', 'lines', 'old', 'plain', 'resolved', 'spaced', 'type',
  ])
  t.same(unreadable(sample), [])
  t.same(unreadable("import { a, // why: b\n  b } from 'commented'"), ['1 from-clauses'])
  t.same(unreadable('await import(name)'), ['import(name)'])
  t.same(unreadable('require(name + x)'), ['require(name + x)'])
  t.end()
})

// ---- the code

interface SourceFile {
  readonly path: string
  readonly room: string
  readonly text: string
  readonly imports: readonly Import[]
}

const roomOf = (path: string): string => path.includes('/') ? path.slice(0, path.indexOf('/')) : path

const SOURCES: readonly SourceFile[] = readdirSync(join(TOP, 'src'), { recursive: true, encoding: 'utf8' })
  .filter(path => path.endsWith('.ts'))
  .map(path => {
    const text = readFileSync(join(TOP, 'src', path), 'utf8')
    return { path, room: roomOf(path), text, imports: importsOf(text) }
  })

const exists = (room: string): boolean => SOURCES.some(source => source.room === room)

/** `@scope/name` or `name` of what a specifier imports. */
const packageOf = (specifier: string): string => specifier.split('/').slice(0, specifier.startsWith('@') ? 2 : 1).join('/')

await t.test('every source was read', t => {
  t.ok(SOURCES.length > 100)
  for (const { path, text, imports } of SOURCES) {
    t.same(unreadable(text), [], path)
    for (const { specifier } of imports) {
      if (specifier.startsWith('.')) t.ok(specifier.endsWith('.js') && SOURCES.some(source => source.path === target(path, specifier)), `${path} imports ${specifier}, which is there`)
    }
  }
  t.end()
})

function target (path: string, specifier: string): string {
  return normalize(join(path, '..', specifier)).replace(/\.js$/, '.ts')
}

await t.test('rooms import along the arrows', t => {
  const used = new Set<string>()
  for (const { path, room, imports } of SOURCES) {
    for (const { specifier } of imports) {
      if (!specifier.startsWith('.')) continue
      const to = roomOf(target(path, specifier))
      if (to === room) continue
      used.add(`${room} -> ${to}`)
      t.ok(ARROWS.some(arrow => arrow[0] === room && arrow[1] === to), `${path} imports ${specifier}: ${room} -> ${to} is an arrow`)
    }
  }
  for (const [from, to, why] of ARROWS) {
    if (!exists(from) || !exists(to)) continue
    t.ok(used.has(`${from} -> ${to}`), `${from} -> ${to} (${why}) is used`)
  }
  t.equal(new Set(ARROWS.map(([from, to]) => `${from} -> ${to}`)).size, ARROWS.length, 'each arrow once')
  t.end()
})

await t.test('the arrows make no circle, and rooms at one height do not know each other', t => {
  const reaches = (from: string, to: string, seen = new Set<string>()): boolean => {
    if (seen.has(from)) return false
    seen.add(from)
    return ARROWS.some(arrow => arrow[0] === from && (arrow[1] === to || reaches(arrow[1], to, seen)))
  }
  for (const room of Object.keys(ROOMS)) t.notOk(reaches(room, room), `${room} does not reach itself`)
  const peers = ['identity', 'files', 'couch', 'pairing', 'discovery', 'embedded']
  for (const [from, to] of ARROWS) t.notOk(peers.includes(from) && peers.includes(to), `${from} -> ${to}`)
  t.notOk(ARROWS.some(([from]) => from === 'core'), 'core imports nothing of ours')
  t.same(ARROWS.filter(([from]) => from === 'policy').map(([, to]) => to), ['core'])
  t.notOk(ARROWS.some(([from, to]) => from !== 'bin' && from !== 'index.ts' && (to === 'cli' || to === 'bin')), 'nothing is built on the command line')
  // The server never reaches what holds keys, the person's disk or the user.
  for (const room of ['agent', 'control', 'sync', 'pairing', 'embedded', 'cli']) t.notOk(reaches('server', room), `server does not reach ${room}`)
  t.end()
})

await t.test('policy is pure', t => {
  for (const { path, text, imports } of SOURCES.filter(({ room }) => room === 'policy')) {
    t.notOk(imports.some(({ specifier }) => isBuiltin(specifier)), `${path} imports nothing of Node's`)
    const code = text.replace(/\/\*[^]*?\*\/|\/\/.*$/gm, '')
    t.notMatch(code, /\b(?:process|Buffer|Date|performance|crypto|console|globalThis)\s*[.([]|\bMath\.random\b|\b(?:setTimeout|setInterval|setImmediate|queueMicrotask|fetch)\s*\(|\b(?:async|await)\b/, `${path} asks nobody the time or for luck`)
  }
  // Types vanish, but the IDs it imports are checked by code of core's that must be as pure.
  const ids = SOURCES.find(({ path }) => path === 'core/ids.ts')!
  t.notOk(ids.imports.some(({ specifier }) => isBuiltin(specifier)))
  t.end()
})

await t.test('each third-party package has its room', t => {
  const used = new Map<string, Set<string>>()
  for (const { path, room, imports } of SOURCES) {
    for (const { specifier } of imports) {
      if (specifier.startsWith('.')) continue
      if (isBuiltin(specifier)) {
        t.ok(specifier.startsWith('node:'), `${path} imports ${specifier} with node:`)
        continue
      }
      const name = packageOf(specifier)
      t.ok(PACKAGES[name]?.[0].includes(room), `${path} imports ${name}: ${room} may`)
      used.set(name, (used.get(name) ?? new Set()).add(room))
    }
  }
  for (const [name, [rooms, why]] of Object.entries(PACKAGES)) {
    for (const room of rooms) if (exists(room)) t.ok(used.get(name)?.has(room), `${name} (${why}) is used in ${room}`)
  }
  const { dependencies } = JSON.parse(readFileSync(join(TOP, 'package.json'), 'utf8')) as { dependencies: Record<string, string> }
  t.strictSame(new Set(Object.keys(dependencies)), new Set(used.keys()), 'dependencies are what src/ imports')
  t.end()
})

await t.test('only executables exit', t => {
  const found = SOURCES.filter(({ text }) => /\bprocess\s*\.\s*(?:exit|abort|reallyExit|exitCode)\b/.test(text)).map(({ path }) => path)
  t.strictSame(new Set(found), new Set(Object.keys(EXITS)))
  for (const path of found) t.notOk(SOURCES.some(source => source.imports.some(({ specifier }) => specifier.startsWith('.') && target(source.path, specifier) === path)), `nobody imports ${path}`)
  t.end()
})

await t.test('what is started by its path is listed', t => {
  const found = SOURCES.flatMap(({ path, text }) => [...text.matchAll(/new URL\(\s*(['"`])([^'"`]*)\1\s*,\s*import\.meta\.url/g)].map(match => `${path} ${match[2]!}`))
  t.strictSame(new Set(found), new Set(PATHS.map(([from, path]) => `${from} ${path}`)))
  t.end()
})

await t.test('every room opens with a comment', t => {
  t.strictSame(new Set(SOURCES.map(({ room }) => room).filter(room => !DOORS.includes(room))), new Set(Object.keys(ROOMS).filter(exists)), 'every folder of src/ is a room')
  for (const [room, main] of Object.entries(ROOMS)) {
    if (!exists(room)) continue
    const text = SOURCES.find(({ path }) => path === main)?.text ?? ''
    t.ok(openingComment(text) >= (FEWEST_LINES[room] ?? 4), `${main} says what ${room} is for`)
  }
  t.end()
})

/** The lines of the longest comment before the first thing that does something. */
function openingComment (text: string): number {
  let longest = 0
  let lines = 0
  for (const line of text.split('\n')) {
    lines = /^(?:\/\/|\/\*| \*)/.test(line) ? lines + 1 : 0
    longest = Math.max(longest, lines)
    if (/^(?:export )?(?:class|(?:async )?function) |^export (?!type|interface)/.test(line)) break
  }
  return longest
}

await t.test('every limit is read where something can be held to it', t => {
  for (const name of Object.keys(DEFAULT_LIMITS)) {
    const reader = SOURCES.find(({ path, text }) => /^(?:server|couch)\//.test(path) && (new RegExp(`[lL]imits\\.${name}\\b|[{,]\\s*${name}\\b[^{}\\n]*\\}[^\\n]*[lL]imits|'${name}'`)).test(text))
    t.ok(reader !== undefined, `${name}: ${reader?.path ?? 'nobody reads it'}`)
  }
  t.end()
})

await t.test('a limit that a document names is a limit', t => {
  const names = new Set(Object.keys(DEFAULT_LIMITS))
  for (const path of [...readdirSync(join(TOP, 'docs')).map(name => join('docs', name)), ...readdirSync(TOP)].filter(path => path.endsWith('.md'))) {
    for (const [, name] of readFileSync(join(TOP, path), 'utf8').matchAll(/\blimits\.(\w+)/g)) t.ok(name === 'md' || name === 'ts' || names.has(name!), `${path} names limits.${name}`)
  }
  t.end()
})

await t.test('the lock file knows every platform\'s packages', t => {
  // npm install leaves out what the registry does not have or node_modules does not hold; `npm ci` then refuses
  // the lock file on every platform (npm/cli#4828).
  interface Locked { readonly version: string, readonly optionalDependencies?: Record<string, string> }
  const { packages } = JSON.parse(readFileSync(join(TOP, 'package-lock.json'), 'utf8')) as { packages: Record<string, Locked> }
  for (const [path, { optionalDependencies = {} }] of Object.entries(packages)) {
    for (const name of Object.keys(optionalDependencies)) t.ok(packages[`node_modules/${name}`] ?? packages[`${path}/node_modules/${name}`], `${path} wants ${name}`)
  }
  t.end()
})

// Writes the documents that are made from code, into docs/. `npm run docs`; test/docs.test.ts fails where one
// is not what this would write now.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { METRICS } from '../src/agent/metrics.js'
import { ERRORS } from '../src/core/errors.js'
import { DEFAULT_LIMITS } from '../src/core/limits.js'
import type { DatabaseName, DeviceId } from '../src/core/ids.js'
import { decide } from '../src/policy/decide.js'
import type { Principal } from '../src/policy/principal.js'
import type { QueryRule } from '../src/policy/query.js'
import { SURFACE, type BodyForm, type PathForm, type SurfaceRow } from '../src/policy/surface.js'
import { newestResults, withFigures } from './bench/results.js'
import { envJsonSchema } from './env-json-schema.js'

const TOP = fileURLToPath(new URL('../..', import.meta.url))
const MADE = 'Made from the code by `npm run docs`; do not edit.'

/** Every generated document: its path below the project, and its text. */
export function generateDocs (): ReadonlyMap<string, string> {
  const comments = limitComments()
  return new Map([
    ['docs/env.schema.json', `${JSON.stringify(envJsonSchema(comments), null, 2)}\n`],
    ['docs/errors.md', errors()],
    ['docs/limits.md', limits(comments)],
    ['docs/metrics.md', metrics()],
    ['docs/couch-surface.md', surface()],
    ...readme(),
  ])
}

/** The README's figures, where something was measured. */
function readme (): Array<[string, string]> {
  const results = newestResults(join(TOP, 'bench/results'))
  return results === undefined ? [] : [['README.md', withFigures(readFileSync(join(TOP, 'README.md'), 'utf8'), results)]]
}

function table (head: readonly string[], rows: ReadonlyArray<readonly string[]>): string {
  const line = (cells: readonly string[]): string => `| ${cells.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}

// ---- errors

const EXITS = ['done', 'failed', 'usage', 'refused by policy or by the person', 'not reachable', 'verification failed'] as const

function errors (): string {
  const rows = Object.entries(ERRORS).map(([code, { means, status, exit, hint }]) => [`\`${code}\``, means, String(status), `${exit} (${EXITS[exit]})`, hint])
  return `# Errors

${MADE} The table is \`ERRORS\` in \`src/core/errors.ts\`.

Programs branch on the code, which does not change; messages do. *Status* is what a client of the open port
is answered, where the error can reach one. *Exit* is the exit code of a command; 130 is an interrupt.

${table(['code', 'means', 'status', 'exit', 'what to do'], rows)}
`
}

// ---- limits

/** What the source says of each limit; the comment is the one place where that is written. */
function limitComments (): ReadonlyMap<string, string> {
  const source = readFileSync(join(TOP, 'src/core/limits.ts'), 'utf8')
  const found = new Map([...source.matchAll(/^ {2}\/\*\* (.+?) \*\/\n {2}(\w+): /gm)].map(match => [match[2]!, match[1]!]))
  for (const name of Object.keys(DEFAULT_LIMITS)) if (!found.has(name)) throw new Error(`src/core/limits.ts says nothing of ${name}`)
  return found
}

function limits (comments: ReadonlyMap<string, string>): string {
  const rows = Object.entries(DEFAULT_LIMITS).map(([name, value]) => [`\`${name}\``, readable(name, value), comments.get(name)!])
  return `# Limits of the open port

${MADE} The table is \`DEFAULT_LIMITS\` in \`src/core/limits.ts\`.

Each may be replaced by \`limits\` in the env of the server (env.schema.json) and is a positive whole number;
names that end in \`Ms\` are milliseconds, in \`Bytes\` bytes.

${table(['limit', 'default', 'what it bounds'], rows)}
`
}

function readable (name: string, value: number): string {
  if (name.endsWith('Ms')) return `${value} (${value / 1000} s)`
  if (name.endsWith('Bytes')) return `${value} (${value >= 1_048_576 ? `${value / 1_048_576} MiB` : `${value / 1024} KiB`})`
  return String(value)
}

// ---- metrics

function metrics (): string {
  return `# Metrics

${MADE} The table is \`METRICS\` in \`src/agent/metrics.ts\`.

The service answers \`GET /metrics\` on its control socket, in Prometheus's text format, and on no port:

\`\`\`
patchcord metrics
curl --unix-socket $XDG_RUNTIME_DIR/patchcord/control.sock http://localhost/metrics
\`\`\`

For a Prometheus that runs as another user, let a timer of yours write \`patchcord metrics\` into the textfile folder of
its node exporter. Devices are named by their ID.

${table(['metric', 'what it is'], Object.entries(METRICS).map(([name, help]) => [`\`${name}\``, help]))}
`
}

// ---- the CouchDB surface

const PATHS: Readonly<Record<PathForm, string>> = {
  'welcome': '/couch/', 'all-dbs': '/couch/_all_dbs', 'database': '/couch/{db}', 'endpoint': '/couch/{db}/', 'document': '/couch/{db}/{id}', 'attachment': '/couch/{db}/{id}/{attachment…}',
  'design': '/couch/{db}/_design/{id}', 'design-attachment': '/couch/{db}/_design/{id}/{attachment…}', 'view': '/couch/{db}/_design/{id}/_view/{view}', 'local': '/couch/{db}/_local/{id}',
}

function principal (relation: Principal['relation'], access: 'read' | 'write'): Principal {
  return {
    device: '' as DeviceId, user: undefined, relation, entry: '', name: '', grantName: '', checkpoints: '', endsAt: Number.POSITIVE_INFINITY,
    grant: { databases: { db: access }, files: 'referenced' },
  }
}

/** Asked of `decide` itself, so that the document cannot say otherwise. */
function mayUse (who: Principal, row: SurfaceRow): string {
  return decide(who, { kind: 'couch', row, target: { database: 'db' as DatabaseName }, query: new Map() }, 0).allowed ? 'yes' : 'no'
}

function surface (): string {
  const bodies = bodyComments()
  const rows = SURFACE.map(row => [
    `\`${row.methods.join(' ')} ${PATHS[row.path]}${row.endpoint ?? ''}\``, row.id,
    mayUse(principal('own', 'write'), row), mayUse(principal('peer', 'read'), row), mayUse(principal('peer', 'write'), row),
    row.body === 'none' ? '' : `[${row.body}](#bodies)`,
    isShort(row) ? grouped(row.query).map(cells => cells.join(': ')).join('; ') : `[${parameterSet(row)}](#query-parameters)`,
  ])
  const sets = new Map(SURFACE.filter(row => !isShort(row)).map(row => [parameterSet(row), row]))
  return `# The CouchDB surface

${MADE} The table is \`SURFACE\` in \`src/policy/surface.ts\`; who may is what \`decide\` answers.

What is not a row does not exist: it is answered with the same 404 as a database that is absent and one that
was not granted. The embedded database answers the same rows, without \`/couch\` in front.

## Requests

${table(['request', 'name', 'own device', 'peer, read', 'peer, write', 'body', 'query'], rows)}

An own device whose grant is read-only is refused what a peer that may only read is refused for writing.
\`_local\` documents are stored apart for each device: \`_local/{prefix of the device}-{id}\`.

## Query parameters

A parameter that is not listed for its row is 400, and so are a value that is not of its form and a name
that is given twice.

${[...sets].map(([name, { query }]) => `### ${name}\n\n${table(['parameter', 'value'], grouped(query))}`).join('\n\n')}

## Bodies

A body is checked while it streams; CouchDB never receives the last byte of one that is refused.

${table(['form', 'what it is'], [...bodies].filter(([form]) => SURFACE.some(({ body }) => body === form)).map(([form, text]) => [form, text]))}
`
}

const isShort = ({ query }: SurfaceRow): boolean => Object.keys(query).length <= 2

/** Rows that take the same parameters share one list, named after the first of them. */
function parameterSet ({ query }: SurfaceRow): string {
  const names = Object.keys(query).join()
  return SURFACE.find(row => Object.keys(row.query).join() === names)!.id
}

function grouped (query: SurfaceRow['query']): string[][] {
  const groups = new Map<string, string[]>()
  for (const [name, rule] of Object.entries(query)) {
    const text = describe(rule)
    groups.set(text, [...groups.get(text) ?? [], `\`${name}\``])
  }
  return [...groups].map(([text, names]) => [names.join(' '), text])
}

/** A rule says what would be right when it is given what never is: it is asked for its own words. */
function describe (rule: QueryRule): string {
  const said = new Set(['\ud800', '_local/x', '"_local/x"'].map(value => rule(value)).filter(problem => problem !== undefined))
  const values = rule('true') === undefined && rule('0') === undefined && rule('x') !== undefined && rule('false') !== undefined ? '`true`, or ' : ''
  if (said.size === 0) throw new Error('a query rule refuses nothing that it was asked')
  return `${values}${[...said].map(text => text.replace(/^must be /, '')).join('; ')}`.replace(` up to ${Number.MAX_SAFE_INTEGER}`, '')
}

function bodyComments (): ReadonlyMap<string, string> {
  const source = readFileSync(join(TOP, 'src/policy/surface.ts'), 'utf8')
  const found = new Map([...source.matchAll(/^ {2}\/\*\* (.+?) \*\/\n {2}\| '([\w-]+)'/gm)].map(match => [match[2]!, match[1]!]))
  const forms = new Set<BodyForm>(SURFACE.map(({ body }) => body))
  forms.delete('none')
  for (const form of forms) if (!found.has(form)) throw new Error(`src/policy/surface.ts says nothing of the body form ${form}`)
  return found
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [path, text] of generateDocs()) writeFileSync(join(TOP, path), text)
}

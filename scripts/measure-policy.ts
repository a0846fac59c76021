// What the policy costs a request, in CPU time. `npm run build && node build/scripts/measure-policy.js`
import type { DeviceId } from '../src/core/ids.js'
import { canonicalise, type RawHead } from '../src/policy/canonical.js'
import { decide } from '../src/policy/decide.js'
import type { Principal } from '../src/policy/principal.js'
import { couchPath, route, type CouchAction } from '../src/policy/route.js'

const DEVICE = `${'a'.repeat(51)}q` as DeviceId
const HEADERS = ['Host', '[fe80::1]:4984', 'Accept', 'application/json', 'User-Agent', 'CouchDB-Replicator/3.3.3', 'Accept-Encoding', 'gzip', 'Connection', 'keep-alive']

/** The median over 15 rounds of the nanoseconds of CPU that one call takes. */
function measure (name: string, calls: number, task: () => unknown): void {
  const times: number[] = []
  for (let round = 0; round < 20; round++) {
    const before = process.cpuUsage()
    for (let call = 0; call < calls; call++) task()
    const { user, system } = process.cpuUsage(before)
    if (round >= 5) times.push((user + system) * 1000 / calls)
  }
  const median = times.toSorted((one, other) => one - other)[7]!
  process.stdout.write(`${name}: ${median >= 10_000 ? `${(median / 1000).toFixed(0)} µs` : median >= 1000 ? `${(median / 1000).toFixed(2)} µs` : `${median.toFixed(0)} ns`}\n`)
}

const head = (target: string, rawHeaders = HEADERS): RawHead => ({ method: 'GET', target, httpVersion: '1.1', rawHeaders })

const HEADS: Record<string, RawHead> = {
  'a document': head('/couch/db/0123456789abcdef'),
  'a long-poll of _changes': head('/couch/db/_changes?feed=longpoll&since=12-g1AAAACTeJzLYWBgYMpgTmHgz8tPSTV0MDQy1zMAQsMckEQiQ1L9____szKYExlzgQLsBikmxkaJBg&heartbeat=20000&style=all_docs'),
  'escapes in every place': head('/couch/a%2Fb/%5Fdesign%2Fd%C3%A9f/caf%C3%A9.txt?rev=1-abcdef'),
  'a refusal': head('/couch/db/..'),
  'a refusal of 16 KiB of %2525…': head(`/couch/db/${'%2525'.repeat(3270)}2e`),
  'a document ID of 16 KiB of %C3%A9': head(`/couch/db/${'%C3%A9'.repeat(2720)}`),
  '2,700 query parameters': head(`/couch/db/a?${Array.from({ length: 2700 }, (_, at) => `${at}=1`).join('&')}`),
}
for (const [name, given] of Object.entries(HEADS)) {
  const calls = given.target.length > 1000 ? 100 : 20_000
  measure(`canonicalise, ${name}`, calls, () => canonicalise(given, DEVICE))
}

const canonical = canonicalise(HEADS['a long-poll of _changes']!, DEVICE)
if ('refusal' in canonical) throw new Error('refused')
const action = route(canonical.request) as CouchAction
measure('route', 20_000, () => route(canonical.request))
measure('couchPath', 20_000, () => couchPath(action, action.query, 'abc'))

const principal = (relation: Principal['relation'], databases: Record<string, 'read' | 'write'>): Principal => ({
  device: DEVICE, user: undefined, relation, entry: '', name: '', grantName: '', checkpoints: '', endsAt: 1, grant: { databases, files: 'all' },
})
for (const size of [10, 100, 1_000, 10_000]) {
  const exact = Object.fromEntries(Array.from({ length: size - 1 }, (_, at) => [`database-${at}`, 'read' as const]))
  const patterns = Object.fromEntries(Array.from({ length: size - 1 }, (_, at) => [`prefix-${at}*`, 'read' as const]))
  const calls = size > 1000 ? 200 : 20_000
  for (const [name, who] of [
    ['granted by name', principal('peer', { ...exact, db: 'read' })],
    ['not granted', principal('peer', exact)],
    ['own device, by "*" beside names', principal('own', { ...exact, '*': 'write' })],
    ['own device, by "*" beside other prefixes', principal('own', { ...patterns, '*': 'write' })],
  ] as const) measure(`decide, ${size} databases, ${name}`, who.relation === 'peer' ? 20_000 : calls, () => decide(who, action, 0))
}

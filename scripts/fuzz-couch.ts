import { fuzzAnswers, fuzzBytes, fuzzParser } from '../test/fixtures/answer-fuzz.js'
import { judge } from '../test/fixtures/body-oracle.js'
import { fuzzChild } from '../test/fixtures/child-fuzz.js'
import { fuzzEmbedded, fuzzGate, type Fuzzed } from '../test/fixtures/couch-fuzz.js'

// Mutated requests to the gate and to the embedded database: canonical form, header hygiene, the streaming check of
// bodies, and the front, and to its process; and mutated answers, of a CouchDB to the gate and of a peer to who fetches files.
// `FUZZ_SECONDS=600 FUZZ_SEED=7 node build/scripts/fuzz-couch.js [gate|embedded|child|answers|parser|bytes|stored]`; 60 s together unless told otherwise.
// Exits 1 where something arrived that should not have; its bytes belong into test/fixtures/couch-corpus.json.
// With PATCHCORD_TEST_COUCHDB_URL, bodies made to write design and local documents go to that CouchDB as well, and what it
// stores is looked at (test/fixtures/body-oracle.ts).

const given = process.env['PATCHCORD_TEST_COUCHDB_URL']
const kinds: ReadonlyArray<readonly [kind: string, fuzz: (count: number, seed: number, isOver: () => boolean) => Promise<Fuzzed>]> = [
  ['gate', fuzzGate], ['embedded', fuzzEmbedded], ['child', fuzzChild], ['answers', fuzzAnswers], ['parser', fuzzParser], ['bytes', fuzzBytes],
  ...given === undefined ? [] : [['stored', async (count: number, seed: number, isOver: () => boolean): Promise<Fuzzed> => {
    const { username, password, protocol, host } = new URL(given)
    const { requests, taken, findings } = await judge({ url: `${protocol}//${host}`, username, password }, count, seed, { isOver })
    return { requests, taken, outliers: findings }
  }] as const],
]
const only = process.argv.slice(2)
const chosen = kinds.filter(([kind]) => only.length === 0 || only.includes(kind))
const seconds = Number(process.env['FUZZ_SECONDS'] ?? 60) / chosen.length
const seed = Number(process.env['FUZZ_SEED'] ?? 20301)
let failed = false
for (const [kind, fuzz] of chosen) {
  const from = performance.now()
  const cpu = process.cpuUsage()
  const { requests, taken, outliers } = await fuzz(Number.POSITIVE_INFINITY, seed, () => performance.now() - from > seconds * 1000)
  const { user, system } = process.cpuUsage(cpu)
  if (outliers.length > 0) failed = true
  process.stdout.write(`${JSON.stringify({ kind, seed, requests, taken, outliers: outliers.slice(0, 5), cpuSeconds: Math.round((user + system) / 1e6), rssMiB: Math.round(process.memoryUsage.rss() / 2 ** 20) })}\n`)
}
process.exitCode = failed ? 1 : 0

import { fuzzEmbedded, fuzzGate } from '../test/fixtures/couch-fuzz.js'

// Mutated requests to the gate and to the embedded database: canonical form, header hygiene, the streaming check of
// bodies, and the front. `FUZZ_SECONDS=600 FUZZ_SEED=7 node build/scripts/fuzz-couch.js`; 30 s each unless told otherwise.
// Exits 1 where something arrived that should not have; its bytes belong into test/fixtures/couch-corpus.json.

const seconds = Number(process.env['FUZZ_SECONDS'] ?? 60) / 2
const seed = Number(process.env['FUZZ_SEED'] ?? 20301)
let failed = false
for (const [kind, fuzz] of [['gate', fuzzGate], ['embedded', fuzzEmbedded]] as const) {
  const from = performance.now()
  const cpu = process.cpuUsage()
  const { requests, taken, outliers } = await fuzz(Number.POSITIVE_INFINITY, seed, () => performance.now() - from > seconds * 1000)
  const { user, system } = process.cpuUsage(cpu)
  if (outliers.length > 0) failed = true
  process.stdout.write(`${JSON.stringify({ kind, seed, requests, taken, outliers: outliers.slice(0, 5), cpuSeconds: Math.round((user + system) / 1e6), rssMiB: Math.round(process.memoryUsage.rss() / 2 ** 20) })}\n`)
}
process.exitCode = failed ? 1 : 0

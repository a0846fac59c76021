import { fuzz, fuzzTargets } from '../test/fixtures/pairing-fuzz.js'

// Mutated messages, records, signing requests and certificates, 100,000 of each kind unless told otherwise:
// `npm run test:fuzz`, or FUZZ_MUTATIONS=1000 FUZZ_SEED=7 node build/scripts/fuzz-pairing.js. Prints what came of each kind;
// exits 1 where one crashed, was believed, or cost too much.

const count = Number(process.env['FUZZ_MUTATIONS'] ?? 100_000)
const seed = Number(process.env['FUZZ_SEED'] ?? 20301)
let failed = false
for (const target of await fuzzTargets()) {
  const from = performance.now()
  const { inputs, outliers, worstMs } = fuzz(target, count, seed)
  if (outliers.length > 0) failed = true
  process.stdout.write(`${JSON.stringify({ kind: target.kind, inputs, outliers: outliers.slice(0, 5), worstMs: Math.round(worstMs * 10) / 10, seconds: Math.round((performance.now() - from) / 100) / 10 })}\n`)
}
process.exitCode = failed ? 1 : 0

import { fuzzSession } from '../test/fixtures/mdns-fuzz.js'

// Mutated mDNS packets, as many as it is told to: `npm run test:fuzz [-- <packets> <seed>]`. Prints what came of it
// in batches, with the memory in use: it must not grow.

const [count = '1000000', seed = '1'] = process.argv.slice(2)
const BATCH = 100_000
for (let done = 0; done < Number(count); done += BATCH) {
  const from = performance.now()
  const result = await fuzzSession(Math.min(BATCH, Number(count) - done), Number(seed) + done)
  process.stdout.write(`${JSON.stringify({ packets: done + BATCH, ...result, seconds: Math.round((performance.now() - from) / 100) / 10, rssMiB: Math.round(process.memoryUsage.rss() / 2 ** 20) })}\n`)
  // What was closed is let go in the next turn.
  await new Promise(resolve => { setImmediate(resolve) })
}
process.exit(0)

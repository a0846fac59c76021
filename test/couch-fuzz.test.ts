import t from 'tap'
import { fuzzEmbedded, fuzzGate } from './fixtures/couch-fuzz.js'

// A sample of what `npm run test:fuzz` does for as long as it is told.

const SEED = 20_301

await t.test('of mutated requests, what reaches a CouchDB was granted, and carries our login and nothing else of the client\'s', async t => {
  const { requests, taken, outliers } = await fuzzGate(400, SEED)
  t.equal(requests, 400)
  t.same(outliers, [])
  t.ok(taken > 40, `${taken} were taken`)
})

await t.test('mutated requests neither end the embedded database nor leave design documents in it', async t => {
  const { requests, taken, outliers } = await fuzzEmbedded(200, SEED)
  t.equal(requests, 200)
  t.same(outliers, [])
  t.ok(taken > 8, `${taken} were taken`)
})

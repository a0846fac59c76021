import t from 'tap'
import { fuzzAnswers, fuzzBytes, fuzzParser } from './fixtures/answer-fuzz.js'
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

await t.test('a mutated answer, of a CouchDB or of a peer, is nobody else\'s, and spoils no honest one', async t => {
  for (const [fuzz, count, least] of [[fuzzAnswers, 720, 60], [fuzzParser, 3_600, 600], [fuzzBytes, 720, 10]] as const) {
    const { requests, taken, outliers } = await fuzz(count, SEED)
    t.equal(requests, count)
    t.same(outliers, [], fuzz.name)
    t.ok(taken > least, `${taken} were taken`)
  }
})

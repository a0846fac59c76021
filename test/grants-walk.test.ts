import t from 'tap'
import { SURFACE } from '../src/policy/surface.js'
import { drawOperations, KINDS, playOperations } from './fixtures/grants-walk.js'
import { PROBES } from './fixtures/surface-probes.js'

// A sample of what `npm run test:faults grants` does with 20,000 operations.

const SEED = 20_594
const COUNT = 30

void t.test('every row of the surface has a probe for each of its methods, and no probe is of no row', t => {
  const ofRows = PROBES.filter(({ row }) => row !== 'never')
  t.strictSame(new Set(ofRows.map(({ row, method }) => `${method} ${row}`)), new Set(SURFACE.flatMap(({ id, methods }) => methods.map(method => `${method} ${id}`))))
  t.end()
})

await t.test('after random operations each principal has exactly what the model of the grants has for it', async t => {
  const operations = drawOperations(COUNT, SEED)
  t.same([...KINDS].filter(kind => operations.every(operation => operation.kind !== kind)), [], 'every kind is among them')
  const { compared, failure } = await playOperations(operations, t.testdir({}))
  t.comment(`seed ${SEED}: ${COUNT} operations, ${compared} requests compared`)
  t.equal(failure?.error.message, undefined, `operation ${failure?.at} of seed ${SEED}`)
})

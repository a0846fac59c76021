import t from 'tap'
import { silentLogger } from '../src/core/log.js'
import { startEmbedded } from '../src/embedded/front.js'
import { temporary } from './embedded/harness.js'
import { judge, type OracleTarget } from './fixtures/body-oracle.js'

// A sample of what `npm run test:fuzz` does against the CouchDB that PATCHCORD_TEST_COUCHDB_URL names.

const SEED = 20_307
const GIVEN = process.env['PATCHCORD_TEST_COUCHDB_URL']

await t.test('of any body in any encoding, what the embedded database stores is no design and no local document of a peer', async t => {
  const username = 'limited'
  const embedded = await startEmbedded({ dir: await temporary(t), accounts: [{ username, password: 'secret', scope: { kind: 'owner' } }], listen: { host: '::1', port: 0 }, logger: silentLogger() })
  t.teardown(() => embedded.stop())
  const { requests, taken, findings } = await judge({ url: embedded.url, username, password: 'secret', isTemporary: true }, 400, SEED)
  t.equal(requests, 400)
  t.same(findings, [])
  t.ok(taken > 20, `${taken} were taken`)
})

if (GIVEN !== undefined) {
  await t.test('nor what the CouchDB that was named stores, though it would', async t => {
    const { username, password, protocol, host } = new URL(GIVEN)
    const upstream: OracleTarget = { url: `${protocol}//${host}`, username, password }
    const { taken, findings } = await judge(upstream, 2_000, SEED)
    t.same(findings, [])
    t.ok(taken > 100, `${taken} were taken`)
    const without = await judge(upstream, 400, SEED, { bare: true })
    t.ok(without.findings.some(([why]) => why === 'it holds _design/x'), 'without the gate, design documents are stored')
    t.ok(without.findings.some(([why]) => why === 'it holds _local/x'), 'and local ones')
    t.ok(without.findings.some(([why]) => why === 'an answer holds what was not granted'), 'and secrets read')
  })
}

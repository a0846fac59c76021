import { mkdtempSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { killDuringPairing, PAIRING_KILLS, type PairingKill } from './fixtures/pairing-faults.js'

// A sample of the table that scripts/test-faults.ts plays whole: either agent, a real process, dies by SIGKILL at a
// message of a pairing.

const home = mkdtempSync(join(tmpdir(), 'pcp-'))
t.teardown(() => { rmdirSync(home) })

const sample: ReadonlyArray<Partial<PairingKill>> = [
  { relation: 'peer', who: 'R', message: 7, arrives: true, delay: 8 },
  { relation: 'own', who: 'I', message: 8, arrives: false },
]

await t.test('kill -9 of either agent: both have the pair or neither, and no certificate that nobody lists', async t => {
  const rows = sample.map(wanted => PAIRING_KILLS.find(row => Object.entries(wanted).every(([name, value]) => row[name as keyof PairingKill] === value))!)
  const left = [...rows.entries()]
  const play = async (): Promise<void> => {
    for (let next = left.shift(); next !== undefined; next = left.shift()) {
      const [index, row] = next
      const { end, expected, detail } = await killDuringPairing(join(home, String(index)), row)
      t.equal(end, expected ?? (end === 'both' ? 'both' : 'neither'), `${row.relation}: ${row.who} dies with M${row.message} ${row.arrives ? 'arrived' : 'lost'}: ${detail}`)
    }
  }
  await Promise.all([play(), play()])
})

/**
 * Many devices in one process, by `Lab`: each database belongs to one device, which shares it with as many others as
 * there are devices for it; then every database is written to, and all copies wait until they have it. Real
 * TLS on real sockets, so the figures are those of one machine that is all of them at once.
 *
 *   npm run build && node build/scripts/simulate.js [--devices 100] [--databases 20] [--documents 10]
 *
 * Prints one JSON object a line: what was done, in how many seconds, and the memory of the process then.
 */
import { parseArgs } from 'node:util'
import { Lab, type LabDevice } from '../src/testing.js'

const { values } = parseArgs({ options: { devices: { type: 'string', default: '100' }, databases: { type: 'string', default: '20' }, documents: { type: 'string', default: '10' } } })
const [devices, databases, documents] = [values.devices, values.databases, values.documents].map(Number) as [number, number, number]
if (![devices, databases, documents].every(value => Number.isInteger(value) && value > 0) || devices < 2 * databases) {
  process.stderr.write('simulate: whole numbers, and at least two devices for each database\n')
  process.exit(2)
}

const lab = await Lab.start()
/** How many things are done at once. */
const AT_ONCE = 8

try {
  const all: LabDevice[] = []
  await step(`${devices} devices start`, () => each(Array.from({ length: devices }, (_, at) => at), async at => { all[at] = await lab.device({ user: `user-${at}`, name: `device-${at}` }) }))
  const groups = Array.from({ length: databases }, (_, at) => all.filter((_device, index) => index % databases === at))
  await step('each owner and its friends trust each other', () => each(groups, async ([owner, ...friends]) => {
    for (const friend of friends) await lab.pair(owner!, friend)
  }))
  await step(`${databases} databases are made, shared and accepted`, () => each(groups, async ([owner, ...friends], at) => {
    await owner!.call('db-create', { name: `db-${at}` })
    for (const friend of friends) {
      await owner!.call('share', { database: `db-${at}`, with: friend.device })
      await lab.until('the offer of a share', async () => (await friend.call('shares', {})).shares.length > 0)
      await friend.call('accept', { peer: owner!.device, database: `db-${at}` })
    }
  }))
  for (const round of ['first', 'second']) {
    await step(`${round} time: ${documents} documents written to each database, and on every device that has it`, () => each(groups, async ([owner, ...friends], at) => {
      const docs = Array.from({ length: documents }, (_, number) => ({ _id: `${round}-${number}`, text: 'x'.repeat(200) }))
      await owner!.db('POST', `/db-${at}/_bulk_docs`, { docs })
      for (const friend of friends) await lab.until('the documents', async () => (await friend.db('GET', `/db-${at}/${round}-${documents - 1}`)).status === 200)
    }))
  }
  const before = process.cpuUsage()
  await new Promise(resolve => { setTimeout(resolve, 10_000) })
  const { user, system } = process.cpuUsage(before)
  say({ did: `${devices} devices and their links rest for 10 s`, 'CPU %': Math.round((user + system) / 100_000), memoryMiB: memory() })
} finally {
  await lab.stop()
}
process.exit()

async function each<Item> (items: readonly Item[], task: (item: Item, at: number) => Promise<void>): Promise<void> {
  const left = items.entries()
  // All end before one that failed is told: the lab cannot be stopped under the others.
  const lanes = await Promise.allSettled(Array.from({ length: AT_ONCE }, async () => { for (const [at, item] of left) await task(item, at) }))
  for (const lane of lanes) if (lane.status === 'rejected') throw lane.reason
}

async function step (did: string, task: () => Promise<void>): Promise<void> {
  const from = performance.now()
  await task()
  say({ did, seconds: Number(((performance.now() - from) / 1000).toFixed(1)), memoryMiB: memory() })
}

function memory (): number {
  return Math.round(process.memoryUsage().rss / 2 ** 20)
}

function say (line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

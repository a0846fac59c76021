import type { Contestant } from '../contest.js'
import { hold, load } from '../clients.js'
import { openPatchcord, PORTS, type Behind } from '../ports.js'
import { memoryBytes } from '../processes.js'
import type { Prepared } from '../work.js'
import { DOCUMENT, openDatabase, type Filled } from '../database.js'

// What the door costs in front of a database that does what a database does: reads and `_changes` beside nginx as a
// mutual-TLS proxy, and many feeds that rest beside somebody who works.

const BEFORE = 'before the CouchDB that PATCHCORD_TEST_COUCHDB_URL names'

interface Plan { readonly name: string, readonly title: string, readonly path: (database: string) => string }

function before ({ name, title, path }: Plan): Prepared {
  return {
    work: { name, title, unit: 'requests/s', better: 'more', group: 'couch', rounds: 7, ours: 'patchcord', goal: { of: 'nginx', ratio: 1 } },
    prepare: async (materials, program) => {
      const couch = await openDatabase(materials, 'couchdb')
      return {
        contestants: PORTS.map(({ name: who, version, missing, open }): Contestant => ({
          name: who, version, ...missing === undefined ? {} : { missing },
          async start () {
            const port = await open(materials, behind(couch))
            return {
              async turn () {
                const { load: { done, seconds, p50, p99 }, cpu, busy } = await load(program(), materials, port, { connections: 16, milliseconds: 3000, path: `/couch${path(couch.database)}`, mode: 'requests' })
                return { value: done / seconds, perCpu: done / cpu, busy, also: { 'p50 µs': p50, 'p99 µs': p99 } }
              },
              stop: () => port.stop(),
            }
          },
        })),
        clean: () => couch.close(),
      }
    },
  }
}

const behind = ({ at, login }: Filled): Behind => ({ upstream: at, login })

export const couchReads = before({
  name: 'reads-16-couchdb', title: `one small document, 16 connections, ${BEFORE}`,
  path: database => `/${database}/${DOCUMENT}`,
})

export const couchChanges = before({
  name: 'changes-16', title: `_changes?limit=100, 16 connections, ${BEFORE}`,
  path: database => `/${database}/_changes?limit=100`,
})

const FEEDS = 1_000

/** One server for both: with the feeds, and without, by turns. */
export const idleFeeds: Prepared = {
  work: {
    name: 'feeds', title: `${FEEDS.toLocaleString('en')} idle _changes feeds beside one client that reads documents: the median it waits, with them and without`,
    unit: 'µs', better: 'less', group: 'couch', rounds: 7, ours: 'patchcord',
    notes: 'Before the CouchDB that PATCHCORD_TEST_COUCHDB_URL names, or else before the embedded database. "KiB for each feed" is what the server holds more than before the first of them, TLS included.',
  },
  prepare: async (materials, program) => {
    const couch = await openDatabase(materials, 'any')
    const port = await openPatchcord(materials, behind(couch), { limits: { feedsPerEntry: 2 * FEEDS } })
    const read = async (): Promise<{ value: number, also: Record<string, number> }> => {
      const { load: { p50, p99 } } = await load(program(), materials, port, { connections: 1, milliseconds: 3000, path: `/couch/${couch.database}/${DOCUMENT}`, mode: 'requests' })
      return { value: p50, also: { 'p99 µs': p99 } }
    }
    await read()
    // What was given back to the allocator is not given back to the system: one figure to begin from.
    const memory = memoryBytes(port.pid)
    const contestant = (name: string, turn: () => ReturnType<typeof read>): Contestant => ({ name, version: process.version, start: async () => ({ turn, stop: async () => {} }) })
    return {
      contestants: [
        contestant('patchcord', async () => {
          const feeds = await hold(program(), materials, port, FEEDS, `/couch/${couch.database}/_changes?feed=continuous&since=now&heartbeat=20000`, 'feeds')
          try {
            const held = (memoryBytes(port.pid) - memory) / FEEDS / 1024
            const { value, also } = await read()
            return { value, also: { ...also, 'KiB for each feed': held } }
          } finally {
            await feeds.release()
          }
        }),
        contestant('without feeds', async () => {
          const { value, also } = await read()
          return { value, also: { ...also, 'KiB for each feed': 0 } }
        }),
      ],
      async clean () {
        await port.stop()
        await couch.close()
      },
    }
  },
}


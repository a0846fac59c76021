import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { encodeBase32 } from '../../../src/core/base32.js'
import { hold, load } from '../clients.js'
import { ENDS } from '../ends.js'
import { openPatchcord, PORTS } from '../ports.js'
import { cpuSeconds, memoryBytes } from '../processes.js'
import { MIB, storeWith } from '../materials.js'
import type { Prepared } from '../work.js'

// What it costs to be there: idle connections, long lists of trust, and nothing at all.

const IDLE = 10_000

export const idleConnections: Prepared = {
  work: { name: 'idle-connections', title: '10,000 idle connections, each after a mutual handshake and one answer: memory of one', unit: 'KiB', better: 'less', group: 'port', rounds: 1, cold: true, ours: 'patchcord', notes: 'HAProxy is left out: it wants two descriptors for each connection, more than one process may have on many systems.' },
  prepare: async (materials, program) => ({
    contestants: PORTS.filter(({ name }) => name !== 'haproxy').map(kind => ({
      name: kind.name, version: kind.version, ...kind.missing === undefined ? {} : { missing: kind.missing },
      start: async () => ({
        async turn () {
          const port = await kind.open(materials, {})
          try {
            const before = memoryBytes(port.pid)
            const held = await hold(program(), materials, port, IDLE, '/')
            const used = cpuSeconds(port.pid)
            await sleep(3_000)
            const value = (memoryBytes(port.pid) - before) / IDLE / 1024
            const idle = (cpuSeconds(port.pid) - used) / 3
            await held.release()
            return { value, also: { 'idle CPU %': idle * 100, 'seconds to open': held.seconds } }
          } finally {
            await port.stop()
          }
        },
        stop: async () => {},
      }),
    })),
  }),
}

const BUSY = 64
const BUSY_FILE = 64 * MIB

export const busyConnections: Prepared = {
  work: { name: 'busy-connections', title: `${BUSY} clients that asked for a file of ${BUSY_FILE / MIB} MiB and read none of it: memory of one`, unit: 'KiB', better: 'less', group: 'files', rounds: 3, cold: true, ours: 'patchcord', notes: 'What the kernel holds of each is not counted.' },
  prepare: async (materials, program) => {
    const store = await storeWith(materials.folder, BUSY_FILE)
    return {
      contestants: PORTS.filter(({ servesFiles }) => servesFiles).map(({ name, version, missing, open }) => ({
        name, version, ...missing === undefined ? {} : { missing },
        start: async () => ({
          async turn () {
            const port = await open(materials, { store })
            try {
              // What one transfer leaves behind is no part of what many add.
              await load(program(), materials, port, { connections: 1, milliseconds: 500, path: port.filePath, mode: 'requests' })
              const before = memoryBytes(port.pid)
              const held = await hold(program(), materials, port, BUSY, port.filePath, 'stall')
              await sleep(1_500)
              const value = (memoryBytes(port.pid) - before) / BUSY / 1024
              await held.release()
              return { value }
            } finally {
              await port.stop()
            }
          },
          stop: async () => {},
        }),
      })),
    }
  },
}

const ENTRIES = 100_000

export const admission: Prepared = {
  work: { name: 'admission', title: '100,000 whitelist entries: handshakes a second beside an empty whitelist', unit: '/s', better: 'more', group: 'port', rounds: 5, ours: 'patchcord', goal: { of: 'empty whitelist', ratio: 0.98 } },
  prepare: async (materials, program) => ({
    contestants: [['patchcord', ENTRIES], ['empty whitelist', 0]].map(([name, entries]) => ({
      name: String(name), version: process.version,
      async start () {
        const whitelist = Array.from({ length: Number(entries) }, (_, at) => ({ name: `friend ${at}`, device: encodeBase32(randomBytes(32)), notAfter: '2099-01-01T00:00:00Z', grant: 'friend' }))
        const port = await openPatchcord(materials, {}, { whitelist, grants: { friend: { databases: {}, files: 'referenced' } } })
        return {
          async turn () {
            const { load: { done, seconds }, cpu, busy } = await load(program(), materials, port, { connections: 16, milliseconds: 1_500, path: '/', mode: 'handshake' })
            return { value: done / seconds, perCpu: done / cpu, busy }
          },
          stop: () => port.stop(),
        }
      },
    })),
  }),
}

const QUIET_MS = 10_000

export const idleDevice: Prepared = {
  work: { name: 'idle', title: 'two idle devices that are connected: memory of both ends', unit: 'MiB', better: 'less', group: 'devices', rounds: 2, cold: true, ours: 'patchcord' },
  prepare: async materials => ({
    contestants: ENDS.filter(({ name }) => name !== 'rsync').map(({ name, version, missing, open }) => ({
      name, version, ...missing === undefined ? {} : { missing },
      async start () {
        const ends = await open(materials)
        const total = (figure: (pid: number) => number): number => ends.pids.reduce((sum, pid) => sum + figure(pid), 0)
        return {
          async turn () {
            const before = total(cpuSeconds)
            await sleep(QUIET_MS)
            return { value: total(memoryBytes) / MIB, also: { 'CPU %': (total(cpuSeconds) - before) / QUIET_MS * 100_000 } }
          },
          stop: () => ends.stop(),
        }
      },
    })),
  }),
}

import type { Contestant, Sample, Work } from '../contest.js'
import { download, load } from '../clients.js'
import { MIB, storeWith, type Materials } from '../materials.js'
import { PORTS, type Behind, type Port, type PortKind } from '../ports.js'
import { startConstant } from '../upstream.js'
import type { Prepared } from '../work.js'

// What a mutual-TLS port does for a client: handshakes, files, proxied reads. Client and port have cores of their own.

const fileServers = PORTS.filter(({ servesFiles }) => servesFiles)

/** `turn` says with each sample how much was done, and turns are taken until `enough` is: the warm-up. */
interface Turns { readonly enough: number, readonly turn: (port: Port) => Promise<{ readonly sample: Sample, readonly done: number }> }

function contestants (kinds: readonly PortKind[], materials: Materials, behind: Behind, { enough, turn }: Turns): Contestant[] {
  return kinds.map(({ name, version, missing, open }) => ({
    name, version, ...missing === undefined ? {} : { missing },
    async start () {
      const port = await open(materials, behind)
      return {
        turn: async () => (await turn(port)).sample,
        warmUp: async () => { for (let done = 0; done < enough;) done += (await turn(port)).done },
        stop: () => port.stop(),
      }
    },
  }))
}

const HANDSHAKE_CONNECTIONS = 16

export function handshakes (mode: 'handshake' | 'reconnect'): Prepared {
  const work: Work = {
    name: mode === 'handshake' ? 'handshakes' : 'connections',
    title: mode === 'handshake'
      ? `full mutual TLS 1.3 handshakes a second, ${HANDSHAKE_CONNECTIONS} at once, until the server has checked the client`
      : `new connections a second, each with a full handshake and one small answer, ${HANDSHAKE_CONNECTIONS} at once`,
    unit: '/s', better: 'more', group: 'port', rounds: mode === 'handshake' ? 5 : 3, ours: 'patchcord',
    ...mode === 'handshake' ? { goal: { of: 'nginx', ratio: 0.9 } } : {},
  }
  return {
    work,
    prepare: async (materials, program) => ({
      contestants: contestants(PORTS, materials, {}, {
        enough: 2_000,
        turn: async port => {
          const { load: { done, seconds }, cpu, busy } = await load(program(), materials, port, { connections: HANDSHAKE_CONNECTIONS, milliseconds: 2000, path: '/', mode })
          return { sample: { value: done / seconds, perCpu: done / cpu, busy }, done }
        },
      }),
    }),
  }
}

const ONE_FILE = 1024 * MIB

export const oneFile: Prepared = {
  work: { name: 'file', title: 'one file of 1 GiB over mutual TLS to one client (curl)', unit: 'MiB/s', better: 'more', group: 'files', rounds: 7, ours: 'patchcord', goal: { of: 'nginx', ratio: 1, floor: 0.85 } },
  prepare: async materials => {
    const store = await storeWith(materials.folder, ONE_FILE)
    return { contestants: contestants(fileServers, materials, { store }, { enough: 4, turn: async port => ({ sample: await download(materials, port, ONE_FILE), done: 1 }) }) }
  },
}

const MANY = 64
const MANY_FILE = 16 * MIB

export const manyClients: Prepared = {
  work: { name: 'clients', title: `${MANY} clients at once that fetch a file of 16 MiB again and again, their sum`, unit: 'MiB/s', better: 'more', group: 'files', rounds: 5, ours: 'patchcord', goal: { of: 'nginx', ratio: 1, floor: 0.85 } },
  prepare: async (materials, program) => {
    const store = await storeWith(materials.folder, MANY_FILE)
    return {
      contestants: contestants(fileServers, materials, { store }, {
        enough: 256,
        turn: async port => {
          const { load: { done, bytes, seconds }, cpu, busy } = await load(program(), materials, port, { connections: MANY, milliseconds: 3000, path: port.filePath, mode: 'requests' })
          return { sample: { value: bytes / MIB / seconds, perCpu: bytes / MIB / cpu, busy }, done }
        },
      }),
    }
  },
}

export function reads (connections: 1 | 16 | 256): Prepared {
  return {
    work: {
      name: `reads-${connections}`, title: `small documents through the proxy before a constant-response upstream, ${connections} connection${connections === 1 ? '' : 's'}`,
      unit: 'requests/s', better: 'more', group: 'couch', rounds: connections === 16 ? 5 : 3, ours: 'patchcord', ...connections === 16 ? { goal: { of: 'nginx', ratio: 0.6 } } : {},
    },
    prepare: async (materials, program) => {
      const upstream = await startConstant(materials)
      return {
        contestants: contestants(PORTS, materials, { upstream: upstream.port }, {
          enough: 20_000,
          turn: async port => {
            const { load: { done, seconds, p50, p99 }, cpu, busy } = await load(program(), materials, port, { connections, milliseconds: 2000, path: '/couch/bench/0123456789abcdef', mode: 'requests' })
            return { sample: { value: done / seconds, perCpu: done / cpu, busy, also: { 'p50 µs': p50, 'p99 µs': p99 } }, done }
          },
        }),
        clean: () => upstream.stop(),
      }
    },
  }
}

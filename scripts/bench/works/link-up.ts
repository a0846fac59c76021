import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { release } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { cable, Machine, whyNoNamespaces } from '../../../test/fixtures/network.js'
import type { ContentId } from '../../../src/core/ids.js'
import { pathOf } from '../../../src/files/layout.js'
import { adopt, areConnected, startDevice, waitFor, type Device } from '../ends.js'
import type { Prepared } from '../work.js'

const DATABASE = 'bench'

/** Two machines with a cable between them, and nothing else: what is new on one when the cable is plugged in is on the
 * other how long after? Beside it the kernel's share: it does not use an address before it
 * has asked whether somebody else has it. */
export const linkUp: Prepared = {
  work: {
    name: 'link-up', title: 'a cable is plugged in between two devices of one person: until a new document and its file are on the other', unit: 's', better: 'less', group: 'devices', rounds: 7, ours: 'patchcord',
    notes: 'Two network namespaces, a veth pair, link-local IPv6 alone, addresses found by discovery. *The kernel alone*: until both addresses may be used, which duplicate address detection keeps them from.',
  },
  prepare: async ({ folder, cores }) => {
    const why = whyNoNamespaces()
    if (why !== undefined) throw new Error(why)
    const machines = [await Machine.boot(), await Machine.boot()] as const
    const [one, other] = machines
    cable(one, 'eth0', other, 'eth0')
    const set = (state: 'up' | 'down'): void => { for (const machine of machines) machine.ip('link', 'set', 'eth0', state) }
    let turns = 0
    return {
      contestants: [
        {
          name: 'patchcord', version: process.version,
          async start () {
            set('up')
            const [here, there] = await Promise.all(machines.map(machine => machine.address('eth0')))
            const devices = [await startDevice('near', folder, cores.contestant, one), await startDevice('far', folder, cores.client, other)] as const
            const [near, far] = devices
            await adopt(near, far)
            // The first time they are told of each other; from then on it is for discovery to find them.
            const at = (address: string | undefined, { address: listens }: Device): string => `[${address}%eth0]:${listens.split(':').at(-1)}`
            await Promise.all([near.control.call('connect', { device: far.id, at: at(there, far) }), far.control.call('connect', { device: near.id, at: at(here, near) })])
            await waitFor('both being connected', () => areConnected(devices))
            await near.control.call('db-create', { name: DATABASE })
            // So that the database is there and both have rested: what is measured is the cable.
            await arrives(far, await add(near, folder, 'first'))
            return {
              async turn () {
                set('down')
                await waitFor('both noticing', async () => (await Promise.all(devices.map(device => areConnected([device])))).every(connected => !connected))
                const id = await add(near, folder, `turn-${turns++}`)
                await sleep(500)
                const from = performance.now()
                set('up')
                await arrives(far, id)
                return { value: (performance.now() - from) / 1000 }
              },
              async stop () {
                for (const device of devices) await device.stop()
                for (const machine of machines) machine.close()
              },
            }
          },
        },
        {
          name: 'the kernel alone', version: release(),
          start: async () => ({
            async turn () {
              set('down')
              await sleep(500)
              const from = performance.now()
              set('up')
              await Promise.all(machines.map(machine => machine.address('eth0')))
              return { value: (performance.now() - from) / 1000 }
            },
            stop: async () => {},
          }),
        },
      ],
    }
  },
}

/** Adds a small file, and with it the document that names it; returns its ID. */
async function add ({ control }: Device, folder: string, name: string): Promise<ContentId> {
  const path = join(folder, `${name}.txt`)
  await writeFile(path, `${name} ${Date.now()}`)
  let id: string | undefined
  await control.call('add', { paths: [path], to: DATABASE }, event => { if (event.event === 'added') id = event.id })
  return id as ContentId
}

/** Resolves when the file is in the other's store: the document that names it came before. */
async function arrives ({ home }: Device, id: ContentId): Promise<void> {
  const path = pathOf(join(home, 'files'), id)
  await waitFor('the file at the other side', async () => existsSync(path))
}

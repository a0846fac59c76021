import { randomBytes } from 'node:crypto'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { calm } from '../calm.js'
import type { Goal } from '../contest.js'
import { checkLanding, ENDS } from '../ends.js'
import { MIB, writeRandom } from '../materials.js'
import { cpuSeconds, shared } from '../processes.js'
import type { Prepared } from '../work.js'

// From a folder on one device to a folder on another, whole, verified and synced to the disk: what a person waits for.

interface Plan { readonly name: string, readonly title: string, readonly files: number, readonly size: number, readonly unit: 'MiB/s' | 'files/s', readonly goal: Goal, readonly rounds: number }

function transfer ({ name, title, files, size, unit, goal, rounds }: Plan): Prepared {
  return {
    work: {
      name, title, unit, better: 'more', group: 'files', rounds, ours: 'patchcord', goal,
      notes: 'Sender and receiver are both the contestant, and share all cores of the budget; new random bytes in each turn, on the disk before it begins. patchcord: `send`, which imports into its store, and an inbox that accepts; what landed is on the disk then, the copy in the sender\'s store soon after. Syncthing: a scan asked for by REST, until the far end is in sync. rsync: over ssh with AES-128-GCM, `--fsync`.',
    },
    prepare: async materials => {
      let turns = 0
      // Many files stay until the end: for a minute after thousands were deleted ext4 looks for inodes that were not (1.5 s for 5,000 new ones), and
      // who watches a folder has deletions to tell.
      const removeNow = files === 1
      return {
        contestants: ENDS.map(({ name: who, version, missing, open }) => ({
          name: who, version, ...missing === undefined ? {} : { missing },
          async start () {
            const ends = await open({ ...materials, cores: shared(materials.cores) })
            return {
              async turn () {
                const from = join(materials.folder, `from-${turns++}`)
                await mkdir(from)
                if (files === 1) await writeRandom(join(from, 'file-0'), size)
                else for (let at = 0; at < files; at++) await writeFile(join(from, `file-${at}`), randomBytes(size))
                await calm(materials.folder, 6 * files * size)
                const before = sum(ends.pids)
                const started = performance.now()
                await ends.send(from)
                const seconds = (performance.now() - started) / 1000
                const cpu = sum(ends.pids) - before
                await checkLanding(ends.landing(), files, size)
                if (removeNow) for (const folder of [from, ends.landing()]) await rm(folder, { recursive: true, force: true })
                const amount = unit === 'MiB/s' ? files * size / MIB : files
                // rsync's sender is a process of each turn's own: what it used up is not told.
                return { value: amount / seconds, also: { seconds }, ...who === 'rsync' ? {} : { perCpu: amount / cpu, busy: cpu / seconds } }
              },
              stop: () => ends.stop(),
            }
          },
        })),
      }
    },
  }
}

const sum = (pids: readonly number[]): number => pids.reduce((total, pid) => total + cpuSeconds(pid), 0)

export const oneLarge = transfer({ name: 'transfer', title: 'one file of 1 GiB from a folder here to a folder there, verified, import included', files: 1, size: 1024 * MIB, unit: 'MiB/s', goal: { of: 'syncthing', ratio: 2.5, floor: 1.6 }, rounds: 5 })
export const manySmall = transfer({ name: 'small-files', title: '5,000 files of 4 KiB from a folder here to a folder there', files: 5_000, size: 4096, unit: 'files/s', goal: { of: 'syncthing', ratio: 6, floor: 4 }, rounds: 3 })

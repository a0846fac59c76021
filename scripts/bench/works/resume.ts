import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { calm } from '../calm.js'
import { checkLanding, ENDS } from '../ends.js'
import { MIB, writeRandom } from '../materials.js'
import { shared } from '../processes.js'
import { Way } from '../relay.js'
import type { Prepared } from '../work.js'

const SIZE = 1024 * MIB
const CUT_MS = 1_000

/** What a cut costs: half of a file has crossed, every connection ends, and a second later the way is there again. */
export const resume: Prepared = {
  work: {
    name: 'resume', title: '1 GiB end to end whose way is cut half way, for a second: from then until it is whole and verified', unit: 's', better: 'less', group: 'files', rounds: 2, cold: true, ours: 'patchcord',
    notes: 'Both ends talk through a relay that counts and cuts, so the bytes are those on the wire. *MiB twice* is what crossed beyond the size of the file, framing included. patchcord and Syncthing go on by themselves; rsync keeps its half by `--inplace`, and is started again at once with `--append-verify`.',
  },
  prepare: async materials => {
    let turns = 0
    return {
      contestants: ENDS.map(({ name, version, missing, open }) => ({
        name, version, ...missing === undefined ? {} : { missing },
        async start () {
          const way = new Way()
          const ends = await open({ ...materials, cores: shared(materials.cores) }, way)
          return {
            async turn () {
              const from = join(materials.folder, `cut-${turns++}`)
              await mkdir(from)
              await writeRandom(join(from, 'file-0'), SIZE)
              await calm(materials.folder, 6 * SIZE)
              const before = way.bytes
              const started = performance.now()
              const cut = way.cutAfter(SIZE / 2)
              // A program that ends with its connection is started again below; one that goes on ends here.
              const sent = ends.send(from).then(() => undefined, (error: unknown) => error)
              await Promise.race([cut, sent.then(error => { throw new Error(`it ended before the cut: ${String(error)}`) })])
              const half = performance.now()
              await sleep(CUT_MS)
              way.heal()
              if (ends.again !== undefined) {
                await sent
                await ends.again(from)
              } else {
                const error = await sent
                if (error !== undefined) throw error
              }
              const whole = performance.now()
              await checkLanding(ends.landing(), 1, SIZE)
              await rm(from, { recursive: true, force: true })
              await rm(ends.landing(), { recursive: true, force: true })
              return { value: (whole - half - CUT_MS) / 1000, also: { 'MiB twice': (way.bytes - before - SIZE) / MIB, 's until the cut': (half - started) / 1000 } }
            },
            async stop () {
              await ends.stop()
              way.close()
            },
          }
        },
      })),
    }
  },
}

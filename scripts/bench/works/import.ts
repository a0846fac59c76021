import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { calm } from '../calm.js'
import type { Sample } from '../contest.js'
import { MIB, TOP, writeRandom } from '../materials.js'
import { find, output, versionOf } from '../processes.js'
import type { Prepared } from '../work.js'

const SIZE = 512 * MIB

/** Import is hash, copy and sync; OpenSSL's is the hash alone, and all three by the tools of the system. */
export const importing: Prepared = {
  work: { name: 'import', title: 'one file of 512 MiB into the store: hashed, copied, synced', unit: 'MiB/s', better: 'more', group: 'files', rounds: 5, ours: 'patchcord', goal: { of: 'openssl dgst alone', ratio: 0.8, perCpu: true }, notes: 'By a service that imported before: the threads that hash are there. Whoever hashes alone waits for no disk, so the goal is judged by what each gives for the cores that it kept busy.' },
  prepare: async ({ folder, cores }) => {
    const source = join(folder, 'random')
    await writeRandom(source, SIZE)
    const copy = join(folder, 'copy')
    /** `command` prints the seconds that it took and those of CPU, in parts. */
    const timed = async (command: readonly string[], clean: string): Promise<Sample> => {
      await calm(folder, 4 * SIZE)
      const [seconds = Number.NaN, ...each] = (await output(cores.contestant, command)).trim().split(/\s+/).map(Number)
      const cpu = each.reduce((sum, part) => sum + part, 0)
      await rm(clean, { recursive: true, force: true })
      return { value: SIZE / MIB / seconds, perCpu: SIZE / MIB / cpu, busy: cpu / seconds }
    }
    const openssl = find('openssl')
    const system = (name: string, script: string) => ({
      name, version: openssl === undefined ? '' : versionOf('openssl', 'version'), ...openssl === undefined ? { missing: 'not installed; Debian package openssl' } : {},
      start: async () => ({ turn: () => timed(['bash', '-c', `TIMEFORMAT='%R %U %S'; { time { ${script}; } > /dev/null 2>&1; } 2>&1`], copy), stop: async () => {} }),
    })
    const store = join(folder, 'files')
    return {
      contestants: [
        { name: 'patchcord', version: process.version, start: async () => ({ turn: () => timed([process.execPath, join(TOP, 'build/scripts/bench/import-once.js'), store, source], store), stop: async () => {} }) },
        system('cp, sync, openssl', `cp '${source}' '${copy}' && sync '${copy}' && openssl dgst -sha256 '${copy}'`),
        system('openssl dgst alone', `openssl dgst -sha256 '${source}'`),
      ],
    }
  },
}

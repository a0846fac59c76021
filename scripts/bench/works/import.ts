import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { calm } from '../calm.js'
import { MIB, TOP, writeRandom } from '../materials.js'
import { find, output, versionOf } from '../processes.js'
import type { Prepared } from '../work.js'

const SIZE = 512 * MIB

/** Import is hash, copy and sync; OpenSSL's is the hash alone, and then all three by the tools of the system. */
export const importing: Prepared = {
  work: { name: 'import', title: 'one file of 512 MiB into the store: hashed, copied, synced', unit: 'MiB/s', better: 'more', group: 'files', rounds: 5, ours: 'patchcord', goal: { of: 'openssl dgst alone', ratio: 0.8 } },
  prepare: async ({ folder, cores }) => {
    const source = join(folder, 'random')
    await writeRandom(source, SIZE)
    const copy = join(folder, 'copy')
    const timed = async (name: string, command: readonly string[], clean: string): Promise<{ value: number }> => {
      await calm(folder, 4 * SIZE)
      const from = performance.now()
      const told = await output(cores.contestant, command)
      const seconds = name === 'patchcord' ? Number(told) : (performance.now() - from) / 1000
      await rm(clean, { recursive: true, force: true })
      return { value: SIZE / MIB / seconds }
    }
    const openssl = find('openssl')
    const system = (name: string, command: readonly string[]) => ({
      name, version: openssl === undefined ? '' : versionOf('openssl', 'version'), ...openssl === undefined ? { missing: 'not installed; Debian package openssl' } : {},
      start: async () => ({ turn: () => timed(name, command, copy), stop: async () => {} }),
    })
    const store = join(folder, 'files')
    return {
      contestants: [
        { name: 'patchcord', version: process.version, start: async () => ({ turn: () => timed('patchcord', [process.execPath, join(TOP, 'build/scripts/bench/import-once.js'), store, source], store), stop: async () => {} }) },
        system('cp, sync, openssl', ['sh', '-c', `cp '${source}' '${copy}' && sync '${copy}' && openssl dgst -sha256 '${copy}'`]),
        system('openssl dgst alone', ['openssl', 'dgst', '-sha256', source]),
      ],
    }
  },
}

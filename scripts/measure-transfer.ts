// Moving files between two devices of one person, against Syncthing (Debian: apt install syncthing), side by side in one
// run: loopback, import or scan included, rounds interleaved. `npm run build && node build/scripts/measure-transfer.js
// [rounds]`. Exits 1 where a floor is missed.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { median, mibPerSecond, writeMaterial, type Material } from './bench/material.js'
import { patchcordPair } from './bench/patchcord-pair.js'
import { syncthingPair } from './bench/syncthing-pair.js'

const ROUNDS = Number(process.argv[2] ?? 3)
const CASES: ReadonlyArray<{ readonly what: string, readonly material: Material, readonly floor: number }> = [
  { what: 'one file of 1 GiB', material: { files: 1, fileBytes: 1_073_741_824 }, floor: 1.6 },
  { what: '5,000 files of 4 KiB', material: { files: 5_000, fileBytes: 4_096 }, floor: 4 },
]

const folder = mkdtempSync(join(tmpdir(), 'pcm-'))
const ours = await patchcordPair(folder)
const theirs = await syncthingPair(folder)
let missed = 0
try {
  for (const { what, material, floor } of CASES) {
    const seconds = new Map([[ours, [] as number[]], [theirs, [] as number[]]])
    for (let round = 0; round < ROUNDS; round++) {
      for (const contestant of round % 2 === 0 ? [ours, theirs] : [theirs, ours]) {
        const path = join(folder, `material-${contestant.name}-${round}-${material.files}`)
        writeMaterial(path, material)
        const took = await contestant.transfer(path, material)
        seconds.get(contestant)?.push(took)
        process.stderr.write(`${what}: ${contestant.name} ${took.toFixed(2)} s\n`)
        rmSync(path, { recursive: true, force: true })
      }
    }
    const bytes = material.files * material.fileBytes
    const [mine, other] = [median(seconds.get(ours) ?? []), median(seconds.get(theirs) ?? [])]
    const ratio = other / mine
    if (!(ratio >= floor)) missed += 1
    process.stdout.write(`${what}: patchcord ${mine.toFixed(2)} s (${mibPerSecond(bytes, mine)}), syncthing ${other.toFixed(2)} s (${mibPerSecond(bytes, other)}): ${ratio.toFixed(2)} times as fast, floor ${floor}${ratio >= floor ? '' : ': MISSED'}\n`)
  }
} finally {
  await Promise.all([ours.stop(), theirs.stop()])
  rmSync(folder, { recursive: true, force: true })
}
process.exitCode = missed === 0 ? 0 : 1

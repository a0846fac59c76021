import { execFileSync } from 'node:child_process'
import { open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { MIB } from './materials.js'

/** Disks of rented machines give a burst and then a part of it, until they had nothing to do for a while. */
const REST_MS = 5_000

/**
 * Lets the turn that follows begin like every other: what was written before is on the disk, which has rested, and `bytes` of
 * page cache have been used before. In a virtual machine the first touch of a page is served by the host: writing 1 GiB
 * took 2.2 s of CPU where the guest had not used the memory for a while, and 0.22 s where it had.
 */
export async function calm (folder: string, bytes: number): Promise<void> {
  execFileSync('sync')
  await sleep(REST_MS)
  // A hole, which costs the disk nothing. Memory of another kind than page cache, given back, does not help.
  const path = join(folder, 'scratch')
  const scratch = await open(path, 'wx+')
  try {
    await scratch.truncate(bytes)
    const block = Buffer.allocUnsafe(4 * MIB)
    while ((await scratch.read(block, 0, block.length)).bytesRead > 0);
  } finally {
    await scratch.close()
    await rm(path)
  }
}

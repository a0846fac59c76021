import { execFileSync } from 'node:child_process'
import { freemem } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'

/** Disks of rented machines give a burst and then a part of it, until they had nothing to do for a while. */
const REST_MS = 5_000

/**
 * Lets the turn that follows begin like every other: what was written before is on the disk, which has rested, and `bytes` of
 * free memory have been used before. In a virtual machine the first touch of a page is served by the host: writing 1 GiB to
 * page cache took 2.2 s of CPU where the guest had not used the memory for a while, and 0.22 s where it had.
 */
export async function calm (bytes: number): Promise<void> {
  execFileSync('sync')
  await sleep(REST_MS)
  // A process of its own: what it frees goes back to the system.
  execFileSync(process.execPath, ['-e', `const all = []; for (let left = ${Math.min(bytes, freemem() / 2)}; left > 0; left -= 2 ** 26) all.push(Buffer.alloc(2 ** 26, 1))`])
}

import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import type { ContentId } from '../core/ids.js'
import { contentIdOf, EMPTY_ID } from './content-id.js'
import { MOST_COPIED, type LeafHashes } from './leaf-hashes.js'

/** Whether the regular file at `path`, which somebody may change, is the file called `id`; it is on the disk then. What cannot be opened or read
 * is not. */
export async function hasContent (path: string, id: ContentId, size: number, hashes: LeafHashes): Promise<boolean> {
  // O_NONBLOCK: a FIFO must not make us wait for a writer.
  const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(() => undefined)
  if (handle === undefined) return false
  try {
    const status = await handle.stat()
    if (!status.isFile() || status.size !== size) return false
    const leaves: Buffer[] = []
    for (let at = 0; at < size; at += MOST_COPIED) {
      const found = await hashes.copy(path, handle.fd, undefined, at, Math.min(MOST_COPIED, size - at))
      if (found === undefined) return false
      leaves.push(found)
    }
    if ((size === 0 ? EMPTY_ID : contentIdOf(Buffer.concat(leaves))) !== id) return false
    await handle.sync()
    return true
  } catch {
    return false
  } finally {
    await handle.close()
  }
}

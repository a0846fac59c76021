import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import type { ContentId } from '../core/ids.js'
import { contentIdOf, EMPTY_ID } from './content-id.js'
import { MOST_COPIED, type LeafHashes } from './leaf-hashes.js'

export interface Looked {
  /** Of another size it is none of them, and not read. */
  readonly sizes: ReadonlySet<number>
  readonly ids: { has (id: ContentId): boolean }
  readonly hashes: LeafHashes
}

/** Which of the files the regular file at `path`, which somebody may change, is; it is on the disk then. What cannot be opened or read
 * is none. */
export async function contentAt (path: string, { sizes, ids, hashes }: Looked): Promise<ContentId | undefined> {
  // O_NONBLOCK: a FIFO must not make us wait for a writer.
  const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(() => undefined)
  if (handle === undefined) return undefined
  try {
    const status = await handle.stat()
    if (!status.isFile() || !sizes.has(status.size)) return undefined
    const leaves: Buffer[] = []
    for (let at = 0; at < status.size; at += MOST_COPIED) {
      const found = await hashes.copy(path, handle.fd, undefined, at, Math.min(MOST_COPIED, status.size - at))
      if (found === undefined) return undefined
      leaves.push(found)
    }
    const id = status.size === 0 ? EMPTY_ID : contentIdOf(Buffer.concat(leaves))
    if (!ids.has(id)) return undefined
    await handle.sync()
    return id
  } catch {
    return undefined
  } finally {
    await handle.close()
  }
}

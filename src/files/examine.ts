import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { checkLeaves, contentIdOf, HASH_BYTES, LEAF_BYTES, leafCount, leafHash } from './content-id.js'
import { nameIn } from './folders.js'
import { pathOf } from './layout.js'
import { MOST_COPIED, type LeafHashes } from './leaf-hashes.js'
import type { FileReader } from './reader.js'

/** What the disk has of a file. The bytes alone say whether it is right: its leaf list can be made of them again. */
export type Examined =
  | { readonly state: 'absent' }
  | Damaged
  /** The bytes are right. `leaves` is their list where the one beside them is not, or cannot be read. */
  | { readonly state: 'right', readonly size: number, readonly leaves: Buffer | undefined }

/** The bytes are not those of the ID. */
export interface Damaged {
  readonly state: 'damaged'
  /** What the system calls what was read: another may have its place by now. */
  readonly file: string
}

export interface ExamineOptions {
  /** Pieces that are read at once. */
  readonly lanes?: number
  /** Told how many bytes more were read, and waited for: what it throws ends the reading. */
  readonly onBytes?: (bytes: number) => Promise<void>
}

/** Reads the file `id`, whole unless a leaf is found that is not what a right list says. Throws `unreadable` and the like where
 * the system refuses. */
export async function examineFile (reader: FileReader, hashes: LeafHashes, id: ContentId, { lanes = 1, onBytes }: ExamineOptions = {}): Promise<Examined> {
  const list = await reader.leaves(id).catch((error: unknown) => {
    // A list that is there and that the disk cannot read is one that is not right.
    if (error instanceof PatchcordError && error.code === 'no-handles') throw error
  })
  const file = await reader.open(id)
  if (file === undefined) return { state: 'absent' }
  try {
    const { size, handle: { fd } } = file
    const listed = list !== undefined && isListOf(id, size, list.leaves) ? list.leaves : undefined
    const leaves = Buffer.alloc(leafCount(size) * HASH_BYTES)
    if (size === 0) leafHash(Buffer.alloc(0)).copy(leaves)
    let isRight = true
    let next = 0
    const lane = async (): Promise<void> => {
      while (isRight && next < size) {
        const at = next
        next += MOST_COPIED
        const length = Math.min(MOST_COPIED, size - at)
        const found = await hashes.copy(pathOf(reader.root, id), fd, undefined, at, length)
        const listAt = at / LEAF_BYTES * HASH_BYTES
        found?.copy(leaves, listAt)
        isRight &&= found !== undefined && (listed === undefined || found.equals(listed.subarray(listAt, listAt + found.length)))
        await onBytes?.(length)
      }
    }
    // The file is open until all have ended.
    const ended = await Promise.allSettled(Array.from({ length: lanes }, lane))
    for (const one of ended) if (one.status === 'rejected') throw one.reason
    if (!isRight || (listed === undefined && contentIdOf(leaves) !== id)) return { state: 'damaged', file: nameIn(await file.handle.stat({ bigint: true })) }
    return { state: 'right', size, leaves: listed === undefined ? leaves : undefined }
  } finally {
    await file.handle.close()
  }
}

function isListOf (id: ContentId, size: number, leaves: Buffer): boolean {
  try {
    checkLeaves(id, size, leaves)
    return true
  } catch {
    return false
  }
}

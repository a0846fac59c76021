import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { contentIdOf, HASH_BYTES, LEAF_BYTES, leafCount, leafHash, leafLength } from '../files/content-id.js'
import { leafBuffer, type LeafHashes } from '../files/leaf-hashes.js'
import { askLeaves, askRange, type Source } from './ask-file.js'

/** Fetches a file whole from one device and keeps nothing of it: what is left is the proof that the device has it. The
 * file may be here already, and no byte of that counts. Throws as a download does. */
export async function prove (hashes: LeafHashes, source: Source, id: ContentId, size: number, signal: AbortSignal): Promise<void> {
  const { size: told, leaves } = await askLeaves(source, id, size, signal)
  if (told !== size) throw new PatchcordError('not-found', `${id} has ${told} bytes at device ${source.device}, and its document says ${size}`)
  if (size === 0) {
    if (contentIdOf(leafHash(Buffer.alloc(0))) !== id) throw new PatchcordError('verification', `${id} is not the empty file`)
    return
  }
  // Leaf by leaf, in one piece of memory: the next is asked for when the last one was right.
  const leaf = leafBuffer()
  for (let index = 0; index < leafCount(size); index++) {
    const bytes = leaf.subarray(0, leafLength(size, index))
    let filled = 0
    await askRange(source, id, size, index * LEAF_BYTES, index * LEAF_BYTES + bytes.length, {
      signal,
      onConnection: () => undefined,
      onBytes: piece => {
        filled += piece.copy(bytes, filled)
        return true
      },
    })
    if (!(await hashes.hash(bytes)).equals(leaves.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES))) throw new PatchcordError('verification', `leaf ${index} of ${id} is wrong: its bytes do not match its hash`)
  }
}

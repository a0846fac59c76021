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
  const answer = await askRange(source, id, size, 0, size, signal)
  const leaf = leafBuffer()
  let index = 0
  let filled = 0
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    for (let at = 0; at < chunk.length;) {
      if (index >= leafCount(size)) throw new PatchcordError('verification', `device ${source.device} sends more bytes of ${id} than it has`)
      const length = leafLength(size, index)
      const copied = chunk.copy(leaf, filled, at, at + length - filled)
      at += copied
      filled += copied
      if (filled < length) continue
      if (!(await hashes.hash(leaf.subarray(0, length))).equals(leaves.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES))) {
        answer.destroy()
        throw new PatchcordError('verification', `leaf ${index} of ${id} is wrong: its bytes do not match its hash`)
      }
      index += 1
      filled = 0
    }
  }
  if (index < leafCount(size)) throw new PatchcordError('unreachable', `device ${source.device} went away after ${index * LEAF_BYTES} of ${size} bytes`)
}

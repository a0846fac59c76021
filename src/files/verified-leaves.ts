import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { checkLeaves, HASH_BYTES, LEAF_BYTES, leafCount, leafHash, leafLength } from './content-id.js'
import type { FileReader } from './reader.js'

/** The leaves of a file in order, each checked before it is yielded. Throws `not-found`, or `verification` where the disk no longer has
 * what was put there. */
export async function * verifiedLeaves (reader: FileReader, id: ContentId): AsyncGenerator<Buffer> {
  const list = await reader.leaves(id)
  const file = await reader.open(id)
  try {
    if (list === undefined || file?.size !== list.size) throw new PatchcordError('not-found', `there is no file ${id} here`)
    checkLeaves(id, list.size, list.leaves)
    for (let index = 0; index < leafCount(list.size); index++) {
      const bytes = Buffer.allocUnsafe(leafLength(list.size, index))
      const { bytesRead } = await file.handle.read(bytes, 0, bytes.length, index * LEAF_BYTES)
      const expected = list.leaves.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES)
      if (bytesRead !== bytes.length || !leafHash(bytes).equals(expected)) {
        throw new PatchcordError('verification', `leaf ${index} of ${id} is damaged on this device's disk`, { hint: 'remove the file, and get it again from another device' })
      }
      if (bytes.length > 0) yield bytes
    }
  } finally {
    await file?.handle.close()
  }
}

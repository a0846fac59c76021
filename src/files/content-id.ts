import { createHash, hash } from 'node:crypto'
import { decodeBase32, encodeBase32 } from '../core/base32.js'
import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'

// The Merkle tree of RFC 9162 section 2.1 over leaves of 1 MiB. The prefixes 0x00 and 0x01 keep a leaf
// from ever being taken for a node, so a short file cannot pose as a long one.
//
// The empty file. RFC 9162 gives it a tree of no leaves, whose hash is SHA-256 of nothing; our list has
// max(1, …) entries. Both hold with one rule: *its list is one entry, and that entry is SHA-256 of
// nothing*, because a list of one entry is its own root. `leafHash` of no bytes gives that value (no
// other file has an empty leaf, so nothing else could ask for it), and `checkLeaves` refuses every other
// ID for size 0, and this ID for every other size.

/** Bytes in every leaf but the last, which holds the rest. */
export const LEAF_BYTES = 1_048_576
/** Bytes in one entry of a leaf list: a SHA-256. */
export const HASH_BYTES = 32

const LEAF_PREFIX = Buffer.from([0])
const EMPTY_ROOT = hash('sha256', '', 'buffer')
/** The content ID of the file without bytes. */
export const EMPTY_ID = encodeBase32(EMPTY_ROOT) as ContentId

/** How many entries the leaf list of a file of `size` bytes has. Throws RangeError where `size` is not a
 * whole number from 0 to 2^53 - 1. */
export function leafCount (size: number): number {
  if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`${size} is not the size of a file`)
  return Math.max(1, Math.ceil(size / LEAF_BYTES))
}

/** How many bytes leaf `index` of a file of `size` bytes has. Throws RangeError where there is no such leaf. */
export function leafLength (size: number, index: number): number {
  const leaves = leafCount(size)
  if (!Number.isSafeInteger(index) || index < 0 || index >= leaves) throw new RangeError(`there is no leaf ${index} in a file of ${size} bytes`)
  return index === leaves - 1 ? size - index * LEAF_BYTES : LEAF_BYTES
}

/** The 32 bytes that stand for a leaf: SHA-256(0x00 ‖ bytes); for no bytes (the empty file alone) SHA-256 of
 * nothing. Throws RangeError for more than 1 MiB. */
export function leafHash (bytes: Uint8Array): Buffer {
  if (bytes.length > LEAF_BYTES) throw new RangeError(`a leaf has at most ${LEAF_BYTES} bytes, not ${bytes.length}`)
  if (bytes.length === 0) return Buffer.from(EMPTY_ROOT)
  return createHash('sha256').update(LEAF_PREFIX).update(bytes).digest()
}

/** The root of a list of leaf hashes (n × 32 bytes, in order, n at least 1). Throws RangeError for other lengths. */
export function rootOf (leaves: Uint8Array): Buffer {
  if (leaves.length === 0 || leaves.length % HASH_BYTES !== 0) throw new RangeError(`a leaf list has a multiple of 32 bytes, not ${leaves.length}`)
  // Pairing level by level and promoting an odd last one gives the tree that RFC 9162 defines by
  // splitting at the largest power of two below n; a property test holds this against that definition.
  const level = Buffer.from(leaves)
  for (let count = level.length / HASH_BYTES; count > 1; count = Math.ceil(count / 2)) {
    for (let at = 0; at < count; at += 2) {
      const left = level.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES)
      const parent = at + 1 < count ? nodeHash(left, level.subarray((at + 1) * HASH_BYTES, (at + 2) * HASH_BYTES)) : left
      parent.copy(level, (at / 2) * HASH_BYTES)
    }
  }
  return Buffer.from(level.subarray(0, HASH_BYTES))
}

/** The content ID of the file that has this leaf list. Throws RangeError like `rootOf`. */
export function contentIdOf (leaves: Uint8Array): ContentId {
  return encodeBase32(rootOf(leaves)) as ContentId
}

/** Throws `verification` unless `leaves` is the leaf list of the file called `id` and `size` can be the size of
 * that file. The length is compared first, so a wrong list costs no hashing, and whoever calls this before
 * allocating allocates nothing for it. The last leaf's length is proven only by its bytes. */
export function checkLeaves (id: ContentId, size: number, leaves: Uint8Array): void {
  if (!Number.isSafeInteger(size) || size < 0) throw new PatchcordError('verification', `${size} is not the size of a file`)
  if (leaves.length !== leafCount(size) * HASH_BYTES) {
    throw new PatchcordError('verification', `a file of ${size} bytes has ${leafCount(size)} leaves, and the list has ${leaves.length} bytes instead of ${leafCount(size) * HASH_BYTES}`)
  }
  if ((size === 0) !== (id === EMPTY_ID)) throw new PatchcordError('verification', `${id} is not a file of ${size} bytes`)
  if (!rootOf(leaves).equals(decodeBase32(id))) throw new PatchcordError('verification', `the leaf list does not hash to ${id}`)
}

/** The inclusion proof of leaf `index` (RFC 9162 section 2.1.3.1): sibling hashes, from the leaf up. Throws
 * RangeError where the list has no such leaf. */
export function inclusionProof (leaves: Uint8Array, index: number): Buffer[] {
  const count = leaves.length / HASH_BYTES
  if (!Number.isSafeInteger(count) || !Number.isSafeInteger(index) || index < 0 || index >= count) throw new RangeError(`there is no leaf ${index} in a list of ${count}`)
  const proof: Buffer[] = []
  let first = 0
  let end = count
  while (end - first > 1) {
    let split = 1
    while (split * 2 < end - first) split *= 2
    const middle = first + split
    if (index < middle) {
      proof.push(rootOf(leaves.subarray(middle * HASH_BYTES, end * HASH_BYTES)))
      end = middle
    } else {
      proof.push(rootOf(leaves.subarray(first * HASH_BYTES, middle * HASH_BYTES)))
      first = middle
    }
  }
  return proof.reverse()
}

/** Whether `proof` shows that leaf `index` of the file called `id`, of `size` bytes, has this hash (RFC 9162
 * section 2.1.3.2). False for anything that does not fit; it never throws. */
export function verifyInclusion (id: ContentId, size: number, index: number, hashOfLeaf: Uint8Array, proof: readonly Uint8Array[]): boolean {
  if (!Number.isSafeInteger(size) || size < 0 || (size === 0) !== (id === EMPTY_ID)) return false
  if (!Number.isSafeInteger(index) || index < 0 || index >= leafCount(size)) return false
  if (hashOfLeaf.length !== HASH_BYTES || proof.some(sibling => sibling.length !== HASH_BYTES)) return false
  let node = index
  let last = leafCount(size) - 1
  let root: Buffer = Buffer.from(hashOfLeaf)
  for (const sibling of proof) {
    if (last === 0) return false
    if (node % 2 === 1 || node === last) {
      root = nodeHash(sibling, root)
      // The right edge of an incomplete tree was promoted: skip the levels where it had no sibling.
      while (node % 2 === 0 && node !== 0) {
        node = Math.floor(node / 2)
        last = Math.floor(last / 2)
      }
    } else {
      root = nodeHash(root, sibling)
    }
    node = Math.floor(node / 2)
    last = Math.floor(last / 2)
  }
  return last === 0 && root.equals(decodeBase32(id))
}

function nodeHash (left: Uint8Array, right: Uint8Array): Buffer {
  const node = Buffer.allocUnsafe(1 + 2 * HASH_BYTES)
  node[0] = 1
  node.set(left, 1)
  node.set(right, 1 + HASH_BYTES)
  return hash('sha256', node, 'buffer')
}

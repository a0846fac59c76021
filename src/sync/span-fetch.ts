import { LEAF_BYTES, leafLength } from '../files/content-id.js'
import { leafBuffer } from '../files/leaf-hashes.js'
import type { PartialFile } from '../files/partial.js'
import { askRange, type Source } from './ask-file.js'
import type { ByteConnection } from './byte-connection.js'
import type { Span } from './leaf-plan.js'

/** Leaves in memory per ring: one that fills, others that are hashed and written. */
const RING_BUFFERS = 3

export interface SpanListener {
  readonly signal: AbortSignal
  /** Told how many bytes came, piece by piece. */
  readonly onMoved: (count: number) => void
  /** Takes a leaf that is full; its memory is used again when this resolves. What it throws ends the span. */
  readonly write: (index: number, bytes: Buffer) => Promise<void>
}

/** Asks `source` for the leaves of `span` in one request, and resolves when each that came is written; `span.next` goes on with every leaf
 * that is full, and where others took the end of the span meanwhile, what comes of it is not read. `ring` is the memory it fills, kept by
 * the caller from one span to the next: what a connection that was cut may still write into is not in it any more. Throws what
 * `askRange` does, or what `write` threw first. */
export async function fetchSpan (source: Source, { id, size }: Pick<PartialFile, 'id' | 'size'>, span: Span<unknown>, ring: Buffer[], { signal, onMoved, write }: SpanListener): Promise<void> {
  const start = span.next * LEAF_BYTES
  const end = Math.min(size, span.end * LEAF_BYTES)
  const writes = new Set<Promise<void>>()
  while (ring.length < RING_BUFFERS) ring.push(leafBuffer())
  let buffer = ring.pop()
  let filled = 0
  let connection: ByteConnection | undefined
  /** What came while no buffer was free: TLS may have deciphered a little more than was asked for. */
  let stash: Buffer[] = []
  let isEnough = false
  let isClean = false
  let problem: unknown
  /** So many bytes more of the next leaf lie in `buffer`. */
  const grew = (count: number): void => {
    filled += count
    const length = leafLength(size, span.next)
    if (filled < length) return
    const index = span.next
    const full = buffer!
    span.next += 1
    filled = 0
    buffer = ring.pop()
    const writing = write(index, full.subarray(0, length)).catch((error: unknown) => {
      problem ??= error
      connection?.destroy()
    }).finally(() => {
      writes.delete(writing)
      if (buffer === undefined) buffer = full
      else ring.push(full)
      if (problem !== undefined) return
      const pieces = stash
      stash = []
      for (const piece of pieces) if (stash.length > 0) stash.push(piece)
      else take(piece)
      if (stash.length === 0) connection?.resume()
    })
    writes.add(writing)
  }
  const mayComeMore = (): boolean => buffer !== undefined || span.next >= span.end
  const take = (piece: Buffer): boolean => {
    for (let at = 0; at < piece.length;) {
      if (span.next >= span.end) {
        // Others took the rest. What is on its way is not worth reading.
        isEnough = true
        connection?.destroy()
        return false
      }
      if (buffer === undefined) {
        stash.push(Buffer.from(piece.subarray(at)))
        return false
      }
      const copied = piece.copy(buffer, filled, at, at + leafLength(size, span.next) - filled)
      at += copied
      grew(copied)
    }
    return mayComeMore()
  }
  try {
    await askRange(source, id, size, start, end, {
      signal,
      onConnection: made => { connection = made },
      // What lies there is nobody else's: it goes to be hashed when it is full, and the next place is in another.
      place: () => stash.length > 0 || span.next >= span.end ? undefined : buffer?.subarray(filled, leafLength(size, span.next)),
      onPlaced: count => {
        onMoved(count)
        grew(count)
        return mayComeMore()
      },
      onBytes: piece => {
        onMoved(piece.length)
        return stash.length > 0 ? (stash.push(Buffer.from(piece)), false) : take(piece)
      },
    })
    // All has come; what is still in the stash is taken as buffers become free.
    while (stash.length > 0 && problem === undefined) await Promise.all(writes)
    isClean = true
  } catch (error) {
    if (!isEnough) throw problem ?? error
  } finally {
    await Promise.all(writes)
    // The one that a connection was to fill when it was cut is not used again.
    if (isClean && buffer !== undefined) ring.push(buffer)
  }
  if (problem !== undefined) throw problem
}

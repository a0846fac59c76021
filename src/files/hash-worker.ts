import { readSync, writeSync } from 'node:fs'
import { parentPort } from 'node:worker_threads'
import { systemCode } from '../core/errors.js'
import { HASH_BYTES, LEAF_BYTES, leafHash } from './content-id.js'

// One thread of `LeafHashes`: hashes a leaf, and where that is asked moves it from or to a file too, while it is still
// in the cache of the core. Started by leaf-hashes.ts alone.

/** Bytes in shared memory. */
interface InMemory { readonly memory: SharedArrayBuffer, readonly offset: number, readonly length: number }

/** One byte at a place of an open file. */
export interface Mark { readonly to: number, readonly position: number, readonly value: number }

/** What a worker is handed. Descriptors are open, and stay so until the answer came. */
export type LeafTask = { readonly seq: number } & (
  | { readonly kind: 'hash' } & InMemory
  /** Writes the bytes if this is their hash, and then the one byte that says so. */
  | { readonly kind: 'write', readonly expected: Uint8Array, readonly to: number, readonly position: number, readonly mark: Mark } & InMemory
  /** Reads so many bytes, leaf by leaf, and writes them to the same place of another file, where one is named. */
  | { readonly kind: 'copy', readonly from: number, readonly to: number | undefined, readonly position: number, readonly length: number })

/** What comes back: the hash, for `copy` one for each leaf, none where the file ended before; or what the system said, and of which side. */
export type LeafAnswer = { readonly seq: number } & (
  | { readonly hash: Uint8Array | undefined }
  | { readonly failed: 'from' | 'to', readonly code: string | undefined, readonly message: string })

/** A leaf that was read, for `copy`. */
let own: Buffer | undefined

parentPort?.on('message', (task: LeafTask) => {
  parentPort?.postMessage({ seq: task.seq, ...perform(task) })
})

function perform (task: LeafTask): { hash: Uint8Array | undefined } | { failed: 'from' | 'to', code: string | undefined, message: string } {
  let failed: 'from' | 'to' = 'from'
  try {
    if (task.kind === 'copy') {
      own ??= Buffer.allocUnsafeSlow(LEAF_BYTES)
      // Not in Node's pool: a message takes all the memory that a view is of.
      const hashes = new Uint8Array(Math.ceil(task.length / LEAF_BYTES) * HASH_BYTES)
      for (let at = 0; at < task.length; at += LEAF_BYTES) {
        const bytes = own.subarray(0, Math.min(LEAF_BYTES, task.length - at))
        const position = task.position + at
        failed = 'from'
        if (read(task.from, bytes, position) < bytes.length) return { hash: undefined }
        hashes.set(leafHash(bytes), at / LEAF_BYTES * HASH_BYTES)
        failed = 'to'
        if (task.to !== undefined) write(task.to, bytes, position)
      }
      return { hash: hashes }
    }
    const bytes = new Uint8Array(task.memory, task.offset, task.length)
    const hash = leafHash(bytes)
    failed = 'to'
    if (task.kind === 'write' && hash.equals(task.expected)) {
      write(task.to, bytes, task.position)
      write(task.mark.to, Buffer.of(task.mark.value), task.mark.position)
    }
    return { hash }
  } catch (error) {
    return { failed, code: systemCode(error), message: (error as Error).message }
  }
}

/** How many bytes there were. */
function read (fd: number, bytes: Uint8Array, position: number): number {
  let got = 0
  while (got < bytes.length) {
    const more = readSync(fd, bytes, got, bytes.length - got, position + got)
    if (more === 0) break
    got += more
  }
  return got
}

function write (fd: number, bytes: Uint8Array, position: number): void {
  for (let put = 0; put < bytes.length;) put += writeSync(fd, bytes, put, bytes.length - put, position + put)
}

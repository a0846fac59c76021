import { availableParallelism } from 'node:os'
import { fileError } from '../core/errors.js'
import { LEAF_BYTES, leafHash } from './content-id.js'
import type { LeafAnswer, LeafTask, Mark } from './hash-worker.js'
import { Threads } from './threads.js'

// SHA-256 of a leaf takes about a millisecond of a thread. The main thread also moves every byte through
// TLS and to the disk, so leaves are hashed elsewhere. Measured on 2 cores under load, 512 leaves: on the main
// thread 0.9 to 1.07 GiB/s and nothing else runs; WebCrypto on libuv's pool 0.8 to 1.3 GiB/s with the main
// thread busy 27 to 68 % (it copies each leaf); two workers on shared memory 1.1 GiB/s, main thread 3 to 20 %.
// The thread that hashes a leaf also reads or writes it: one turn of one thread instead of three of three.

/** Below this a leaf is hashed where it is: telling a worker costs about as much. */
const WORTH_TELLING = 65_536
const MOST_WORKERS = 4
/** Bytes that are copied in one turn of a thread: a turn costs the main thread some 0.1 ms, a leaf costs the other 0.9. */
export const MOST_COPIED = 4 * LEAF_BYTES

/** Memory for one leaf that workers can read. Anything may be in it. */
export function leafBuffer (): Buffer {
  return Buffer.from(new SharedArrayBuffer(LEAF_BYTES))
}

/** Hashes leaves on worker threads, which start when the first leaf comes and keep no process alive. */
export class LeafHashes {
  readonly #threads: Threads<Unnumbered, LeafAnswer>

  /** At most `workers` threads: as many as there are cores, unless told, but 2 at least, since they wait for the disk as well,
   * and 4 at most. */
  constructor (workers = Math.max(2, Math.min(MOST_WORKERS, availableParallelism()))) {
    this.#threads = new Threads(new URL('hash-worker.js', import.meta.url), workers)
  }

  /** The leaf hash of `bytes`, which must not change until this resolves. Only leaves in memory of `leafBuffer` leave
   * this thread. Throws RangeError like `leafHash`. */
  async hash (bytes: Uint8Array): Promise<Buffer> {
    if (!isWorthTelling(bytes)) return leafHash(bytes)
    const { hash } = succeeded(await this.#threads.ask({ kind: 'hash', memory: bytes.buffer, offset: bytes.byteOffset, length: bytes.length }), '')
    return Buffer.from(hash!)
  }

  /** Writes `bytes`, in memory of `leafBuffer`, at `position` of an open file if `expected` is their leaf hash, and then `mark`; whether it is.
   * Throws `disk-full` and the like. */
  async write (bytes: Uint8Array, expected: Uint8Array, to: number, position: number, mark: Mark): Promise<boolean> {
    if (!(bytes.buffer instanceof SharedArrayBuffer)) throw new TypeError('only shared memory can be written by another thread')
    // A message takes all the memory that a view is of, and `expected` is one of a whole list.
    const { hash } = succeeded(await this.#threads.ask({ kind: 'write', memory: bytes.buffer, offset: bytes.byteOffset, length: bytes.length, expected: new Uint8Array(expected), to, position, mark }), 'the file store')
    return hash !== undefined && Buffer.from(hash).equals(expected)
  }

  /** The leaf hashes, one after the other, of `length` bytes (`MOST_COPIED` at most) from `position`, where a leaf begins, of an open file, called `path` in
   * errors; undefined where it ends before. The bytes are written to the same place of the open file `to`, where that is given. Throws `unreadable`, `disk-full` and the like. */
  async copy (path: string, from: number, to: number | undefined, position: number, length: number): Promise<Buffer | undefined> {
    if (length > MOST_COPIED) throw new RangeError(`at most ${MOST_COPIED} bytes are copied in one turn, not ${length}`)
    const answer = await this.#threads.ask({ kind: 'copy', from, to, position, length })
    const { hash } = succeeded(answer, 'failed' in answer && answer.failed === 'from' ? path : 'the file store')
    return hash === undefined ? undefined : Buffer.from(hash)
  }

  /** Ends the threads. The next leaf starts them again. */
  async close (): Promise<void> {
    await this.#threads.close()
  }
}

type Unnumbered = LeafTask extends infer Task ? Task extends LeafTask ? Omit<Task, 'seq'> : never : never

function isWorthTelling (bytes: Uint8Array): bytes is Uint8Array<SharedArrayBuffer> {
  return bytes.length >= WORTH_TELLING && bytes.length <= LEAF_BYTES && bytes.buffer instanceof SharedArrayBuffer
}

function succeeded (answer: LeafAnswer, path: string): { readonly hash: Uint8Array | undefined } {
  if ('hash' in answer) return answer
  const cause = Object.assign(new Error(answer.message), { code: answer.code })
  throw answer.code === undefined ? cause : fileError(cause, path)
}

import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { LEAF_BYTES, leafHash } from './content-id.js'
import type { HashTask } from './hash-worker.js'

// SHA-256 of a leaf takes about a millisecond of a thread. The main thread also moves every byte through
// TLS and to the disk, so leaves are hashed elsewhere. Measured on 2 cores under load, 512 leaves: on the main
// thread 0.9 to 1.07 GiB/s and nothing else runs; WebCrypto on libuv's pool 0.8 to 1.3 GiB/s with the main
// thread busy 27 to 68 % (it copies each leaf); two workers on shared memory 1.1 GiB/s, main thread 3 to 20 %.

/** Below this a leaf is hashed where it is: telling a worker costs about as much. */
const WORTH_TELLING = 65_536
const MOST_WORKERS = 4
/** Workers that had nothing to do for this long end (ms): each holds some megabytes. */
const IDLE_MS = 10_000

/** Memory for one leaf that workers can read. Anything may be in it. */
export function leafBuffer (): Buffer {
  return Buffer.from(new SharedArrayBuffer(LEAF_BYTES))
}

interface Waiting {
  readonly resolve: (hash: Buffer) => void
  readonly reject: (error: unknown) => void
}

interface Thread {
  readonly worker: Worker
  readonly waiting: Map<number, Waiting>
}

/** Hashes leaves on worker threads, which start when the first leaf comes and keep no process alive. */
export class LeafHashes {
  readonly #most: number
  readonly #threads: Thread[] = []
  #seq = 0
  #idle: NodeJS.Timeout | undefined

  /** At most `workers` threads: as many as there are cores, 4 at most, unless told. 0 hashes on the main thread. */
  constructor (workers = Math.min(MOST_WORKERS, availableParallelism())) {
    this.#most = workers
  }

  /** The leaf hash of `bytes`, which must not change until this resolves. Only leaves in memory of `leafBuffer` leave
   * this thread. Throws RangeError like `leafHash`. */
  async hash (bytes: Uint8Array): Promise<Buffer> {
    const { buffer } = bytes
    if (bytes.length < WORTH_TELLING || bytes.length > LEAF_BYTES || this.#most === 0 || !(buffer instanceof SharedArrayBuffer)) return leafHash(bytes)
    clearTimeout(this.#idle)
    const thread = this.#leastBusy()
    const seq = ++this.#seq
    try {
      return await new Promise((resolve, reject) => {
        thread.waiting.set(seq, { resolve, reject })
        const task: HashTask = { seq, memory: buffer, offset: bytes.byteOffset, length: bytes.length }
        thread.worker.postMessage(task)
      })
    } finally {
      thread.waiting.delete(seq)
      if (this.#threads.every(({ waiting }) => waiting.size === 0)) this.#idle = setTimeout(() => { void this.close() }, IDLE_MS).unref()
    }
  }

  /** Ends the threads. The next leaf starts them again. */
  async close (): Promise<void> {
    clearTimeout(this.#idle)
    await Promise.all(this.#threads.splice(0).map(({ worker }) => worker.terminate()))
  }

  #leastBusy (): Thread {
    const [first] = this.#threads.toSorted((a, b) => a.waiting.size - b.waiting.size)
    if (first !== undefined && (first.waiting.size === 0 || this.#threads.length >= this.#most)) return first
    const worker = new Worker(new URL('hash-worker.js', import.meta.url), { execArgv: [] })
    worker.unref()
    const thread: Thread = { worker, waiting: new Map() }
    worker.on('message', ({ seq, hash }: { seq: number, hash: Uint8Array }) => { thread.waiting.get(seq)?.resolve(Buffer.from(hash)) })
    const gone = (error: unknown): void => {
      const at = this.#threads.indexOf(thread)
      if (at >= 0) this.#threads.splice(at, 1)
      for (const { reject } of thread.waiting.values()) reject(error)
    }
    worker.on('error', gone)
    worker.on('exit', () => { gone(new Error('a hashing thread ended')) })
    this.#threads.push(thread)
    return thread
  }
}

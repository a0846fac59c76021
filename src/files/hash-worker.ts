import { parentPort } from 'node:worker_threads'
import { leafHash } from './content-id.js'

// One thread of `LeafHashes`: a leaf in shared memory in, its hash out. Started by leaf-hashes.ts alone.

/** What a worker is handed. */
export interface HashTask {
  readonly seq: number
  readonly memory: SharedArrayBuffer
  readonly offset: number
  readonly length: number
}

parentPort?.on('message', ({ seq, memory, offset, length }: HashTask) => {
  parentPort?.postMessage({ seq, hash: leafHash(new Uint8Array(memory, offset, length)) })
})

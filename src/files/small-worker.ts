import { parentPort } from 'node:worker_threads'
import { perform } from './small-turn.js'
import type { SmallTask } from './small-work.js'

// One thread of `SmallFiles`. Started by small-files.ts alone.

parentPort?.on('message', ({ seq, ...task }: SmallTask & { readonly seq: number }) => {
  void perform(task).then(answer => { parentPort?.postMessage({ seq, ...answer }) })
})

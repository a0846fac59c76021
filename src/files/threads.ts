import { Worker } from 'node:worker_threads'

/** Threads that had nothing to do for this long end (ms): each holds 10 MiB, and starting one takes 30 ms of a processor. */
const IDLE_MS = 60_000

interface Waiting<Answer> {
  readonly resolve: (answer: Answer) => void
  readonly reject: (error: unknown) => void
}

interface Thread<Answer> {
  readonly worker: Worker
  readonly waiting: Map<number, Waiting<Answer>>
}

/** Threads that run one script, which answers each task `{ seq, … }` with `{ seq, … }`. They start when there is something to do; they keep
 * the process alive while there is, and no longer. */
export class Threads<Task extends object, Answer extends object> {
  readonly #script: URL
  readonly #most: number
  readonly #threads: Array<Thread<Answer>> = []
  #seq = 0
  #idle: NodeJS.Timeout | undefined

  /** At most `most` threads of `script`. */
  constructor (script: URL, most: number) {
    this.#script = script
    this.#most = most
  }

  /** Whether one has been started. */
  get isStarted (): boolean { return this.#threads.length > 0 }

  /** What one of them answers. Rejects where the thread ended before. */
  async ask (task: Task): Promise<Answer> {
    clearTimeout(this.#idle)
    const thread = this.#leastBusy()
    const seq = ++this.#seq
    try {
      return await new Promise((resolve, reject) => {
        if (thread.waiting.size === 0) thread.worker.ref()
        thread.waiting.set(seq, { resolve, reject })
        thread.worker.postMessage({ seq, ...task })
      })
    } finally {
      thread.waiting.delete(seq)
      if (thread.waiting.size === 0) thread.worker.unref()
      if (this.#threads.every(({ waiting }) => waiting.size === 0)) this.#idle = setTimeout(() => { void this.close() }, IDLE_MS).unref()
    }
  }

  /** Ends the threads. The next task starts them again. */
  async close (): Promise<void> {
    clearTimeout(this.#idle)
    await Promise.all(this.#threads.splice(0).map(({ worker }) => worker.terminate()))
  }

  #leastBusy (): Thread<Answer> {
    const [first] = this.#threads.toSorted((a, b) => a.waiting.size - b.waiting.size)
    if (first !== undefined && (first.waiting.size === 0 || this.#threads.length >= this.#most)) return first
    const worker = new Worker(this.#script, { execArgv: [] })
    worker.unref()
    const thread: Thread<Answer> = { worker, waiting: new Map() }
    worker.on('message', (answer: Answer & { readonly seq: number }) => { thread.waiting.get(answer.seq)?.resolve(answer) })
    const gone = (error: unknown): void => {
      const at = this.#threads.indexOf(thread)
      if (at >= 0) this.#threads.splice(at, 1)
      for (const { reject } of thread.waiting.values()) reject(error)
    }
    worker.on('error', gone)
    worker.on('exit', () => { gone(new Error('a thread of the file store ended')) })
    this.#threads.push(thread)
    return thread
  }
}

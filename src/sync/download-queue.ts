import { join } from 'node:path'
import * as v from 'valibot'
import { isDiskFull } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { contentId } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'

/** A download that a person asked for and that is not done. */
export interface Queued {
  readonly id: ContentId
  /** Bytes, where it was known. */
  readonly size?: number
}

const Shape = v.strictObject({
  version: v.literal(1),
  downloads: v.array(v.strictObject({ id: contentId, size: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(0))) })),
})

/** `downloads.json`: what was asked for and is not here yet. Every change is on disk when it resolves, but for what `remove` says. */
export class DownloadQueue {
  readonly #path: string
  #queued: readonly Queued[]
  #writing: Promise<void> = Promise.resolve()

  private constructor (path: string, queued: readonly Queued[]) {
    this.#path = path
    this.#queued = queued
  }

  /** Throws `bad-state`, naming the file and the field. */
  static async open (root: string): Promise<DownloadQueue> {
    const path = join(root, 'downloads.json')
    return new DownloadQueue(path, (await readState(path, Shape))?.downloads ?? [])
  }

  get all (): readonly Queued[] { return this.#queued }

  async add (queued: Queued): Promise<void> {
    await this.#write(() => [...this.#queued.filter(({ id }) => id !== queued.id), queued])
  }

  /** On a full disk only the next change takes it from there: until then a process that begins anew fetches it once more. */
  async remove (id: ContentId): Promise<void> {
    await this.#write(() => this.#queued.filter(queued => queued.id !== id), true)
  }

  #write (change: () => readonly Queued[], mayWait = false): Promise<void> {
    const written = this.#writing.then(async () => {
      const next = change()
      if (next.length === 0 && this.#queued.length === 0) return
      await writeState(this.#path, Shape, { version: 1, downloads: [...next] }).catch((error: unknown) => { if (!mayWait || !isDiskFull(error)) throw error })
      this.#queued = next
    })
    this.#writing = written.catch(() => undefined)
    return written
  }
}

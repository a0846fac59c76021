import type { ContentId } from '../core/ids.js'
import { HASH_BYTES } from './content-id.js'
import { filesIn, plainSize } from './folders.js'
import { pathOf } from './layout.js'
import type { FileReader } from './reader.js'

/** Files of one size whose beginnings are compared. */
const SAME_SIZE = 16

/** The files of more than one leaf by their sizes: whether a file that is about to be taken in may be here already, which spares writing it. */
export class LargeFiles {
  readonly #root: string
  readonly #reader: FileReader
  /** Read from the disk when first asked for. */
  #bySize: Promise<Map<number, Set<ContentId>>> | undefined

  constructor (root: string, reader: FileReader) {
    this.#root = root
    this.#reader = reader
  }

  /** To be told of every such file that comes. One that goes may stay noted: it is looked for on the disk. */
  async note (size: number, id: ContentId): Promise<void> {
    if (this.#bySize !== undefined) noteSize(await this.#bySize, size, id)
  }

  /** Whether a file of `size` bytes whose first leaf has the hash that `first` gives may be here; false only where it is not. `first` is called
   * where the size alone does not tell. */
  async mayHave (size: number, first: () => Promise<Uint8Array>): Promise<boolean> {
    this.#bySize ??= this.#read()
    const ids = (await this.#bySize).get(size)
    if (ids === undefined) return false
    // Reading as many lists would cost more than it spares.
    if (ids.size > SAME_SIZE) return true
    const hash = await first()
    for (const id of ids) {
      const list = await this.#reader.leaves(id)
      if (list?.leaves.subarray(0, HASH_BYTES).equals(hash) === true) return true
    }
    return false
  }

  async #read (): Promise<Map<number, Set<ContentId>>> {
    const bySize = new Map<number, Set<ContentId>>()
    for await (const id of filesIn(this.#root, '.leaves')) {
      const size = await plainSize(pathOf(this.#root, id))
      if (size !== undefined) noteSize(bySize, size, id)
    }
    return bySize
  }
}

function noteSize (bySize: Map<number, Set<ContentId>>, size: number, id: ContentId): void {
  const ids = bySize.get(size)
  if (ids === undefined) bySize.set(size, new Set([id]))
  else ids.add(id)
}

import type { StoredDocument } from './pouch.js'

/** Documents that are together larger than this, in characters, are read one by one from then on. */
const LARGE = 1024 * 1024

/** How many documents, from the first, may be held together: at least one, and of large ones no more. */
export function holdable (documents: ReadonlyArray<StoredDocument | null | undefined>): number {
  let left = LARGE
  for (const [index, document] of documents.entries()) {
    left -= sizeOf(document, left)
    if (left < 0) return Math.max(1, index)
  }
  return documents.length
}

/** Roughly what a value takes as text; not looked at further than `most`. */
function sizeOf (value: unknown, most: number): number {
  let size = 0
  const left: unknown[] = [value]
  while (left.length > 0 && size <= most) {
    const next = left.pop()
    size += typeof next === 'string' ? next.length : 8
    if (next === null || typeof next !== 'object') continue
    for (const [name, inner] of Object.entries(next)) {
      size += name.length
      left.push(inner)
    }
  }
  return size
}

/** How many documents are read at a time: at most `most`, one behind large ones, and more again step by step. */
export class Portion {
  readonly #most: number
  #size: number

  constructor (most: number) {
    this.#most = most
    this.#size = most
  }

  get size (): number { return this.#size }

  /** Of so many that were read so many could be held. */
  had (read: number, held: number): void {
    this.#size = held < read ? 1 : Math.min(this.#size * 2, this.#most)
  }
}

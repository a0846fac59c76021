import { walk, type PassedOver } from '../files/walk.js'
import { ListLength, type OfferedPath } from './offer-list.js'

/** What is to be sent: each file, where it is and what the list calls it, and folders that are empty. */
export interface Gathered {
  readonly files: ReadonlyArray<{ readonly from: string, readonly path: OfferedPath }>
  readonly folders: readonly OfferedPath[]
}

export interface GatherOptions {
  /** This device's own state, which is never sent. */
  readonly except: string
  readonly passedOver: PassedOver
  readonly signal: AbortSignal
}

/** Looks for what is at and below the paths, and opens none of it. Throws `too-large`, with how much there is, where a list cannot have all of it: reading
 * it may take an hour. */
export async function gather (paths: readonly string[], { except, passedOver, signal }: GatherOptions): Promise<Gathered> {
  const length = new ListLength()
  const files: Array<{ from: string, path: OfferedPath }> = []
  const folders: OfferedPath[] = []
  for (const given of paths) {
    const top = given.slice(given.lastIndexOf('/') + 1)
    const below = given.endsWith('/') ? given.length : given.length + 1
    const empty = (relative: string): void => {
      const path = relative === '' ? [top] : [top, ...relative.split('/')]
      length.add(path)
      if (length.fits) folders.push(path)
    }
    for await (const found of walk(given, { except, passedOver, empty })) {
      signal.throwIfAborted()
      const path = found.path === given ? [top] : [top, ...found.path.slice(below).split('/')]
      length.add(path, 0)
      // The others are counted.
      if (length.fits) files.push({ from: found.path, path })
    }
  }
  length.check()
  return { files, folders }
}

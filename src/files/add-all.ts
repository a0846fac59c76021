import { fileError, type PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import type { ImportOptions } from './staging.js'

export interface AddOptions extends ImportOptions {
  /** Whether a crash may lose it until `FileStore.flush`. */
  readonly isLater?: boolean
}

export interface AddAllOptions {
  readonly concurrency?: number
  readonly isLater?: boolean
  readonly signal?: AbortSignal
  readonly onBytes?: (bytes: number) => void
}

/** What became of one path of `addAll`. */
export type Added =
  | { readonly path: string, readonly id: ContentId, readonly size: number, readonly isNew: boolean }
  | { readonly path: string, readonly error: PatchcordError }

interface Taken { readonly id: ContentId, readonly size: number, readonly isNew: boolean }

/** How one file is taken in: what `FileStore` says of it. */
export interface Adding {
  /** Undefined where it is not small, or did not go: `add` says why. */
  readonly addSmall: (path: string, isLater: boolean, signal: AbortSignal | undefined) => Promise<Taken | undefined>
  readonly add: (path: string, options: AddOptions) => Promise<Taken>
  readonly settle: () => Promise<void>
}

/** Many files, some at once, in order; as `FileStore.addAll` has it. */
export async function * addAll (paths: Iterable<string> | AsyncIterable<string>, { concurrency = 64, isLater = false, signal, onBytes }: AddAllOptions, { addSmall, add, settle }: Adding): AsyncIterable<Added> {
  const under: Array<Promise<Added>> = []
  const addOne = async (path: string): Promise<Added> => {
    try {
      const small = await addSmall(path, isLater, signal)
      if (small !== undefined) {
        onBytes?.(small.size)
        return { path, ...small }
      }
      let told = 0
      const onProgress = (done: number): void => {
        onBytes?.(done - told)
        told = done
      }
      return { path, ...await add(path, { onProgress, isLater, ...signal === undefined ? {} : { signal } }) }
    } catch (error) {
      signal?.throwIfAborted()
      return { path, error: fileError(error, path) }
    }
  }
  try {
    for await (const path of paths) {
      signal?.throwIfAborted()
      const adding = addOne(path)
      adding.catch(() => { /* awaited below, in order */ })
      under.push(adding)
      const first = under.length >= concurrency ? under.shift() : undefined
      if (first !== undefined) yield await first
    }
    for (let first = under.shift(); first !== undefined; first = under.shift()) yield await first
    if (isLater) await settle()
  } finally {
    await Promise.allSettled(under)
  }
}

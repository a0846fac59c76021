import { isUtf8 } from 'node:buffer'
import type { Dirent, Stats } from 'node:fs'
import { opendir, lstat, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError, PatchcordError } from '../core/errors.js'

/** A regular file that a walk found. */
export interface Found {
  readonly path: string
  /** Relative to what the walk was given, with `/` between folders; the name alone where that was a file. */
  readonly relative: string
}

/** Told of each path that is passed over, and what it is. */
export type PassedOver = (path: string, reason: string) => void

export interface WalkOptions {
  readonly passedOver?: PassedOver
  /** Told of what cannot be read, be it `path` itself or a folder below it; the walk then goes on. Without it the walk ends there. */
  readonly unreadable?: (path: string, error: PatchcordError) => void
  /** Told of each folder, relative as a file is ('' for `path` itself), of which the walk has nothing: neither a file nor a folder is in it. */
  readonly empty?: (relative: string) => void
  /** A folder that is never entered, wherever the walk comes to it: this device's own state. */
  readonly except?: string
}

/** The regular files at and below `path`, sorted by their relative paths' parts. Symlinks, devices, sockets,
 * FIFOs, and names that are not UTF-8 are passed over, never followed or opened; `passedOver` is told. A `path` that is none of file and folder, or that
 * cannot be read, throws `unreadable`, unless `unreadable` is there to be told; so does a folder below it that cannot be read. One folder's names are
 * held at a time per level. */
export async function * walk (path: string, options: WalkOptions = {}): AsyncIterable<Found> {
  const { except, unreadable } = options
  // By what it is, not by name: a home folder may be come to by several paths.
  const own = except === undefined ? undefined : await stat(except).catch(() => undefined)
  try {
    const status = await lstat(path).catch((error: unknown) => { throw fileError(error, path) })
    if (status.isFile()) {
      yield { path, relative: path.slice(path.lastIndexOf('/') + 1) }
    } else if (status.isDirectory()) {
      yield * folder(path, '', { ...options, own })
    } else {
      throw new PatchcordError('unreadable', `${path} is neither a regular file nor a folder`, { hint: 'links are not followed: give the path of the file itself' })
    }
  } catch (error) {
    if (unreadable === undefined || !(error instanceof PatchcordError)) throw error
    unreadable(path, error)
  }
}

async function * folder (path: string, relative: string, options: WalkOptions & { readonly own: Stats | undefined }): AsyncIterable<Found> {
  const { passedOver, unreadable, empty, own } = options
  const entries: Array<{ name: string, isFolder: boolean }> = []
  try {
    if (own !== undefined && isSame(await lstat(path), own)) {
      passedOver?.(path, 'the state of patchcord itself')
      return
    }
    for await (const entry of await namesOf(path)) {
      const name = entry.name.toString()
      // Read as text it is another name, which nothing has.
      if (!isUtf8(entry.name)) passedOver?.(join(path, name), 'a name that is not UTF-8')
      else if (entry.isFile() || entry.isDirectory()) entries.push({ name, isFolder: entry.isDirectory() })
      else passedOver?.(join(path, name), entry.isSymbolicLink() ? 'a symbolic link' : 'a FIFO, a socket or a device')
    }
  } catch (error) {
    if (unreadable === undefined) throw fileError(error, path)
    unreadable(path, fileError(error, path))
    return
  }
  if (entries.length === 0) empty?.(relative)
  // By code unit, not by locale: the same order on every device.
  entries.sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0)
  for (const { name, isFolder } of entries) {
    const below = relative === '' ? name : `${relative}/${name}`
    if (isFolder) yield * folder(join(path, name), below, options)
    else yield { path: join(path, name), relative: below }
  }
}

/** Node takes `buffer` here as for `readdir`; its types do not say so. */
async function namesOf (path: string): Promise<AsyncIterable<Dirent<Buffer>>> {
  return await opendir(path, { encoding: 'buffer' as BufferEncoding }) as unknown as AsyncIterable<Dirent<Buffer>>
}

function isSame (one: Stats, other: Stats): boolean {
  return one.ino === other.ino && one.dev === other.dev
}

import { opendir, lstat } from 'node:fs/promises'
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

/** The regular files at and below `path`, sorted by their relative paths' parts. Symlinks, devices, sockets and
 * FIFOs are passed over, never followed or opened; `passedOver` is told. A `path` that is none of file and folder, or that
 * cannot be read, throws `unreadable`; so does a folder below it that cannot be read. One folder's names are
 * held at a time per level. */
export async function * walk (path: string, passedOver?: PassedOver): AsyncIterable<Found> {
  const status = await lstat(path).catch((error: unknown) => { throw fileError(error, path) })
  if (status.isFile()) {
    yield { path, relative: path.slice(path.lastIndexOf('/') + 1) }
  } else if (status.isDirectory()) {
    yield * folder(path, '', passedOver)
  } else {
    throw new PatchcordError('unreadable', `${path} is neither a regular file nor a folder`, { hint: 'links are not followed: give the path of the file itself' })
  }
}

async function * folder (path: string, relative: string, passedOver?: PassedOver): AsyncIterable<Found> {
  const entries: Array<{ name: string, isFolder: boolean }> = []
  try {
    for await (const entry of await opendir(path)) {
      if (entry.isFile() || entry.isDirectory()) entries.push({ name: entry.name, isFolder: entry.isDirectory() })
      else passedOver?.(join(path, entry.name), entry.isSymbolicLink() ? 'a symbolic link' : 'a FIFO, a socket or a device')
    }
  } catch (error) {
    throw fileError(error, path)
  }
  // By code unit, not by locale: the same order on every device.
  entries.sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0)
  for (const { name, isFolder } of entries) {
    const below = relative === '' ? name : `${relative}/${name}`
    if (isFolder) yield * folder(join(path, name), below, passedOver)
    else yield { path: join(path, name), relative: below }
  }
}

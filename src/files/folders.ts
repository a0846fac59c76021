import type { BigIntStats } from 'node:fs'
import { lstat, readdir, unlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { idOf, type Beside } from './layout.js'

// What the store asks of its folders. Absent is an answer here, not an error.

/** Where downloads and copies grow: beside `root`, on the same file system, so that a rename ends them. */
export function partialOf (root: string): string {
  return join(dirname(root), 'partial')
}

/** The names in `folder`; none where it is not there or is not a folder. */
export async function namesIn (folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ENOENT' || code === 'ENOTDIR') return []
    throw fileError(error, folder)
  }
}

/** The names of the folders that files lie in. */
export async function shardsIn (root: string): Promise<string[]> {
  return (await namesIn(root)).filter(name => /^[a-z2-7]{2}$/.test(name)).sort()
}

/** The IDs of the files under `root`, or of those that have the one thing beside them, in no particular order. */
export async function * filesIn (root: string, beside: Beside | '' = ''): AsyncIterable<ContentId> {
  for (const shard of await shardsIn(root)) {
    for (const name of await namesIn(join(root, shard))) {
      const id = idOf(shard, name, beside)
      if (id !== undefined) yield id
    }
  }
}

/** The size of a regular file with one link; undefined for everything else, as `FileReader.open` has it. */
export async function plainSize (path: string): Promise<number | undefined> {
  try {
    const status = await lstat(path)
    return status.isFile() && status.nlink === 1 ? status.size : undefined
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw fileError(error, path)
  }
}

/** What the system itself calls what is there, or undefined. */
export async function nameOf (path: string): Promise<string | undefined> {
  try {
    return nameIn(await lstat(path, { bigint: true }))
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw fileError(error, path)
  }
}

export function nameIn ({ dev, ino }: BigIntStats): string {
  return `${dev}:${ino}`
}

/** Whether there was something to remove. */
export async function unlinkIfThere (path: string): Promise<boolean> {
  try {
    await unlink(path)
    return true
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ENOENT' || code === 'ENOTDIR') return false
    throw fileError(error, path)
  }
}

/** Removes the files in `folder` that `isTemporary` names and that are older than this process. A younger one belongs
 * to somebody in it. */
export async function removeLeftovers (folder: string, isTemporary: (name: string) => boolean): Promise<void> {
  for (const name of await namesIn(folder)) {
    if (!isTemporary(name)) continue
    const path = join(folder, name)
    const status = await lstat(path).catch((error: unknown) => { if (systemCode(error) !== 'ENOENT') throw fileError(error, path) })
    if (status !== undefined && !status.isDirectory() && status.mtimeMs < performance.timeOrigin) await unlinkIfThere(path)
  }
}

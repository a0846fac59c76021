import { cp, lstat, mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import * as v from 'valibot'
import { syncFile, syncFolder } from '../core/durable-file.js'
import { PatchcordError } from '../core/errors.js'
import { readState, writeState } from '../core/state-file.js'

const Shape = v.strictObject({ version: v.pipe(v.number(), v.safeInteger(), v.minValue(1)) })

/** Brings the state of `root` from the version of its index + 1 to the next. It may be cut at any moment and is then run
 * again, so it must do no harm twice. */
export type Migration = (root: string) => Promise<void>

/** The migrations there are; the state's version is one more than their number. */
export const MIGRATIONS: readonly Migration[] = []

/** What is never copied: it is large, can be fetched again, or says that a process runs. */
const NOT_KEPT = new Set(['files', 'partial', 'couch', 'quarantine', 'lock', 'control.sock'])

/**
 * Brings the state of a home to this version, one step after the other, and keeps a copy of what it was in
 * `before-version-<n>/` (without the store and the databases, whose form their own rooms know). To be called by the
 * holder of the lock, before anything is read. A fresh home is of this version. Throws `bad-state`, with nothing changed,
 * for the state of a newer patchcord.
 */
export async function migrate (root: string, migrations: readonly Migration[] = MIGRATIONS): Promise<{ from: number, to: number }> {
  const path = join(root, 'version.json')
  const to = migrations.length + 1
  const found = await readState(path, Shape)
  // The first version wrote no file.
  const from = found?.version ?? (await lstat(join(root, 'settings.json')).then(() => true, () => false) ? 1 : to)
  if (from > to) throw new PatchcordError('bad-state', `${root} was written by a newer patchcord (its state has version ${from}, this one knows ${to})`, { hint: 'update patchcord; to go back for good, stop it and restore the copy in before-version-…/' })
  for (let version = from; version < to; version++) {
    await keepCopy(root, version)
    await migrations[version - 1]!(root)
    await writeState(path, Shape, { version: version + 1 })
  }
  if (found === undefined) await writeState(path, Shape, { version: to })
  return { from, to }
}

/** A copy has its name when it is whole; one that is there is older than any half-done migration, and stays. */
async function keepCopy (root: string, version: number): Promise<void> {
  const copy = join(root, `before-version-${version + 1}`)
  if (await lstat(copy).then(() => true, () => false)) return
  const making = `${copy}.new`
  await rm(making, { recursive: true, force: true })
  await mkdir(making, { mode: 0o700 })
  for (const name of await readdir(root)) {
    if (NOT_KEPT.has(name) || name.startsWith('before-version-') || name.startsWith('.')) continue
    await cp(join(root, name), join(making, name), { recursive: true, verbatimSymlinks: true, preserveTimestamps: true })
  }
  await syncTree(making)
  await rename(making, copy)
  await syncFolder(root)
}

/** Makes everything in a folder durable, before something is done that counts on it. */
async function syncTree (folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) await syncTree(path)
    else if (entry.isFile()) await syncFile(path)
  }
  await syncFolder(folder)
}

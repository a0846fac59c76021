import { randomBytes } from 'node:crypto'
import { constants, type Stats } from 'node:fs'
import { access, chmod, copyFile, link, lstat, mkdir, open, rename, stat, unlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { syncFile } from '../core/durable-file.js'
import { fileError, PatchcordError, systemCode } from '../core/errors.js'
import { makeFolders } from '../core/make-folders.js'
import { numbered } from '../core/safe-name.js'
import { NO_LINK } from '../files/asides.js'

/** Told how many bytes more there are of a copy. */
export type OnBytes = (bytes: number) => void

/** What a copy that is not whole yet is called, if it is one of those with this mark: who removes what a dead process left knows its own by it. */
export function isCopyOf (mark: string, name: string): boolean {
  return name.startsWith(`.patchcord-${mark}-`) && name.endsWith('.part')
}

/** Copies a file out of the store under a name that appears whole. Never a link: the copy is the person's
 * to change. Throws `already-exists` where the name is taken, unless `force`. The disk is not waited for: the store has the file. */
export async function copyOut (from: string, to: string, force: boolean, onBytes?: OnBytes): Promise<void> {
  await copy(from, to, force, onBytes, async () => {})
}

/** The same, never over anything, with what it names on the disk; the name may still be lost by a crash: who copies many syncs their folder once. */
export async function copySynced (from: string, to: string, { mark, name, onBytes }: SyncedOptions): Promise<void> {
  await copy(from, to, false, onBytes, syncFile, mark, name)
}

export interface SyncedOptions {
  /** What its temporary is known by (`isCopyOf`). */
  readonly mark: string
  /** What `to` is called where it is told. */
  readonly name: string
  readonly onBytes: OnBytes | undefined
}

async function copy (from: string, to: string, force: boolean, onBytes: OnBytes | undefined, settle: (path: string) => Promise<void>, mark = 'get', name = to): Promise<void> {
  // Not made of the name that it becomes: a name may be as long as the system takes, in bytes.
  const temporary = join(dirname(to), `.patchcord-${mark}-${randomBytes(6).toString('hex')}.part`)
  try {
    await watched(temporary, onBytes, () => copyFile(from, temporary, constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL))
    await settle(temporary)
    await chmod(temporary, 0o666 & ~process.umask())
    if (force) await rename(temporary, to)
    else await giveFreeName(temporary, to)
  } catch (error) {
    await unlink(temporary).catch(() => { /* the first error is the one to tell */ })
    if (systemCode(error) === 'EEXIST') throw new PatchcordError('already-exists', `${name} is there already`, { hint: 'choose another path, or say --force' })
    throw fileError(error, name)
  }
}

/** Gives a file the name `to` in the same folder, where that is free; its own is then gone. Throws EEXIST where it is taken. */
export async function giveFreeName (temporary: string, to: string, linkTo: (from: string, to: string) => Promise<void> = link): Promise<void> {
  // rename(2) would replace what came there meanwhile; link(2) does not.
  try {
    await linkTo(temporary, to)
  } catch (error) {
    if (!NO_LINK.has(systemCode(error) ?? '')) throw error
    // Without links an empty file takes the name first, and is then replaced.
    const { dev, ino } = await makeEmpty(to)
    try {
      await rename(temporary, to)
    } catch (error) {
      // It alone: what came there meanwhile is somebody's.
      const there = await lstat(to).catch(() => undefined)
      if (there?.dev === dev && there.ino === ino && there.size === 0) await unlink(to).catch(() => { /* the first error is the one to tell */ })
      throw error
    }
    return
  }
  await unlink(temporary)
}

/** Makes an empty file where there is none, and tells what it is. */
async function makeEmpty (path: string): Promise<Stats> {
  const handle = await open(path, 'wx')
  try {
    return await handle.stat()
  } finally {
    await handle.close()
  }
}

const WATCH_MS = 250

/** Runs a copy into `path`, which the system makes at one go, and tells how the file grows. */
async function watched (path: string, onBytes: OnBytes | undefined, copy: () => Promise<void>): Promise<void> {
  if (onBytes === undefined) return await copy()
  let told = 0
  const look = async (): Promise<void> => {
    // What is not there yet, or was taken away, is of no size.
    const size = (await stat(path).catch(() => undefined))?.size ?? 0
    onBytes(size - told)
    told = size
  }
  const timer = setInterval(() => { void look() }, WATCH_MS)
  try {
    await copy()
  } finally {
    clearInterval(timer)
  }
  await look()
}

const MOST_ATTEMPTS = 1_000

/** Does `make` for `folder/name`, `folder/name (2)`, …, from the `first` on, until one was free; which. Nothing is ever replaced. */
export async function underFreeName (folder: string, name: string, make: (path: string) => Promise<unknown>, first = 1): Promise<{ path: string, attempt: number }> {
  for (let attempt = first; ; attempt++) {
    const path = join(folder, numbered(name, attempt))
    try {
      await make(path)
      return { path, attempt }
    } catch (error) {
      const taken = systemCode(error) === 'EEXIST' || (error instanceof PatchcordError && error.code === 'already-exists')
      if (!taken || attempt - first >= MOST_ATTEMPTS - 1) throw fileError(error, path)
    }
  }
}

/** Makes a folder that was not there. */
export async function makeFolder (path: string): Promise<void> {
  await mkdir(path)
}

/** Makes a folder, and those above it, where they are missing, durably, and sees that something can be put into it. Throws
 * `unreadable` and the like, naming the path. */
export async function prepareFolder (path: string): Promise<void> {
  await makeFolders(path)
  await access(path, constants.W_OK | constants.X_OK).catch((error: unknown) => { throw fileError(error, path) })
}

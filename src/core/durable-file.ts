import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { open, rename, unlink, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fileError, PatchcordError, systemCode } from './errors.js'

// The write discipline of all state: temporary file in the same folder, fsync, rename, fsync of the
// folder. After a crash there is the old content or the new, never half of one. (write-file-atomic was
// looked at: it does not fsync the folder, and its newest release needs Node 22.)

/** Replaces `path` with `data`, durably. Throws an error that names `path`; the old file is then kept. */
export async function writeDurably (path: string, data: string | Uint8Array, mode = 0o600): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString('hex')}.tmp`)
  try {
    const file = await open(temporary, 'wx', mode)
    try {
      await file.writeFile(data)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await unlink(temporary).catch((left: unknown) => { if (systemCode(left) !== 'ENOENT') throw left })
    throw fileError(error, path)
  }
  await syncFolder(dirname(path))
}

/** Makes the content of a file durable. */
export async function syncFile (path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Makes renames and unlinks in `folder` durable. */
export async function syncFolder (folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** The content of a file that only its owner may read, or undefined where there is none. Throws
 * `unsafe-mode` where group or others have any right, or where it is not a regular file. */
export async function readPrivate (path: string): Promise<Buffer | undefined> {
  let file: FileHandle
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw fileError(error, path)
  }
  try {
    const { mode } = await file.stat()
    if ((mode & constants.S_IFMT) !== constants.S_IFREG) throw new PatchcordError('unsafe-mode', `${path} is not a regular file`)
    if ((mode & 0o077) !== 0) throw new PatchcordError('unsafe-mode', `others can read ${path} (mode ${(mode & 0o777).toString(8)})`)
    return await file.readFile()
  } finally {
    await file.close()
  }
}

import { mkdir, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { syncFolder } from './durable-file.js'
import { fileError, PatchcordError, systemCode } from './errors.js'

/** Makes a folder, and those above it, where they are missing, each with the rights `mode` (less the umask), durably. Throws `unreadable` and the like, naming
 * the path. Step by step: Node's own `recursive` never ends where the system says that the parent of what is made is missing
 * though it is there (/proc, an automount), and syncs nothing. */
export async function makeFolders (path: string, mode = 0o777): Promise<void> {
  const status = await stat(path).catch((error: unknown) => { if (systemCode(error) !== 'ENOENT') throw fileError(error, path) })
  if (status?.isDirectory() === false) throw new PatchcordError('unreadable', `${path} is not a folder`, { hint: 'choose another folder' })
  if (status !== undefined) return
  if (dirname(path) !== path) await makeFolders(dirname(path), mode)
  await mkdir(path, { mode }).catch(async (error: unknown) => {
    // Somebody else made it meanwhile.
    if (systemCode(error) === 'EEXIST' && (await stat(path).catch(() => undefined))?.isDirectory() === true) return
    // Its parent is there: we made it, or came through it.
    if (systemCode(error) === 'ENOENT') throw new PatchcordError('unreadable', `${path} cannot be made: the system takes no new folder in ${dirname(path)}`, { hint: 'choose another folder', cause: error })
    throw fileError(error, path)
  })
  // One that may be written to and not read cannot be synced by us.
  await syncFolder(dirname(path)).catch((error: unknown) => { if (systemCode(error) !== 'EACCES') throw fileError(error, path) })
}

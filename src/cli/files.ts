import { open, readFile, unlink } from 'node:fs/promises'
import { fileError, PatchcordError, systemCode } from '../core/errors.js'

const MOST_BYTES = 64 * 1024

/** A small text file that a command is given. Throws `usage` past 64 KiB. */
export async function readText (path: string): Promise<string> {
  const bytes = await readFile(path).catch((error: unknown) => { throw fileError(error, path) })
  if (bytes.length > MOST_BYTES) throw new PatchcordError('usage', `${path} is too large for what is asked`, { hint: 'give the file that patchcord wrote' })
  return bytes.toString('utf8')
}

/** Writes a file that was not there. Throws `already-exists`. */
export async function writeNew (path: string, content: string): Promise<void> {
  await intoNew(path, 0o666, () => Promise.resolve({ content, result: undefined }))
}

/** Writes what `make` gives into a file that was not there, durably. The file is made first, so that what can be
 * made only once is not lost to a path that cannot be written; it is gone again where `make` fails. */
export async function intoNew<Result> (path: string, mode: number, make: () => Promise<{ content: string | Uint8Array, result: Result }>): Promise<Result> {
  const file = await open(path, 'wx', mode).catch((error: unknown) => {
    if (systemCode(error) === 'EEXIST') throw new PatchcordError('already-exists', `${path} is there already`, { hint: 'choose another path, or remove it first' })
    throw fileError(error, path)
  })
  let made: { content: string | Uint8Array, result: Result } | undefined
  try {
    made = await make()
    await file.writeFile(made.content)
    await file.sync()
    return made.result
  } catch (error) {
    if (made === undefined) await unlink(path)
    throw made === undefined ? error : fileError(error, path)
  } finally {
    await file.close()
  }
}

import { randomBytes } from 'node:crypto'
import { constants, type BigIntStats } from 'node:fs'
import { copyFile, open, unlink, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError, PatchcordError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { MOST_COPIED, type LeafHashes } from './leaf-hashes.js'
import { contentIdOf, HASH_BYTES, LEAF_BYTES, leafCount, leafHash } from './content-id.js'

// From a path of the person's to a hashed copy in `partial/`, ready to be put into place. The ID is always
// that of the bytes in the copy, whatever happens to the source meanwhile; a source that changed is an
// error all the same, because the copy is then a mixture that never existed.

/** A file in `partial/`, whole and hashed, not yet durable. Whoever holds it closes `handle`. */
export interface Staged {
  readonly id: ContentId
  readonly size: number
  readonly leaves: Buffer
  readonly temporary: string
  readonly handle: FileHandle
}

/** A small file in `partial/`, whole, hashed and complete (small-files.ts), on the disk where it says so. */
export type StagedSmall = Omit<Staged, 'leaves' | 'handle'> & { readonly isSynced: boolean }

/** What staging asks of the store, to spare the copy of a file that is there. */
export interface Known {
  /** Whether the store has this file, whole. */
  isThere (id: ContentId, size: number): Promise<boolean>
  /** Whether it may have a file of this size (of more than one leaf) that begins so, `first` reading the hash of the first leaf:
   * a hint, wrong in either direction at no harm. */
  mayHave (size: number, first: () => Promise<Uint8Array>): Promise<boolean>
  /** What hashes the leaves of a larger file and copies them. */
  readonly hashes: LeafHashes
  /** Runs the import of a file of more than one leaf when its turn comes. */
  inTurn<Result> (task: () => Promise<Result>): Promise<Result>
}

export interface ImportOptions {
  /** Told of each leaf: bytes done, and bytes in all. */
  readonly onProgress?: (done: number, total: number) => void
  /** Ends the import between two leaves, with the signal's reason; nothing stays behind. */
  readonly signal?: AbortSignal
  /** Whether nobody waits for the disk: it is then not told to begin. */
  readonly isLater?: boolean
}

/** Turns of threads in flight at once for one file: two for each thread. */
const LANES = 8
/** Files are left for later up to so many bytes in all (unsettled.ts): as much is read again after a crash. */
export const MOST_LATER_BYTES = 2 * 1024 ** 3
/** How much is written before the disk is told to begin (bytes). */
const WRITEBACK_BYTES = 64 * LEAF_BYTES

/**
 * Copies and hashes the regular file at `path` into `folder`, or only names it where the store has it already.
 *
 * A file of one leaf is read whole, so its ID is known before anything is written. Of a larger one the ID
 * is known only at the end of the copy; where a file of the same size is in the store it is hashed first,
 * without writing, and copied only if it turns out to be another: so what is there costs one pass and no
 * write, and a new file costs one pass unless its size, to the byte, is already taken.
 *
 * Throws `unreadable` (naming the path) for anything but a readable regular file, `changed-while-read`,
 * `disk-full`, or the signal's reason; nothing is then left in `folder`.
 */
export async function stage (path: string, folder: string, known: Known, options: ImportOptions = {}): Promise<Staged | { id: ContentId, size: number }> {
  options.signal?.throwIfAborted()
  const { handle: source, status: before } = await openSource(path)
  try {
    const size = Number(before.size)
    const job: Job = { path, folder, source, before, size, options, hashes: known.hashes }
    return size <= LEAF_BYTES ? await stageLeaf(job, known) : await known.inTurn(() => stageLeaves(job, known))
  } finally {
    await source.close()
  }
}

interface Job {
  readonly path: string
  readonly folder: string
  readonly source: FileHandle
  readonly before: BigIntStats
  readonly size: number
  readonly options: ImportOptions
  readonly hashes: LeafHashes
}

async function openSource (path: string): Promise<{ handle: FileHandle, status: BigIntStats }> {
  let handle: FileHandle
  try {
    // O_NONBLOCK: a FIFO must not make the import wait for a writer.
    handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ELOOP') throw notRegular(path, 'a symbolic link', 'give the path of the file it points to', error)
    if (code === 'ENXIO' || code === 'ENODEV') throw notRegular(path, 'a socket or a device', 'only files can be added', error)
    throw fileError(error, path)
  }
  try {
    const status = await handle.stat({ bigint: true })
    if (status.isDirectory()) throw notRegular(path, 'a folder', 'name the files in it')
    if (!status.isFile()) throw notRegular(path, 'a FIFO or a device', 'only files can be added')
    return { handle, status }
  } catch (error) {
    await handle.close()
    throw fileError(error, path)
  }
}

function notRegular (path: string, what: string, hint: string, cause?: unknown): PatchcordError {
  return new PatchcordError('unreadable', `${path} is ${what}, not a regular file`, { hint, cause })
}

async function stageLeaf (job: Job, known: Known): Promise<Staged | { id: ContentId, size: number }> {
  const { size, options } = job
  const bytes = Buffer.allocUnsafe(size)
  if (await readAt(job, job.source, bytes, 0) < size) throw changed(job)
  await checkUnchanged(job)
  const leaves = leafHash(bytes)
  const id = contentIdOf(leaves)
  if (await known.isThere(id, size)) {
    options.onProgress?.(size, size)
    return { id, size }
  }
  const staged = await intoTemporary(job, async handle => {
    await writeAt(handle, bytes, 0)
    return leaves
  })
  options.onProgress?.(size, size)
  return staged
}

async function stageLeaves (job: Job, known: Known): Promise<Staged | { id: ContentId, size: number }> {
  const first = async (): Promise<Buffer> => {
    const hash = await job.hashes.copy(job.path, job.source.fd, undefined, 0, LEAF_BYTES)
    if (hash === undefined) throw changed(job)
    return hash
  }
  if (await known.mayHave(job.size, first)) {
    const leaves = await hashLeaves(job, job.source)
    await checkUnchanged(job)
    const id = contentIdOf(leaves)
    if (await known.isThere(id, job.size)) return { id, size: job.size }
  }
  return await cloneAndHash(job) ?? await copyAndHash(job)
}

async function copyAndHash (job: Job): Promise<Staged> {
  return await intoTemporary(job, async handle => {
    const leaves = await hashLeaves(job, job.source, handle)
    await checkUnchanged(job)
    return leaves
  })
}

/** A copy that shares the source's blocks (Btrfs, XFS, bcachefs), hashed afterwards: no byte is written. Undefined
 * where the file system cannot; whatever the reason, the plain copy is then tried and reports its own. */
async function cloneAndHash (job: Job): Promise<Staged | undefined> {
  // Through the descriptor, so that it is the file that was checked, even if the path now names another.
  if (process.platform !== 'linux') return undefined
  const temporary = temporaryIn(job.folder)
  let handle: FileHandle
  try {
    await copyFile(`/proc/self/fd/${job.source.fd}`, temporary, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)
    handle = await open(temporary, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch {
    await removeTemporary(temporary)
    return undefined
  }
  return await whole(job, temporary, handle, async () => {
    // The clone is a snapshot: from here on the source may change as it likes.
    await checkUnchanged(job)
    return await hashLeaves(job, handle)
  })
}

async function intoTemporary (job: Job, fill: (handle: FileHandle) => Promise<Buffer>): Promise<Staged> {
  const temporary = temporaryIn(job.folder)
  let handle: FileHandle
  try {
    handle = await open(temporary, 'wx', 0o600)
  } catch (error) {
    throw fileError(error, temporary)
  }
  return await whole(job, temporary, handle, async () => await fill(handle))
}

/** The temporary as a staged file, or, where `fill` fails, no temporary. */
async function whole (job: Job, temporary: string, handle: FileHandle, fill: () => Promise<Buffer>): Promise<Staged> {
  try {
    const leaves = await fill()
    return { id: contentIdOf(leaves), size: job.size, leaves, temporary, handle }
  } catch (error) {
    await handle.close()
    await removeTemporary(temporary)
    throw error
  }
}

/** The leaf list of the `size` bytes of `from`, which are written to `to` where that is given. */
async function hashLeaves (job: Job, from: FileHandle, to?: FileHandle): Promise<Buffer> {
  const { path, size, hashes, options: { onProgress, signal, isLater = false } } = job
  const count = leafCount(size)
  const leaves = Buffer.allocUnsafe(count * HASH_BYTES)
  const writeback = to === undefined || (isLater && size <= MOST_LATER_BYTES) ? undefined : new Writeback(to)
  // All threads have something to do with a file of a few leaves, too.
  const most = Math.max(1, Math.min(MOST_COPIED / LEAF_BYTES, Math.floor(count / LANES)))
  let next = 0
  let done = 0
  let failed = false
  const lane = async (): Promise<void> => {
    while (next < count && !failed) {
      signal?.throwIfAborted()
      const index = next
      next += most
      const length = Math.min(size - index * LEAF_BYTES, most * LEAF_BYTES)
      const hash = await hashes.copy(path, from.fd, to?.fd, index * LEAF_BYTES, length)
      if (hash === undefined) throw changed(job)
      hash.copy(leaves, index * HASH_BYTES)
      done += length
      writeback?.wrote(length)
      onProgress?.(done, size)
    }
  }
  const lanes = await Promise.allSettled(Array.from({ length: Math.min(LANES, count) }, () => lane().catch((error: unknown) => {
    failed = true
    throw error
  })))
  // Only once every lane has ended may the caller close the handles.
  await writeback?.end()
  for (const ended of lanes) if (ended.status === 'rejected') throw ended.reason
  return leaves
}

/** Lets the disk begin while the copy goes on: what is synced at the end is then little. */
class Writeback {
  readonly #handle: FileHandle
  #bytes = 0
  #running: Promise<void> | undefined

  constructor (handle: FileHandle) {
    this.#handle = handle
  }

  wrote (bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes < WRITEBACK_BYTES || this.#running !== undefined) return
    this.#bytes = 0
    // What it says is said again by the sync at the end, which counts.
    this.#running = this.#handle.datasync().catch(() => undefined).finally(() => { this.#running = undefined })
  }

  async end (): Promise<void> {
    await this.#running
  }
}

/** Fills `buffer` from `position`; how many bytes there were. */
async function readAt ({ path }: Job, handle: FileHandle, buffer: Buffer, position: number): Promise<number> {
  let got = 0
  try {
    while (got < buffer.length) {
      const { bytesRead } = await handle.read(buffer, got, buffer.length - got, position + got)
      if (bytesRead === 0) break
      got += bytesRead
    }
  } catch (error) {
    throw fileError(error, path)
  }
  return got
}

/** Writes all of `bytes` at `position`. Throws `disk-full` and the like. */
export async function writeAt (handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  try {
    for (let put = 0; put < bytes.length;) {
      put += (await handle.write(bytes, put, bytes.length - put, position + put)).bytesWritten
    }
  } catch (error) {
    throw fileError(error, 'the file store')
  }
}

/** Once as many bytes were read as it said that it had: it has no more, and is what it was. ctime too: a program may set mtime back,
 * ctime it cannot. */
async function checkUnchanged (job: Job): Promise<void> {
  const { path, before, size, source } = job
  const more = await readAt(job, source, Buffer.allocUnsafe(1), size)
  const now = await source.stat({ bigint: true })
  if (now.size !== before.size || now.mtimeNs !== before.mtimeNs || now.ctimeNs !== before.ctimeNs || now.ino !== before.ino) throw changed(job)
  // What the system makes up as it is read (/proc) says that it is empty.
  if (more > 0) throw new PatchcordError('changed-while-read', `${path} has more than the ${size} bytes that the system says it has`, { hint: 'the system makes it up as it is read: copy it, and add the copy' })
}

function changed ({ path }: Job): PatchcordError {
  return new PatchcordError('changed-while-read', `${path} changed while it was read`)
}

/** A name in `folder` that no other import has. */
export function temporaryIn (folder: string): string {
  return join(folder, `${randomBytes(12).toString('hex')}.tmp`)
}

/** Removes a temporary that may be gone already. */
export async function removeTemporary (path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => { if (systemCode(error) !== 'ENOENT') throw fileError(error, path) })
}

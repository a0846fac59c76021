import { closeSync, constants, fstatSync, open as openDescriptor, read, type Stats } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { decodeBase32 } from '../core/base32.js'
import { fileError, systemCode } from '../core/errors.js'
import type { ContentId, DatabaseName } from '../core/ids.js'
import { Buffers } from './buffers.js'
import { HASH_BYTES, leafCount } from './content-id.js'
import { checkRoot, pathOf } from './layout.js'
import { parseRecords, RECORDS_MOST_BYTES } from './records.js'

// The store as the confined server sees it: three questions, all read only. Nothing but a regular file
// with one link is ever opened for reading: a symlink could lead out of the store, a FIFO or a device
// could block or never end, and bytes behind a second link are somebody else's to change. The check is
// made on the open descriptor, so nothing can be put in its place between check and use.

/** An open file of the store. Whoever asked for it closes `handle`. */
export interface OpenFile {
  readonly handle: FileHandle
  readonly size: number
}

/** A leaf list: in memory where the ID alone says it, else open on disk. `close` ends it either way. */
export interface OpenLeaves {
  readonly fileSize: number
  readonly bytes: Buffer | undefined
  readonly file: OpenFile | undefined
  close (): Promise<void>
}

/** The largest file that is read whole at once (bytes). */
export const SMALL_BYTES = 65_536

export interface FileReaderOptions {
  /** Told of a `.refs` file with a damaged line, which grants nothing. */
  readonly onDamage?: (path: string, line: number) => void
}

export class FileReader {
  readonly root: string
  /** For the transfers out of this store. */
  readonly buffers = new Buffers()
  readonly #onDamage: FileReaderOptions['onDamage']

  /** `root` is the absolute path of `files/`. It need not exist: everything is then absent. Throws `usage`. */
  constructor (root: string, options: FileReaderOptions = {}) {
    this.root = checkRoot(root)
    this.#onDamage = options.onDamage
  }

  /** Opens a file of the store, or undefined where there is none or what is there is not a regular file with
   * one link. Throws `unreadable` where the system refuses (permission, too many open files, a bad disk). */
  open (id: ContentId): Promise<OpenFile | undefined> {
    return openPlain(pathOf(this.root, id))
  }

  /** The bytes of a small file, in a fraction of the time that a `FileHandle` takes for the same four questions: two of them wait for a disk, and
   * each turn of libuv's pool costs more than the other two, which do not. Undefined where `open`
   * has to say what is there: it is larger, absent, or cannot be read. */
  readSmall (id: ContentId): Promise<Buffer | undefined> {
    return new Promise(resolve => {
      openDescriptor(pathOf(this.root, id), FLAGS, (error, descriptor) => {
        if (error !== null) {
          resolve(undefined)
          return
        }
        const done = (bytes?: Buffer): void => {
          // Some file systems tell of a failed disk here, and whoever throws into the system's answer ends the process.
          try { closeSync(descriptor) } catch { /* the bytes were read, or were not */ }
          resolve(bytes)
        }
        const size = smallSize(descriptor)
        if (size === undefined) {
          done()
          return
        }
        const bytes = Buffer.allocUnsafe(size)
        read(descriptor, bytes, 0, bytes.length, 0, (error, got) => { done(error === null && got === bytes.length ? bytes : undefined) })
      })
    })
  }

  /** Opens the leaf list of a file, or undefined where the file is not there or its list does not have the length
   * that its size asks for. The list is not hashed here: who receives it must, and a large one would block
   * the server. The list of a file of one leaf is its ID, and is not on disk. */
  async openLeaves (id: ContentId): Promise<OpenLeaves | undefined> {
    const content = await this.open(id)
    if (content === undefined) return undefined
    await content.handle.close()
    const fileSize = content.size
    if (leafCount(fileSize) === 1) {
      return { fileSize, bytes: Buffer.from(decodeBase32(id)), file: undefined, close: async () => {} }
    }
    const file = await openPlain(pathOf(this.root, id, '.leaves'))
    if (file === undefined) return undefined
    if (file.size !== leafCount(fileSize) * HASH_BYTES) {
      await file.handle.close()
      return undefined
    }
    return { fileSize, bytes: undefined, file, close: () => file.handle.close() }
  }

  /** The size and the whole leaf list of a file (32 bytes for each MiB), or undefined as for `openLeaves`. Not
   * hashed either: `checkLeaves` does that. */
  async leaves (id: ContentId): Promise<{ size: number, leaves: Buffer } | undefined> {
    const list = await this.openLeaves(id)
    if (list === undefined) return undefined
    try {
      const leaves = list.bytes ?? await list.file?.handle.readFile()
      if (leaves?.length !== leafCount(list.fileSize) * HASH_BYTES) return undefined
      return { size: list.fileSize, leaves }
    } finally {
      await list.close()
    }
  }

  /** The databases this file is recorded for, sorted; none where nothing is recorded. Fails closed: a damaged
   * line grants nothing and is reported to `onDamage`; what is not a regular file, or is larger than any
   * honest one, grants nothing at all. Throws `unreadable` where the system refuses. */
  async records (id: ContentId): Promise<DatabaseName[]> {
    const path = pathOf(this.root, id, '.refs')
    const file = await openPlain(path)
    if (file === undefined) return []
    try {
      if (file.size > RECORDS_MOST_BYTES) {
        this.#onDamage?.(path, 1)
        return []
      }
      const text = Buffer.alloc(file.size)
      const { bytesRead } = await file.handle.read(text, 0, file.size, 0)
      const { databases, damagedLine } = parseRecords(text.toString('latin1', 0, bytesRead))
      if (damagedLine !== undefined) this.#onDamage?.(path, damagedLine)
      return databases
    } catch (error) {
      throw fileError(error, path)
    } finally {
      await file.handle.close()
    }
  }
}

// O_NONBLOCK: opening a FIFO that nobody writes to must not wait. It means nothing for regular files.
const FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/** What `open` reports for something that is absent or not a file: nothing, a symlink, a socket, a folder
 * where none belongs. */
const ABSENT = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'ENXIO', 'ENODEV'])

const isPlain = (status: Stats): boolean => status.isFile() && status.nlink === 1

function smallSize (descriptor: number): number | undefined {
  try {
    const status = fstatSync(descriptor)
    return isPlain(status) && status.size <= SMALL_BYTES ? status.size : undefined
  } catch {
    return undefined
  }
}

async function openPlain (path: string): Promise<OpenFile | undefined> {
  let handle: FileHandle
  try {
    handle = await open(path, FLAGS)
  } catch (error) {
    if (ABSENT.has(systemCode(error) ?? '')) return undefined
    throw fileError(error, path)
  }
  try {
    const status = await handle.stat()
    if (isPlain(status)) return { handle, size: status.size }
  } catch (error) {
    await handle.close()
    throw fileError(error, path)
  }
  await handle.close()
  return undefined
}

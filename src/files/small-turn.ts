import { randomBytes } from 'node:crypto'
import { closeSync, constants, fchmodSync, fstatSync, fsync, linkSync, lstatSync, mkdirSync, openSync, readSync, renameSync, unlinkSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { systemCode } from '../core/errors.js'
import { contentIdOf, leafHash } from './content-id.js'
import { pathOf } from './layout.js'
import { SMALL_MOST, type SmallAnswer, type SmallDone, type SmallTask, type SmallWork } from './small-work.js'

// What is asked of many small files, done in one turn by calls that wait: for a thread of `SmallFiles` (small-worker.ts). What does not go as
// it should is undone and answered `undefined`: whoever asked then does it the long way, which says what is wrong.

const COMPLETE_MODE = 0o444
/** O_NONBLOCK: a FIFO must not make the import wait for a writer. */
const SOURCE_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/** Open, to be synced when all of this turn are written: the disk then has them all to sort. `path`: what is removed where that fails. */
interface Unsynced { readonly at: number, readonly fd: number, readonly path: string | undefined }

/** Syncs at once for one turn, on libuv's pool, which the whole process shares. The file systems join those that come together: 2,000 files of 4 KiB
 * took 1.3 s one by one, 0.7 by two, 0.45 by four at a time. */
const SYNCS_AT_ONCE = 3

let own: Buffer | undefined
let beyond: Buffer | undefined
const prefix = randomBytes(12).toString('hex')
let count = 0

/** Does all of it, in order, before it returns; what is to be synced is synced then, together, while the thread may begin another turn. */
export async function perform ({ asked, bytes }: SmallTask): Promise<SmallAnswer> {
  const unsynced: Unsynced[] = []
  const done: SmallDone[] = asked.map((one, at) => {
    try {
      switch (one.kind) {
        case 'take': return take(one, (fd, path) => { unsynced.push({ at, fd, path }) })
        case 'place': return place(one)
        case 'write': {
          write(one.to, bytes.subarray(one.at, one.at + one.length), 0o666, fd => { unsynced.push({ at, fd, path: one.to }) })
          return true
        }
        case 'link': return lstatSync(one.from).nlink === 1 ? (linkSync(one.from, one.to), true) : undefined
        case 'remove': return remove(one.path)
        case 'sync': {
          unsynced.push({ at, fd: openSync(one.path, constants.O_RDONLY | constants.O_NOFOLLOW), path: undefined })
          return true
        }
        case 'has': return has(one.path, one.size)
      }
    } catch {
      return undefined
    }
  })
  const lane = async (): Promise<void> => {
    for (let one = unsynced.pop(); one !== undefined; one = unsynced.pop()) {
      const { at, fd, path } = one
      try {
        try {
          await new Promise<void>((resolve, reject) => { fsync(fd, error => { if (error === null) resolve(); else reject(error) }) })
        } finally {
          closeSync(fd)
        }
      } catch {
        if (path !== undefined) removeQuietly(path)
        done[at] = undefined
      }
    }
  }
  await Promise.all(Array.from({ length: SYNCS_AT_ONCE }, lane))
  return { done }
}

function take ({ path, root, folder, isSynced }: SmallWork['take']['asked'], later: (fd: number, path: string) => void): SmallWork['take']['done'] | undefined {
  const source = openSync(path, SOURCE_FLAGS)
  let bytes: Buffer
  try {
    const before = fstatSync(source, { bigint: true })
    if (!before.isFile() || before.size > SMALL_MOST) return undefined
    bytes = (own ??= Buffer.allocUnsafeSlow(SMALL_MOST)).subarray(0, Number(before.size))
    for (let got = 0; got < bytes.length;) {
      const more = readSync(source, bytes, got, bytes.length - got, got)
      if (more === 0) return undefined
      got += more
    }
    // What the system makes up as it is read (/proc) says that it is empty, and is not.
    if (readSync(source, (beyond ??= Buffer.allocUnsafeSlow(1)), 0, 1, bytes.length) > 0) return undefined
    const now = fstatSync(source, { bigint: true })
    // ctime too: a program may set mtime back, ctime it cannot.
    if (now.size !== before.size || now.mtimeNs !== before.mtimeNs || now.ctimeNs !== before.ctimeNs || now.ino !== before.ino) return undefined
  } finally {
    closeSync(source)
  }
  const id = contentIdOf(leafHash(bytes))
  const size = bytes.length
  if (has(pathOf(root, id), size)) return { id, size, temporary: undefined }
  const temporary = join(folder, `${prefix}-${count++}.tmp`)
  write(temporary, bytes, COMPLETE_MODE, isSynced ? fd => { later(fd, temporary) } : closeSync)
  return { id, size, temporary }
}

/** Writes a file that is not there yet, and hands its descriptor on. Nothing is left of it where it throws. */
function write (path: string, bytes: Uint8Array, mode: number, then: (fd: number) => void): void {
  const fd = openSync(path, 'wx', mode)
  try {
    for (let put = 0; put < bytes.length;) put += writeSync(fd, bytes, put, bytes.length - put, put)
    // What the umask took from it.
    if (mode === COMPLETE_MODE && (process.umask() & mode) !== 0) fchmodSync(fd, mode)
  } catch (error) {
    closeSync(fd)
    removeQuietly(path)
    throw error
  }
  then(fd)
}

function place ({ temporary, to, size }: SmallWork['place']['asked']): SmallWork['place']['done'] {
  if (has(to, size)) {
    unlinkSync(temporary)
    return 'there'
  }
  try {
    renameSync(temporary, to)
    return 'new'
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error
    try {
      mkdirSync(dirname(to), { mode: 0o700 })
    } catch (error) {
      if (systemCode(error) !== 'EEXIST') throw error
    }
    renameSync(temporary, to)
    return 'in a new folder'
  }
}

function remove (path: string): boolean {
  try {
    unlinkSync(path)
    return true
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error
    return false
  }
}

/** The first error is the one to tell. */
function removeQuietly (path: string): void {
  try {
    unlinkSync(path)
  } catch {
    // Opening the store removes what is left over.
  }
}

function has (path: string, size: number): boolean {
  const status = lstatSync(path, { throwIfNoEntry: false })
  return status?.isFile() === true && status.nlink === 1 && status.size === size
}

import { constants } from 'node:fs'
import { link, lstat, open, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError, systemCode } from '../core/errors.js'
import { isContentId, type ContentId } from '../core/ids.js'
import { contentIdOf, LEAF_BYTES, leafHash, leafLength } from './content-id.js'
import { namesIn, unlinkIfThere } from './folders.js'
import { PerKey } from './per-key.js'
import type { SmallFiles } from './small-files.js'
import { removeTemporary, type Staged } from './staging.js'

/** What `link` says where it cannot, and a copy can: another file system, or one without links (FAT, many that are mounted over a network). */
export const NO_LINK: ReadonlySet<string> = new Set(['EXDEV', 'EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'])

/**
 * Files that were fetched to be given away, in `partial/<id>.whole`. They never enter the store: what a person receives is
 * on the disk once, and theirs to change, while no name of the store ever shares its bytes. One is there whole and on the
 * disk or not at all, and stays until it is dropped, so that a crash in between costs no second fetch. A file of one leaf may be there in
 * part after a crash: it is read before anybody counts on it.
 */
export class Asides {
  readonly #folder: string
  readonly #small: SmallFiles
  readonly #perFile = new PerKey<ContentId>()

  /** `folder` is the store's `partial/`. */
  constructor (folder: string, small: SmallFiles) {
    this.#folder = folder
    this.#small = small
  }

  path (id: ContentId): string {
    return join(this.#folder, `${id}.whole`)
  }

  /** Takes over a staged file, its handle and its temporary; durable when it resolves. Throws `disk-full` and the like. */
  async take ({ id, temporary, handle }: Staged): Promise<void> {
    try {
      try {
        await handle.chmod(0o666 & ~process.umask())
        await handle.sync()
      } finally {
        await handle.close()
      }
      // A crash may lose this name. The file is then fetched again; it is never there in part.
      await rename(temporary, this.path(id))
    } catch (error) {
      await removeTemporary(temporary)
      throw fileError(error, temporary)
    }
  }

  /** Takes in a small file that is not here; durable when it resolves. False where that did not go. */
  async write (id: ContentId, bytes: Uint8Array): Promise<boolean> {
    return await this.#perFile.run(id, async () => await this.#small.ask('write', { to: this.path(id), at: 0, length: bytes.length }, bytes) === true)
  }

  /** Whether the file is here, whole. One that has another name already may have been changed there: it is read, and
   * dropped where it was. */
  async has (id: ContentId, size: number): Promise<boolean> {
    return await this.#perFile.run(id, async () => await this.#has(id, size))
  }

  async #has (id: ContentId, size: number): Promise<boolean> {
    const path = this.path(id)
    const status = await lstat(path).catch((error: unknown) => {
      if (systemCode(error) !== 'ENOENT') throw fileError(error, path)
    })
    if (status === undefined) return false
    if (status.isFile() && status.size === size && ((status.nlink === 1 && size > LEAF_BYTES) || await isRight(id, size, path))) return true
    await this.drop(id)
    return false
  }

  /** Gives the file the name `to`; false where it has one already or `to` is on another file system: then a copy is due.
   * Throws EEXIST where `to` is taken. */
  async giveTo (id: ContentId, to: string): Promise<boolean> {
    return await this.#perFile.run(id, async () => {
      if (await this.#small.ask('link', { from: this.path(id), to }) === true) return true
      if ((await lstat(this.path(id))).nlink > 1) return false
      try {
        await link(this.path(id), to)
        return true
      } catch (error) {
        if (NO_LINK.has(systemCode(error) ?? '')) return false
        throw error
      }
    })
  }

  /** Forgets the file; whether there was one. What was given away stays. */
  async drop (id: ContentId): Promise<boolean> {
    return await this.#small.ask('remove', { path: this.path(id) }) ?? await unlinkIfThere(this.path(id))
  }

  /** All that there are, those of earlier processes too. */
  async all (): Promise<ContentId[]> {
    return (await namesIn(this.#folder)).flatMap(name => {
      const id = name.replace(/\.whole$/, '')
      return name.endsWith('.whole') && isContentId(id) ? [id] : []
    })
  }
}

async function isRight (id: ContentId, size: number, path: string): Promise<boolean> {
  const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const leaves: Buffer[] = []
    const buffer = Buffer.allocUnsafe(Math.min(size, LEAF_BYTES))
    for (let at = 0; at === 0 || at < size; at += LEAF_BYTES) {
      const { bytesRead } = await handle.read(buffer, 0, leafLength(size, at / LEAF_BYTES), at)
      leaves.push(leafHash(buffer.subarray(0, bytesRead)))
    }
    return contentIdOf(Buffer.concat(leaves)) === id
  } finally {
    await handle.close()
  }
}

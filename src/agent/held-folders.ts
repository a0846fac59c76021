import { constants } from 'node:fs'
import { lstat, open, type FileHandle } from 'node:fs/promises'
import { fileError, PatchcordError } from '../core/errors.js'
import { nameIn } from '../files/folders.js'

/** Handles that are kept for who comes next. */
const MOST_IDLE = 64

interface Held {
  readonly handle: Promise<FileHandle>
  uses: number
}

/** Folders in which something is made, each held open meanwhile: what has its path by now may be another one, or a link that leads elsewhere, and
 * nothing is written there. Node has no openat(2); below /proc/self/fd a name is looked for in the folder itself. */
export class HeldFolders {
  /** What the system calls them. */
  readonly #own = new Map<string, string>()
  readonly #held = new Map<string, Held>()

  /** The folder at `path`, whose links are gone through, is the one that is there now. */
  async begin (path: string): Promise<void> {
    const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY).catch((error: unknown) => { throw fileError(error, path) })
    this.#held.set(path, { handle: Promise.resolve(handle), uses: 0 })
    this.#own.set(path, nameIn(await handle.stat({ bigint: true })))
  }

  /** The folder at `path` is the one that was found at `at`, a path below a folder that is held. Throws `conflict` where that is none. What the system calls it. */
  async add (path: string, at: string): Promise<string> {
    const status = await lstat(at, { bigint: true })
    if (!status.isDirectory()) throw another(path)
    const own = nameIn(status)
    this.#own.set(path, own)
    return own
  }

  /** Does something in a folder that is known, by a path which leads into it whatever becomes of its own. Throws `conflict` where another has that. */
  async in<Result> (path: string, task: (at: string) => Promise<Result>): Promise<Result> {
    const held = this.#held.get(path) ?? { handle: this.#open(path), uses: 0 }
    // The newest is the last.
    this.#held.delete(path)
    this.#held.set(path, held)
    held.uses += 1
    try {
      const { fd } = await held.handle.catch((error: unknown) => {
        this.#held.delete(path)
        throw error
      })
      return await task(`/proc/self/fd/${fd}`)
    } finally {
      held.uses -= 1
      await this.#leave(MOST_IDLE)
    }
  }

  async close (): Promise<void> {
    await this.#leave(0)
  }

  async #leave (most: number): Promise<void> {
    for (const [path, { handle, uses }] of this.#held) {
      if (this.#held.size <= most) return
      if (uses > 0) continue
      this.#held.delete(path)
      await handle.then(open => open.close(), () => { /* whoever asked for it was told */ })
    }
  }

  async #open (path: string): Promise<FileHandle> {
    const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY).catch((error: unknown) => { throw fileError(error, path) })
    const own = await handle.stat({ bigint: true }).then(nameIn, () => undefined)
    if (own === this.#own.get(path)) return handle
    await handle.close()
    throw another(path)
  }
}

function another (path: string): PatchcordError {
  return new PatchcordError('conflict', `${path} is not the folder any more that it was`, { hint: 'it was moved or replaced while files landed in it; what is missing lands when that is tried again' })
}

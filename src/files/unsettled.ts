import { constants } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { syncFolder } from '../core/durable-file.js'
import { fileError, systemCode } from '../core/errors.js'
import { isContentId, type ContentId } from '../core/ids.js'
import { MOST_LATER_BYTES, writeAt } from './staging.js'

/**
 * Files that have their name in the store and may not be whole on the disk yet, and the durable note that says so, in
 * `partial/unsettled`: one ID a line, there before the file has its name. A line that is not whole names nothing, for its file
 * had no name yet. Whoever opens the store reads again what the note names. A name in it that need not be there costs
 * a reading and nothing else.
 */
export class Unsettled {
  readonly #path: string
  /** Each is an object of its own, which tells a file that was removed and came back from what it was. */
  readonly #files = new Map<ContentId, { readonly size: number }>()
  /** What reading them all again costs, in bytes. */
  #bytes = 0
  /** Bytes of the note. */
  #end = 0
  #turn: Promise<void> = Promise.resolve()
  /** Whether the note's own name is durable. */
  #isNamed = false

  constructor (path: string) {
    this.#path = path
  }

  /** What is noted now, all of it or that one file. */
  noted (id?: ContentId): Noted {
    if (id === undefined) return new Map(this.#files)
    const file = this.#files.get(id)
    return new Map(file === undefined ? [] : [[id, file]])
  }

  /** Whether so many bytes more may be left for later. */
  hasRoom (size: number): boolean { return this.#bytes + costOf(size) <= MOST_LATER_BYTES }

  /** What an earlier process left noted, its doubles once. They stay noted. */
  async left (): Promise<ContentId[]> {
    const text = await readFile(this.#path, 'latin1').catch((error: unknown) => {
      if (systemCode(error) === 'ENOENT') return ''
      throw fileError(error, this.#path)
    })
    this.#end = text.length
    // A last line that was cut is ended, or the next one would be part of it.
    if (text !== '' && !text.endsWith('\n')) await this.#write('\n')
    return [...new Set(text.split('\n').filter(isContentId))]
  }

  /** Counts a file whose line is in the note already. */
  adopt (id: ContentId, size: number): void {
    this.delete(id)
    this.#files.set(id, { size })
    this.#bytes += costOf(size)
  }

  /** Notes files durably: they may have their names once this resolves. Throws `disk-full` and the like. */
  async add (files: ReadonlyArray<{ readonly id: ContentId, readonly size: number }>): Promise<void> {
    const before = new Map(files.map(({ id }) => [id, this.#files.get(id)]))
    for (const { id, size } of files) this.adopt(id, size)
    try {
      await this.#inTurn(() => this.#write(files.map(({ id }) => `${id}\n`).join('')))
    } catch (error) {
      // One that was noted before is not on the disk by that.
      for (const [id, had] of before) {
        if (had === undefined) this.delete(id)
        else this.adopt(id, had.size)
      }
      throw fileError(error, this.#path)
    }
  }

  /** The file is not of interest any more: it was removed. */
  delete (id: ContentId): void {
    const file = this.#files.get(id)
    if (file !== undefined) this.#bytes -= costOf(file.size)
    this.#files.delete(id)
  }

  /** These are on the disk, as they were when they were asked for. The note ends with the last of all. */
  async settled (files: Noted): Promise<void> {
    for (const [id, file] of files) if (this.#files.get(id) === file) this.delete(id)
    await this.#inTurn(async () => {
      if (this.#files.size > 0 || this.#end === 0) return
      // That it is empty need not be durable.
      await (await open(this.#path, 'w', 0o600)).close()
      this.#end = 0
    })
  }

  async #write (lines: string): Promise<void> {
    const handle = await open(this.#path, constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
    try {
      const bytes = Buffer.from(lines, 'latin1')
      await writeAt(handle, bytes, this.#end)
      await handle.datasync()
      this.#end += bytes.length
    } finally {
      await handle.close()
    }
    if (!this.#isNamed) await syncFolder(dirname(this.#path))
    this.#isNamed = true
  }

  #inTurn (task: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(task)
    this.#turn = done.catch(() => undefined)
    return done
  }
}

/** Files that were noted, by their IDs. */
export type Noted = ReadonlyMap<ContentId, { readonly size: number }>

/** Opening a file costs as much as reading so many bytes of it. */
const LEAST_COST = 65_536

function costOf (size: number): number {
  return Math.max(size, LEAST_COST)
}

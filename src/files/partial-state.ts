import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { fileError, systemCode } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { checkLeaves, HASH_BYTES, leafCount } from './content-id.js'
import { isGiver, type Giver } from './giver.js'
import type { Mark } from './hash-worker.js'
import { writeAt } from './staging.js'

// What is known of a download that is not whole, beside it in `partial/<id>.bitmap`, written in place:
//
//     patchcord-partial/1 0000000000005242887\n      the size, 40 bytes in all
//     <n × 32 bytes>                                 the leaf list, checked against ID and size
//     <n bytes>                                      one for each leaf: 0 missing, 1 written, 2 recorded
//     <device ID>[ <database>]\n …                   who gave leaves, and on what account (giver.ts)
//
// `recorded` is set only after the leaf's bytes were made durable, and is itself made durable: no such leaf is
// asked for again. `written` costs no wait: it survives the process, and perhaps not the power. Neither is
// believed: whoever resumes reads the leaf and compares its hash, so that a disk that lied costs a leaf and
// never puts a wrong byte into the store. Who gave leaves is durable before their first leaf is written.

export const LEAF_STATE = { missing: 0, written: 1, recorded: 2 } as const

const MAGIC = 'patchcord-partial/1 '
const HEAD_BYTES = 40
/** A damaged file must not make us read for ever. */
const MOST_GIVERS = 10_000

/** What an earlier process knew of a download. */
export interface Remembered {
  readonly size: number
  readonly leaves: Buffer
  readonly states: Uint8Array
  readonly givers: Set<Giver>
}

/** The state file of one partial download, open for writing. */
export class PartialState {
  readonly #handle: FileHandle
  readonly #count: number
  /** Bytes of the lines that name givers. */
  #giverBytes: number

  private constructor (handle: FileHandle, count: number, givers: Iterable<Giver>) {
    this.#handle = handle
    this.#count = count
    this.#giverBytes = [...givers].reduce((sum, giver) => sum + giver.length + 1, 0)
  }

  /** Begins anew at `path`, durably, with every leaf missing. Throws `disk-full` and the like. */
  static async create (path: string, size: number, leaves: Uint8Array): Promise<PartialState> {
    const handle = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW, 0o600).catch((error: unknown) => { throw fileError(error, path) })
    try {
      const count = leafCount(size)
      await writeAt(handle, Buffer.concat([Buffer.from(`${MAGIC}${String(size).padStart(HEAD_BYTES - MAGIC.length - 1, '0')}\n`, 'latin1'), leaves, Buffer.alloc(count)]), 0)
      await handle.datasync()
      return new PartialState(handle, count, [])
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** Opens what an earlier process left, or undefined where that is nothing that can be gone on with. */
  static async open (path: string, id: ContentId): Promise<{ state: PartialState, remembered: Remembered } | undefined> {
    let handle: FileHandle
    try {
      handle = await open(path, constants.O_RDWR | constants.O_NOFOLLOW)
    } catch (error) {
      if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ELOOP') return undefined
      throw fileError(error, path)
    }
    try {
      const remembered = parse(await handle.readFile(), id)
      if (remembered !== undefined) return { state: new PartialState(handle, remembered.states.length, remembered.givers), remembered }
    } catch (error) {
      await handle.close()
      throw fileError(error, path)
    }
    await handle.close()
    return undefined
  }

  /** What is to be written once a leaf is, which says so; nothing is waited for but the system call. */
  markOf (index: number): Mark {
    return { to: this.#handle.fd, value: LEAF_STATE.written, position: this.#at(index) }
  }

  /** Writes that. */
  async written (index: number): Promise<void> {
    await writeAt(this.#handle, Buffer.of(LEAF_STATE.written), this.#at(index))
  }

  /** Records leaves whose bytes are durable, durably. */
  async record (indexes: readonly number[]): Promise<void> {
    // Those that lie side by side in one go.
    const sorted = indexes.toSorted((one, other) => one - other)
    for (let first = 0, next = 1; first < sorted.length; first = next++) {
      while (sorted[next] === sorted[next - 1]! + 1) next += 1
      await writeAt(this.#handle, Buffer.alloc(next - first, LEAF_STATE.recorded), this.#at(sorted[first]!))
    }
    await this.#handle.datasync()
  }

  /** Adds one to those that gave leaves, durably. */
  async addGiver (giver: Giver): Promise<void> {
    const line = Buffer.from(`${giver}\n`, 'latin1')
    await writeAt(this.#handle, line, this.#at(this.#count) + this.#giverBytes)
    this.#giverBytes += line.length
    await this.#handle.datasync()
  }

  async close (): Promise<void> {
    await this.#handle.close()
  }

  #at (index: number): number {
    return HEAD_BYTES + this.#count * HASH_BYTES + index
  }
}

function parse (bytes: Buffer, id: ContentId): Remembered | undefined {
  const digits = /^patchcord-partial\/1 (\d{19})\n$/.exec(bytes.toString('latin1', 0, HEAD_BYTES))?.[1]
  const size = Number(digits)
  if (digits === undefined || !Number.isSafeInteger(size)) return undefined
  const count = leafCount(size)
  const statesAt = HEAD_BYTES + count * HASH_BYTES
  if (bytes.length < statesAt + count) return undefined
  const leaves = bytes.subarray(HEAD_BYTES, statesAt)
  try {
    checkLeaves(id, size, leaves)
  } catch {
    return undefined
  }
  const givers = bytes.toString('latin1', statesAt + count).split('\n').slice(0, -1)
  if (givers.length > MOST_GIVERS || !givers.every(isGiver) || new Set(givers).size < givers.length) return undefined
  return { size, leaves, states: Uint8Array.from(bytes.subarray(statesAt, statesAt + count)), givers: new Set(givers) }
}

import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { ContentId, DatabaseName, DeviceId } from '../core/ids.js'
import { databaseName, parseJson } from '../core/shape.js'
import { giverOf, type Giver } from '../files/giver.js'
import { checkLeaves, EMPTY_ID, HASH_BYTES, LEAF_BYTES, leafCount } from '../files/content-id.js'
import { ACCOUNT_HEADER, FILE_SIZE_HEADER } from '../files/serve.js'
import { SMALL_MOST } from '../files/small-work.js'
import type { AnswerHead, ByteConnection, Exchange } from './byte-connection.js'
import type { BytePool } from './byte-pool.js'

// The questions about a file that one device asks another. Nothing that comes back is believed here but
// where it says so.

/** A device that may have a file, and the connections to it. */
export interface Source {
  readonly device: DeviceId
  readonly bytes: BytePool
  /** The database on whose account it is asked, by its name there: it answers only if it recorded the file for that one.
   * Without one, it answers for any reason that it has. */
  readonly account?: DatabaseName
}

/** What a source stands for as a giver of bytes. */
export function asGiver ({ device, account }: Source): Giver {
  return giverOf(device, account)
}

/** The leaf list of `id` and the size that the source tells with it, checked against each other and the ID (the length
 * of the last leaf is proven only by its bytes). Throws `not-found`, `verification`, `too-large` past `most` bytes of
 * file, `unreachable`. */
export async function askLeaves (source: Source, id: ContentId, most: number, signal: AbortSignal): Promise<{ size: number, leaves: Buffer }> {
  const { device } = source
  let size = NaN
  const leaves = await askWhole(source, `/files/${id}/leaves`, {}, signal, ({ headers }) => {
    const text = headers[FILE_SIZE_HEADER.toLowerCase()] ?? ''
    size = /^\d{1,15}$/.test(text) ? Number(text) : NaN
    if (!Number.isSafeInteger(size)) throw new PatchcordError('verification', `device ${device} tells no size for ${id}`)
    if (size > most) throw new PatchcordError('too-large', `${id} has ${size} bytes at device ${device}; the limit is ${most}`)
    return leafCount(size) * HASH_BYTES
  })
  checkLeaves(id, size, leaves)
  return { size, leaves }
}

/** The first leaf of a file, of `wanted` bytes where that is known, and the size that the source tells with it. One answer is so the
 * whole of a file of one leaf. Throws `not-found`, `verification`, `unreachable`. */
export async function askFirst (source: Source, id: ContentId, wanted: number | undefined, signal: AbortSignal): Promise<{ size: number, bytes: Buffer }> {
  const { device } = source
  let size = 0
  // No range of the empty file can be satisfied (RFC 9110 section 14.1.2), and only one ID is empty.
  const bytes = await askWhole(source, `/files/${id}`, id === EMPTY_ID ? {} : { Range: `bytes=0-${LEAF_BYTES - 1}` }, signal, head => {
    size = sizeIn(head) ?? NaN
    if (!Number.isSafeInteger(size) || head.length !== Math.min(size, LEAF_BYTES)) throw new PatchcordError('verification', `device ${device} answers no range of ${id}`)
    return head.length
  }, (wanted ?? Infinity) <= SMALL_MOST)
  return { size, bytes }
}

/** What `askRange` tells of on the way, and where it puts what comes. */
export interface RangeListener extends Pick<Exchange, 'signal' | 'onBytes' | 'place' | 'onPlaced'> {
  /** Told of the connection before anything is asked: `resume` goes on after `onBytes` said false. */
  readonly onConnection: (connection: ByteConnection) => void
}

/** Fetches bytes `start` to `end` (excluded) of a file of `size` bytes, and resolves when all have come. Throws as `askFirst` does, and
 * `conflict` where the source tells another size: one of those that told it is wrong. */
export async function askRange (source: Source, id: ContentId, size: number, start: number, end: number, { onConnection, ...listener }: RangeListener): Promise<void> {
  const { device, bytes } = source
  await bytes.get({
    path: pathFor(source, `/files/${id}`), headers: { Range: `bytes=${start}-${end - 1}` }, ...listener,
    onHead: head => {
      refuse(source, head)
      const isRange = head.status === 206 && head.headers['content-range'] === `bytes ${start}-${end - 1}/${size}` && head.length === end - start
      if (!isRange && !(head.status === 200 && start === 0 && head.length === size && end === size)) throw new PatchcordError('conflict', `device ${device} tells another size for ${id}, or answers another range`)
    },
  }, onConnection)
}

/** The size of the whole that an answer tells. */
function sizeIn ({ status, headers }: AnswerHead): number | undefined {
  const text = status === 206 ? /^bytes \d+-\d+\/(\d{1,15})$/.exec(headers['content-range'] ?? '')?.[1] : headers['content-length']
  const size = Number(text)
  return text !== undefined && Number.isSafeInteger(size) ? size : undefined
}

/** The whole body of an answer, behind which others wait on the same connection where it `isShort`. `expect` reads its head and says how many bytes there are, before anything is allocated. */
async function askWhole (source: Source, path: string, headers: Readonly<Record<string, string>>, signal: AbortSignal, expect: (head: AnswerHead) => number, isShort = false): Promise<Buffer> {
  const { device } = source
  let body: Buffer = Buffer.alloc(0)
  let at = 0
  await source.bytes.get({
    path: pathFor(source, path), headers, signal, isShort,
    onHead: head => {
      refuse(source, head)
      const length = expect(head)
      if (head.length !== length) throw new PatchcordError('verification', `device ${device} sends ${head.length} bytes instead of ${length}`)
      body = Buffer.allocUnsafe(length)
    },
    onBytes: piece => {
      at += piece.copy(body, at)
      return true
    },
  })
  return body
}

function pathFor ({ account }: Source, path: string): string {
  return account === undefined ? path : `${path}?database=${encodeURIComponent(account)}`
}

function refuse ({ device, account }: Source, { status, headers }: AnswerHead): void {
  if (status === 200 || status === 206) {
    if (account === undefined || headers[ACCOUNT_HEADER.toLowerCase()] === account) return
    // A version that does not know the question answers another one. Nothing it gives may count for the database.
    throw new PatchcordError('not-found', `device ${device} does not answer on account of a database`, { hint: 'its patchcord is older than this one' })
  }
  if (status === 404) throw new PatchcordError('not-found', `device ${device} does not have it, or does not share it with this device`)
  if (status === 429) throw new PatchcordError('too-many', `device ${device} wants fewer requests at once`)
  throw new PatchcordError('unreachable', status === 503 ? `device ${device} cannot give files now (503)` : `device ${device} answered ${status}`, { hint: 'the log there says why: patchcord logs' })
}

const Records = v.object({ databases: v.array(databaseName) })
const MOST_RECORDS_BYTES = 1_048_576

/** The databases that an own device recorded the file for (`account` means nothing here); none where it does not have it, or is not an own device. */
export async function askRecords (source: Source, id: ContentId, signal: AbortSignal): Promise<readonly DatabaseName[]> {
  try {
    const body = await askWhole({ device: source.device, bytes: source.bytes }, `/files/${id}/records`, {}, signal, ({ length }) => {
      if (length > MOST_RECORDS_BYTES) throw new PatchcordError('verification', `the records of device ${source.device} are too long`)
      return length
    })
    return parseJson(Records, body.toString('utf8'), `the records of device ${source.device}`, 'verification').databases
  } catch (error) {
    if (error instanceof PatchcordError && error.code === 'not-found') return []
    throw error
  }
}

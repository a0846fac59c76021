import type { Agent, IncomingMessage } from 'node:http'
import * as v from 'valibot'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId, DatabaseName, DeviceId } from '../core/ids.js'
import { databaseName, parseJson } from '../core/shape.js'
import { giverOf, type Giver } from '../files/giver.js'
import { checkLeaves, EMPTY_ID, HASH_BYTES, LEAF_BYTES, leafCount } from '../files/content-id.js'
import { ACCOUNT_HEADER, FILE_SIZE_HEADER } from '../files/serve.js'
import { askPeer, readBody } from './peer-agent.js'

// The questions about a file that one device asks another. Nothing that comes back is believed here but
// where it says so.

/** A device that may have a file, and the connections to it. */
export interface Source {
  readonly device: DeviceId
  readonly agent: Agent
  /** The database on whose account it is asked, by its name there: it answers only if it recorded the file for that one.
   * Without one, it answers for any reason that it has. */
  readonly account?: DatabaseName
}

/** What a source stands for as a giver of bytes. */
export function asGiver ({ device, account }: Source): Giver {
  return giverOf(device, account)
}

/** A source that says nothing for this long is not waited for (ms). */
export const SILENT_MS = 30_000

/** The leaf list of `id` and the size that the source tells with it, checked against each other and the ID (the length
 * of the last leaf is proven only by its bytes). Throws `not-found`, `verification`, `too-large` past `most` bytes of
 * file, `unreachable`. */
export async function askLeaves (source: Source, id: ContentId, most: number, signal: AbortSignal): Promise<{ size: number, leaves: Buffer }> {
  const { device } = source
  const answer = await ask(source, `/files/${id}/leaves`, {}, signal)
  const text = answer.headers[FILE_SIZE_HEADER.toLowerCase()]
  const size = typeof text === 'string' && /^\d{1,15}$/.test(text) ? Number(text) : NaN
  if (answer.statusCode !== 200 || !Number.isSafeInteger(size) || size > most) {
    answer.destroy()
    if (size > most) throw new PatchcordError('too-large', `${id} has ${size} bytes at device ${device}; the limit is ${most}`)
    throw new PatchcordError('verification', `device ${device} tells no size for ${id}`)
  }
  const expected = leafCount(size) * HASH_BYTES
  const leaves = await read(device, answer, expected)
  if (leaves.length < expected && !answer.complete) throw new PatchcordError('unreachable', `device ${device} went away`)
  checkLeaves(id, size, leaves)
  return { size, leaves }
}

/** The first leaf of a file whose size is not known, and the size that the source tells with it. One answer is so the
 * whole of a file of one leaf. Throws `not-found`, `verification`, `unreachable`. */
export async function askFirst (source: Source, id: ContentId, signal: AbortSignal): Promise<{ size: number, bytes: Buffer }> {
  const { device } = source
  // No range of the empty file can be satisfied (RFC 9110 section 14.1.2), and only one ID is empty.
  const answer = await ask(source, `/files/${id}`, id === EMPTY_ID ? {} : { Range: `bytes=0-${LEAF_BYTES - 1}` }, signal)
  const size = sizeIn(answer)
  if (size === undefined || (answer.statusCode === 200 && size > LEAF_BYTES)) {
    answer.destroy()
    throw new PatchcordError('verification', `device ${device} answers no range of ${id}`)
  }
  const expected = Math.min(size, LEAF_BYTES)
  const bytes = await read(device, answer, expected)
  if (bytes.length < expected) throw new PatchcordError('unreachable', `device ${device} went away`)
  return { size, bytes }
}

/** Begins to fetch bytes `start` to `end` (excluded) of a file of `size` bytes. The caller reads the body or destroys
 * it. Throws as `askFirst` does, and `conflict` where the source tells another size: one of those that told it is wrong. */
export async function askRange (source: Source, id: ContentId, size: number, start: number, end: number, signal: AbortSignal): Promise<IncomingMessage> {
  const { device } = source
  const answer = await ask(source, `/files/${id}`, { Range: `bytes=${start}-${end - 1}` }, signal)
  if (answer.statusCode === 206 && answer.headers['content-range'] === `bytes ${start}-${end - 1}/${size}`) return answer
  if (answer.statusCode === 200 && start === 0 && answer.headers['content-length'] === String(size)) return answer
  answer.destroy()
  throw new PatchcordError('conflict', `device ${device} tells another size for ${id}, or answers another range`)
}

/** The size of the whole that an answer tells. */
function sizeIn ({ statusCode, headers }: IncomingMessage): number | undefined {
  const text = statusCode === 206 ? /^bytes \d+-\d+\/(\d{1,15})$/.exec(headers['content-range'] ?? '')?.[1] : headers['content-length']
  const size = Number(text)
  return text !== undefined && Number.isSafeInteger(size) ? size : undefined
}

async function read (device: DeviceId, answer: IncomingMessage, most: number): Promise<Buffer> {
  try {
    return await readBody(answer, most)
  } catch (error) {
    if (error instanceof PatchcordError) throw new PatchcordError('verification', error.message, { cause: error })
    throw new PatchcordError('unreachable', `device ${device} went away: ${messageOf(error)}`, { cause: error })
  }
}

async function ask ({ device, agent, account }: Source, path: string, headers: Record<string, string>, signal: AbortSignal): Promise<IncomingMessage> {
  const answer = await askPeer(agent, device, account === undefined ? path : `${path}?database=${encodeURIComponent(account)}`, { signal, headers, silentMs: SILENT_MS })
  if (answer.statusCode === 200 || answer.statusCode === 206) {
    if (account === undefined || answer.headers[ACCOUNT_HEADER.toLowerCase()] === account) return answer
    // A version that does not know the question answers another one. Nothing it gives may count for the database.
    answer.destroy()
    throw new PatchcordError('not-found', `device ${device} does not answer on account of a database`, { hint: 'its patchcord is older than this one' })
  }
  answer.resume()
  if (answer.statusCode === 404) throw new PatchcordError('not-found', `device ${device} does not have it, or does not share it with this device`)
  if (answer.statusCode === 429) throw new PatchcordError('too-many', `device ${device} wants fewer requests at once`)
  throw new PatchcordError('unreachable', answer.statusCode === 503 ? `device ${device} cannot give files now (503)` : `device ${device} answered ${answer.statusCode}`, { hint: 'the log there says why: patchcord logs' })
}

const Records = v.object({ databases: v.array(databaseName) })
const MOST_RECORDS_BYTES = 1_048_576

/** The databases that an own device recorded the file for (`account` means nothing here); none where it does not have it, or is not an own device. */
export async function askRecords (source: Source, id: ContentId, signal: AbortSignal): Promise<readonly DatabaseName[]> {
  try {
    const answer = await ask({ device: source.device, agent: source.agent }, `/files/${id}/records`, {}, signal)
    return parseJson(Records, (await read(source.device, answer, MOST_RECORDS_BYTES)).toString('utf8'), `the records of device ${source.device}`, 'verification').databases
  } catch (error) {
    if (error instanceof PatchcordError && error.code === 'not-found') return []
    throw error
  }
}

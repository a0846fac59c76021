import type { IncomingMessage } from 'node:http'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { ContentId, DeviceId } from '../core/ids.js'
import { HASH_BYTES, LEAF_BYTES, leafCount, leafLength } from '../files/content-id.js'
import { PartialFile } from '../files/partial.js'
import { FILE_SIZE_HEADER } from '../files/serve.js'
import type { FileStore } from '../files/store.js'
import { askPeer, readBody, type PeerAgent } from './peer-agent.js'

export interface Source {
  readonly device: DeviceId
  readonly agent: PeerAgent
}

export interface DownloadOptions {
  readonly signal?: AbortSignal
  /** Bytes verified and written so far, and in all. */
  readonly onProgress?: (done: number, total: number) => void
  /** Files larger than this (bytes) are not begun. */
  readonly most?: number
}

/** Fetches one file whole from one device into the store: the leaf list first, checked against the ID and
 * the size, then the bytes, each leaf verified before it is written. Throws `not-found` where the device
 * does not have it or does not give it, `verification` where it lies, `unreachable`, `disk-full`; the store
 * is then as it was. */
export async function download (store: FileStore, { device, agent }: Source, id: ContentId, { signal, onProgress, most = Number.MAX_SAFE_INTEGER }: DownloadOptions = {}): Promise<{ size: number }> {
  const { size, leaves } = await fetchLeaves(agent, device, id, most, signal)
  const partial = await PartialFile.create(store, { id, size, leaves })
  try {
    if (size > 0) await fetchContent(partial, agent, device, signal, onProgress)
    await partial.complete()
    return { size }
  } finally {
    await partial.discard()
  }
}

async function fetchLeaves (agent: PeerAgent, device: DeviceId, id: ContentId, most: number, signal: AbortSignal | undefined): Promise<{ size: number, leaves: Buffer }> {
  const answer = await ask(agent, device, `/files/${id}/leaves`, signal)
  const text = answer.headers[FILE_SIZE_HEADER.toLowerCase()]
  const size = typeof text === 'string' && /^\d{1,15}$/.test(text) ? Number(text) : NaN
  if (!Number.isSafeInteger(size)) {
    answer.destroy()
    throw new PatchcordError('verification', `device ${device} tells no size for ${id}`)
  }
  if (size > most) {
    answer.destroy()
    throw new PatchcordError('too-large', `${id} has ${size} bytes; the limit is ${most}`)
  }
  return { size, leaves: await readBody(answer, leafCount(size) * HASH_BYTES) }
}

async function fetchContent (partial: PartialFile, agent: PeerAgent, device: DeviceId, signal: AbortSignal | undefined, onProgress: DownloadOptions['onProgress']): Promise<void> {
  const answer = await ask(agent, device, `/files/${partial.id}`, signal)
  const leaf = Buffer.allocUnsafe(Math.min(LEAF_BYTES, partial.size))
  let index = 0
  let filled = 0
  let done = 0
  try {
    for await (const chunk of answer as AsyncIterable<Buffer>) {
      let at = 0
      while (at < chunk.length) {
        if (index >= leafCount(partial.size)) throw new PatchcordError('verification', `device ${device} sends more bytes of ${partial.id} than it has`)
        const whole = leafLength(partial.size, index)
        const copied = chunk.copy(leaf, filled, at, at + whole - filled)
        at += copied
        filled += copied
        if (filled === whole) {
          await partial.writeLeaf(index, leaf.subarray(0, whole))
          done += whole
          index += 1
          filled = 0
          onProgress?.(done, partial.size)
        }
      }
    }
  } catch (error) {
    answer.destroy()
    if (error instanceof PatchcordError || signal?.aborted === true) throw error
    throw new PatchcordError('unreachable', `device ${device} went away after ${done} of ${partial.size} bytes: ${messageOf(error)}`, { cause: error })
  }
  if (done < partial.size) throw new PatchcordError('unreachable', `device ${device} ended after ${done} of ${partial.size} bytes`)
}

async function ask (agent: PeerAgent, device: DeviceId, path: string, signal: AbortSignal | undefined): Promise<IncomingMessage> {
  const answer = await askPeer(agent, device, path, signal === undefined ? {} : { signal })
  if (answer.statusCode === 200) return answer
  answer.resume()
  if (answer.statusCode === 404) throw new PatchcordError('not-found', `device ${device} does not have it, or does not share it with this device`)
  throw new PatchcordError('unreachable', `device ${device} answered ${answer.statusCode}`)
}

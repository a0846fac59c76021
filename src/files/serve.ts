import { read } from 'node:fs'
import type { Answering } from '../core/answering.js'
import { systemClock, type Clock } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import { CHUNK_BYTES, type Buffers } from './buffers.js'
import { Outflow, type Ending } from './outflow.js'
import { matchFails, noneMatchHits, parseRange, rangeStands } from './range.js'
import { SMALL_BYTES, type FileReader, type OpenFile } from './reader.js'

// Answers GET and HEAD of one file or of its leaf list. The decision whether the caller may read it was made
// before; here only the store and RFC 9110 speak. Content-Length is a promise: where the bytes run
// out under a transfer the connection is destroyed, never padded, so that the client knows.

export interface FileRequest {
  readonly id: ContentId
  readonly part: 'content' | 'leaves'
  readonly method: 'GET' | 'HEAD'
  /** Names in lower case. */
  readonly headers: ReadonlyMap<string, string>
  /** The database on whose account it was asked for and allowed. */
  readonly account?: string | undefined
}

export interface Served {
  readonly status: 200 | 206 | 304 | 412 | 416
  /** Bytes of the body that left this process. */
  readonly bytes: number
  readonly ending: Ending
}

/** Header of a leaf list's answer: the size of the file, in decimal. */
export const FILE_SIZE_HEADER = 'Patchcord-File-Size'

/** Header of an answer on account of a database: its name. Who asked so sees that the question was understood; a server
 * that knows no accounts would answer for any reason it has. */
export const ACCOUNT_HEADER = 'Patchcord-Database'

/** Answers the request and resolves when the answer has ended, however it ended (`ending` says); a small one once it was handed down whole,
 * so that the next may be answered while it waits to be written. Throws
 * `not-found` where the file is not there, and `unreadable` where the system refuses it, both before any
 * header is set; after that it does not throw. Every handle is closed when it resolves. */
export async function serveFile (reader: FileReader, request: FileRequest, response: Answering, limits: { readonly stallMs: number }, clock: Clock = systemClock): Promise<Served> {
  const body = await bodyOf(reader, request)
  if (body === undefined) throw new PatchcordError('not-found', `there is no file ${request.id} here`)
  try {
    const { status, headers, start, length } = plan(request, body)
    const isSmall = length <= SMALL_BYTES || request.method === 'HEAD'
    const bytes = isSmall ? await readSmall(body, start, request.method === 'HEAD' ? 0 : length) : undefined
    response.writeHead(status, headers)
    if (bytes !== undefined) {
      // As text, which Node writes with the head in one piece.
      response.end(bytes.toString('latin1'), 'latin1')
      return { status, bytes: bytes.length, ending: 'whole' }
    }
    if (isSmall) {
      response.destroy()
      return { status, bytes: 0, ending: 'cut' }
    }
    const outflow = new Outflow(response, limits.stallMs, clock)
    const ending = await send(body, reader.buffers, start, length, outflow)
    return { status, bytes: outflow.bytes, ending }
  } finally {
    await body.close()
  }
}

interface Body {
  readonly size: number
  readonly extra: Record<string, string>
  /** All of it, where it is in memory. */
  readonly whole?: Buffer | undefined
  /** Reads into `buffer` from its start; how many bytes, 0 at the end. */
  read (buffer: Buffer, length: number, position: number): Promise<number>
  close (): Promise<void>
}

/** By callback: the handle's own `read` costs a promise, a reference count and several calls more for each piece. */
function readAt ({ handle }: OpenFile, buffer: Buffer, length: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    read(handle.fd, buffer, 0, length, position, (error, bytes) => { if (error === null) resolve(bytes); else reject(error) })
  })
}

async function bodyOf (reader: FileReader, { id, part }: FileRequest): Promise<Body | undefined> {
  if (part === 'content') {
    const whole = await reader.readSmall(id)
    if (whole !== undefined) return { size: whole.length, extra: {}, whole, read: fromMemory(whole), close: nothing }
    const file = await reader.open(id)
    if (file === undefined) return undefined
    return {
      size: file.size,
      extra: {},
      read: (buffer, length, position) => readAt(file, buffer, length, position),
      close: () => file.handle.close(),
    }
  }
  const list = await reader.openLeaves(id)
  if (list === undefined) return undefined
  const { bytes, file } = list
  return {
    size: bytes?.length ?? file?.size ?? 0,
    extra: { [FILE_SIZE_HEADER]: String(list.fileSize) },
    whole: bytes,
    read: bytes !== undefined ? fromMemory(bytes) : (buffer, length, position) => file === undefined ? Promise.resolve(0) : readAt(file, buffer, length, position),
    close: () => list.close(),
  }
}

const fromMemory = (bytes: Buffer): Body['read'] => (buffer, length, position) => Promise.resolve(bytes.copy(buffer, 0, position, position + length))
const nothing = (): Promise<void> => Promise.resolve()

/** What to answer, in the order of RFC 9110 section 13.2.2. Range means nothing for HEAD (section 14.2). */
function plan ({ id, method, headers: asked, account }: FileRequest, { size, extra }: Body): { status: Served['status'], headers: Record<string, string>, start: number, length: number } {
  const etag = `"${id}"`
  // A file is whatever its owner put there; a browser that shows it must neither guess a type nor run it.
  const always = { 'X-Content-Type-Options': 'nosniff', 'Content-Security-Policy': 'sandbox', 'Accept-Ranges': 'bytes' }
  // Immutable, because the name is the content; private, because only this caller was allowed it.
  const known = { ...always, 'ETag': etag, 'Cache-Control': 'private, immutable, max-age=31536000' }
  const whole = { ...known, ...extra, ...account === undefined ? {} : { [ACCOUNT_HEADER]: account }, 'Content-Type': 'application/octet-stream' }
  if (matchFails(asked.get('if-match'), etag)) {
    return { status: 412, headers: { ...always, 'Content-Length': '0' }, start: 0, length: 0 }
  }
  if (noneMatchHits(asked.get('if-none-match'), etag)) {
    return { status: 304, headers: known, start: 0, length: 0 }
  }
  const wanted = method === 'GET' && rangeStands(asked.get('if-range'), etag) ? parseRange(asked.get('range'), size) : { kind: 'none' as const }
  switch (wanted.kind) {
    case 'none':
      return { status: 200, headers: { ...whole, 'Content-Length': String(size) }, start: 0, length: size }
    case 'range': {
      const length = wanted.end - wanted.start + 1
      const headers = { ...whole, 'Content-Length': String(length), 'Content-Range': `bytes ${wanted.start}-${wanted.end}/${size}` }
      return { status: 206, headers, start: wanted.start, length }
    }
    case 'unsatisfiable':
      return { status: 416, headers: { ...always, 'Content-Length': '0', 'Content-Range': `bytes */${size}` }, start: 0, length: 0 }
  }
}

/** Two buffers in turn: while one is being written the other is being read into; where many transfers run, one.
 * Backpressure is the wait for a buffer's write to be done, so a slow client holds two buffers and no more. */
async function send (body: Body, buffers: Buffers, start: number, length: number, outflow: Outflow): Promise<Ending> {
  const held: Array<Buffer | undefined> = []
  buffers.begin()
  try {
    outflow.sendHead()
    for (let sent = 0, turn = 0; sent < length; turn++) {
      const slot = turn % 2
      if (!await outflow.free(slot)) return outflow.ending
      give(slot)
      if (!buffers.readAhead) {
        if (!await outflow.free(1 - slot)) return outflow.ending
        give(1 - slot)
      }
      const want = Math.min(length - sent, CHUNK_BYTES)
      const position = start + sent
      const got = await buffers.turns.run(() => readFully(body, held[slot] = buffers.take(), want, position))
      if (got < want) return outflow.cut()
      sent += want
      outflow.write(slot, held[slot]!.subarray(0, want))
    }
    return await outflow.end()
  } catch {
    // A disk that fails under a transfer is the same to the client as a file that shrank.
    return outflow.cut()
  } finally {
    // TLS may still hold a buffer whose write was not called back: such a one is never used again.
    for (const slot of [0, 1]) if (outflow.isFree(slot)) give(slot)
    buffers.end()
  }

  function give (slot: number): void {
    const buffer = held[slot]
    held[slot] = undefined
    if (buffer !== undefined) buffers.give(buffer)
  }
}

/** A piece in a buffer of its own, so that a thousand small files hold no large ones; undefined where the disk no longer has it. */
async function readSmall (body: Body, start: number, length: number): Promise<Buffer | undefined> {
  if (body.whole !== undefined) return body.whole.subarray(start, start + length)
  const buffer = Buffer.allocUnsafe(length)
  try {
    return await readFully(body, buffer, length, start) < length ? undefined : buffer
  } catch {
    return undefined
  }
}

async function readFully (body: Body, buffer: Buffer, length: number, position: number): Promise<number> {
  let got = await body.read(buffer, length, position)
  while (got < length) {
    const more = await body.read(buffer.subarray(got), length - got, position + got)
    if (more === 0) return got
    got += more
  }
  return got
}

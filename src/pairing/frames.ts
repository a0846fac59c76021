import { splitLvCat, lvCat } from '../core/lv-cat.js'

// One message on the TLS stream is a frame: its number (one byte), the length of its body (two bytes, big
// endian) and the body, which is an lv_cat of the message's fields. The caps are tight and are looked at
// before the body arrives, so that a stranger fills no memory.

/** The number of each message. `refuse` may come in place of any. */
export const MESSAGE = { hello: 1, share: 2, tagI: 3, tagR: 4, recordI: 5, recordR: 6, accept: 7, commit: 8, done: 9, refuse: 15 } as const

export type MessageNumber = typeof MESSAGE[keyof typeof MESSAGE]

const TAG = 64 + 1
/** Ten times what a record needs; one that would be longer is refused where it is made. */
export const RECORD_LIMIT = 32_768

/** The longest body of each message, in bytes. */
export const CAPS: Readonly<Record<MessageNumber, number>> = {
  // v, kind, Ya, each with its length
  [MESSAGE.hello]: 2 + 5 + 33,
  [MESSAGE.share]: 33,
  [MESSAGE.tagI]: TAG,
  [MESSAGE.tagR]: TAG,
  [MESSAGE.recordI]: RECORD_LIMIT + 3 + TAG,
  [MESSAGE.recordR]: RECORD_LIMIT + 3 + TAG,
  [MESSAGE.accept]: TAG,
  // two certificates of at most 4 KiB
  [MESSAGE.commit]: 2 * (4096 + 2) + 3 + TAG,
  [MESSAGE.done]: TAG,
  [MESSAGE.refuse]: 1 + 16,
}

const HEAD_BYTES = 3

export interface Frame {
  readonly number: MessageNumber
  readonly body: Buffer
}

/** The bytes of a message. Throws RangeError for a body over its cap: a record of ours that is too long. */
export function encodeFrame (number: MessageNumber, ...fields: Uint8Array[]): Buffer {
  const body = lvCat(...fields)
  if (body.length > CAPS[number]) throw new RangeError(`message ${number} of ${body.length} bytes is longer than ${CAPS[number]}`)
  const head = Buffer.alloc(HEAD_BYTES)
  head[0] = number
  head.writeUInt16BE(body.length, 1)
  return Buffer.concat([head, body])
}

/** The fields of a body, or undefined unless it is the one spelling of exactly `count` of them. */
export function splitFields (body: Uint8Array, count: number): Buffer[] | undefined {
  const fields = splitLvCat(body)
  return fields?.length === count && lvCat(...fields).equals(body) ? fields : undefined
}

/** Takes a stream apart. What has no number, or is longer than its cap, ends it: nothing after is read. */
export class FrameReader {
  #held: Buffer = Buffer.alloc(0)
  #broken = false

  /** The frames that `chunk` completes, in order, and whether the stream is broken after them. */
  push (chunk: Buffer): { frames: Frame[], broken: boolean } {
    const frames: Frame[] = []
    if (this.#broken) return { frames, broken: true }
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk])
    for (;;) {
      const number = this.#held[0] as MessageNumber | undefined
      if (number === undefined) break
      if (!(number in CAPS)) return this.#break(frames)
      if (this.#held.length < HEAD_BYTES) break
      const length = this.#held.readUInt16BE(1)
      if (length > CAPS[number]) return this.#break(frames)
      if (this.#held.length < HEAD_BYTES + length) break
      frames.push({ number, body: Buffer.from(this.#held.subarray(HEAD_BYTES, HEAD_BYTES + length)) })
      // The other side waits for an answer to each message, so it never has a reason to send two.
      if (frames.length > MOST_AT_ONCE) return this.#break(frames)
      this.#held = this.#held.subarray(HEAD_BYTES + length)
    }
    return { frames, broken: false }
  }

  #break (frames: Frame[]): { frames: Frame[], broken: boolean } {
    this.#broken = true
    this.#held = Buffer.alloc(0)
    return { frames, broken: true }
  }
}

/** M8 and a refusal may come in one segment with what was before; more is a flood. */
const MOST_AT_ONCE = 4

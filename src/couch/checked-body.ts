import { Transform, type Readable, type TransformCallback } from 'node:stream'
import type { BodyCheck } from './body-check.js'

/** The body of `source` as it may go on: each chunk after the check took it, and the last one only after
 * the check passed the whole. What reads it never holds a complete refused body, so an upstream that is
 * cut off when this stream fails never executes one. Chunks are passed on as they are, never copied.
 * Destroyed with the check's error, or with `ECONNRESET` where the source ended before its end. */
export function checkedBody (source: Readable, check: BodyCheck): Readable {
  const body = new CheckedBody(check)
  source.once('error', error => { body.destroy(error) })
  source.once('close', () => { if (!source.readableEnded) body.destroy(cutShort()) })
  if (source.destroyed && !source.readableEnded) body.destroy(cutShort())
  else source.pipe(body)
  return body
}

function cutShort (): Error {
  return Object.assign(new Error('the body ended before its end'), { code: 'ECONNRESET' })
}

/** Holds back one whole chunk, not one byte: a byte of its own would double the writes. */
class CheckedBody extends Transform {
  readonly #check: BodyCheck
  #held: Buffer | undefined

  constructor (check: BodyCheck) {
    super()
    this.#check = check
  }

  override _transform (chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    try {
      this.#check.write(chunk)
    } catch (error) {
      done(error as Error)
      return
    }
    const before = this.#held
    this.#held = chunk
    done(null, before)
  }

  override _flush (done: TransformCallback): void {
    try {
      this.#check.end()
    } catch (error) {
      done(error as Error)
      return
    }
    done(null, this.#held)
  }
}

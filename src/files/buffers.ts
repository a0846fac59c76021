/** Bytes in a buffer of a transfer, of which two are in flight. 128 KiB to 1 MiB were measured; see the commit. */
export const CHUNK_BYTES = 524_288

/** Buffers of one size that are used again. A buffer goes back only once nothing else can still read it or write
 * into it; one whose fate is unknown is dropped, and the garbage collector has it. */
export class BufferPool {
  readonly bytes: number
  readonly #most: number
  readonly #free: Buffer[] = []

  /** Keeps at most `most` unused buffers of `bytes` bytes. */
  constructor (bytes: number, most: number) {
    this.bytes = bytes
    this.#most = most
  }

  /** A buffer with anything in it. */
  take (): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.bytes)
  }

  give (buffer: Buffer): void {
    if (this.#free.length < this.#most) this.#free.push(buffer)
  }
}

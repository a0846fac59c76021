/** Bytes in a buffer of a transfer, of which two are in flight. Measured on loopback, 1 GiB, plain HTTP, MiB/s: 64 KiB
 * 740, 128 KiB 1,600, 256 KiB 1,800, 512 KiB 2,350, 1 MiB 2,300. Over TLS, 256 KiB and more are alike (1,200 to 1,300),
 * and each transfer holds two. */
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

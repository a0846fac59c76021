import { Turns } from '../core/turns.js'

/** Bytes in a buffer of a transfer. Measured on loopback, 1 GiB, plain HTTP, MiB/s: 64 KiB 740, 128 KiB 1,600, 256 KiB 1,800,
 * 512 KiB 2,350, 1 MiB 2,300. Over TLS, 256 KiB and more are alike (1,200 to 1,300) for one client; for 64, each piece
 * costs some 12 µs besides its bytes, which is a fifth of the work at 64 KiB and little at 512. */
export const CHUNK_BYTES = 524_288

/** Reads at once, over all transfers: as many as Node has threads for them. Whoever waits for a turn holds no buffer, so
 * a hundred transfers that are all ready to be read for do not push each other's bytes out of the processor's cache. */
const READS_AT_ONCE = 4

/** Up to so many transfers read ahead, each into a second buffer, while the first is on its way out. With more, there
 * is always another whose bytes can be encrypted meanwhile, and one buffer each is enough. */
const READ_AHEAD_MOST = 4

/** Unused buffers that are kept while transfers run (32 MiB), and once there is none (2 MiB). */
const KEPT_BUSY = 64
const KEPT_IDLE = 4

/** The buffers of all transfers out of one store, and whose turn it is to read into one. A buffer goes back only
 * once nothing else can still read it or write into it; one whose fate is unknown is dropped, and the garbage collector
 * has it. The last one that came back is the first to go out again: it is the likeliest to be in the cache. */
export class Buffers {
  /** To read into one. */
  readonly turns = new Turns(READS_AT_ONCE)
  readonly #free: Buffer[] = []
  #transfers = 0

  /** Whether a transfer reads into a second buffer while its first is on the way. */
  get readAhead (): boolean { return this.#transfers <= READ_AHEAD_MOST }

  begin (): void { this.#transfers += 1 }

  end (): void {
    this.#transfers -= 1
    if (this.#transfers === 0) this.#free.splice(KEPT_IDLE)
  }

  /** A buffer with anything in it. */
  take (): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(CHUNK_BYTES)
  }

  give (buffer: Buffer): void {
    if (this.#free.length < (this.#transfers === 0 ? KEPT_IDLE : KEPT_BUSY)) this.#free.push(buffer)
  }
}

import { isUtf8 } from 'node:buffer'

/**
 * Checks that bytes arriving in chunks are UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing
 * above U+10FFFF). A whole chunk goes through Node's native check; only characters that a chunk border
 * cuts, and chunks that are wrong somewhere, are looked at byte by byte.
 */
export class Utf8Check {
  /** Continuation bytes still owed by a character that began earlier. */
  #owed = 0
  /** What the next continuation byte may be; the first after a lead byte is bounded more narrowly. */
  #low = 0x80
  #high = 0xbf

  /** The index of the first byte that cannot belong to UTF-8 text, or `chunk.length`. The answer does not
   * depend on where the stream was cut. Not to be called again after a wrong byte. */
  validUntil (chunk: Uint8Array): number {
    const start = this.#owed === 0 ? 0 : this.#walk(chunk, 0, true)
    if (this.#owed !== 0 || start === chunk.length) return start
    const rest = start === 0 ? chunk : chunk.subarray(start)
    const whole = rest.length - incompleteTail(rest)
    if (isUtf8(whole === rest.length ? rest : rest.subarray(0, whole))) return this.#walk(chunk, start + whole, false)
    return this.#walk(chunk, start, false)
  }

  /** Whether no character is left half read. */
  get complete (): boolean { return this.#owed === 0 }

  #walk (chunk: Uint8Array, from: number, oneCharacter: boolean): number {
    for (let at = from; at < chunk.length; at++) {
      const byte = chunk[at]!
      if (this.#owed > 0) {
        if (byte < this.#low || byte > this.#high) return at
        this.#low = 0x80
        this.#high = 0xbf
        if (--this.#owed === 0 && oneCharacter) return at + 1
      } else if (byte >= 0x80 && !this.#lead(byte)) return at
    }
    return chunk.length
  }

  #lead (byte: number): boolean {
    if (byte < 0xc2 || byte > 0xf4) return false
    this.#owed = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3
    if (byte === 0xe0) this.#low = 0xa0
    if (byte === 0xed) this.#high = 0x9f
    if (byte === 0xf0) this.#low = 0x90
    if (byte === 0xf4) this.#high = 0x8f
    return true
  }
}

/** How many bytes at the end begin a character that may go on in the next chunk. */
function incompleteTail (bytes: Uint8Array): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back]!
    if (byte < 0x80) return 0
    if (byte >= 0xc0) return back < (byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4) ? back : 0
  }
  return 0
}

// RFC 4648 base32, lower case, without padding, for values of exactly 32 bytes: 52 characters. IDs are
// compared as text everywhere, so each value must have one spelling: the four spare bits of the last
// character must be zero, and upper case is refused instead of folded.

const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567'
/** Also the pattern of docs/env.schema.json. */
export const SPELLING = /^[a-z2-7]{51}[aq]$/

/** Whether `text` is the one canonical spelling of 32 bytes. */
export function isBase32Id (text: string): boolean {
  return SPELLING.test(text)
}

/** 32 bytes as 52 characters. */
export function encodeBase32 (bytes: Uint8Array): string {
  if (bytes.length !== 32) throw new RangeError(`encodeBase32 takes 32 bytes, not ${bytes.length}`)
  let text = ''
  let held = 0
  let bits = 0
  for (const byte of bytes) {
    held = (held << 8) | byte
    bits += 8
    while (bits >= 5) {
      bits -= 5
      text += ALPHABET[(held >>> bits) & 31]
    }
    held &= (1 << bits) - 1
  }
  return text + ALPHABET[(held << (5 - bits)) & 31]
}

/** The 32 bytes that a canonical spelling stands for. Throws RangeError for any other text. */
export function decodeBase32 (text: string): Uint8Array {
  if (!isBase32Id(text)) throw new RangeError('not the canonical base32 of 32 bytes')
  const bytes = new Uint8Array(32)
  let held = 0
  let bits = 0
  let at = 0
  for (const character of text) {
    held = ((held << 5) | ALPHABET.indexOf(character)) & 0xfff
    bits += 5
    if (bits >= 8 && at < 32) {
      bits -= 8
      bytes[at++] = (held >>> bits) & 255
    }
  }
  return bytes
}

// The length-prefixed concatenation of the CPace draft (draft-irtf-cfrg-cpace, section 9.1): each part after
// its length in unsigned LEB128. Two different lists of parts never give the same bytes.

/** All parts, each after its length. */
export function lvCat (...parts: Uint8Array[]): Buffer {
  return Buffer.concat(parts.flatMap(part => [leb128(part.length), part]))
}

/** The parts of a concatenation, or undefined where `bytes` are not the canonical spelling of any: cut
 * off, or with a length longer than it need be. */
export function splitLvCat (bytes: Uint8Array): Buffer[] | undefined {
  const input = Buffer.from(bytes)
  const parts: Buffer[] = []
  for (let at = 0; at < input.length;) {
    let length = 0
    let shift = 0
    let byte: number | undefined
    do {
      byte = input[at++]
      // Four groups of seven bits: 256 MiB, more than any record.
      if (byte === undefined || shift > 21) return undefined
      length |= (byte & 0x7f) << shift
      shift += 7
    } while (byte >= 0x80)
    if (byte === 0 && shift > 7) return undefined
    if (length > input.length - at) return undefined
    parts.push(input.subarray(at, at + length))
    at += length
  }
  return parts
}

function leb128 (length: number): Buffer {
  const bytes: number[] = []
  do {
    bytes.push(length & 0x7f | (length > 0x7f ? 0x80 : 0))
    length >>>= 7
  } while (length > 0)
  return Buffer.from(bytes)
}

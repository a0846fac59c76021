import { PatchcordError } from '../core/errors.js'

// A reader of DER (X.690 section 10) for what strangers send before anything is known about them. It is
// our own because the kept libraries are lenient: asn1js takes indefinite and padded lengths, so that two
// spellings give one certificate, and spends 131 ms on a 1 MB OID. Here an input is at most 16 KiB, each
// byte is looked at a bounded number of times, and what is not the one canonical encoding is refused.

/** The longest input, in bytes. A certificate of ours has about 600. */
export const DER_LIMIT = 16_384
/** How deep values may lie in each other. A certificate reaches 7. */
export const DER_DEPTH = 16

export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  utf8String: 0x0c,
  printableString: 0x13,
  ia5String: 0x16,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
} as const

const CONSTRUCTED = 0x20
const CLASS = 0xc0

/** Throws `bad-certificate`, naming what is wrong. Everything in this file refuses through it. */
export function refuseDer (problem: string): never {
  throw new PatchcordError('bad-certificate', `not canonical DER: ${problem}`)
}

/** Walks one value after another. Every method throws `bad-certificate` where the bytes are not what it
 * names; a reader that threw is not used again. */
export class DerReader {
  readonly #bytes: Buffer
  readonly #end: number
  #at: number
  /** Where the value that was read last begins, and where its content does. */
  #start = 0
  #content = 0

  private constructor (bytes: Buffer, at: number, end: number) {
    this.#bytes = bytes
    this.#at = at
    this.#end = end
  }

  /** A reader over input that is exactly one value, after the whole of it was found canonical. */
  static of (input: Uint8Array): DerReader {
    const bytes = Buffer.from(input.buffer, input.byteOffset, input.byteLength)
    checkDer(bytes)
    return new DerReader(bytes, 0, bytes.length)
  }

  /** Whether nothing is left. */
  get done (): boolean { return this.#at === this.#end }

  /** Whether the next value has this tag. */
  is (tag: number): boolean { return this.#at < this.#end && this.#bytes[this.#at] === tag }

  /** The content of the next value, which has this tag. */
  content (tag: number): Buffer {
    this.#step(tag)
    return this.#bytes.subarray(this.#content, this.#at)
  }

  /** The next value with its tag and length, which has this tag. */
  whole (tag: number): Buffer {
    this.#step(tag)
    return this.#bytes.subarray(this.#start, this.#at)
  }

  /** A reader over what is inside the next value, which has this tag. */
  enter (tag: number): DerReader {
    this.#step(tag)
    return new DerReader(this.#bytes, this.#content, this.#at)
  }

  /** The tag and content of the next value, whatever it is. */
  any (): { tag: number, content: Buffer } {
    const tag = this.#bytes[this.#at]
    if (this.done || tag === undefined) refuseDer('a value is missing')
    return { tag, content: this.content(tag) }
  }

  /** The content of the next value where it has this tag; nothing is read where it has not. */
  optional (tag: number): Buffer | undefined {
    return this.is(tag) ? this.content(tag) : undefined
  }

  /** Refuses what is left over. */
  finish (): void {
    if (!this.done) refuseDer('something follows the last value')
  }

  #step (tag: number): void {
    if (this.done) refuseDer('a value is missing')
    if (this.#bytes[this.#at] !== tag) refuseDer(`tag ${hex(this.#bytes[this.#at])} where ${hex(tag)} belongs`)
    this.#start = this.#at
    this.#content = contentOf(this.#bytes, this.#at, this.#end)
    this.#at = endOf
  }
}

/** Throws `bad-certificate` unless `bytes` are one value in DER, with nothing after it, all the way down. */
export function checkDer (bytes: Uint8Array): void {
  if (bytes.length > DER_LIMIT) refuseDer(`${bytes.length} bytes, more than ${DER_LIMIT}`)
  if (bytes.length === 0) refuseDer('empty')
  checkValue(bytes, 0, bytes.length, 0)
  if (endOf !== bytes.length) refuseDer('something follows the value')
}

/** The end of the value that `contentOf` read last: a second result without an object per value. Read it
 * at once after the call. */
let endOf = 0

/** Where the content of the value at `at` begins. Sets `endOf`. */
function contentOf (bytes: Uint8Array, at: number, end: number): number {
  if (end - at < 2) refuseDer('cut off in a head')
  if ((bytes[at]! & 0x1f) === 0x1f) refuseDer('a tag of several bytes')
  let length = bytes[at + 1]!
  let content = at + 2
  if (length >= 0x80) {
    const size = length & 0x7f
    if (size === 0) refuseDer('indefinite length')
    // Two bytes count to 65535; more can only be padded or longer than the input.
    if (size > 2) refuseDer('a length of more than two bytes')
    if (end - content < size) refuseDer('cut off in a length')
    length = size === 1 ? bytes[content]! : bytes[content]! << 8 | bytes[content + 1]!
    if (length < (size === 1 ? 0x80 : 0x100)) refuseDer('a length longer than it need be')
    content += size
  }
  if (length > end - content) refuseDer('longer than what holds it')
  endOf = content + length
  return content
}

function checkValue (bytes: Uint8Array, at: number, end: number, depth: number): void {
  if (depth > DER_DEPTH) refuseDer(`deeper than ${DER_DEPTH}`)
  const tag = bytes[at]!
  const content = contentOf(bytes, at, end)
  const stop = endOf
  if ((tag & CONSTRUCTED) !== 0) {
    if ((tag & CLASS) === 0 && tag !== TAG.sequence && tag !== TAG.set) refuseDer('a string in pieces')
    for (let next = content; next < stop; next = endOf) checkValue(bytes, next, stop, depth + 1)
  } else if ((tag & CLASS) === 0) {
    checkPrimitive(bytes, tag, content, stop)
  }
  endOf = stop
}

function checkPrimitive (bytes: Uint8Array, tag: number, from: number, to: number): void {
  const length = to - from
  const first = bytes[from]!
  switch (tag) {
    case 0x00: return refuseDer('tag 0')
    case TAG.boolean:
      if (length !== 1 || (first !== 0 && first !== 0xff)) refuseDer('a boolean')
      return
    case TAG.integer:
    case 0x0a:
      if (length === 0) refuseDer('an empty integer')
      if (length > 1 && (first === 0 ? bytes[from + 1]! < 0x80 : first === 0xff && bytes[from + 1]! >= 0x80)) refuseDer('a padded integer')
      return
    case TAG.bitString:
      if (length === 0 || first > 7 || (length === 1 && first !== 0)) refuseDer('a bit string')
      if ((bytes[to - 1]! & ((1 << first) - 1)) !== 0 && length > 1) refuseDer('unused bits that are set')
      return
    case TAG.null:
      if (length !== 0) refuseDer('a null with content')
      return
    case TAG.oid:
      return checkOid(bytes, from, to)
    case 0x10:
    case 0x11:
      return refuseDer('a sequence that is not constructed')
    default:
  }
}

function checkOid (bytes: Uint8Array, from: number, to: number): void {
  if (from === to || bytes[to - 1]! >= 0x80) refuseDer('an object identifier')
  for (let at = from, begins = true; at < to; at++) {
    if (begins && bytes[at] === 0x80) refuseDer('a padded object identifier')
    begins = bytes[at]! < 0x80
  }
}

const hex = (byte: number | undefined): string => `0x${(byte ?? 0).toString(16).padStart(2, '0')}`

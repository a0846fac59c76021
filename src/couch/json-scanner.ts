import { Utf8Check } from './utf8-check.js'

// A JSON scanner of our own, for one reason: bounded memory. @streamparser/json and stream-json were
// looked at; both keep every string until its end (a base64 attachment is one string of up to 256 MiB),
// the former also swallows a byte order mark and folds numbers, and neither tells names apart early
// enough to skip what nobody asked for. This one keeps nothing but the text that its listener wants.

/** What the scanner tells while it reads. A listener may throw: that error is the verdict. */
export interface JsonListener {
  /** Whether the text of the name (or the string value) that begins now is wanted. */
  wants (kind: 'name' | 'value'): boolean
  open (kind: 'object' | 'array'): void
  close (): void
  /** A member's name; undefined where it was not wanted, or longer than LONGEST_TEXT. */
  name (text: string | undefined): void
  /** A string value; undefined where it was not wanted. */
  string (text: string | undefined): void
  /** A number, true, false or null. */
  scalar (): void
}

/** The longest string, in bytes as written, whose text is handed out. Six bytes can spell one character
 * (`\u005f`), so a longer string never stands for one of fewer than 2,730. */
export const LONGEST_TEXT = 16_384
/** CouchDB makes big integers of long numbers, in quadratic time. */
const LONGEST_NUMBER = 1024

/** Bytes that are not JSON (RFC 8259), or more than the scanner takes. */
export class NotJson extends Error {}

// What may come next, or what is being read.
const VALUE = 0
const ITEM_OR_END = 1
const NAME_OR_END = 2
const NAME = 3
const COLON = 4
const COMMA_OR_END = 5
const DONE = 6
const STRING = 7
const ESCAPE = 8
const HEX = 9
const LITERAL = 10
const NUMBER = 11

// Where in a number (RFC 8259 section 6).
const MINUS = 0
const ZERO = 1
const INTEGER = 2
const POINT = 3
const FRACTION = 4
const EXPONENT = 5
const SIGN = 6
const POWER = 7
const NUMBER_MAY_END = [false, true, true, false, true, false, false, true]

/** 1 for bytes that a string may hold as they are: no quote, backslash or control character. */
const PLAIN = Uint8Array.from({ length: 256 }, (_, byte) => byte < 0x20 || byte === 0x22 || byte === 0x5c ? 0 : 1)
const ESCAPABLE = new Set(Buffer.from('"\\/bfnrt'))
const LITERALS = new Map([[0x74, 'true'], [0x66, 'false'], [0x6e, 'null']])

/** Reads one JSON text from chunks cut anywhere. `write` and `end` throw NotJson, or what the listener
 * threw, as soon as the offending byte is there; the verdict does not depend on how the bytes were cut. */
export class JsonScanner {
  readonly #listener: JsonListener
  readonly #deepest: number
  readonly #utf8 = new Utf8Check()
  /** For each open container, whether it is an object. */
  readonly #objects: boolean[] = []
  #state = VALUE
  #isName = false
  #hexLeft = 0
  #literal = ''
  #literalAt = 0
  #number = MINUS
  #numberLength = 0
  /** Where in this chunk the wanted text goes on, or -1 where none is wanted. */
  #from = -1
  #kept: Buffer[] = []
  #keptLength = 0
  #escaped = false

  /** `deepest` is how many containers may lie in one another. */
  constructor (listener: JsonListener, deepest: number) {
    this.#listener = listener
    this.#deepest = deepest
  }

  write (chunk: Buffer): void {
    const valid = this.#utf8.validUntil(chunk)
    const length = valid
    if (this.#from !== -1) this.#from = 0
    let at = 0
    while (at < length) {
      const byte = chunk[at]!
      switch (this.#state) {
        case STRING:
          at = this.#string(chunk, at, length)
          break
        case ESCAPE:
          if (byte === 0x75) {
            this.#hexLeft = 4
            this.#state = HEX
          } else {
            if (!ESCAPABLE.has(byte)) throw new NotJson('a string holds an invalid escape')
            this.#state = STRING
          }
          at++
          break
        case HEX:
          if (!isHex(byte)) throw new NotJson('a string holds an invalid escape')
          if (--this.#hexLeft === 0) this.#state = STRING
          at++
          break
        case NUMBER:
          if (this.#digit(byte)) at++
          else this.#endNumber()
          break
        case LITERAL:
          if (byte !== this.#literal.charCodeAt(this.#literalAt)) throw new NotJson('it holds an unknown word')
          at++
          if (++this.#literalAt === this.#literal.length) this.#scalar()
          break
        default:
          at++
          if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) this.#token(byte, at)
      }
    }
    if (this.#from !== -1) this.#keep(chunk, length)
    if (valid < chunk.length) throw new NotJson('it is not UTF-8')
  }

  end (): void {
    if (this.#state === NUMBER) this.#endNumber()
    if (this.#state !== DONE || !this.#utf8.complete) throw new NotJson('it ends too early')
  }

  #token (byte: number, next: number): void {
    switch (this.#state) {
      case ITEM_OR_END:
        if (byte === 0x5d) return this.#close()
        return this.#value(byte, next)
      case VALUE:
        return this.#value(byte, next)
      case NAME_OR_END:
        if (byte === 0x7d) return this.#close()
        return this.#name(byte, next)
      case NAME:
        return this.#name(byte, next)
      case COLON:
        if (byte !== 0x3a) throw new NotJson('a name is not followed by a colon')
        this.#state = VALUE
        return
      case COMMA_OR_END: {
        const isObject = this.#objects.at(-1)
        if (byte === 0x2c) this.#state = isObject ? NAME : VALUE
        else if (byte === (isObject ? 0x7d : 0x5d)) this.#close()
        else throw new NotJson('a comma or an end is missing')
        return
      }
      default:
        throw new NotJson('something follows its end')
    }
  }

  #value (byte: number, next: number): void {
    const literal = LITERALS.get(byte)
    if (byte === 0x22) this.#open('value', next)
    else if (byte === 0x7b || byte === 0x5b) {
      const isObject = byte === 0x7b
      if (this.#objects.length === this.#deepest) throw new NotJson(`it is nested deeper than ${this.#deepest}`)
      this.#listener.open(isObject ? 'object' : 'array')
      this.#objects.push(isObject)
      this.#state = isObject ? NAME_OR_END : ITEM_OR_END
    } else if (literal !== undefined) {
      this.#literal = literal
      this.#literalAt = 1
      this.#state = LITERAL
    } else if (byte === 0x2d || isDigit(byte)) {
      this.#number = byte === 0x2d ? MINUS : byte === 0x30 ? ZERO : INTEGER
      this.#numberLength = 1
      this.#state = NUMBER
    } else throw new NotJson('a value is missing')
  }

  #name (byte: number, next: number): void {
    if (byte !== 0x22) throw new NotJson('a name is missing')
    this.#open('name', next)
  }

  #open (kind: 'name' | 'value', next: number): void {
    this.#isName = kind === 'name'
    this.#state = STRING
    this.#escaped = false
    this.#from = this.#listener.wants(kind) ? next : -1
  }

  #close (): void {
    this.#objects.pop()
    this.#listener.close()
    this.#afterValue()
  }

  #afterValue (): void {
    this.#state = this.#objects.length === 0 ? DONE : COMMA_OR_END
  }

  #scalar (): void {
    this.#listener.scalar()
    this.#afterValue()
  }

  // ---- strings

  #string (chunk: Buffer, start: number, length: number): number {
    let at = start
    while (at < length && PLAIN[chunk[at]!] === 1) at++
    if (at === length) return at
    const byte = chunk[at]!
    if (byte === 0x22) this.#endString(chunk, at)
    else if (byte === 0x5c) {
      this.#escaped = true
      this.#state = ESCAPE
    } else throw new NotJson('a string holds a control character')
    return at + 1
  }

  /** What the next chunk may need: a copy, so that a few bytes do not hold a whole chunk. */
  #keep (chunk: Buffer, until: number): void {
    const length = until - this.#from
    this.#keptLength += length
    if (this.#keptLength <= LONGEST_TEXT) this.#kept.push(Buffer.from(chunk.subarray(this.#from, until)))
    else if (this.#isName) this.#kept = []
    else throw new NotJson(`an ID or key is longer than ${LONGEST_TEXT} bytes`)
  }

  #endString (chunk: Buffer, until: number): void {
    const text = this.#from === -1 ? undefined : this.#text(chunk, until)
    this.#from = -1
    if (this.#isName) {
      this.#listener.name(text)
      this.#state = COLON
    } else {
      this.#listener.string(text)
      this.#afterValue()
    }
  }

  #text (chunk: Buffer, until: number): string | undefined {
    const length = this.#keptLength + until - this.#from
    let text: string | undefined
    if (length <= LONGEST_TEXT) {
      text = this.#keptLength === 0 ? chunk.toString('utf8', this.#from, until) : Buffer.concat([...this.#kept, chunk.subarray(this.#from, until)]).toString()
      if (this.#escaped) text = JSON.parse(`"${text}"`) as string
    } else if (!this.#isName) throw new NotJson(`an ID or key is longer than ${LONGEST_TEXT} bytes`)
    this.#kept = []
    this.#keptLength = 0
    return text
  }

  // ---- numbers

  /** Whether the number goes on with this byte. */
  #digit (byte: number): boolean {
    const digit = isDigit(byte)
    const exponent = byte === 0x65 || byte === 0x45
    let next = -1
    switch (this.#number) {
      case MINUS: if (digit) next = byte === 0x30 ? ZERO : INTEGER; break
      case ZERO: next = byte === 0x2e ? POINT : exponent ? EXPONENT : -1; break
      case INTEGER: next = digit ? INTEGER : byte === 0x2e ? POINT : exponent ? EXPONENT : -1; break
      case POINT: if (digit) next = FRACTION; break
      case FRACTION: next = digit ? FRACTION : exponent ? EXPONENT : -1; break
      case EXPONENT: next = digit ? POWER : byte === 0x2b || byte === 0x2d ? SIGN : -1; break
      case SIGN: if (digit) next = POWER; break
      default: if (digit) next = POWER
    }
    if (next === -1) return false
    this.#number = next
    if (++this.#numberLength > LONGEST_NUMBER) throw new NotJson(`a number is longer than ${LONGEST_NUMBER} digits`)
    return true
  }

  #endNumber (): void {
    if (NUMBER_MAY_END[this.#number] !== true) throw new NotJson('a number is incomplete')
    this.#scalar()
  }
}

function isDigit (byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39
}

function isHex (byte: number): boolean {
  return isDigit(byte) || (byte >= 0x41 && byte <= 0x46) || (byte >= 0x61 && byte <= 0x66)
}

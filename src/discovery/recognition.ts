import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { decodeBase32 } from '../core/base32.js'
import type { DeviceId } from '../core/ids.js'
import { Bucket } from '../core/bucket.js'
import { DISCOVERY_LIMITS } from './limits.js'

/** What an announcement says of who sends it: 16 random bytes, and the first 8 bytes of
 * HMAC-SHA-256(key: the device ID's 32 bytes, message: those). Both base64url. Only who knows the device ID
 * can tell whose it is, and two starts of one device look like two devices to everybody else. */
export interface Hint {
  readonly r: string
  readonly h: string
}

const RANDOM_BYTES = 16
const TAG_BYTES = 8
/** Exactly 16 and 8 bytes in base64url: the spare bits of the last character are zero. */
const RANDOM = /^[A-Za-z0-9_-]{21}[AQgw]$/
const TAG = /^[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048]$/

/** A hint of `device`, different each time. */
export function makeHint (device: DeviceId): Hint {
  const random = randomBytes(RANDOM_BYTES)
  return { r: random.toString('base64url'), h: tag(decodeBase32(device), random).toString('base64url') }
}

/** The hint in the strings of a TXT record, or undefined where it is not of exactly that form. */
export function parseHint (strings: readonly Uint8Array[]): Hint | undefined {
  let r: string | undefined
  let h: string | undefined
  for (const string of strings) {
    // RFC 6763 section 6.4: of a key given twice, the first counts.
    if (string.length === 24 && string[0] === 0x72 && string[1] === 0x3d) r ??= text(string.subarray(2))
    if (string.length === 13 && string[0] === 0x68 && string[1] === 0x3d) h ??= text(string.subarray(2))
  }
  return r !== undefined && h !== undefined && RANDOM.test(r) && TAG.test(h) ? { r, h } : undefined
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1')

function tag (key: Uint8Array, random: Uint8Array): Buffer {
  return createHmac('sha256', key).update(random).digest().subarray(0, TAG_BYTES)
}

/** Tells whose hints are whose, among the devices that are known. Each hint is computed once, and hints
 * never seen before share a budget: a flood of made-up ones costs a bounded share of one processor. */
export class Recogniser {
  readonly #monotonic: () => number
  readonly #budget: Bucket
  /** In the order in which they were last heard. */
  readonly #remembered = new Map<string, DeviceId | null>()
  #known: ReadonlyArray<readonly [DeviceId, Uint8Array]> = []

  constructor (monotonic: () => number) {
    this.#monotonic = monotonic
    this.#budget = new Bucket(DISCOVERY_LIMITS.hmacsPerSecond, DISCOVERY_LIMITS.hmacBurst, monotonic())
  }

  /** Replaces the devices that are known. */
  setKnown (devices: readonly DeviceId[]): void {
    this.#known = devices.map(device => [device, decodeBase32(device)])
    this.#remembered.clear()
  }

  /** Whose hint it is; undefined where nobody's who is known, or where the budget is used up. */
  recognise ({ r, h }: Hint): DeviceId | undefined {
    const key = `${r}${h}`
    const before = this.#remembered.get(key)
    if (before !== undefined) {
      this.#remember(key, before)
      return before ?? undefined
    }
    // More devices than the burst are known to nobody, but they would never be recognised.
    const cost = Math.min(this.#known.length, DISCOVERY_LIMITS.hmacBurst)
    if (!this.#budget.take(this.#monotonic(), cost)) return undefined
    const random = Buffer.from(r, 'base64url')
    const shown = Buffer.from(h, 'base64url')
    const found = this.#known.find(([, secret]) => timingSafeEqual(tag(secret, random), shown))?.[0]
    this.#remember(key, found ?? null)
    return found
  }

  /** How many hints are remembered. */
  get size (): number { return this.#remembered.size }

  #remember (key: string, device: DeviceId | null): void {
    this.#remembered.delete(key)
    this.#remembered.set(key, device)
    if (this.#remembered.size > DISCOVERY_LIMITS.remembered) this.#remembered.delete(this.#remembered.keys().next().value!)
  }
}

import { join } from 'node:path'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { encodeBody, parseBody, SignedRecordShape, type RevocationBody, type SignedRecord } from './revocation.js'
import { DeviceIdShape, UserIdShape } from './shapes.js'
import { readState, writeState } from '../core/state-file.js'
import type { Trust } from './trust.js'

// Everything that was revoked: a set keyed (CA, device) that only ever grows. It is merged, never replaced,
// so no order, repetition or loss of messages can take a revocation back.

export interface Revocation extends RevocationBody {
  /** `here`: this user's own decision, or that of the CA that was this user's when it came. It counts
   * against every device and for good. `there`: somebody else's CA about a device of its own. */
  readonly decided: 'here' | 'there'
  /** The signed record, to pass on; absent where no CA key was at hand (`spread` is pending). */
  readonly signed?: SignedRecord
}

const RevocationShape = v.pipe(
  v.strictObject({
    ca: UserIdShape,
    device: DeviceIdShape,
    issuedAt: v.pipe(v.number(), v.safeInteger(), v.minValue(0)),
    reason: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(255)),
    decided: v.picklist(['here', 'there']),
    signed: v.exactOptional(SignedRecordShape),
  }),
  v.check(record => isConsistent(record), 'the signed record says something else'),
) satisfies v.GenericSchema<unknown, Revocation>

const Shape = v.strictObject({ version: v.literal(1), records: v.array(RevocationShape) })

const pathIn = (home: string): string => join(home, 'revoked.json')

/** The revocations of one device, on disk and in memory. */
export class Revocations {
  readonly #home: string
  #records: ReadonlyMap<string, Revocation>
  #writing: Promise<unknown> = Promise.resolve()
  /** Whether memory has more than the disk: a write is under way, or the last one failed. */
  #unsaved = false

  private constructor (home: string, records: ReadonlyMap<string, Revocation>) {
    this.#home = home
    this.#records = records
  }

  /** Makes an empty file where there is none: at the first run alone, before the identity counts
   * (`Keystore.create`'s `alongside`). What is there already is kept. */
  static async create (home: string): Promise<void> {
    if (await readState(pathIn(home), Shape) === undefined) await writeState(pathIn(home), Shape, { version: 1, records: [] })
  }

  /** Throws `bad-state` where the file is missing or damaged: read as empty it would admit the revoked. */
  static async open (home: string): Promise<Revocations> {
    const state = await readState(pathIn(home), Shape)
    if (state === undefined) throw new PatchcordError('bad-state', `${pathIn(home)} is missing: without it revoked devices would come in again`, { hint: 'restore it from a backup of this device' })
    return new Revocations(home, mergeRevocations([], state.records))
  }

  get records (): readonly Revocation[] { return [...this.#records.values()] }

  /** Adds records; resolves, once they are on disk, to whether there was anything new. They count in
   * memory at once, and go on counting where the disk fails (the error is thrown). */
  async add (records: readonly Revocation[]): Promise<boolean> {
    const before = this.#records
    const merged = mergeRevocations(before.values(), records)
    const grew = !isSame(before, merged)
    if (grew) {
      this.#records = merged
      this.#unsaved = true
    }
    if (!this.#unsaved) return false
    // Writes follow each other and each takes the newest set, so the last one on disk has everything.
    const write = this.#writing.then(async () => {
      const written = this.#records
      await writeState(pathIn(this.#home), Shape, { version: 1, records: [...written.values()].map(toJson) })
      if (this.#records === written) this.#unsaved = false
    })
    this.#writing = write.catch(() => undefined)
    await write
    return grew
  }

  /** The devices to refuse; see `effectiveRevocations`. */
  devices (trust: Pick<Trust, 'user' | 'devices' | 'authorities'>, ownDevices: ReadonlySet<DeviceId> = new Set()): DeviceId[] {
    return effectiveRevocations(this.records, trust, ownDevices)
  }
}

/** The union of two lists, keyed (CA, device). Order, repetition and grouping do not matter: of two
 * records for one key the signed one stays, then the earlier, then the smaller bytes. */
export function mergeRevocations (some: Iterable<Revocation>, others: Iterable<Revocation>): Map<string, Revocation> {
  const merged = new Map<string, Revocation>()
  for (const list of [some, others]) {
    for (const record of list) {
      const key = `${record.ca} ${record.device}`
      const known = merged.get(key)
      merged.set(key, known === undefined ? record : mergeTwo(known, record))
    }
  }
  return merged
}

/** Which devices to refuse. Our own decisions count against all. Another user's CA counts against a device
 * that is listed with that CA, or, where the CA alone is listed, against any device that is not listed
 * otherwise and is not one of our own: a friend must not be able to lock out our laptop or another friend. */
export function effectiveRevocations (records: Iterable<Revocation>, trust: Pick<Trust, 'user' | 'devices' | 'authorities'>, ownDevices: ReadonlySet<DeviceId>): DeviceId[] {
  const devices = new Set<DeviceId>()
  for (const { ca, device, decided } of records) {
    if (decided === 'here' || ca === trust.user || certifies(ca, device, trust, ownDevices)) devices.add(device)
  }
  return [...devices]
}

function certifies (ca: UserId, device: DeviceId, { devices, authorities }: Pick<Trust, 'devices' | 'authorities'>, ownDevices: ReadonlySet<DeviceId>): boolean {
  const listed = devices.get(device)
  return listed === undefined ? authorities.has(ca) && !ownDevices.has(device) : listed.authority?.user === ca
}

function mergeTwo (one: Revocation, other: Revocation): Revocation {
  const chosen = compare(one, other) <= 0 ? one : other
  const decided = one.decided === 'here' || other.decided === 'here' ? 'here' : 'there'
  return chosen.decided === decided ? chosen : { ...chosen, decided }
}

function compare (one: Revocation, other: Revocation): number {
  if ((one.signed === undefined) !== (other.signed === undefined)) return one.signed === undefined ? 1 : -1
  if (one.issuedAt !== other.issuedAt) return one.issuedAt - other.issuedAt
  if (one.reason !== other.reason) return one.reason - other.reason
  const [left, right] = [one.signed?.sig ?? '', other.signed?.sig ?? '']
  return left < right ? -1 : left > right ? 1 : 0
}

function isSame (before: ReadonlyMap<string, Revocation>, after: ReadonlyMap<string, Revocation>): boolean {
  if (before.size !== after.size) return false
  for (const [key, record] of after) {
    const known = before.get(key)
    if (known === undefined || known.decided !== record.decided || compare(known, record) !== 0) return false
  }
  return true
}

function isConsistent ({ signed, ...body }: RevocationBody & { signed?: SignedRecord }): boolean {
  if (signed === undefined) return true
  try {
    return encodeBody(parseBody(signed)).equals(encodeBody(body))
  } catch {
    return false
  }
}

const toJson = ({ ca, device, issuedAt, reason, decided, signed }: Revocation): Revocation => ({ ca, device, issuedAt, reason, decided, ...(signed === undefined ? {} : { signed }) })

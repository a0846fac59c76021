import { join } from 'node:path'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { deviceId } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'
import { readAuthority, type Authority } from '../identity/authority.js'
import { mergeCaRecords, standingOf, type CaRecords, type Pin, type Standing } from '../identity/ca-lineage.js'
import { CaRecordShape, readRetirement, recoveryKeyId, verifyRetirement, verifySuccession, type CaRecord, type WireCaRecord } from '../identity/ca-records.js'
import { keyFormOf } from '../identity/key-form.js'

// What is known of user CAs, this user's own and those of peers: `cas.json`. A pin is where trust in a
// person starts (pairing, `trust`, the first run); records say what became of it; both only grow. A missing
// file is made again from the whitelist, without recovery keys: then nobody can name a successor, which is
// less trust. A damaged one refuses to start.

const spki = v.pipe(v.string(), v.check(text => keyFormOf(Buffer.from(text, 'base64')) === 'p256', 'must be a P-256 key'))
const pem = v.pipe(v.string(), v.check(text => { try { return readAuthority(text).user !== undefined } catch { return false } }, 'must be the PEM of a user CA'))
const PinShape = v.strictObject({ ca: pem, recoveryKey: v.exactOptional(spki) })
const Shape = v.strictObject({
  version: v.literal(1),
  pins: v.array(PinShape),
  records: v.array(CaRecordShape),
  /** Own devices that the successor of this user's CA still has to certify. */
  awaiting: v.array(deviceId),
})
type State = v.InferOutput<typeof Shape>

export class CaBook {
  readonly #path: string
  #state: State
  #pins = new Map<UserId, { readonly authority: Authority, readonly pem: string, readonly recoverySpki?: Buffer }>()
  #records: CaRecords = new Map()
  #standings = new Map<UserId, Standing>()
  #writing: Promise<unknown> = Promise.resolve()

  private constructor (path: string, state: State) {
    this.#path = path
    this.#state = state
    this.#read()
  }

  /** Throws `bad-state`, naming the file, where it is damaged or holds a record that does not verify. */
  static async open (root: string): Promise<CaBook> {
    const path = join(root, 'cas.json')
    const state = await readState(path, Shape) ?? { version: 1 as const, pins: [], records: [], awaiting: [] }
    try {
      return new CaBook(path, state)
    } catch (error) {
      throw new PatchcordError('bad-state', `${path}: a record in it does not verify`, { cause: error })
    }
  }

  /** What became of a CA. One that nobody pinned is as good as it says. */
  standing (ca: UserId): Standing {
    return this.#standings.get(ca) ?? { state: 'good', ca, seq: 0, line: [ca] }
  }

  /** Whether what this CA certifies counts for nothing: it is retired, frozen, or another one followed. */
  isOver (ca: UserId): boolean {
    const { state, ca: now } = this.standing(ca)
    return state !== 'good' || now !== ca
  }

  /** The CA of this ID as it was pinned or as a record carried it, for verifying. */
  authority (ca: UserId): Authority | undefined {
    const pinned = this.#pins.get(ca)
    if (pinned !== undefined) return pinned.authority
    for (const record of this.#records.values()) if (record.kind === 'succeed' && record.newCa === ca) return readAuthority(record.newCaPem)
    return undefined
  }

  /** The public half of the recovery key of a CA, where it is known: what is told at pairing. */
  recoveryKey (ca: UserId): Buffer | undefined {
    const standing = this.standing(ca)
    return standing.ca === ca ? standing.recoverySpki ?? this.#pins.get(ca)?.recoverySpki : undefined
  }

  /** The records about every CA on the line of this one, for others. */
  recordsOf (ca: UserId): CaRecord[] {
    const line = new Set(this.standing(ca).line)
    return [...this.#records.values()].filter(record => line.has(record.ca))
  }

  get awaiting (): ReadonlySet<DeviceId> { return new Set(this.#state.awaiting) }

  /** Accepts a CA, with the recovery key that its person told. The first key told stays: a later one would be
   * somebody's word against it. Throws `refused` for another one, unless `replace`. */
  async pin (caPem: string, recoverySpki?: Buffer, replace = false): Promise<void> {
    const { user } = readAuthority(caPem)
    const known = this.#pins.get(user)
    const told = recoverySpki?.toString('base64')
    if (known !== undefined && (told === undefined || known.recoverySpki?.toString('base64') === told)) return
    if (known?.recoverySpki !== undefined && !replace) throw new PatchcordError('refused', `another recovery key is pinned for the CA ${user}`, { hint: 'ask its person whether they made a new kit; if so, say --new-recovery-key' })
    const pins = this.#state.pins.filter(({ ca }) => readAuthority(ca).user !== user)
    await this.#write({ pins: [...pins, { ca: caPem, ...told === undefined ? {} : { recoveryKey: told } }] })
  }

  /** Takes records in; resolves, once they are on disk, to whether any was new. Records that no known CA or
   * pinned recovery key stands behind are passed over, and so is what cannot be read. */
  async add (given: readonly unknown[]): Promise<boolean> {
    const left = new Set<unknown>(given)
    let merged = this.#records
    // One may stand behind the next, in any order.
    for (let grew = true; grew;) {
      grew = false
      for (const record of left) {
        const accepted = this.#accept(record, merged)
        if (accepted === undefined) continue
        left.delete(record)
        merged = mergeCaRecords(merged, [accepted])
        grew = true
      }
    }
    const before = this.#records
    const records = wireOf(merged)
    if (JSON.stringify(records) === JSON.stringify(wireOf(before))) return false
    await this.#write({ records })
    // Another signature under the same words is nothing new.
    return [...merged.keys()].some(key => !before.has(key))
  }

  async await (devices: Iterable<DeviceId>): Promise<void> {
    await this.#write({ awaiting: [...devices] })
  }

  /** Trust that is taken away counts in memory even where the disk fails (the error is thrown). */
  async #write (part: Partial<State>): Promise<void> {
    this.#state = { ...this.#state, ...part }
    this.#read()
    const write = this.#writing.then(() => writeState(this.#path, Shape, this.#state))
    this.#writing = write.catch(() => undefined)
    await write
  }

  #accept (record: unknown, records: CaRecords): CaRecord | undefined {
    try {
      if (isSuccession(record)) {
        const succession = verifySuccession(record)
        return standsBehind(this.#pinList(), records, succession.ca, recoveryKeyId(succession.recoveryKey)) ? succession : undefined
      }
      const { ca } = readRetirement(record)
      const authority = this.authority(ca) ?? newCaIn(records, ca)
      return authority === undefined ? undefined : verifyRetirement(record, authority)
    } catch (error) {
      if (error instanceof PatchcordError) return undefined
      throw error
    }
  }

  /** The CAs of a line, and those that were named to follow one of them before another was: what somebody knows
   * with such a one counts for what the line says too. */
  #everNamed (line: readonly UserId[]): ReadonlySet<UserId> {
    const named = new Set(line)
    for (let size = 0; size !== named.size;) {
      size = named.size
      for (const record of this.#records.values()) if (record.kind === 'succeed' && named.has(record.ca)) named.add(record.newCa)
    }
    return named
  }

  /** The highest number under which a successor of this CA was named; 0 where none was. */
  highestSeq (ca: UserId): number {
    return [...this.#records.values()].reduce((most, record) => record.kind === 'succeed' && record.ca === ca ? Math.max(most, record.seq) : most, this.standing(ca).line[0] === ca ? 0 : this.standing(ca).seq)
  }

  #pinList (): Pin[] {
    return [...this.#pins].map(([ca, { recoverySpki }]) => ({ ca, ...recoverySpki === undefined ? {} : { recoveryKey: recoveryKeyId(recoverySpki) } }))
  }

  #read (): void {
    this.#pins = new Map(this.#state.pins.map(({ ca, recoveryKey }) => {
      const authority = readAuthority(ca)
      return [authority.user, { authority, pem: ca, ...recoveryKey === undefined ? {} : { recoverySpki: Buffer.from(recoveryKey, 'base64') } }]
    }))
    this.#records = mergeCaRecords(new Map(), this.#state.records.map(record => {
      if (isSuccession(record)) return verifySuccession(record)
      const retirement = readRetirement(record)
      const pinned = this.#pins.get(retirement.ca)?.authority
      // One of a successor was verified when it came; the file is this user's own.
      return pinned === undefined ? retirement : verifyRetirement(record, pinned)
    }))
    this.#standings = new Map()
    const pins = this.#pinList().map(pin => standingOf(pin, this.#records))
    for (const standing of pins) for (const ca of this.#everNamed(standing.line)) this.#standings.set(ca, standing)
    // A CA that was pinned itself is what its own pin says.
    for (const standing of pins) this.#standings.set(standing.line[0]!, standing)
  }
}

const isSuccession = (record: unknown): boolean => typeof record === 'object' && record !== null && 'next' in record

const wireOf = (records: CaRecords): WireCaRecord[] => [...records].toSorted(([one], [other]) => one < other ? -1 : 1).map(([, { record }]) => record)

/** Whether this recovery key was pinned for the CA, or named for it by a record. */
function standsBehind (pins: readonly Pin[], records: CaRecords, ca: UserId, key: string): boolean {
  if (pins.some(pin => pin.ca === ca && pin.recoveryKey === key)) return true
  return [...records.values()].some(record => record.kind === 'succeed' && record.newCa === ca && recoveryKeyId(record.nextRecoveryKey) === key)
}

function newCaIn (records: CaRecords, ca: UserId): Authority | undefined {
  for (const record of records.values()) if (record.kind === 'succeed' && record.newCa === ca) return readAuthority(record.newCaPem)
  return undefined
}

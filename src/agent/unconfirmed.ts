import { join } from 'node:path'
import * as v from 'valibot'
import type { Clock } from '../core/clock.js'
import type { DeviceId } from '../core/ids.js'
import { deviceId } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'
import { PENDING_MS } from '../pairing/index.js'

// The responder's counterpart of a pending pair: it wrote a pair down and has not heard yet that the other
// device has it, too. That comes with M9, or when the other's open port admits us. Until then an own device
// finds its certificates in our mail, and a peer's rights are taken back when its time is over: an
// initiator whose pair was pending has dropped it by then.

/** How long a peer may stay unconfirmed, in milliseconds: what a pair may be pending, and the longest wait
 * between two attempts of a link, with room. */
export const UNCONFIRMED_MS = PENDING_MS + 300_000

const Entry = v.strictObject({
  device: deviceId,
  since: v.pipe(v.number(), v.safeInteger()),
  relation: v.picklist(['own', 'peer']),
  /** PEM of the device's and the server's certificate and their CA, for `own`. */
  certificates: v.exactOptional(v.pipe(v.string(), v.maxLength(32_768))),
})
const Shape = v.strictObject({ version: v.literal(1), devices: v.array(Entry) })

export type UnconfirmedPair = v.InferOutput<typeof Entry>

/** `pairing-unconfirmed.json`, on the device that opened the window. */
export class UnconfirmedPairs {
  readonly #path: string
  readonly #clock: Clock
  #entries: ReadonlyMap<DeviceId, UnconfirmedPair>

  private constructor (path: string, clock: Clock, entries: readonly UnconfirmedPair[]) {
    this.#path = path
    this.#clock = clock
    this.#entries = new Map(entries.map(entry => [entry.device, entry]))
  }

  /** Throws `bad-state` where the file is damaged. */
  static async open (root: string, clock: Clock): Promise<UnconfirmedPairs> {
    const path = join(root, 'pairing-unconfirmed.json')
    return new UnconfirmedPairs(path, clock, (await readState(path, Shape))?.devices ?? [])
  }

  get (device: DeviceId): UnconfirmedPair | undefined { return this.#entries.get(device) }
  all (): UnconfirmedPair[] { return [...this.#entries.values()] }

  /** Whether its time is over. A clock that was set back ends it early rather than late. */
  isOver ({ since }: UnconfirmedPair): boolean {
    const now = this.#clock.now()
    return now < since || now - since >= UNCONFIRMED_MS
  }

  /** Writes one down, durably: before the pair itself. */
  async hold (device: DeviceId, relation: 'own' | 'peer', certificates?: string): Promise<void> {
    await this.#write(new Map(this.#entries).set(device, { device, since: Math.floor(this.#clock.now()), relation, ...certificates === undefined ? {} : { certificates } }))
  }

  /** Forgets one, durably: it is a pair, or came to nothing. */
  async drop (device: DeviceId): Promise<void> {
    const rest = new Map(this.#entries)
    if (rest.delete(device)) await this.#write(rest)
  }

  async #write (entries: ReadonlyMap<DeviceId, UnconfirmedPair>): Promise<void> {
    await writeState(this.#path, Shape, { version: 1, devices: [...entries.values()] })
    this.#entries = entries
  }
}

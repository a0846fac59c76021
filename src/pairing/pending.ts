import { join } from 'node:path'
import * as v from 'valibot'
import type { Clock } from '../core/clock.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { databaseName, deviceId, userId } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'
import type { Access } from './messages.js'
import type { Other } from './party.js'

// Between its own yes and the responder's commit the initiator does not know whether it is paired. It has
// written down with whom, and that gives nobody a right. It becomes a pair when the commit arrives or when
// the responder's open port admits us; ten minutes drop it.

/** How long a pair may be pending, in milliseconds. */
export const PENDING_MS = 600_000

const base64 = v.pipe(v.string(), v.check(text => Buffer.from(text, 'base64').toString('base64') === text, 'must be base64'))
const Entry = v.strictObject({
  since: v.pipe(v.number(), v.safeInteger()),
  device: deviceId,
  user: userId,
  relation: v.picklist(['own', 'peer']),
  name: v.pipe(v.string(), v.minLength(1), v.maxLength(100)),
  deviceCertificate: base64,
  userCa: base64,
  recoveryKey: v.exactOptional(base64),
  port: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(65535))),
  databases: v.array(v.tuple([databaseName, v.picklist(['read', 'write'])])),
  /** Where its open port was, `[host%zone]:port`. */
  at: v.exactOptional(v.string()),
})
const Shape = v.strictObject({ version: v.literal(1), pending: v.array(Entry) })

/** The responder of a pair that is not known to be one. */
export interface Pending {
  readonly other: Other
  readonly at?: string
}

/** `pairing-pending.json`, on the device that joins. */
export class PendingPairs {
  readonly #path: string
  readonly #clock: Clock
  #entries: ReadonlyMap<DeviceId, v.InferOutput<typeof Entry>>

  private constructor (path: string, clock: Clock, entries: readonly v.InferOutput<typeof Entry>[]) {
    this.#path = path
    this.#clock = clock
    this.#entries = new Map(entries.map(entry => [entry.device, entry]))
  }

  /** Throws `bad-state` where the file is damaged. */
  static async open (root: string, clock: Clock): Promise<PendingPairs> {
    const path = join(root, 'pairing-pending.json')
    return new PendingPairs(path, clock, (await readState(path, Shape))?.pending ?? [])
  }

  /** Those that may still become pairs. A clock that was set back ends one early rather than late. */
  all (): Pending[] {
    const now = this.#clock.now()
    return [...this.#entries.values()].filter(({ since }) => now >= since && now - since < PENDING_MS).map(read)
  }

  /** Writes one down, durably, in place of an earlier one with the same device. */
  async hold ({ other, at }: Pending): Promise<void> {
    const { device, user, relation, name, deviceCertificate, userCa, recoveryKey, port, databases } = other
    await this.#write(new Map(this.#entries).set(device, {
      since: Math.floor(this.#clock.now()), device, user, relation, name,
      deviceCertificate: deviceCertificate.toString('base64'), userCa: userCa.toString('base64'),
      ...(recoveryKey === undefined ? {} : { recoveryKey: recoveryKey.toString('base64') }),
      ...(port === undefined ? {} : { port }),
      databases: [...databases],
      ...(at === undefined ? {} : { at }),
    }))
  }

  /** Forgets one, durably, and those whose time is over. */
  async drop (device?: DeviceId): Promise<void> {
    const alive = new Set(this.all().map(({ other }) => other.device))
    const kept = new Map([...this.#entries].filter(([one]) => one !== device && alive.has(one)))
    if (kept.size !== this.#entries.size) await this.#write(kept)
  }

  async #write (entries: ReadonlyMap<DeviceId, v.InferOutput<typeof Entry>>): Promise<void> {
    await writeState(this.#path, Shape, { version: 1, pending: [...entries.values()] })
    this.#entries = entries
  }
}

function read ({ device, user, relation, name, deviceCertificate, userCa, recoveryKey, port, databases, at }: v.InferOutput<typeof Entry>): Pending {
  return {
    other: {
      device, user, relation, name, requests: [],
      deviceCertificate: Buffer.from(deviceCertificate, 'base64'), userCa: Buffer.from(userCa, 'base64'),
      ...(recoveryKey === undefined ? {} : { recoveryKey: Buffer.from(recoveryKey, 'base64') }),
      ...(port === undefined ? {} : { port }),
      databases: new Map<DatabaseName, Access>(databases),
    },
    ...(at === undefined ? {} : { at }),
  }
}

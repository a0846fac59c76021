import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { join } from 'node:path'
import * as v from 'valibot'
import { deviceId, port } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'

const bytes = v.pipe(v.number(), v.safeInteger(), v.minValue(0))

/** What this device made or was told once and keeps. `programPassword` is that of the person's own
 * programs (`patchcord couch`), `bridgeToken` that of `patchcord bridge`. */
const Shape = v.strictObject({
  version: v.literal(1),
  name: v.pipe(v.string(), v.minLength(1), v.maxLength(100)),
  /** Bytes that stay free on the disk, and what single devices may fill; room.ts has what holds where these say nothing. */
  keepFree: v.exactOptional(bytes),
  quotas: v.exactOptional(v.record(deviceId, v.nullable(bytes))),
  port: v.exactOptional(port),
  couchPort: v.exactOptional(port),
  bridgePort: v.exactOptional(port),
  bridgeToken: v.pipe(v.string(), v.minLength(22)),
  programPassword: v.pipe(v.string(), v.minLength(20)),
})

export type Settings = v.InferOutput<typeof Shape>

const pathIn = (root: string): string => join(root, 'settings.json')

/** Undefined before the first run. Throws `bad-state` naming the file and the field. */
export async function readSettings (root: string): Promise<Settings | undefined> {
  return await readState(pathIn(root), Shape)
}

export async function writeSettings (root: string, settings: Settings): Promise<void> {
  await writeState(pathIn(root), Shape, settings)
}

/** The settings of a running service. */
export class KeptSettings {
  readonly #root: string
  #now: Settings

  private constructor (root: string, settings: Settings) {
    this.#root = root
    this.#now = settings
  }

  /** What is kept, or made at the first run; a name that is given is kept from then on. Throws as `readSettings` does. */
  static async open (root: string, name: string | undefined): Promise<KeptSettings> {
    const found = await readSettings(root)
    const settings: Settings = found ?? { version: 1, name: hostname().slice(0, 100) || 'this device', programPassword: randomBytes(24).toString('base64url'), bridgeToken: randomBytes(24).toString('base64url') }
    const named = name === undefined ? settings : { ...settings, name }
    if (named !== found) await writeSettings(root, named)
    return new KeptSettings(root, named)
  }

  get now (): Settings { return this.#now }

  /** Writes nothing where it says what is kept already. */
  async keep (change: Partial<Settings>): Promise<void> {
    const next = { ...this.#now, ...change }
    if (JSON.stringify(next) === JSON.stringify(this.#now)) return
    await writeSettings(this.#root, next)
    this.#now = next
  }
}

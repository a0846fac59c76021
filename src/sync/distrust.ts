import type { ContentId, DeviceId } from '../core/ids.js'

/** What a device did to be asked for no more files. */
export interface Lie {
  readonly id: ContentId
  readonly reason: string
}

/** The devices that sent wrong bytes. None is asked for a file again while this process runs: a disk that rots or a
 * device that lies will do it again, and everything it sent would have to be fetched twice. */
export class Distrust {
  readonly #liars = new Map<DeviceId, Lie>()

  add (device: DeviceId, lie: Lie): void {
    if (!this.#liars.has(device)) this.#liars.set(device, lie)
  }

  of (device: DeviceId): Lie | undefined { return this.#liars.get(device) }
}

import { statfs } from 'node:fs/promises'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import type { CouchClient } from './couch-client.js'
import type { KeptSettings } from './settings.js'

/** What stays free on this device's disk, and what one device of another person may fill of it, unless told otherwise
 * (bytes). Own devices have no quota but the disk. */
const KEEP_FREE_BYTES = 512 * 1024 * 1024
const PEER_QUOTA_BYTES = 10 * 1024 * 1024 * 1024

export interface RoomOptions {
  /** A folder on the disk that is filled. */
  readonly folder: string
  readonly couch: () => CouchClient
  readonly settings: KeptSettings
  readonly isOwn: (device: DeviceId) => boolean
  /** The local databases that are received from a device. */
  readonly received: (device: DeviceId) => readonly DatabaseName[]
}

const Sizes = v.object({ sizes: v.object({ file: v.number() }) })

/** Whether there is room for what is pulled: on the disk, and within what the device that it comes from may fill.
 * What counts is the size of the local databases it comes into, so that nothing has to be remembered, and
 * compacting or deleting makes room. */
export class Room {
  readonly #options: RoomOptions

  constructor (options: RoomOptions) {
    this.#options = options
  }

  /** Bytes that stay free on the disk whatever is received. */
  get keepFree (): number { return this.#options.settings.now.keepFree ?? KEEP_FREE_BYTES }

  /** What the databases received from a device may fill (bytes), or undefined where it has no quota. */
  quotaOf (device: DeviceId): number | undefined {
    const { settings, isOwn } = this.#options
    const chosen = settings.now.quotas?.[device]
    if (chosen !== undefined) return chosen ?? undefined
    return isOwn(device) ? undefined : PEER_QUOTA_BYTES
  }

  /** Keeps what stays free, and the quota of a device (null for none). */
  async set ({ keepFree, device, quota }: { keepFree?: number | undefined, device?: DeviceId | undefined, quota?: number | null | undefined }): Promise<void> {
    const { settings } = this.#options
    await settings.keep({
      ...keepFree === undefined ? {} : { keepFree },
      ...device === undefined || quota === undefined ? {} : { quotas: { ...settings.now.quotas, [device]: quota } },
    })
  }

  /** Throws `disk-full` where `bytes` more from a device would be too many, saying what would help. */
  async check (device: DeviceId, bytes: number): Promise<void> {
    const { keepFree } = this
    const { bavail, bsize } = await statfs(this.#options.folder)
    if (bavail * bsize - bytes < keepFree) throw new PatchcordError('disk-full', `less than ${keepFree} bytes would stay free on the disk`, { hint: 'make room, or keep less free: patchcord quota --keep-free <size>' })
    const most = this.quotaOf(device)
    if (most === undefined) return
    const used = await this.used(device)
    if (used + bytes > most) throw new PatchcordError('disk-full', `what is received from this device fills its quota of ${most} bytes`, { hint: `raise it: patchcord quota ${device} <size>` })
  }

  /** The size of the databases that are received from a device (bytes). Throws `upstream-down`. */
  async used (device: DeviceId): Promise<number> {
    let sum = 0
    for (const database of this.#options.received(device)) {
      const { status, value } = await this.#options.couch().ask('GET', `/${encodeURIComponent(database)}`)
      if (status === 404) continue
      const parsed = v.safeParse(Sizes, value)
      if (status !== 200 || !parsed.success) throw new PatchcordError('upstream-down', `CouchDB answered ${status} for the size of ${database}`)
      sum += parsed.output.sizes.file
    }
    return sum
  }
}

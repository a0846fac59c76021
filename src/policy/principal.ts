import type { DeviceId, UserId } from '../core/ids.js'

/** What a whitelisted identity may do. Database names are exact or, for own devices alone, end in one `*`. */
export interface Grant { readonly databases: Readonly<Record<string, 'read' | 'write'>>, readonly files: 'all' | 'referenced' }

/** Who is asking, as admission found out. It is looked up again for every request. */
export interface Principal {
  readonly device: DeviceId
  readonly user: UserId | undefined
  readonly relation: 'own' | 'peer'
  /** Names the whitelist entry (limits are counted per entry): `device:<id>`, `ca:<id>` or `own:<device id>`. */
  readonly entry: string
  readonly name: string
  readonly grantName: string
  readonly grant: Grant
  /** Prefix of this device's checkpoints: `_local/<prefix>-<id>`. */
  readonly checkpoints: string
  /** When the certificate or the entry ends, milliseconds since 1970. */
  readonly endsAt: number
}

import type { DatabaseName, DeviceId, UserId } from '../core/ids.js'

export type DatabaseAccess = 'none' | 'read' | 'write'

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

/** What `principal` may do with `database`. An exact name decides before a pattern, and the longest
 * pattern before a shorter one; patterns count for own devices alone. No grant covers a name that starts
 * with `_`: CouchDB keeps users, passwords and replications in such databases. */
export function databaseAccess (principal: Principal, database: DatabaseName): DatabaseAccess {
  const { databases } = principal.grant
  if (database.startsWith('_')) return 'none'
  if (Object.hasOwn(databases, database)) return databases[database] ?? 'none'
  if (principal.relation !== 'own') return 'none'
  // By the prefixes of the name, not by what was granted: a name has at most 238, a grant may have any number.
  for (let length = database.length; length >= 0; length--) {
    const pattern = `${database.slice(0, length)}*`
    if (Object.hasOwn(databases, pattern)) return databases[pattern] ?? 'none'
  }
  return 'none'
}

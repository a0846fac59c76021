import { join } from 'node:path'
import * as v from 'valibot'
import type { Grant } from '../policy/principal.js'
import { GrantsShape } from './shapes.js'
import { readState, writeState } from '../core/state-file.js'
import { OWN_GRANT } from './trust.js'

const Shape = v.strictObject({ version: v.literal(1), grants: GrantsShape })

const pathIn = (home: string): string => join(home, 'grants.json')

/** What holds until something was shared: own devices have everything, nobody else has a grant. */
export const DEFAULT_GRANTS: Readonly<Record<string, Grant>> = Object.freeze({
  [OWN_GRANT]: Object.freeze({ databases: Object.freeze({ '*': 'write' } as const), files: 'all' }),
})

/** What each kind of whitelisted identity may do. No file gives `DEFAULT_GRANTS`; a damaged one throws
 * `bad-state`, naming the file and the field. */
export async function readGrants (home: string): Promise<Readonly<Record<string, Grant>>> {
  return (await readState(pathIn(home), Shape))?.grants as Record<string, Grant> | undefined ?? DEFAULT_GRANTS
}

/** Replaces the grants, durably. Throws `bad-state`, and keeps the old ones, for one that could not be
 * read back. */
export async function writeGrants (home: string, grants: Readonly<Record<string, Grant>>): Promise<void> {
  await writeState(pathIn(home), Shape, { version: 1, grants })
}

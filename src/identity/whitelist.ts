import { join } from 'node:path'
import * as v from 'valibot'
import { WhitelistEntryShape } from './shapes.js'
import { readState, writeState } from '../core/state-file.js'
import type { WhitelistEntry } from './trust.js'

const Shape = v.strictObject({ version: v.literal(1), entries: v.array(WhitelistEntryShape) })

const pathIn = (home: string): string => join(home, 'whitelist.json')

/** The devices and CAs that this user accepted. No file is an empty whitelist, which admits nobody; a
 * damaged one throws `bad-state`, naming the file and the field. */
export async function readWhitelist (home: string): Promise<readonly WhitelistEntry[]> {
  return (await readState(pathIn(home), Shape))?.entries ?? []
}

/** Replaces the whitelist, durably. Throws `bad-state`, and keeps the old one, for an entry that could not
 * be read back. */
export async function writeWhitelist (home: string, entries: readonly WhitelistEntry[]): Promise<void> {
  await writeState(pathIn(home), Shape, { version: 1, entries: [...entries] })
}

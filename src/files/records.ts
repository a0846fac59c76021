import { isDatabaseName, type DatabaseName } from '../core/ids.js'

// What `<50>.refs` holds: the databases that a file is recorded for, one name a line, each line ended by a
// newline. A peer reads a file only through such a line, so a line that is not exactly a database name,
// or that has no end (a torn write could have shortened it into another name), grants nothing.

/** The most bytes that are read of one: a file is not recorded for thousands of databases. */
export const RECORDS_MOST_BYTES = 1_048_576

/** The databases named, each once, sorted, and the number of the first damaged line, from 1. */
export function parseRecords (text: string): { databases: DatabaseName[], damagedLine?: number } {
  const databases = new Set<DatabaseName>()
  const lines = text.split('\n')
  const unfinished = lines.pop()
  let damagedLine: number | undefined = unfinished === '' ? undefined : lines.length + 1
  for (const [at, line] of lines.entries()) {
    if (isDatabaseName(line)) databases.add(line)
    else damagedLine = Math.min(at + 1, damagedLine ?? Infinity)
  }
  const sorted = [...databases].sort()
  return damagedLine === undefined ? { databases: sorted } : { databases: sorted, damagedLine }
}

/** The text of a `.refs` file. */
export function formatRecords (databases: Iterable<DatabaseName>): string {
  return [...new Set(databases)].sort().map(name => `${name}\n`).join('')
}

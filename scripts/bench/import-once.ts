// Imports one file into a new store and prints the seconds that it took, and those of CPU; for works/import.ts, on cores of its own.
import { randomBytes } from 'node:crypto'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { LEAF_BYTES } from '../../src/files/content-id.js'
import { FileStore } from '../../src/files/store.js'

const [root, source] = process.argv.slice(2) as [string, string]
mkdirSync(root, { recursive: true })
const store = await FileStore.open(root)
// The threads that hash start with the first large file, and stay.
const first = `${source}.first`
writeFileSync(first, randomBytes(8 * LEAF_BYTES))
await store.add(first)
rmSync(first)
const [from, before] = [performance.now(), process.cpuUsage()]
await store.add(source)
const { user, system } = process.cpuUsage(before)
process.stdout.write(`${(performance.now() - from) / 1000} ${(user + system) / 1e6}`)
await store.close()

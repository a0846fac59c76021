// Imports one file into a new store and prints the seconds that it took; for works/import.ts, on cores of its own.
import { mkdirSync } from 'node:fs'
import { FileStore } from '../../src/files/store.js'

const [root, source] = process.argv.slice(2) as [string, string]
mkdirSync(root, { recursive: true })
const store = await FileStore.open(root)
const from = performance.now()
await store.add(source)
process.stdout.write(String((performance.now() - from) / 1000))
await store.close()

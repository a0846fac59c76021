/**
 * How costs grow with what is there: documents in the embedded database, files in a store. The figures of
 * docs/scaling.md: CPU seconds, which a busy machine leaves as they are.
 *
 *   npm run build && nice node build/scripts/measure-scaling.js [documents] [files]
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseDatabaseName, type ContentId } from '../src/core/ids.js'
import { startEmbeddedChild } from '../src/embedded/supervise.js'
import { FileStore } from '../src/files/store.js'
import { cpuSeconds, memoryBytes } from './bench/processes.js'

const DOCUMENTS = [1_000, 10_000, 100_000]
const FILES = [100, 1_000, 10_000]
const LOGIN = { username: 'owner', password: 'owner' }
/** What is asked after each size was reached: the cost of one among so many. */
const ASKED = 500

const chosen = process.argv.slice(2)
const folder = await mkdtemp(join(tmpdir(), 'patchcord-scaling-'))
try {
  if (chosen.length === 0 || chosen.includes('documents')) await documents()
  if (chosen.length === 0 || chosen.includes('files')) await files()
} finally {
  await rm(folder, { recursive: true, force: true })
}

async function documents (): Promise<void> {
  const database = await startEmbeddedChild({ dir: join(folder, 'couch'), listen: { host: '::1', port: 0 }, accounts: [{ ...LOGIN, scope: { kind: 'owner' } }] })
  const pid = database.pid!
  const ask = async (method: string, path: string, body?: object): Promise<Record<string, unknown>> => {
    const answer = await fetch(`${database.url}/db${path}`, { method, headers: { 'content-type': 'application/json', 'authorization': `Basic ${Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString('base64')}` }, ...body === undefined ? {} : { body: JSON.stringify(body) } })
    if (!answer.ok) throw new Error(`${answer.status} to ${method} ${path}`)
    return await answer.json() as Record<string, unknown>
  }
  const idOf = (at: number): string => `document-${String(at).padStart(7, '0')}`
  try {
    await database.createDatabase(parseDatabaseName('db'))
    let there = 0
    for (const size of DOCUMENTS) {
      const before = cpuSeconds(pid)
      const from = there
      for (; there < size; there += 500) await ask('POST', '/_bulk_docs', { docs: Array.from({ length: 500 }, (_, at) => ({ _id: idOf(there + at), text: 'x'.repeat(200) })) })
      const written = (cpuSeconds(pid) - before) / (size - from)
      const read = await each(pid, async at => { await ask('GET', `/${idOf(at * 7919 % size)}`) })
      const { last_seq: since } = await ask('GET', '/_changes?since=now')
      const changes = await each(pid, async () => { await ask('GET', `/_changes?since=${encodeURIComponent(String(since))}`) })
      say({ documents: size, 'µs to write one': micros(written), 'µs to read one': micros(read), 'µs for _changes that is up to date': micros(changes), 'memory MiB': Math.round(memoryBytes(pid) / 2 ** 20) })
    }
  } finally {
    await database.stop()
  }
}

async function files (): Promise<void> {
  const [root, from] = [join(folder, 'files'), join(folder, 'from')]
  await mkdir(root)
  await mkdir(from)
  const store = await FileStore.open(root)
  const ids: ContentId[] = []
  try {
    for (const size of FILES) {
      const sources: string[] = []
      for (let at = ids.length; at < size; at++) {
        const path = join(from, `file-${at}`)
        await writeFile(path, `the content of file ${at}`)
        sources.push(path)
      }
      const added = sources.length
      const before = process.cpuUsage()
      const lanes = Array.from({ length: 32 }, async () => {
        for (let path = sources.pop(); path !== undefined; path = sources.pop()) ids.push((await store.add(path)).id)
      })
      await Promise.all(lanes)
      const imported = used(before) / added
      const open = await each(undefined, async at => { await (await store.reader.open(ids[at * 7919 % size]!))?.handle.close() })
      say({ files: size, 'µs to import one': micros(imported), 'µs to open one': micros(open), 'memory MiB': Math.round(process.memoryUsage().rss / 2 ** 20) })
    }
  } finally {
    await store.close()
  }
}

/** CPU seconds for one of many, of that process or of this one, after a hundred that do not count. */
async function each (pid: number | undefined, task: (at: number) => Promise<void>): Promise<number> {
  for (let at = 0; at < 100; at++) await task(at)
  const [ticks, own] = [pid === undefined ? 0 : cpuSeconds(pid), process.cpuUsage()]
  for (let at = 0; at < ASKED; at++) await task(at)
  return (pid === undefined ? used(own) : cpuSeconds(pid) - ticks) / ASKED
}

function used (before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1e6
}

function micros (seconds: number): number {
  return Math.round(seconds * 1e6)
}

function say (line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

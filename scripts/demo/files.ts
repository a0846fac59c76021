import { createHash, randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { PRIVATE, type Cast } from './cast.js'
import { forAll, must, secondsSince, until } from './checks.js'
import type { Device } from './device.js'
import { localDatabase } from './pouch.js'
import type { Report } from './report.js'

const MIB = 1024 * 1024
const BIG_MIB = 256
const SMALL_FILES = 3_000

/** Files that are on the laptop now. */
export interface Files {
  readonly big: { readonly path: string, readonly id: string, readonly sha256: string }
  /** One of the small ones. */
  readonly small: { readonly path: string, readonly id: string }
}

/** A large file and a folder go from the laptop to the desktop. */
export async function moveFiles (report: Report, { laptop, desktop, folder }: Cast): Promise<Files> {
  const path = join(folder, 'film.bin')
  let id = ''
  let sha256 = ''
  await report.step(`laptop: add a random file of ${BIG_MIB} MiB`, async () => {
    sha256 = await writeRandom(path, BIG_MIB)
    const { added, seconds } = await add(laptop, path, PRIVATE)
    id = added.get(path) ?? ''
    return `${rate(BIG_MIB, seconds)}: hashed, copied, on the disk; ${id.slice(0, 8)}…`
  })
  await report.step('desktop: get it', async tell => {
    const to = join(folder, 'film-on-desktop.bin')
    let done: Record<string, unknown> = {}
    const code = await desktop.follow(['get', id, '-o', to], line => {
      done = line
      if (line['event'] === 'progress') tell(`${Math.floor(Number(line['done']) / MIB)} of ${BIG_MIB} MiB`)
    })
    must(code === 0, `get ended with ${code}: ${JSON.stringify(done)}`)
    must(await hashOf(to) === sha256, 'the copy on the desktop is not the file')
    return `${rate(BIG_MIB, Number(done['seconds']))}; SHA-256 is the same`
  })
  const small = await moveFolder(report, laptop, desktop, folder)
  return { big: { path, id, sha256 }, small }
}

async function moveFolder (report: Report, laptop: Device, desktop: Device, folder: string): Promise<Files['small']> {
  const source = join(folder, 'project')
  const hashes = new Map<string, string>()
  let added = new Map<string, string>()
  await report.step(`laptop: add a folder of ${SMALL_FILES} files`, async () => {
    const bytes = await writeFolder(source, hashes)
    const { added: ids, seconds } = await add(laptop, source, PRIVATE)
    added = ids
    must(added.size === SMALL_FILES, `${added.size} of ${SMALL_FILES} files were added`)
    return `${(bytes / MIB).toFixed(1)} MiB, ${Math.round(SMALL_FILES / seconds)} files/s`
  })
  const names = new Map<string, string>()
  await report.step('desktop: learns their IDs from the database', async () => {
    const database = await localDatabase(desktop, PRIVATE)
    await until('all documents arrive', 20_000, async () => (await database.info()).doc_count >= SMALL_FILES + 1)
    for (const { id, doc } of (await database.allDocs({ include_docs: true })).rows) {
      const [name] = doc?.['names'] as string[] | undefined ?? []
      if (name !== undefined && hashes.has(name)) names.set(name, id)
    }
    await database.close()
    must(names.size === SMALL_FILES, `documents of ${names.size} of ${SMALL_FILES} files arrived`)
    return `${names.size} documents by the agents' own replication`
  })
  await report.step('desktop: get them all', async tell => {
    const to = join(folder, 'project-on-desktop')
    await mkdir(to)
    const started = performance.now()
    let done = 0
    // By the control socket, as the command line does: a command for each would mostly start processes.
    await forAll([...names], 16, async ([name, id]) => {
      await desktop.control.call('get', { id, output: join(to, name) })
      if (++done % 100 === 0) tell(`${done} of ${SMALL_FILES}`)
    })
    const seconds = secondsSince(started)
    await forAll([...hashes], 8, async ([name, expected]) => {
      must(await hashOf(join(to, name)) === expected, `${name} on the desktop is not the file`)
    })
    return `${Math.round(SMALL_FILES / seconds)} files/s; SHA-256 of each is the same`
  })
  const [path, id] = [...added][0]!
  return { path, id }
}

/** `patchcord add`; the IDs by path, and what it took. */
export async function add (device: Device, path: string, database: string): Promise<{ added: Map<string, string>, seconds: number }> {
  const added = new Map<string, string>()
  let seconds = NaN
  const code = await device.follow(['add', path, '--to', database], line => {
    if (line['event'] === 'added') added.set(String(line['path']), String(line['id']))
    if (line['event'] === 'done') seconds = Number(line['seconds'])
  })
  must(code === 0 && added.size > 0, `add ended with ${code}`)
  return { added, seconds }
}

/** Writes a random file and returns its SHA-256. */
export async function writeRandom (path: string, mib: number): Promise<string> {
  const hash = createHash('sha256')
  const file = await open(path, 'wx')
  try {
    for (let index = 0; index < mib; index++) {
      const bytes = randomBytes(MIB)
      hash.update(bytes)
      await file.write(bytes)
    }
  } finally {
    await file.close()
  }
  return hash.digest('hex')
}

export async function hashOf (path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return hash.digest('hex')
}

/** The same bytes on every run: mostly a few KiB, some empty, some of several leaves. */
async function writeFolder (folder: string, hashes: Map<string, string>): Promise<number> {
  let bytes = 0
  await mkdir(folder)
  for (let index = 0; index < SMALL_FILES; index++) {
    const name = `file-${String(index).padStart(4, '0')}.bin`
    const below = join(folder, `part-${index % 30}`)
    if (index < 30) await mkdir(below)
    // Two files with the same bytes would be one in the store, so only one of them is empty.
    const size = index === 0 ? 0 : index % 500 === 7 ? MIB + index * 300 : 1 + index * 7919 % 24_000
    const content = createHash('shake256', { outputLength: size }).update(name).digest()
    await writeFile(join(below, name), content)
    hashes.set(basename(name), createHash('sha256').update(content).digest('hex'))
    bytes += size
  }
  return bytes
}

export const rate = (mib: number, seconds: number): string => `${Math.round(mib / seconds)} MiB/s`

import { constants } from 'node:fs'
import { access, lstat, stat, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import * as v from 'valibot'
import { fileError, PatchcordError, systemCode } from '../core/errors.js'
import { isContentId, parseDatabaseName, type ContentId } from '../core/ids.js'
import type { OperationTable } from '../control/operations.js'
import { walk, type WalkOptions } from '../files/walk.js'
import type { Source } from '../sync/ask-file.js'
import type { Agent } from './agent.js'
import { absolutePath, readArguments, text } from './arguments.js'
import { copyOut } from './copy-out.js'
import { findByName } from './file-names.js'
import { PolicyShape } from './follow-policies.js'
import { ProgressMeter, sizesBelow } from './local-progress.js'
import { writeFileDocuments, type NamedFile } from './file-documents.js'

/** The file store. */
export function fileOperations (agent: Agent): Pick<OperationTable, 'add' | 'ls' | 'get' | 'follow'> {
  const { store } = agent
  return {
    add: (args, emit, signal) => importing(agent, async () => {
      const { paths, to, move = false } = readArguments(v.strictObject({ paths: v.array(absolutePath), to: v.exactOptional(text), move: v.exactOptional(v.boolean()) }), args)
      const begun = Date.now()
      const database = to === undefined ? undefined : parseDatabaseName(to)
      if (database !== undefined && !agent.databases.includes(database)) throw new PatchcordError('not-found', `there is no database ${database}`, { hint: `make it: patchcord db create ${database}` })
      const started = agent.clock.monotonic()
      let files = 0
      let bytes = 0
      let failed = 0
      let batch: NamedFile[] = []
      // Removed only at the end, when all is recorded too.
      const moved: Array<{ readonly path: string, readonly id: ContentId }> = []
      const record = async (): Promise<void> => {
        if (database === undefined || batch.length === 0) return
        const named = batch
        batch = []
        await agent.following.making(database, named.map(({ id }) => id), async () => {
          // At once: each waits for the disk three times.
          await Promise.all(named.map(({ id }) => store.record(id, database)))
          await writeFileDocuments(agent.couch.client, database, named)
        })
      }
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'reading', tell: emit, sizes: () => sizesBelow(paths, agent.home.root), signal })
      const passedOver = (path: string, reason: string): void => { emit({ event: 'passed-over', path, reason }) }
      // What else was named is taken in all the same.
      const unreadable = (path: string, error: PatchcordError): void => {
        if (paths.length === 1 && path === paths[0]) throw error
        failed += 1
        emit({ event: 'failed', path, error: error.message, hint: error.hint })
      }
      const found = walkAll(paths, { passedOver, unreadable, except: agent.home.root })
      for await (const added of store.addAll(found, { signal, onBytes: bytes => { meter.add(bytes) } })) {
        meter.add(0, 1)
        if ('error' in added) {
          failed += 1
          emit({ event: 'failed', path: added.path, error: added.error.message, hint: added.error.hint })
          continue
        }
        files += 1
        bytes += added.size
        emit({ event: 'added', id: added.id, size: added.size, path: added.path, new: added.isNew })
        if (move) {
          // What somebody wrote to while it was read stays where it is.
          const status = await lstat(added.path).catch(() => undefined)
          if (status !== undefined && status.size === added.size && Math.max(status.mtimeMs, status.ctimeMs) < begun) moved.push(added)
          else emit({ event: 'failed', path: added.path, error: `${added.path} was added, and stays: it changed just now`, hint: 'add it again once nothing writes to it' })
        }
        if (database !== undefined) {
          const status = await lstat(added.path).catch(() => undefined)
          batch.push({ id: added.id, size: added.size, path: added.path, mtime: status?.mtimeMs ?? agent.clock.now() })
          if (batch.length >= RECORD_BATCH) await record()
        }
      }
      await record()
      for (const { path, id } of moved) {
        // Not the store's own file, should that be what was named; nor what a gc has removed there meanwhile.
        const [status, kept] = await Promise.all([path, store.path(id)].map(one => lstat(one).catch(() => undefined)))
        if (kept === undefined || (status?.ino === kept.ino && status.dev === kept.dev)) continue
        await unlink(path).catch((error: unknown) => { if (systemCode(error) !== 'ENOENT') throw fileError(error, path) })
      }
      if (failed > 0) throw new PatchcordError('unreadable', `${failed} of ${failed + files} files ${failed === 1 ? 'was' : 'were'} not added`, { hint: 'the lines above name each one and what to do' })
      return { files, bytes, seconds: (agent.clock.monotonic() - started) / 1000 }
    }),

    ls: async (_args, emit, signal) => {
      let files = 0
      let bytes = 0
      for await (const { id, size } of store.list()) {
        signal.throwIfAborted()
        emit({ event: 'file', id, size, databases: await store.records(id) })
        files += 1
        bytes += size
      }
      return { files, bytes }
    },

    follow: async args => {
      const { database: given, policy } = readArguments(v.strictObject({ database: text, policy: v.exactOptional(PolicyShape) }), args)
      const database = parseDatabaseName(given)
      if (!agent.databases.includes(database)) throw new PatchcordError('not-found', `there is no database ${database} here`, { hint: '`patchcord db ls` lists them' })
      if (policy !== undefined) await agent.following.choose(database, policy)
      return { database, policy: agent.following.policy(database), missing: agent.following.missing([database]) }
    },

    get: async (args, emit, signal) => {
      const { id: given, output, from, force = false } = readArguments(v.strictObject({ id: text, output: absolutePath, from: v.exactOptional(text), force: v.exactOptional(v.boolean()) }), args)
      const id = isContentId(given) ? given : await findByName(agent.couch.client, agent.databases, given)
      // Before hours of fetching, not after them.
      await checkOutput(output, force)
      const started = agent.clock.monotonic()
      const sources: string[] = []
      if (!await store.has(id)) {
        const named = from === undefined ? undefined : agent.book.find(from).device
        const found = await agent.sources.of(id, new Set(named === undefined ? [] : [named]))
        const may = (): readonly Source[] => found().filter(({ device }) => named === undefined || device === named)
        if (may().length === 0) throw nobody(agent, id)
        const done = await agent.downloads.fetchAsked(id, { sources: may, signal, onEvent: emit })
        sources.push(...done.sources)
        await agent.following.fetched(id, done.givers)
      }
      const { size } = await lstat(store.path(id))
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'copying', tell: emit, sizes: size })
      await copyOut(store.path(id), output, force, bytes => { meter.add(bytes) })
      return { id, size, seconds: (agent.clock.monotonic() - started) / 1000, sources }
    },
  }
}

const RECORD_BATCH = 200

/** Runs an import, and lets others know that one is under way. */
async function importing<Result> (agent: Agent, task: () => Promise<Result>): Promise<Result> {
  agent.importing += 1
  try {
    return await task()
  } finally {
    agent.importing -= 1
  }
}

async function * walkAll (paths: readonly string[], options: WalkOptions): AsyncIterable<string> {
  for (const path of paths) for await (const found of walk(path, options)) yield found.path
}

/** Why nobody is asked: nobody is there, or nobody who is there has shared it. */
function nobody (agent: Agent, id: ContentId): PatchcordError {
  if (!agent.peers.all().some(({ link }) => link.connected)) return new PatchcordError('unreachable', `no device that may have ${id} is connected`, { hint: '`patchcord status` says why' })
  return new PatchcordError('not-found', `no device that is connected has shared ${id} with this one`, { hint: 'accept the database it belongs to, or name the device with --from' })
}

/** Throws where no file can be written to `path`: its name is taken (with `force`, by a folder), or there is no folder that it could be
 * written into. */
async function checkOutput (path: string, force: boolean): Promise<void> {
  const [status, folder] = await Promise.all([lstat(path), stat(dirname(path))].map(async asked => await asked.catch((error: unknown) => {
    if (systemCode(error) !== 'ENOENT' && systemCode(error) !== 'ENOTDIR') throw fileError(error, path)
  })))
  if (status?.isDirectory() === true) throw new PatchcordError('already-exists', `${path} is a folder`, { hint: 'name a file in it' })
  if (status !== undefined && !force) throw new PatchcordError('already-exists', `${path} is there already`, { hint: 'choose another path, or say --force' })
  if (folder?.isDirectory() !== true) throw new PatchcordError('not-found', `there is no folder ${dirname(path)}`, { hint: 'make it first, or choose another path' })
  await access(dirname(path), constants.W_OK | constants.X_OK).catch((error: unknown) => { throw fileError(error, dirname(path)) })
}

import { lstat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import type { OperationTable } from '../control/operations.js'
import type { Agent } from './agent.js'
import { readArguments } from './arguments.js'
import { fileDocuments } from './file-names.js'
import { ProgressMeter } from './local-progress.js'
import type { Offers } from './offers.js'

/** At most this share of the time is spent reading, so that what runs beside is not held up. */
const SHARE = 0.5

/** Rests are at least so long (ms): for files of some bytes the shortest rest there is would be most of the time. */
const REST_MS = 20
/** What stat(2) counts in. */
const BLOCK_BYTES = 512

/** Files that are removed together, folder by folder. What is recorded meanwhile stays. */
const REMOVED = 1_000

/** Keeping the store whole and small. */
export function upkeepOperations (agent: Agent): Pick<OperationTable, 'verify' | 'gc'> {
  const { store } = agent
  return {
    verify: async (_args, emit, signal) => {
      let files = 0
      let bytes = 0
      let damaged = 0
      let mended = 0
      let unreadable = 0
      let worked = 0
      const sizes = async function * (): AsyncIterable<number> { for await (const { size } of store.list()) yield size }
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'reading', tell: emit, sizes, signal })
      for await (const { id, size } of store.list()) {
        let at = performance.now()
        const rest = async (): Promise<void> => {
          signal.throwIfAborted()
          worked += performance.now() - at
          const due = worked * (1 / SHARE - 1)
          if (due >= REST_MS) {
            worked = 0
            await sleep(due)
          }
          at = performance.now()
        }
        const found = await store.examine(id, async read => {
          bytes += read
          meter.add(read)
          await rest()
        }).catch((error: unknown) => {
          // What the disk refuses to read may be readable yet: it stays where it is, and the others are still to be read.
          if (signal.aborted || !(error instanceof PatchcordError) || error.code !== 'unreadable') throw error
          return { state: 'unreadable' as const, reason: error.message }
        })
        if (found.state === 'absent') continue
        if (found.state === 'damaged') {
          const quarantined = await store.quarantine(id, found)
          // It went meanwhile, or came anew.
          if (quarantined === undefined) continue
          damaged += 1
          emit({ event: 'damaged', id, quarantined })
          agent.logger.error({ id, size }, 'a file of the store is damaged and was put aside')
        } else if (found.state === 'unreadable') {
          unreadable += 1
          emit({ event: 'unreadable', id, reason: found.reason })
          agent.logger.error({ id, size, reason: found.reason }, 'a file of the store cannot be read')
        } else if (found.state === 'mended') {
          mended += 1
          emit({ event: 'mended', id })
          agent.logger.warn({ id, size }, 'the leaf list of a file of the store was damaged or missing and was made anew; the file is right')
        }
        files += 1
        meter.add(0, 1)
        await rest()
      }
      return { files, bytes, damaged, mended, unreadable }
    },

    gc: async (args, emit, signal) => {
      const { remove = false } = readArguments(v.strictObject({ remove: v.exactOptional(v.boolean()) }), args)
      const isCalm = (): boolean => agent.importing === 0 && !agent.offers.isBusy
      const checkCalm = (): void => {
        if (remove && !isCalm()) throw new PatchcordError('conflict', 'files are being added or received, and what they are for is not known yet', { hint: 'run it again when that has ended' })
      }
      checkCalm()
      const offered = offeredFiles(agent.offers)
      // Nothing is taken for unreferenced because a database could not be read: that throws.
      const kept = new Set(offered())
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'searching', tell: emit })
      for (const database of await agent.couch.databases()) for await (const { id } of fileDocuments(agent.couch.client, database)) kept.add(id)
      let files = 0
      let bytes = 0
      let batch: Array<{ id: ContentId, size: number }> = []
      // Looking took its time, and so does removing: what is taken in now may be one of these, and what was lent or asked for meanwhile is.
      const isKept = (id: ContentId): boolean => !isCalm() || offered().has(id) || agent.downloads.isWanted(id)
      const clear = async (): Promise<void> => {
        checkCalm()
        const removed = await store.removeUnrecorded(batch.map(({ id }) => id), isKept)
        for (const { id, size } of batch) {
          if (removed.has(id)) continue
          files -= 1
          bytes -= size
        }
        // It goes no further than what is being taken in.
        if (removed.size < batch.length) checkCalm()
        batch = []
      }
      for await (const { id, size } of store.list()) {
        signal.throwIfAborted()
        meter.add(0, 1)
        if (kept.has(id) || (await store.records(id)).length > 0) continue
        emit({ event: 'unreferenced', id, size })
        files += 1
        bytes += size
        if (!remove) continue
        batch.push({ id, size })
        if (batch.length < REMOVED) continue
        await clear()
      }
      if (batch.length > 0) await clear()
      // What is left of downloads that nobody goes on with: such a file grows as it comes, and is as large as what came.
      if (!agent.offers.isBusy) {
        for (const id of await store.partials()) {
          if (kept.has(id) || agent.downloads.isWanted(id)) continue
          const size = ((await lstat(store.partialPath(id)).catch(() => undefined))?.blocks ?? 0) * BLOCK_BYTES
          if (remove && !await store.dropPartial(id)) continue
          emit({ event: 'unreferenced', id, size })
          files += 1
          bytes += size
        }
      }
      return { files, bytes, removed: remove }
    },
  }
}

/** The files that are lent, and the lists of those: now, whenever it is asked. It is asked for each of many files, and works them out where the
 * offers are others than before; what of them only ran out meanwhile is in it still. */
function offeredFiles (offers: Offers): () => ReadonlySet<ContentId> {
  let sent: Offers['sent'] | undefined
  let files = new Set<ContentId>()
  return () => {
    if (sent !== offers.sent) {
      sent = offers.sent
      files = new Set(offers.lent().flatMap(one => one.files))
    }
    return files
  }
}

import { setTimeout as sleep } from 'node:timers/promises'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { ContentId } from '../core/ids.js'
import type { OperationTable } from '../control/operations.js'
import type { Agent } from './agent.js'
import { readArguments } from './arguments.js'
import { fileDocuments } from './file-names.js'
import { ProgressMeter } from './local-progress.js'

/** At most this share of the time is spent reading, so that what runs beside is not held up. */
const SHARE = 0.5

/** Keeping the store whole and small. */
export function upkeepOperations (agent: Agent): Pick<OperationTable, 'verify' | 'gc'> {
  const { store } = agent
  return {
    verify: async (_args, emit, signal) => {
      let files = 0
      let bytes = 0
      let damaged = 0
      const sizes = async function * (): AsyncIterable<number> { for await (const { size } of store.list()) yield size }
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'reading', tell: emit, sizes, signal })
      for await (const { id, size } of store.list()) {
        try {
          let at = performance.now()
          for await (const chunk of store.read(id) as AsyncIterable<Buffer>) {
            signal.throwIfAborted()
            bytes += chunk.length
            meter.add(chunk.length)
            await sleep((performance.now() - at) * (1 / SHARE - 1))
            at = performance.now()
          }
        } catch (error) {
          // A list that is missing or of another length is damage as well; what the system refuses to read is not.
          if (!(error instanceof PatchcordError) || (error.code !== 'verification' && error.code !== 'not-found')) throw error
          if (error.code === 'not-found' && !await store.has(id)) continue
          damaged += 1
          emit({ event: 'damaged', id, quarantined: await store.quarantine(id) })
          agent.logger.error({ id, size, reason: error.message }, 'a file of the store is damaged and was put aside')
        }
        files += 1
        meter.add(0, 1)
      }
      return { files, bytes, damaged }
    },

    gc: async (args, emit, signal) => {
      const { remove = false } = readArguments(v.strictObject({ remove: v.exactOptional(v.boolean()) }), args)
      if (remove && (agent.importing > 0 || agent.offers.isBusy)) throw new PatchcordError('conflict', 'files are being added or received, and what they are for is not known yet', { hint: 'run it again when that has ended' })
      // Nothing is taken for unreferenced because a database could not be read: that throws.
      const kept = new Set<ContentId>(agent.offers.lent().flatMap(({ files }) => files))
      for (const one of agent.offers.received) kept.add(one.list)
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'searching', tell: emit })
      for (const database of await agent.couch.databases()) for await (const { id } of fileDocuments(agent.couch.client, database)) kept.add(id)
      let files = 0
      let bytes = 0
      for await (const { id, size } of store.list()) {
        signal.throwIfAborted()
        meter.add(0, 1)
        if (kept.has(id) || (await store.records(id)).length > 0) continue
        emit({ event: 'unreferenced', id, size })
        files += 1
        bytes += size
        if (remove) await store.remove(id)
      }
      return { files, bytes, removed: remove }
    },
  }
}

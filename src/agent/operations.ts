import * as v from 'valibot'
import type { OperationTable } from '../control/operations.js'
import type { Agent } from './agent.js'
import { readArguments } from './arguments.js'
import { caOperations } from './ca-operations.js'
import { couchOperations } from './couch-operations.js'
import { exportOperations } from './export-operations.js'
import { fileOperations } from './file-operations.js'
import { renderMetrics } from './metrics.js'
import { pairingOperations } from './pairing-operations.js'
import { offerOperations } from './offer-operations.js'
import { sharingOperations } from './sharing-operations.js'
import { trustOperations } from './trust-operations.js'
import { upkeepOperations } from './upkeep-operations.js'

/** What the control socket does. Each operation checks its own arguments. */
export function operationsOf (agent: Agent): OperationTable {
  return {
    status: async () => agent.status(),
    events: async (_args, emit, signal) => {
      const forward = emit as (event: object) => void
      agent.events.on('event', forward)
      await new Promise<void>(resolve => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })
      agent.events.off('event', forward)
      return {}
    },
    logs: async (args, emit, signal) => {
      const { lines = 100, follow = false } = readArguments(v.strictObject({ lines: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(0))), follow: v.exactOptional(v.boolean()) }), args)
      for (const line of agent.log.last(lines)) emit({ event: 'log', line })
      if (!follow) return {}
      const unfollow = agent.log.follow(line => { emit({ event: 'log', line }) })
      if (!signal.aborted) await new Promise<void>(resolve => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })
      unfollow()
      return {}
    },
    metrics: () => renderMetrics(agent),
    ...trustOperations(agent),
    ...pairingOperations(agent),
    ...couchOperations(agent),
    ...sharingOperations(agent),
    ...fileOperations(agent),
    ...caOperations(agent),
    ...exportOperations(agent),
    ...offerOperations(agent),
    ...upkeepOperations(agent),
  }
}

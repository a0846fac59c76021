import type { OperationTable } from '../control/operations.js'
import type { Agent } from './agent.js'
import { caOperations } from './ca-operations.js'
import { couchOperations } from './couch-operations.js'
import { exportOperations } from './export-operations.js'
import { fileOperations } from './file-operations.js'
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

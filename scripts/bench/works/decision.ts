import type { DeviceId } from '../../../src/core/ids.js'
import { canonicalise } from '../../../src/policy/canonical.js'
import { decide } from '../../../src/policy/decide.js'
import type { Principal } from '../../../src/policy/principal.js'
import { route } from '../../../src/policy/route.js'
import type { Prepared } from '../work.js'

const DEVICE = `${'a'.repeat(51)}q` as DeviceId
const CALLS = 50_000

/** One decision, in this process, for a peer that was granted so many databases. */
export const decision: Prepared = {
  work: { name: 'decision', title: 'one decision about a request, for a peer that was granted 10,000 databases', unit: 'ns', better: 'less', group: 'port', rounds: 15, ours: 'patchcord', goal: { limit: 2_000 } },
  prepare: async () => {
    const canonical = canonicalise({ method: 'GET', target: '/couch/db/0123456789abcdef', httpVersion: '1.1', rawHeaders: ['Host', '[::1]:4984'] }, DEVICE)
    if ('refusal' in canonical) throw new Error('the request is refused')
    const action = route(canonical.request)
    if (action === undefined || !('kind' in action)) throw new Error('the request has no action')
    return {
      contestants: [['patchcord', 10_000], ['10 databases', 10]].map(([name, size]) => ({
        name: String(name), version: process.version,
        start: async () => {
          const databases = Object.fromEntries([...Array.from({ length: Number(size) - 1 }, (_, at) => [`database-${at}`, 'read' as const]), ['db', 'read' as const]])
          const who: Principal = { device: DEVICE, user: undefined, relation: 'peer', entry: '', name: '', grantName: '', checkpoints: '', endsAt: 1, grant: { databases, files: 'referenced' } }
          return {
            turn: async () => {
              const from = process.hrtime.bigint()
              for (let call = 0; call < CALLS; call++) if (!decide(who, action, 0).allowed) throw new Error('refused')
              return { value: Number(process.hrtime.bigint() - from) / CALLS }
            },
            stop: async () => {},
          }
        },
      })),
    }
  },
}

import type { ContentId, DatabaseName, DeviceId } from '../../src/core/ids.js'
import { canonicalise, type CanonicalRequest, type RawHead } from '../../src/policy/canonical.js'
import type { Principal } from '../../src/policy/principal.js'
import { route, type Action } from '../../src/policy/route.js'

export const DEVICE = `${'a'.repeat(51)}q` as DeviceId
export const FILE = `${'b'.repeat(51)}a` as ContentId
export const NOW = Date.UTC(2030, 0, 1)
export const PREFIX = 'zzzz'

export const HOST = ['Host', '[fe80::1]:4984']

/** A head that differs from a good GET in what is given. */
export function head (change: Partial<RawHead> = {}): RawHead {
  return { method: 'GET', target: '/', httpVersion: '1.1', rawHeaders: HOST, ...change }
}

/** The canonical form of `method target`, with the body that the method needs; throws where it is refused. */
export function canonical (method: string, target: string): CanonicalRequest {
  const result = canonicalise(head({ method, target }), DEVICE)
  if ('refusal' in result) throw new Error(`${method} ${target}: ${result.refusal.rule}`)
  return result.request
}

export function actionOf (method: string, target: string): Action | undefined {
  return route(canonical(method, target))
}

/** The rule that refused the head, or 'taken'. */
export function ruleOf (change: Partial<RawHead>): string {
  const result = canonicalise(head(change), DEVICE)
  return 'refusal' in result ? result.refusal.rule : 'taken'
}

export function principal (relation: Principal['relation'], databases: Record<string, 'read' | 'write'>, change: Partial<Principal> = {}): Principal {
  return {
    device: DEVICE, user: undefined, relation, entry: `${relation}:test`, name: 'test', grantName: relation === 'own' ? 'own' : 'friend',
    grant: { databases, files: relation === 'own' ? 'all' : 'referenced' }, checkpoints: PREFIX, endsAt: NOW + 1000, ...change,
  }
}

export const database = (name: string): DatabaseName => name as DatabaseName

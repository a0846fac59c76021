import type { CouchAction } from './route.js'

/** Whether the action is a feed: an answer that may stay open for as long as nothing happens. */
export function isFeed ({ row, target, query }: CouchAction): boolean {
  const feed = query.get('feed')
  return row.path === 'endpoint' && target.endpoint === '_changes' && (feed === 'longpoll' || feed === 'continuous')
}

/** CouchDB writes one line per beat: a client may not ask for a flood of them. */
const SHORTEST_BEAT = 1000

/** The query of a feed so that it is never silent for longer than `heartbeatMs`. CouchDB waits for 60 s
 * where it is told nothing, and a heartbeat overrides a time-out. */
export function boundedFeedQuery (query: ReadonlyMap<string, string>, heartbeatMs: number): ReadonlyMap<string, string> {
  const bounded = new Map(query)
  const heartbeat = query.get('heartbeat')
  const timeout = query.get('timeout')
  if (heartbeat === undefined && timeout !== undefined) {
    bounded.set('timeout', String(Math.min(Number(timeout), heartbeatMs)))
  } else {
    const asked = heartbeat === undefined || heartbeat === 'true' ? heartbeatMs : Math.max(Number(heartbeat), SHORTEST_BEAT)
    bounded.set('heartbeat', String(Math.min(asked, heartbeatMs)))
  }
  return bounded
}

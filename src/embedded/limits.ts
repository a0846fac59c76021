import { DEFAULT_LIMITS } from '../core/limits.js'

/** Every limit of the embedded database, with its default; milliseconds and bytes. */
export const EMBEDDED_LIMITS = {
  headMs: DEFAULT_LIMITS.headMs,
  headBytes: DEFAULT_LIMITS.headBytes,
  headers: DEFAULT_LIMITS.headers,
  idleMs: DEFAULT_LIMITS.idleMs,
  /** A body or an answer on which no byte moved. */
  stallMs: DEFAULT_LIMITS.stallMs,
  connections: 2048,
  /** Running `_changes` feeds per account. */
  feedsPerAccount: 1024,
  /** One JSON body or attachment. */
  bodyBytes: 64 * 1024 * 1024,
  /** One document without its attachments, CouchDB's `max_document_size`. */
  documentBytes: 8_000_000,
  /** Bodies up to this are read at once; of larger ones so many at a time, and so many may wait. */
  smallBodyBytes: 65_536,
  bodies: 4,
  bodiesPerAccount: 2,
  bodiesWaiting: 64,
  checkpointBytes: DEFAULT_LIMITS.checkpointBytes,
  /** The longest a feed without a heartbeat waits, CouchDB's `changes_timeout`. */
  feedTimeoutMs: 60_000,
  /** A shorter heartbeat is taken as this. */
  shortestHeartbeatMs: 1000,
  /** The longest `_find` may run. */
  findMs: 10_000,
  /** How long `stop` waits for requests other than feeds. */
  drainMs: 2000,
} as const satisfies Record<string, number>

export type EmbeddedLimits = Readonly<Record<keyof typeof EMBEDDED_LIMITS, number>>

/** Every limit of the open port, with its default. Durations are milliseconds. The env may replace any
 * of them (`limits` of docs/env.schema.json); each is a positive integer. The comments are what
 * docs/limits.md says (`npm run docs`). */
export const DEFAULT_LIMITS = {
  /** From accept to the end of admission. */
  handshakeMs: 10_000,
  /** Connections accepted and not yet admitted, over all addresses. */
  handshakes: 64,
  /** Token bucket per interface: new connections a second. */
  acceptsPerSecond: 256,
  /** Token bucket per interface: new connections at once after a pause. */
  acceptBurst: 512,
  /** From a request's first byte to the end of its head. */
  headMs: 10_000,
  /** Header lines of one request. */
  headers: 64,
  /** Bytes of one request's head. */
  headBytes: 16_384,
  /** A keep-alive connection with no request. */
  idleMs: 75_000,
  /** A transfer on which no byte moved, in either direction. */
  stallMs: 30_000,
  /** The longest silence of a `_changes` feed: a heartbeat of at most this is asked of the upstream, and sent in its place where it stays away. */
  heartbeatMs: 20_000,
  /** From the end of a request to the head of the upstream's answer (of a feed, never less than a heartbeat and a stall). */
  upstreamMs: 60_000,
  /** How long a long-poll of `/mail` waits for something new. */
  mailPollMs: 60_000,
  /** Bytes of one JSON body or attachment. */
  bodyBytes: 256 * 1024 * 1024,
  /** Larger bodies at once per whitelist entry. */
  bodies: 2,
  /** Bytes up to which a body is none of the larger ones; one that does not tell its length is. */
  smallBodyBytes: 65_536,
  /** Connections per whitelist entry, however many devices come in through it. */
  connectionsPerEntry: 32,
  /** Requests at once per whitelist entry. */
  requestsPerEntry: 64,
  /** Feeds at once per whitelist entry: `_changes` that wait, and long-polls of `/mail`. */
  feedsPerEntry: 16,
  /** Checkpoints (`_local` documents) per whitelist entry and database, written since the server started. */
  checkpoints: 64,
  /** Bytes of one checkpoint. */
  checkpointBytes: 65_536,
} as const satisfies Record<string, number>

export type LimitName = keyof typeof DEFAULT_LIMITS
export type Limits = Readonly<Record<LimitName, number>>

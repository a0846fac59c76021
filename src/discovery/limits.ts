/** What discovery may cost at most, whoever is on the link. Durations are milliseconds. */
export const DISCOVERY_LIMITS = {
  /** RFC 6762 section 17: no mDNS packet is larger, header and all. */
  packetBytes: 9000,
  /** Questions and records of one packet, by its header. Ours have seven; parsing costs by the record. */
  packetRecords: 64,
  /** Services read from one packet. */
  packetServices: 4,
  /** Packets parsed per interface, over all sources. */
  packetsPerSecond: 256,
  packetBurst: 512,
  /** Packets parsed per source, so that one that floods uses up its own share alone. */
  sourcePerSecond: 16,
  sourceBurst: 32,
  /** Sources whose rate is kept per interface. The one heard least lately is forgotten first. */
  sources: 256,
  /** Sources that a known device was recognised at: they need no token of the interface's bucket. */
  vouched: 64,
  /** Queries answered per interface, and questions read of one. */
  answersPerSecond: 8,
  answerBurst: 16,
  questions: 8,
  /** HMACs a second for records never seen before (about 9 us each). */
  hmacsPerSecond: 20_000,
  hmacBurst: 40_000,
  /** Records whose recognition is remembered, recognised or not. */
  remembered: 1_000,
  /** Sources kept per device, and ports per source. */
  candidates: 8,
  ports: 2,
  /** A candidate is forgotten when it was not heard of for this long. */
  candidateMs: 150_000,
  /** Pairing windows listed, and those of one source. */
  windows: 64,
  windowsPerSource: 4,
  /** Interfaces used at once. */
  links: 32,
  /** Heap of the worker, in MiB: past it the worker ends and is started again. */
  heapMb: 64,
} as const

/** When a link came up, this long after it: RFC 6762 section 8.3 wants two announcements, a second apart. */
export const ANNOUNCE_AT_MS = [0, 1_000, 3_000] as const
/** Then at this interval, each up to a fifth sooner at random. */
export const ANNOUNCE_EVERY_MS = 60_000
/** How often interfaces are looked at, and while an address is new. */
export const LOOK_EVERY_MS = 1_000
export const LOOK_AGAIN_MS = 100
/** A look that comes so late means that the machine slept: links are announced anew. */
export const SLEPT_MS = 10_000

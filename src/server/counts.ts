/** What the server counted since it started: it tells the agent when asked, and nobody else. */
export interface ServerCounts {
  /** Connections that are admitted and open now. */
  readonly connections: number
  /** Requests that were answered, by the first digit of the status. */
  readonly requests: Readonly<Record<string, number>>
  /** Bytes of answers' bodies. */
  readonly bytes: number
  /** Resident memory of its process (bytes). */
  readonly memory: number
}

/** Adds up what was answered. */
export class Answered {
  readonly requests: Record<string, number> = {}
  bytes = 0

  add (status: number, bytes: number): void {
    const kind = `${Math.floor(status / 100)}xx`
    this.requests[kind] = (this.requests[kind] ?? 0) + 1
    this.bytes += bytes
  }
}

/** Something whose bytes are ready to be written. */
export interface Writer {
  /** Writes them now, if that was not done meanwhile. */
  flush (): void
}

const waiting: Writer[] = []

/**
 * Has `writer` flushed once everything was read that is at hand now: writes come one after the other behind the reads, not each in between.
 *
 * Sixteen connections, a proxied read each: 45 µs of CPU for one with each write at once, 34 µs so. The other side of a socket is woken
 * once for several writes and not for each, and the code that reads, decides and parses is not driven out of the processor's caches
 * by the kernel's after every request. Who is alone waits for nothing: this turn of the loop ends right after.
 */
export function flushSoon (writer: Writer): void {
  if (waiting.push(writer) === 1) setImmediate(flushAll)
}

function flushAll (): void {
  for (const writer of waiting.splice(0)) writer.flush()
}

import { readFileSync } from 'node:fs'

// How long a child may take to answer, counted in time that it had. On a machine that is busy a healthy process answers
// late, for it waits for a processor; one that hangs waits for none. The kernel counts both apart
// (Documentation/scheduler/sched-stats.rst: /proc/<pid>/schedstat).

/** Where a child got no processor, or this process did not, it is waited for as long as so many times the limit, and no
 * longer: what the answer is about is not put off for good. */
const MOST_TIMES = 10
/** Often enough for a limit of half a second, and seldom enough to cost nothing. */
const TICK_MS = 25

/** How long (ms) the main thread of a process has waited for a processor since it began; 0 where the kernel does not tell. */
export function waitedForProcessor (pid: number): number {
  try {
    return Number(readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6 || 0
  } catch {
    return 0
  }
}

/** Calls `expired` once when process `pid` has had `limitMs` since now: time in which it ran, or wanted nothing, and in which
 * this process ran too. At the latest after ten times as long. The returned function ends it. */
export function limitAnswer (pid: number | undefined, limitMs: number, expired: () => void): () => void {
  const begun = performance.now()
  let last = begun
  let had = 0
  let waited = pid === undefined ? 0 : waitedForProcessor(pid)
  const timer = setInterval(() => {
    const now = performance.now()
    const waitedNow = pid === undefined ? 0 : waitedForProcessor(pid)
    // A tick that comes late was waited for by this process: the answer may lie there unread.
    had += Math.max(0, Math.min(now - last, TICK_MS) - (waitedNow - waited))
    waited = waitedNow
    last = now
    if (had < limitMs && now - begun < limitMs * MOST_TIMES) return
    clearInterval(timer)
    // What came in meanwhile is read first.
    setImmediate(expired)
  }, TICK_MS)
  return () => { clearInterval(timer) }
}

import { readFileSync } from 'node:fs'

// How long a child may take to answer, counted in time that it had. On a machine that is busy a healthy process answers
// late, for it waits for a processor; one that hangs waits for none. The kernel tells both apart
// (Documentation/scheduler/sched-stats.rst: /proc/<pid>/schedstat; proc(5): the state in /proc/<pid>/stat).

/** Where a child got no processor, or this process did not, it is waited for as long as so many times the limit, and no
 * longer: what the answer is about is not put off for good. */
const MOST_TIMES = 10
/** Often enough for a limit of half a second, and seldom enough to cost nothing. */
const TICK_MS = 25

/** What the kernel tells of a process's main thread: how long (ms) it ran, and waited for a processor, until it last began to
 * run; and whether it runs or waits now. */
interface Running { readonly ran: number, readonly waited: number, readonly isWanting: boolean }

/** Undefined for a process that is gone, and where there is no such kernel. */
export function runningOf (pid: number): Running | undefined {
  try {
    const [ran, waited] = readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ').map(nanoseconds => Number(nanoseconds) / 1e6)
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The name before it is in parentheses and may hold any character.
    return { ran: ran!, waited: waited!, isWanting: stat.slice(stat.lastIndexOf(')') + 2).startsWith('R') }
  } catch {
    return undefined
  }
}

/** Calls `expired` once when process `pid` has had `limitMs` since now: time in which it ran, or wanted nothing, and in which
 * this process ran too. At the latest after ten times as long. The returned function ends it. */
export function limitAnswer (pid: number | undefined, limitMs: number, expired: () => void): () => void {
  const look = (): Running | undefined => pid === undefined ? undefined : runningOf(pid)
  const begun = performance.now()
  let [last, had, before] = [begun, 0, look()]
  const timer = setInterval(() => {
    const [now, after] = [performance.now(), look()]
    // A tick that comes late was waited for by this process: the answer may lie there unread.
    const tick = Math.min(now - last, TICK_MS)
    if (before === undefined || after === undefined) had += tick
    // How long it has been waiting is told when it runs again.
    else if (after.isWanting) had += Math.min(tick, after.ran - before.ran)
    else had += Math.max(0, tick - (after.waited - before.waited))
    last = now
    before = after
    if (had < limitMs && now - begun < limitMs * MOST_TIMES) return
    clearInterval(timer)
    // What came in meanwhile is read first.
    setImmediate(expired)
  }, TICK_MS)
  return () => { clearInterval(timer) }
}

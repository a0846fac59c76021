import { randomBytes } from 'node:crypto'
import { link, readFile, rename, unlink, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { PatchcordError, systemCode } from '../core/errors.js'

// One `up` per home. Node has no flock(2); the lock is a file that names a process by its ID and its start
// time, so that a later process with the same ID is not taken for it.

const WAIT_MS = 10_000
const LOOK_EVERY_MS = 100

export interface Lock {
  /** Whether it was taken over from a process that died with it: its children may still be ending. */
  readonly wasLeftBehind: boolean
  release (): Promise<void>
}

/** Takes the lock, waiting up to 10 s for its holder to end. Throws `already-running`, naming the process. */
export async function takeLock (path: string): Promise<Lock> {
  const mine = `${process.pid} ${await startTime(process.pid)} ${randomBytes(8).toString('hex')}\n`
  const temporary = `${path}.${process.pid}.${randomBytes(4).toString('hex')}`
  await writeFile(temporary, mine, { mode: 0o600, flag: 'wx' })
  const deadline = performance.now() + WAIT_MS
  let wasLeftBehind = false
  try {
    for (;;) {
      if (await linked(temporary, path)) break
      const holder = await contentOf(path)
      if (holder === undefined) continue
      const pid = await livingHolder(holder)
      if (pid === undefined) {
        wasLeftBehind = await steal(path, holder, temporary)
        if (wasLeftBehind) break
      } else if (performance.now() > deadline) {
        throw new PatchcordError('already-running', `another \`patchcord up\` uses this home (process ${pid})`)
      }
      await sleep(LOOK_EVERY_MS)
    }
  } finally {
    await removed(temporary)
  }
  return {
    wasLeftBehind,
    release: async () => {
      if (await contentOf(path) === mine) await removed(path)
    },
  }
}

/** Replaces the lock of a dead holder. Of several that see it dead, the one that links it under a name made
 * of its content goes first, and only while it is still that holder's. */
async function steal (path: string, holder: string, temporary: string): Promise<boolean> {
  const claim = `${path}.${holder.trim().split(' ').join('-')}.dead`
  try {
    await link(path, claim)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false
    if (systemCode(error) !== 'EEXIST') throw error
    // Whoever made the claim is stealing right now, or died while it did: then it is taken over.
    await sleep(LOOK_EVERY_MS * 5)
    if (await contentOf(path) !== holder) return false
  }
  try {
    if (await contentOf(claim) !== holder || await contentOf(path) !== holder) return false
    const fresh = `${temporary}.new`
    await link(temporary, fresh)
    await rename(fresh, path)
    return true
  } finally {
    await removed(claim)
  }
}

async function livingHolder (holder: string): Promise<number | undefined> {
  const [pid, started] = holder.split(' ')
  if (pid === undefined || !/^[1-9]\d*$/.test(pid)) return undefined
  return started !== undefined && await startTime(Number(pid)) === started ? Number(pid) : undefined
}

/** Field 22 of /proc/<pid>/stat (proc(5)): when the process started, in clock ticks since boot. */
async function startTime (pid: number): Promise<string> {
  const stat = await contentOf(`/proc/${pid}/stat`)
  // The name in field 2 may hold spaces and parentheses; the fields after its last ")" do not.
  return stat?.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? 'gone'
}

async function linked (from: string, to: string): Promise<boolean> {
  try {
    await link(from, to)
    return true
  } catch (error) {
    if (systemCode(error) === 'EEXIST') return false
    throw error
  }
}

async function contentOf (path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ESRCH') return undefined
    throw error
  }
}

async function removed (path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => { if (systemCode(error) !== 'ENOENT') throw error })
}

import { readFileSync, writeFileSync } from 'node:fs'
import { messageOf, systemCode } from '../core/errors.js'

// AppArmor as the kernel tells it (Documentation/admin-guide/LSM/apparmor.rst; the files are those of
// security/apparmor/procattr.c). Nothing here is believed because a profile was installed: what is in force is
// read from the process itself.

/** The profiles of apparmor/, by the process that each is for. */
export const PROFILES = { agent: 'patchcord-agent', server: 'patchcord-server', database: 'patchcord-database' } as const

export type Confined = keyof typeof PROFILES

/** What the kernel says of a process: the profile and its mode (`patchcord-server (enforce)`), `unconfined`, or
 * null where there is no AppArmor, or the process is gone. */
export function confinementOf (pid: number | 'self'): string | null {
  for (const path of [`/proc/${pid}/attr/apparmor/current`, `/proc/${pid}/attr/current`]) {
    try {
      // Without an LSM that serves the file, reading it fails with EINVAL.
      return isOn() ? readFileSync(path, 'utf8').replace(/[\0\n]+$/, '') || null : null
    } catch {
      continue
    }
  }
  return null
}

/** Whether a label that the kernel gave holds the process to `profile`: it is named, and enforced. */
export function isHeldTo (label: string | null, profile: string): boolean {
  const [, names = '', mode = ''] = /^(.*?)(?: \((\w+)\))?$/.exec(label ?? '') ?? []
  return mode === 'enforce' && names.split('//&').includes(profile)
}

/** Whether AppArmor runs in this kernel. */
export function isOn (): boolean {
  try {
    return readFileSync('/sys/module/apparmor/parameters/enabled', 'utf8').startsWith('Y')
  } catch {
    return false
  }
}

/** Whether the kernel would hold a child of this process to `profile`: AppArmor runs, and the profile is loaded. */
export function canHold (profile: string): boolean {
  const can = isOn() && ask(profile)
  if (can) forget()
  return can
}

/**
 * Calls `start`, which starts one process at once, so that the process is held to `profile` from its first
 * instruction (aa_change_onexec). A profile that is not loaded is no error: what then runs is unconfined, and
 * `confinementOf` says so. The attribute is this thread's, and children are started by the thread that calls, so
 * nothing else may be started in between: `start` is synchronous.
 */
export function startHeldTo<Child> (profile: string, start: () => Child): Child {
  const isHeld = isOn() && ask(profile)
  try {
    return start()
  } finally {
    if (isHeld) forget()
  }
}

/** Under a profile of its own and no_new_privs the kernel lets a process only be held to more, never to something
 * else: there the child gets both profiles (`stack`). */
function ask (profile: string): boolean {
  return write(`exec ${profile}`) || write(`stack ${profile}`)
}

function write (command: string): boolean {
  for (const path of ['/proc/thread-self/attr/apparmor/exec', '/proc/thread-self/attr/exec']) {
    try {
      writeFileSync(path, command)
      return true
    } catch (error) {
      // ENOENT: no such file, or no such profile. EINVAL: another LSM has this file.
      const code = systemCode(error)
      if (code === 'EACCES' || code === 'EPERM') return false
      if (code !== 'ENOENT' && code !== 'EINVAL') throw new Error(`AppArmor answers ${messageOf(error)}`, { cause: error })
    }
  }
  return false
}

/** The next process that this thread starts is none of the profile's. */
function forget (): void {
  const own = confinementOf('self')?.replace(/ \(\w+\)$/, '') ?? 'unconfined'
  if (!write(`exec ${own}`)) throw new Error('AppArmor would hold the next process to a profile that is not for it')
}

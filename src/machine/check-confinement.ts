import { confinementOf, isHeldTo, isOn, PROFILES } from './confinement.js'
import type { Check, Examined } from './doctor.js'
import { textOf } from './files.js'

/** What holds the server, as the kernel says it of that process. */
export function checkConfinement ({ service }: Examined): Check {
  const pid = service?.serverPid ?? undefined
  if (pid === undefined) return { name: 'confinement', ok: true, detail: `no server runs; ${isOn() ? 'AppArmor is on in this kernel' : 'this kernel has no AppArmor, or it is off'}`, hint: '' }
  const label = confinementOf(pid)
  const rest = depthOf(pid)
  if (isHeldTo(label, PROFILES.server)) return { name: 'confinement', ok: true, detail: `AppArmor holds the server to ${label}`, hint: '' }
  if (isOn()) return { name: 'confinement', ok: false, detail: `AppArmor is on, and the server is ${label ?? 'not held to anything'}; what holds it: ${rest}`, hint: 'load the profiles: `patchcord service apparmor` prints them, with where to put them; then restart the service' }
  return { name: 'confinement', ok: rest !== NOTHING, detail: `this kernel has no AppArmor, or it is off; what holds the server: ${rest}`, hint: rest === NOTHING ? 'install util-linux (setpriv), or run the service as a unit: patchcord service install' : '' }
}

const NOTHING = 'nothing but its user\'s rights'

/** What else holds a process: from /proc/<pid>/status and its command line. */
export function depthOf (pid: number): string {
  const status = textOf(`/proc/${pid}/status`) ?? ''
  const command = (textOf(`/proc/${pid}/cmdline`) ?? '').split('\0')
  return [
    ...command.some(word => word === '--permission' || word === '--experimental-permission') ? ['Node\'s permission model (no writing, no processes, its code and the store alone)'] : [],
    ...status.includes('NoNewPrivs:\t1') ? ['no new privileges'] : [],
    ...status.includes('Seccomp:\t2') ? ['a filter of system calls'] : [],
  ].join(', ') || NOTHING
}

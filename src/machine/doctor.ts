import type { Home } from '../core/home.js'
import { messageOf } from '../core/errors.js'
import type { Clock } from '../core/clock.js'
import { checkConfinement } from './check-confinement.js'
import { checkCouch } from './check-couch.js'
import { checkFirewall } from './check-firewall.js'
import { checkAddresses, checkLinks, checkMulticast, checkPort } from './check-network.js'
import { checkCertificate, checkClock, checkDisk, checkPermissions, checkStore } from './check-state.js'
import { checkUnit } from './check-unit.js'

// The machine room: this computer as the service finds it: what the kernel, the firewall and systemd say, and how
// little a child process can be given here.
//
// It promises: what it tells was looked up, never concluded from what was installed; each check says the problem, then
// what to do; and a check that cannot be made says that, and fails.
// It must never: change anything but what `service` is asked to, open a key, or need more rights than the user has. It
// works where no service runs: the command line asks it directly.
//
//   {"name":"link-local","ok":false,"detail":"eth0 has a link and no fe80:: address","hint":"turn IPv6 on: …"}

export interface Check {
  readonly name: string
  readonly ok: boolean
  /** What was found. */
  readonly detail: string
  /** What to do; empty where nothing has to be done. */
  readonly hint: string
}

/** What the running service says of itself; undefined where none runs. */
export interface ServiceFacts {
  readonly pid: number | null
  readonly serverPid: number | null
  readonly listen: ReadonlyArray<{ readonly host: string, readonly port: number }>
  readonly couch: { readonly url: string, readonly kind: 'embedded' | 'couchdb' }
  readonly stopped: { readonly reason: string, readonly hint: string } | null
  readonly notices: ReadonlyArray<{ readonly text: string, readonly hint: string }>
}

export interface Examined {
  readonly home: Home
  readonly service: ServiceFacts | undefined
  /** Why it could not be asked, where it could not. */
  readonly problem: string | undefined
  readonly clock: Clock
  /** `/`, or another folder that holds proc, sys and etc, for tests. */
  readonly root: string
}

/** A check is made of the facts; what it throws is a failed check. */
export type Checker = (examined: Examined) => Promise<Check> | Check

/** In the order in which they are told: what the later ones rest on comes first. */
const CHECKS: ReadonlyArray<readonly [name: string, checker: Checker]> = [
  ['node', checkNode],
  ['service', checkService],
  ['trust', checkTrust],
  ['link', checkLinks],
  ['link-local', checkAddresses],
  ['port', checkPort],
  ['firewall', checkFirewall],
  ['multicast', checkMulticast],
  ['clock', checkClock],
  ['certificate', checkCertificate],
  ['permissions', checkPermissions],
  ['couchdb', checkCouch],
  ['store', checkStore],
  ['disk', checkDisk],
  ['confinement', checkConfinement],
  ['unit', checkUnit],
]

export const CHECK_NAMES: readonly string[] = CHECKS.map(([name]) => name)

/** Makes every check, one after the other, whatever the others found. Never throws. */
export async function * examine (examined: Examined): AsyncGenerator<Check> {
  for (const [name, checker] of CHECKS) {
    try {
      yield await checker(examined)
    } catch (error) {
      yield { name, ok: false, detail: `this could not be checked: ${messageOf(error)}`, hint: 'run `patchcord doctor` as the user whose service it is; if that is so, this is a defect of patchcord' }
    }
  }
}

/** The oldest Node that is supported (`engines` of package.json). */
const OLDEST = [20, 19] as const

function checkNode (): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const ok = major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])
  return { name: 'node', ok, detail: `Node ${process.versions.node}`, hint: ok ? '' : `install Node ${OLDEST.join('.')} or later` }
}

function checkService ({ service, problem }: Examined): Check {
  if (service === undefined) return { name: 'service', ok: false, detail: problem ?? 'the service is not running', hint: 'start it: patchcord up; or for good: patchcord service install' }
  if (service.stopped !== null) return { name: 'service', ok: false, detail: `the service runs and does not serve: ${service.stopped.reason}`, hint: service.stopped.hint }
  if (service.serverPid === null) return { name: 'service', ok: false, detail: 'the service runs; its server does not, and is being started again', hint: 'see why: patchcord logs' }
  return { name: 'service', ok: true, detail: `the service runs (its server is process ${service.serverPid})`, hint: '' }
}

function checkTrust ({ service }: Examined): Check {
  const [first, ...others] = service?.notices ?? []
  if (first !== undefined) return { name: 'trust', ok: false, detail: `${first.text}${others.length === 0 ? '' : ` (and ${others.length} more: patchcord status)`}`, hint: first.hint }
  return { name: 'trust', ok: true, detail: service === undefined ? 'the service is not running; nothing is known' : 'nothing waits for you', hint: '' }
}

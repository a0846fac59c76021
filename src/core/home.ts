import { homedir } from 'node:os'
import { join, resolve } from 'node:path'

/** The folder that holds all state of one device, and what lies where in it. Absolute paths. */
export interface Home {
  readonly root: string
  readonly identity: string
  readonly files: string
  readonly couch: string
  readonly lock: string
  readonly socket: string
}

export interface HomeEnvironment {
  readonly PATCHCORD_HOME?: string | undefined
  readonly XDG_DATA_HOME?: string | undefined
  readonly XDG_RUNTIME_DIR?: string | undefined
}

/** Where a device's state is: `--home`, else PATCHCORD_HOME, else the XDG data folder. Only in the last
 * case is the control socket elsewhere, in XDG_RUNTIME_DIR (never in /tmp). */
export function findHome (given: string | undefined, environment: HomeEnvironment): Home {
  const chosen = given ?? (environment.PATCHCORD_HOME || undefined)
  const root = resolve(chosen ?? join(environment.XDG_DATA_HOME || join(homedir(), '.local', 'share'), 'patchcord'))
  const runtime = chosen === undefined ? environment.XDG_RUNTIME_DIR || undefined : undefined
  return Object.freeze({
    root,
    identity: join(root, 'identity'),
    files: join(root, 'files'),
    couch: join(root, 'couch'),
    lock: join(root, 'lock'),
    socket: runtime === undefined ? join(root, 'control.sock') : join(runtime, 'patchcord', 'control.sock'),
  })
}

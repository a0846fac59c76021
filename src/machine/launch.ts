import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { openChannels } from './channels.js'
import { canHold, PROFILES, startHeldTo } from './confinement.js'
import { findInstallation } from './installation.js'

/** A child with nothing but its three streams. */
export interface Launched {
  readonly child: ChildProcess
  readonly stdin: Writable
  readonly stdout: Readable
  readonly stderr: Readable
}

export interface LaunchOptions {
  /** The script, absolute. */
  readonly script: string
  /** The one folder of data that it reads. */
  readonly data: string
  /** A folder that only this user may enter, for pipes that have a name for a moment. */
  readonly folder: string
}

/**
 * Starts the server with as little as this machine lets it be given: no environment, no arguments, and
 *
 * - where its AppArmor profile is loaded, held to it, over pipes;
 * - where not, with no_new_privs (setpriv(1)) and under Node's permission model: it reads its code and `data`,
 *   writes nothing, and starts no process, thread or native addon.
 *
 * `detached` is not set, so that a terminal's SIGINT reaches it.
 */
export function launchServer ({ script, data, folder }: LaunchOptions): Launched {
  if (canHold(PROFILES.server)) {
    const channels = openChannels(folder)
    const child = startHeldTo(PROFILES.server, () => spawn(process.execPath, [script], { stdio: channels.stdio, env: {} }))
    channels.started()
    return { child, stdin: channels.stdin, stdout: channels.stdout, stderr: channels.stderr }
  }
  const { code, modules } = findInstallation()
  const node = [process.execPath, ...permissionFlags([join(code, 'build'), ...modules, data], [V6ONLY]), script]
  const [command, ...args] = hasNoNewPrivileges() ? node : [...noNewPrivileges(), ...node]
  const child = spawn(command!, args, { stdio: ['pipe', 'pipe', 'pipe'], env: {} })
  return { child, stdin: child.stdin, stdout: child.stdout, stderr: child.stderr }
}

/** How a CouchDB at 127.0.0.1 is reached depends on it (couch/quiet-http-proxy). */
const V6ONLY = '/proc/sys/net/ipv6/bindv6only'
const SETPRIV = ['/usr/bin/setpriv', '/bin/setpriv']

/** Node's permission model, where this Node has it. Of what it may read it is told by folder, and single
 * files. Its warning that it,
 * or a part of it, is an experiment would reach the person. From Node 25 on it covers the network too, which the server is for. */
export function permissionFlags (readable: readonly string[], files: readonly string[] = []): string[] {
  const has = (flag: string): boolean => process.allowedNodeEnvironmentFlags.has(flag)
  const model = has('--permission') ? ['--permission'] : has('--experimental-permission') ? ['--experimental-permission'] : []
  // Code that is loaded before every script (a debugger's, a test runner's) has needs that the model does not know.
  if (model.length === 0 || /--(?:import|require|loader|experimental-loader)\b|(?:^|\s)-r\b/.test(process.env['NODE_OPTIONS'] ?? '')) return []
  return [...model, '--disable-warning=ExperimentalWarning', ...has('--allow-net') ? ['--allow-net'] : [], ...[...readable.map(folder => `${folder.replace(/\/*$/, '/')}*`), ...files].map(path => `--allow-fs-read=${path}`)]
}

/** Whether this process has given up new privileges already, and with it every child of it: the unit of systemd does. */
function hasNoNewPrivileges (): boolean {
  try {
    return /^NoNewPrivs:\s*1$/m.test(readFileSync('/proc/self/status', 'utf8'))
  } catch {
    return false
  }
}

/** The words that start a child without them, or none. setpriv sets more than it is asked to, so that some sandboxes refuse
 * it: it is tried first. */
function noNewPrivileges (): string[] {
  for (const setpriv of SETPRIV) {
    const words = [setpriv, '--no-new-privs']
    if (spawnSync(setpriv, ['--no-new-privs', setpriv, '--version'], { stdio: 'ignore', env: {}, timeout: 5_000 }).status === 0) return words
  }
  return []
}

import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, unlink, writeFile } from 'node:fs/promises'
import { tmpdir, userInfo } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { systemClock } from '../core/clock.js'
import { writeDurably } from '../core/durable-file.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import { makeFolders } from '../core/make-folders.js'
import { firewallRules } from '../machine/check-firewall.js'
import { examine, type ServiceFacts } from '../machine/doctor.js'
import { findInstallation, profilesFor } from '../machine/installation.js'
import { UNIT_NAME, unitPaths, unitText } from '../machine/unit.js'
import type { Context } from './context.js'

// The service on this machine: what is wrong with it, its unit, its log.

const run = promisify(execFile)
/** Longer than the unit may take to start (TimeoutStartSec). */
const SYSTEMCTL_MS = 200_000

/** Makes every check. Fails, with exit code 1, where one of them does. */
export async function doctor ({ client, output, home, io }: Context): Promise<void> {
  let service: ServiceFacts | undefined
  let problem: string | undefined
  try {
    const { server, listen, couch, stopped, notices } = await client.call('status', {})
    service = { pid: null, serverPid: server.pid, listen, couch, stopped, notices }
  } catch (error) {
    problem = messageOf(error)
  }
  const checks = []
  for await (const check of examine({ home, service, problem, clock: systemClock, root: io.env['PATCHCORD_DOCTOR_ROOT'] || '/' })) {
    checks.push(check)
    output.line(`${check.ok ? 'ok  ' : 'FAIL'}  ${check.name}: ${check.detail}`)
    if (!check.ok && check.hint !== '') output.line(`        hint: ${check.hint}`)
  }
  output.object({ checks })
  const failed = checks.filter(({ ok }) => !ok).length
  if (failed > 0) throw new CheckFailed(failed)
}

/** Told already, line by line: the exit code is all that is left. */
export class CheckFailed extends Error {
  constructor (count: number) {
    super(`${count} check${count === 1 ? '' : 's'} failed`)
  }
}

export interface InstallOptions { readonly dryRun?: boolean, readonly home?: string }

/** Writes the unit, checks it with systemd, and starts it. With `dryRun` it is shown and checked alone. */
export async function serviceInstall ({ output, io, home }: Context, { dryRun = false, home: given }: InstallOptions): Promise<void> {
  const installation = findInstallation()
  const chosen = given ?? (io.env['PATCHCORD_HOME'] || undefined)
  const text = unitText({ node: installation.node, script: installation.agentScript, home: chosen === undefined ? undefined : home.root, args: [] })
  const [path] = unitPaths(io.env)
  const verified = await verifyUnit(text)
  if (dryRun) {
    output.raw(text)
    output.object({ unit: text, path, verified: verified.ok, problem: verified.problem, security: verified.security })
    output.line(`# would be written to ${path}`)
    output.line(verified.ok === null ? '# not checked: systemd-analyze is not installed' : verified.ok ? '# systemd-analyze verify: valid' : `# systemd-analyze verify: ${verified.problem}`)
    if (verified.security !== null) output.line(`# systemd-analyze security: ${verified.security}`)
    if (verified.ok === false) throw new PatchcordError('internal', 'systemd takes the unit for faulty')
    return
  }
  if (verified.ok === false) throw new PatchcordError('internal', `systemd takes the unit for faulty: ${verified.problem}`)
  await makeFolders(dirname(path))
  await writeDurably(path, text, 0o644)
  output.line(`wrote ${path}`)
  // Folders that the unit may write to have to be there when it starts.
  await makeFolders(home.root, 0o700)
  await systemctl('daemon-reload')
  await systemctl('enable', UNIT_NAME)
  // `restart` takes in a unit that was written anew.
  await systemctl('restart', UNIT_NAME)
  output.object({ event: 'installed', path })
  const { username } = userInfo()
  output.line('the service runs, and will whenever you are logged in')
  output.line(`  to have it run from boot on, logged in or not: loginctl enable-linger ${username}`)
  output.line('  if a firewall is on, it has to let the port in: patchcord service firewall')
  output.line('  to have AppArmor hold it: patchcord service apparmor')
  output.line('  next: patchcord status, patchcord logs')
}

export async function serviceUninstall ({ output, io }: Context, { dryRun = false }: InstallOptions): Promise<void> {
  const [path] = unitPaths(io.env)
  if (!existsSync(path)) throw new PatchcordError('not-found', `${path} is not there: the service is not installed as a unit of yours`, { hint: 'a package that installed it is removed with the package manager' })
  if (dryRun) {
    output.object({ event: 'would-remove', path })
    output.line(`would stop the service and remove ${path}; state stays`)
    return
  }
  // Where no systemd answers, there is nothing that runs.
  await systemctl('disable', '--now', UNIT_NAME).catch((error: unknown) => {
    if (!(error instanceof PatchcordError) || error.code !== 'unreachable') throw error
    output.line(error.message)
  })
  await unlink(path)
  await systemctl('daemon-reload').catch((error: unknown) => { if (!(error instanceof PatchcordError) || error.code !== 'unreachable') throw error })
  output.object({ event: 'uninstalled', path })
  output.line(`removed ${path}; state stays where it was`)
}

export interface LogOptions { readonly follow?: boolean, readonly lines?: string }

/** The newest lines of the log: of the service that runs, or of the unit that ran. */
export async function logs (context: Context, { follow = false, lines = '100' }: LogOptions): Promise<void> {
  const { client, output, signal } = context
  const count = Number(lines)
  if (!Number.isSafeInteger(count) || count < 0) throw new PatchcordError('usage', '--lines takes a number of lines')
  try {
    await client.call('logs', { lines: count, follow }, ({ line }) => {
      if (output.json) output.object({ event: 'log', line })
      else output.line(line)
    }, signal)
  } catch (error) {
    if (!(error instanceof PatchcordError) || error.code !== 'not-running' || unitPaths(context.io.env).every(path => !existsSync(path))) throw error
    output.line('the service is not running; this is what its unit said')
    await journal(context, count, follow)
  }
}

/** What systemd kept of the unit: also of those that ran before this one. */
export async function serviceLogs (context: Context, { follow = false, lines = '100' }: LogOptions): Promise<void> {
  await journal(context, Number(lines), follow)
}

async function journal ({ output, signal }: Context, count: number, follow: boolean): Promise<void> {
  const child = spawn('journalctl', ['--user', '--unit', UNIT_NAME, '--lines', String(count), '--no-pager', '--output', output.json ? 'json' : 'cat', ...follow ? ['--follow'] : []], { stdio: ['ignore', 'inherit', 'inherit'], signal })
  const [code] = await once(child, 'close').catch((error: unknown) => {
    if (systemCode(error) === 'ABORT_ERR') return [0]
    throw systemCode(error) === 'ENOENT' ? new PatchcordError('unreachable', 'there is no journalctl on this machine', { hint: 'a service that was started by hand writes its log on stderr' }) : error
  }) as [number | null]
  if (code !== 0 && !signal.aborted) throw new PatchcordError('unreadable', `journalctl ended with ${code ?? 'a signal'}`, { hint: 'what it said is above' })
}

/** The rules that let the port in, for each kind of firewall. */
export async function serviceFirewall ({ client, output }: Context): Promise<void> {
  const port = await client.call('status', {}).then(({ listen }) => listen[0]?.port, (error: unknown) => {
    if (error instanceof PatchcordError && error.code === 'not-running') return undefined
    throw error
  }) ?? 4984
  const rules = firewallRules(port)
  output.object({ port, rules })
  output.raw(rules)
}

/** A script that puts the profiles where AppArmor finds them and loads them; for `sudo sh`. */
export function serviceApparmor ({ output, home }: Context, { home: given }: InstallOptions): Promise<void> {
  const files = profilesFor(findInstallation(), given === undefined ? [] : [home.root])
  output.object({ files: Object.fromEntries(files) })
  output.raw(`#!/bin/sh
# AppArmor for this installation: patchcord service apparmor | sudo sh
set -e
${[...files].map(([path, text]) => `${dirname(path) === '.' ? '' : `mkdir -p /etc/apparmor.d/${dirname(path)}\n`}cat > /etc/apparmor.d/${path} <<'PATCHCORD-END'\n${text}PATCHCORD-END\n`).join('')}apparmor_parser -r ${[...files.keys()].filter(path => !path.includes('/')).map(path => `/etc/apparmor.d/${path}`).join(' ')}
echo 'loaded; restart the service: systemctl --user restart ${UNIT_NAME}'
`)
  return Promise.resolve()
}

/** Prints the metrics of the running service. */
export async function metrics ({ client, output }: Context): Promise<void> {
  const { type, text } = await client.call('metrics', {})
  output.object({ type, text })
  output.raw(text)
}

async function systemctl (...args: string[]): Promise<void> {
  try {
    await run('systemctl', ['--user', ...args], { timeout: SYSTEMCTL_MS })
  } catch (error) {
    const said = ((error as { stderr?: string }).stderr ?? '').trim().split('\n').at(-1) ?? ''
    if (systemCode(error) === 'ENOENT' || /connect to (?:user scope )?bus|Failed to get D-Bus|No medium found|not been booted/i.test(said)) {
      throw new PatchcordError('unreachable', 'no systemd of this user answers', { hint: `log in as this user (not by su or sudo), or run it later: systemctl --user enable --now ${UNIT_NAME}; without systemd, start \`patchcord up\` another way`, cause: error })
    }
    throw new PatchcordError('internal', `systemctl ${args.join(' ')} failed: ${said || messageOf(error)}`, { hint: 'see why: patchcord service logs', cause: error })
  }
}

interface Verified { readonly ok: boolean | null, readonly problem: string | null, readonly security: string | null }

/** What systemd-analyze says of the unit; `ok` is null where it is not installed. */
async function verifyUnit (text: string): Promise<Verified> {
  const folder = await mkdtemp(join(tmpdir(), 'patchcord-unit-'))
  try {
    const path = join(folder, UNIT_NAME)
    await writeFile(path, text)
    const said = async (args: string[]): Promise<{ ok: boolean, text: string }> => await run('systemd-analyze', args, { timeout: 60_000, env: { ...process.env, XDG_RUNTIME_DIR: folder } }).then(({ stdout, stderr }) => ({ ok: true, text: stdout + stderr }), (error: unknown) => {
      if (systemCode(error) === 'ENOENT') throw error
      const { stdout = '', stderr = '' } = error as { stdout?: string, stderr?: string }
      return { ok: false, text: stdout + stderr }
    })
    const verify = await said(['--user', '--man=no', '--recursive-errors=no', 'verify', path])
    const { text: score } = await said(['--offline=true', '--no-pager', 'security', path])
    return { ok: verify.ok, problem: verify.ok ? null : verify.text.trim(), security: /Overall exposure level for .*?: (.*?)(?: \S+)?$/m.exec(score)?.[1] ?? null }
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error
    return { ok: null, problem: null, security: null }
  } finally {
    await rm(folder, { recursive: true })
  }
}

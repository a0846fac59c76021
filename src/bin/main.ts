import { readFileSync } from 'node:fs'
import { isIPv6 } from 'node:net'
import { runCli } from '../cli/program.js'
import type { StartService } from '../cli/service-commands.js'
import { parseAddress } from '../core/address.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { Logger, LogLevel } from '../core/log.js'
import { redactText } from '../core/redact.js'
import { createNotifier } from '../machine/notify.js'

/** Ends the process. Hard: what runs in it is not to be trusted to stop in order, and state on disk never needs it to. */
function crash (error: unknown, logger: Logger): never {
  logger.fatal({ err: error }, 'patchcord cannot go on')
  process.stderr.write(`patchcord: something happened that should not have: ${redactText(messageOf(error))}\n  hint: nothing is lost; start it again with \`patchcord up\` (a unit is started again by itself). If it happens again, \`patchcord doctor\` may find why, and the lines of the log before this one tell what led to it\n`)
  process.kill(process.pid, 'SIGKILL')
  throw error
}

const startService: StartService = async ({ home }, options) => {
  const { listen, couch, couchCredentialsFile, allowRouted = false, discovery = true, name, logLevel = 'info', replication = 'agent' } = options
  const { createLogger, LogTail, LOG_LEVELS } = await import('../core/log.js')
  if (!LOG_LEVELS.includes(logLevel as LogLevel)) throw new PatchcordError('usage', '--log-level takes none of that name', { hint: `write one of ${LOG_LEVELS.join(', ')}` })
  if ((couch === undefined) !== (couchCredentialsFile === undefined)) throw new PatchcordError('usage', '--couch and --couch-credentials-file go together', { hint: 'give both' })
  if (replication !== 'agent' && replication !== 'couchdb') throw new PatchcordError('usage', '--replication takes none of that name', { hint: 'write agent or couchdb' })
  const address = listen === undefined ? undefined : parseAddress(listen)
  if (address !== undefined && !isIPv6(address.host)) throw new PatchcordError('usage', `--listen takes an IPv6 address, not ${address.host}`, { hint: 'write [::]:4984, [::1]:4984 or [fe80::1%eth0]:4984' })
  // Only `up` needs all of it: other commands answer sooner without.
  const { Agent } = await import('../agent/agent.js')
  const log = new LogTail()
  const logger = createLogger(logLevel as LogLevel, 'patchcord', line => { log.add(line) })
  // Told apart from the exit that a supervisor sees: what happened, and what the person can do.
  process.on('uncaughtException', error => { crash(error, logger) })
  const notifier = createNotifier(process.env, logger)
  const agent = await Agent.start({
    home, allowRouted, discovery, replication, logLevel: logLevel as LogLevel,
    ...address === undefined ? {} : { listen: address },
    ...couch === undefined || couchCredentialsFile === undefined ? {} : { couch: { url: couch, credentialsFile: couchCredentialsFile } },
    ...name === undefined ? {} : { name },
  }, { logger, log })
  await notifier.ready()
  return {
    status: () => agent.status(),
    onEvent: listener => { agent.events.on('event', listener) },
    stop: async () => {
      agent.letEnd()
      await notifier.stopping()
      await agent.stop()
    },
  }
}

/** Runs one command line and resolves with the exit code. `endNow` is called at the second interrupt. */
export async function main (args: readonly string[], endNow: (code: number) => never): Promise<number> {
  // The first interrupt drains, the second ends at once.
  const abort = new AbortController()
  let interrupted = false
  const interrupt = (isInterrupt: boolean): void => {
    if (abort.signal.aborted) endNow(130)
    interrupted = isInterrupt
    abort.abort()
  }
  process.on('SIGINT', () => { interrupt(true) })
  process.on('SIGTERM', () => { interrupt(false) })
  // Whoever read our output is gone.
  process.stdout.on('error', () => { interrupt(false) })

  const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as { version: string }
  const code = await runCli(args, {
    io: { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr, env: process.env, signal: abort.signal },
    version,
    startService,
  })
  return interrupted ? 130 : code
}

#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { isIPv6 } from 'node:net'
import { runCli } from '../cli/program.js'
import type { StartService } from '../cli/service-commands.js'
import { parseAddress } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import type { LogLevel } from '../core/log.js'

const startService: StartService = async ({ home }, options) => {
  const { listen, couch, couchCredentialsFile, allowRouted = false, discovery = true, name, logLevel = 'info', replication = 'agent' } = options
  const { createLogger, LOG_LEVELS } = await import('../core/log.js')
  if (!LOG_LEVELS.includes(logLevel as LogLevel)) throw new PatchcordError('usage', '--log-level takes none of that name', { hint: `write one of ${LOG_LEVELS.join(', ')}` })
  if ((couch === undefined) !== (couchCredentialsFile === undefined)) throw new PatchcordError('usage', '--couch and --couch-credentials-file go together', { hint: 'give both' })
  if (replication !== 'agent' && replication !== 'couchdb') throw new PatchcordError('usage', '--replication takes none of that name', { hint: 'write agent or couchdb' })
  const address = listen === undefined ? undefined : parseAddress(listen)
  if (address !== undefined && !isIPv6(address.host)) throw new PatchcordError('usage', `--listen takes an IPv6 address, not ${address.host}`, { hint: 'write [::]:4984, [::1]:4984 or [fe80::1%eth0]:4984' })
  // Only `up` needs all of it: other commands answer sooner without.
  const { Agent } = await import('../agent/agent.js')
  const agent = await Agent.start({
    home, allowRouted, discovery, replication, logLevel: logLevel as LogLevel,
    ...address === undefined ? {} : { listen: address },
    ...couch === undefined || couchCredentialsFile === undefined ? {} : { couch: { url: couch, credentialsFile: couchCredentialsFile } },
    ...name === undefined ? {} : { name },
  }, { logger: createLogger(logLevel as LogLevel, 'patchcord') })
  return {
    status: () => agent.status(),
    onEvent: listener => { agent.events.on('event', listener) },
    stop: () => agent.stop(),
  }
}

// The first interrupt drains, the second ends at once.
const abort = new AbortController()
let interrupted = false
const interrupt = (isInterrupt: boolean): void => {
  if (abort.signal.aborted) process.exit(130)
  interrupted = isInterrupt
  abort.abort()
}
process.on('SIGINT', () => { interrupt(true) })
process.on('SIGTERM', () => { interrupt(false) })
// Whoever read our output is gone.
process.stdout.on('error', () => { interrupt(false) })

const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as { version: string }
const code = await runCli(process.argv.slice(2), {
  io: { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr, env: process.env, signal: abort.signal },
  version,
  startService,
})
process.exit(interrupted ? 130 : code)

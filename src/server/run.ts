import type { Readable, Writable } from 'node:stream'
import { hostOf } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import { createLogger, LOG_LEVELS, type LogLevel } from '../core/log.js'
import { applyLine, readLines, writeLine } from './control-channel.js'
import type { ServerEnvInput } from './env.js'
import { startServer } from './server.js'

/** The life of `patchcord-server`: the env, then updates, until `input` ends or `signal` aborts. Throws
 * `bad-env` or `port-in-use` before anything is listened on. */
export async function runServer (input: Readable, output: Writable, signal: AbortSignal): Promise<void> {
  const lines = readLines(input)
  const stopped = new Promise<'stopped'>(resolve => {
    if (signal.aborted) resolve('stopped')
    signal.addEventListener('abort', () => { resolve('stopped') }, { once: true })
  })
  const first = await Promise.race([lines.next(), stopped])
  if (first === 'stopped') return
  if (first.done === true) throw new PatchcordError('bad-env', 'stdin held no env', { hint: 'write it as one line of JSON; see docs/env.schema.json' })
  const env = parseFirst(first.value)
  const logger = createLogger(levelOf(env), 'patchcord-server')
  const server = await startServer(env, { logger })
  writeLine(output, { event: 'ready', device: server.device, listen: server.addresses.map(address => ({ host: hostOf(address), port: address.port })) })
  try {
    await Promise.race([stopped, follow()])
  } finally {
    await server.stop()
  }

  async function follow (): Promise<void> {
    for await (const line of lines) await applyLine(line, server, output, logger)
  }
}

function parseFirst (line: string): ServerEnvInput {
  try {
    return JSON.parse(line) as ServerEnvInput
  } catch {
    // The parser's own message would quote the line, and with it a key.
    throw new PatchcordError('bad-env', 'env: is not JSON', { hint: 'write it as one line of JSON; see docs/env.schema.json' })
  }
}

function levelOf (env: ServerEnvInput): LogLevel {
  const level: unknown = (env as { log?: { level?: unknown } } | null)?.log?.level
  return LOG_LEVELS.find(known => known === level) ?? 'info'
}

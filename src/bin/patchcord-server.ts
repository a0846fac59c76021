#!/usr/bin/env node
import { messageOf, PatchcordError } from '../core/errors.js'
import { runServer } from '../server/run.js'

// A terminal sends SIGINT to the whole group; the agent decides when its server ends.
process.on('SIGINT', () => undefined)
const abort = new AbortController()
process.once('SIGTERM', () => { abort.abort() })
process.once('SIGHUP', () => { abort.abort() })
// The agent died while an answer was on its way to it; the end of stdin stops this process.
process.stdout.on('error', () => { abort.abort() })

try {
  await runServer(process.stdin, process.stdout, abort.signal)
  process.exit(0)
} catch (error) {
  const hint = error instanceof PatchcordError ? ` (${error.hint})` : ''
  process.stderr.write(`patchcord-server: ${messageOf(error)}${hint}\n`)
  process.exit(error instanceof PatchcordError ? error.exit : 1)
}

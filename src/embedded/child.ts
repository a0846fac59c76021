import { messageOf, PatchcordError } from '../core/errors.js'
import { createLogger, type Logger } from '../core/log.js'
import { startEmbedded, type Embedded, type Listening } from './front.js'
import type { FromChild, SentError, ToChild } from './messages.js'
import { storeAtFault } from './store.js'

// The process of the embedded database, forked by supervise.ts. It holds no key, no socket but the one it
// was given, and no environment; it ends when the agent does. Being an entry like those in bin/, it exits.

let embedded: Embedded | undefined
let logger: Logger = createLogger('info', 'embedded')
let stopping = false

process.on('message', (message: ToChild, handle?: unknown) => {
  receive(message, handle).catch((error: unknown) => { logger.error({ err: error }, 'a message of the agent failed') })
})
process.on('disconnect', () => { stop(0) })
process.on('SIGTERM', () => { stop(0) })
// A terminal sends it to all; the agent decides.
process.on('SIGINT', () => undefined)
process.on('uncaughtException', error => {
  const store = storeAtFault()
  // PouchDB throws inside LevelDB's callbacks where a folder is damaged. That ends one database, until the
  // next start; the others go on.
  if (store !== undefined && !store.failed && !stopping) {
    logger.fatal({ err: error, database: store.name }, 'a database failed and is closed')
    store.fail(error)
    return
  }
  logger.fatal({ err: error }, 'the embedded database cannot go on')
  stop(70)
})

async function receive (message: ToChild, handle: unknown): Promise<void> {
  if ('start' in message) return await start(message.start, handle)
  const { seq } = message
  if (embedded === undefined) return tell({ seq, error: { code: 'not-running', message: 'the embedded database has not started' } })
  try {
    if ('accounts' in message) {
      await embedded.setAccounts(message.accounts)
      return tell({ accountsSet: seq })
    }
    if ('createDatabase' in message) await embedded.createDatabase(message.createDatabase)
    else await embedded.deleteDatabase(message.deleteDatabase)
    tell({ seq, ok: true })
  } catch (error) {
    tell({ seq, error: sentError(error) })
  }
}

async function start ({ dir, accounts, logLevel }: Extract<ToChild, { start: object }>['start'], handle: unknown): Promise<void> {
  logger = createLogger(logLevel, 'embedded')
  try {
    embedded = await startEmbedded({ dir, accounts, listen: handle as Listening, logger })
    embedded.onDatabases(databases => { tell({ databases }) })
    tell({ ready: { url: embedded.url, databases: await embedded.databases() } })
  } catch (error) {
    tell({ failed: sentError(error) }, () => { stop(1) })
  }
}

function tell (message: FromChild, sent: () => void = () => undefined): void {
  // The agent may have gone: `disconnect` says so, and nothing is left to do.
  if (process.connected) process.send!(message, undefined, undefined, sent)
}

function sentError (error: unknown): SentError {
  return error instanceof PatchcordError ? { code: error.code, message: error.message, hint: error.hint } : { code: 'internal', message: messageOf(error) }
}

/** The longest a stop may take: a database that failed holds callbacks that never come. */
const STOP_MS = 5000

function stop (code: number): void {
  if (stopping) return
  stopping = true
  setTimeout(() => { process.exit(code) }, STOP_MS).unref()
  Promise.resolve(embedded?.stop()).then(
    () => { process.exit(code) },
    (error: unknown) => {
      logger.error({ err: error }, 'the embedded database did not stop cleanly')
      process.exit(code || 1)
    },
  )
}

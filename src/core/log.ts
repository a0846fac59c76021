import { pino, type Logger } from 'pino'

export type { Logger }
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = typeof LOG_LEVELS[number]

/** JSON lines on stderr. Nothing secret is ever handed to it; the redaction below is the second net,
 * for objects that hold more than their caller thought. */
export function createLogger (level: LogLevel, name: string): Logger {
  return pino({
    name,
    level,
    base: { name, pid: process.pid },
    redact: { paths: SECRET_PATHS, censor: '[secret]' },
  }, pino.destination({ fd: 2, sync: false }))
}

/** A logger that says nothing, for tests and for library users who gave none. */
export const silentLogger = (): Logger => pino({ level: 'silent' })

const SECRET_KEYS = ['password', 'key', 'token', 'authorization', 'cookie', 'secret', 'passphrase', 'credentials']
const SECRET_PATHS = SECRET_KEYS.flatMap(key => [key, `*.${key}`, `*.*.${key}`])

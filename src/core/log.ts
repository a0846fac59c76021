import { pino, type Logger } from 'pino'
import { LogSink } from './log-sink.js'
import { redactLine } from './redact.js'

export type { Logger }
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = typeof LOG_LEVELS[number]

/** JSON lines on stderr, and to `also`. Nothing secret is ever handed to it; redact.ts is the second net. */
export function createLogger (level: LogLevel, name: string, also: (line: string) => void = () => undefined): Logger {
  const stderr = new LogSink(2)
  return pino({ name, level, base: { name, pid: process.pid } }, {
    write (line: string) {
      const clean = redactLine(line)
      stderr.write(clean)
      also(clean)
    },
  })
}

/** A logger that says nothing, for tests and for library users who gave none. */
export const silentLogger = (): Logger => pino({ level: 'silent' })

/** The newest lines of a log, for whoever asks what happened: at most `MOST_LINES`. */
export class LogTail {
  readonly #lines: string[] = []
  readonly #followers = new Set<(line: string) => void>()

  add (line: string): void {
    const text = line.trimEnd()
    this.#lines.push(text)
    if (this.#lines.length > MOST_LINES) this.#lines.splice(0, this.#lines.length - MOST_LINES)
    for (const follower of this.#followers) follower(text)
  }

  /** The newest `count`, oldest first. */
  last (count: number): readonly string[] { return count <= 0 ? [] : this.#lines.slice(-count) }

  /** Calls `follower` with each line from now on, until the returned function is called. */
  follow (follower: (line: string) => void): () => void {
    this.#followers.add(follower)
    return () => { this.#followers.delete(follower) }
  }
}

const MOST_LINES = 1_000

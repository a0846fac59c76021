import type { Readable, Writable } from 'node:stream'
import { findHome, type Home } from '../core/home.js'
import { ControlClient } from '../control/client.js'
import { Output } from './output.js'

/** What a command line runs in: handed in, so that tests run commands without a process. */
export interface CliIo {
  readonly stdin: Readable
  readonly stdout: Writable
  readonly stderr: Writable
  readonly env: Readonly<Record<string, string | undefined>>
  /** Aborts at the first interrupt. */
  readonly signal: AbortSignal
}

/** Options that every command takes. */
export interface CommonOptions {
  readonly json?: boolean
  readonly home?: string
}

/** What one command works with. */
export interface Context {
  readonly io: CliIo
  readonly home: Home
  readonly output: Output
  readonly client: ControlClient
  readonly signal: AbortSignal
}

export function contextOf (io: CliIo, { json = false, home: given }: CommonOptions): Context {
  const home = findHome(given, io.env)
  return { io, home, output: new Output(json, io.stdout, io.stderr), client: new ControlClient(home.socket), signal: io.signal }
}

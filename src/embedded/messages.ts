import type { ErrorCode } from '../core/errors.js'
import type { DatabaseName } from '../core/ids.js'
import type { LogLevel } from '../core/log.js'
import type { Account } from './accounts.js'

// What the agent and the embedded database's process say to each other over Node's IPC, one object each.
// `start` comes first, with the bound socket beside it; `ready` or `failed` answers it.

export type ToChild =
  | { readonly start: { readonly dir: string, readonly accounts: readonly Account[], readonly logLevel: LogLevel } }
  | { readonly seq: number, readonly accounts: readonly Account[] }
  | { readonly seq: number, readonly createDatabase: string }
  | { readonly seq: number, readonly deleteDatabase: string }

export type FromChild =
  | { readonly ready: { readonly url: string, readonly databases: readonly DatabaseName[] } }
  | { readonly failed: SentError }
  | { readonly accountsSet: number }
  | { readonly seq: number, readonly ok: true }
  | { readonly seq: number, readonly error: SentError }
  | { readonly databases: readonly DatabaseName[] }

export interface SentError { readonly code: ErrorCode, readonly message: string, readonly hint?: string }

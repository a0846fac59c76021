import { messageOf, PatchcordError } from '../core/errors.js'

/** An answer other than success, in CouchDB's words: status, `error` and `reason`. */
export class Problem extends Error {
  override readonly name = 'Problem'
  readonly status: number
  readonly error: string
  readonly reason: string

  constructor (status: number, error: string, reason: string, options?: ErrorOptions) {
    super(reason, options)
    this.status = status
    this.error = error
    this.reason = reason
  }
}

export const badRequest = (reason: string): Problem => new Problem(400, 'bad_request', reason)
export const missing = (reason = 'missing'): Problem => new Problem(404, 'not_found', reason)
export const conflict = (): Problem => new Problem(409, 'conflict', 'Document update conflict.')
export const noDatabase = (): Problem => missing('Database does not exist.')

/** The statuses that PouchDB's errors may pass on; any other is a failure of ours and becomes 500. */
const PASSED = new Set([400, 404, 409, 412])

/** Anything thrown, as an answer. What was not foreseen says nothing of the machine: the log has it. */
export function problemOf (error: unknown): Problem {
  if (error instanceof Problem) return error
  if (error instanceof PatchcordError) return new Problem(error.status, error.code, error.message, { cause: error })
  const { status, name, reason } = (error ?? {}) as { status?: unknown, name?: unknown, reason?: unknown }
  if (typeof status === 'number' && PASSED.has(status) && typeof name === 'string') {
    if (status === 409) return conflict()
    return new Problem(status, name, typeof reason === 'string' ? reason : messageOf(error), { cause: error })
  }
  return new Problem(500, 'internal_server_error', 'the request could not be completed', { cause: error })
}

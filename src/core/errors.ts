/**
 * Every error that patchcord raises on purpose, in one table. Code branches on `code`, never on a
 * message; the HTTP status, the exit code of the command line and the hint follow from the code.
 *
 * docs/errors.md is made of it (`npm run docs`). `status` is what a client of the open port sees, where the error can reach one. `exit` is the exit
 * code of docs/contracts (0 done, 1 failed, 2 usage, 3 refused, 4 not reachable, 5 verification).
 */
export const ERRORS = {
  'usage': { means: 'the command line, or an argument of the API, cannot be read', status: 400, exit: 2, hint: 'see `patchcord --help`' },
  'bad-env': { means: 'the env of the server, or an update of it, is not of its form', status: 500, exit: 2, hint: 'compare it with docs/env.schema.json' },
  'bad-state': { means: 'a file of state is damaged, or not of its form', status: 500, exit: 1, hint: 'restore the file from a backup, or move it away and start again' },
  'unsafe-mode': { means: 'others than you may read or replace a private file', status: 500, exit: 1, hint: 'nobody but you may read it: chmod 600 the file, chmod 700 its folder' },
  'unreadable': { means: 'a file or folder is not there, or may not be read', status: 500, exit: 1, hint: 'check that the path exists and that you may read it' },
  'no-handles': { means: 'the system lets this process have no more open files and connections', status: 503, exit: 1, hint: 'wait, or raise the limit: `ulimit -n`, or LimitNOFILE= in the unit' },
  'disk-full': { means: 'no room is left on the disk; nothing half written was kept', status: 507, exit: 1, hint: 'make room on the disk, then run the command again' },
  'changed-while-read': { means: 'a file changed while it was added; nothing of it was kept', status: 500, exit: 1, hint: 'add it again once nothing writes to it' },
  'port-in-use': { means: 'another program listens at the address', status: 500, exit: 1, hint: 'choose another port with --listen, or end the program that has it' },
  'already-running': { means: 'another service runs in the same home folder', status: 500, exit: 1, hint: 'one `patchcord up` per home folder; use --home for a second device' },
  'socket-path-too-long': { means: 'the path of the control socket is longer than the system takes (107 bytes)', status: 500, exit: 2, hint: 'choose a shorter --home' },
  'no-ca-key': { means: 'this device does not hold the key that signs', status: 500, exit: 1, hint: 'do this on the device that holds the user CA' },
  'bad-certificate': { means: 'a certificate, bundle or signing request is not of its form, or not signed by whom it should be', status: 500, exit: 5, hint: 'ask for a fresh bundle: patchcord identity --export bundle.pem' },
  'not-paired': { means: 'a pairing window ended without a pair', status: 500, exit: 1, hint: 'open another window: patchcord pair' },
  'refused': { means: 'the policy, or a person, said no', status: 403, exit: 3, hint: 'see `patchcord explain`' },
  'not-canonical': { means: 'the request has more than one reading, or is not of its form', status: 400, exit: 3, hint: 'send the request in its plain form' },
  'foreign-origin': { means: 'a browser sent the request on behalf of another site', status: 403, exit: 3, hint: 'this port does not answer pages of other sites' },
  'not-admitted': { means: 'the other end\'s certificate does not admit it, or no longer does', status: 403, exit: 3, hint: 'trust the device first' },
  'not-found': { means: 'there is no such thing, or it was not granted', status: 404, exit: 1, hint: 'check the name; what was not granted does not exist either' },
  'method-not-allowed': { means: 'the thing is there and does not take this method', status: 405, exit: 3, hint: 'see the Allow header' },
  'already-exists': { means: 'something of that name is there', status: 412, exit: 1, hint: 'choose another name' },
  'conflict': { means: 'somebody changed it in between', status: 409, exit: 1, hint: 'fetch the newest revision and try again' },
  'length-required': { means: 'a body came without its length', status: 411, exit: 3, hint: 'send a Content-Length' },
  'too-large': { means: 'a body, an ID or a file is larger than the limit', status: 413, exit: 3, hint: 'send less at once' },
  'unsupported-media': { means: 'a body is of a type or encoding that is not taken', status: 415, exit: 3, hint: 'send application/json, without Content-Encoding' },
  'range': { means: 'the range asked for lies outside the file', status: 416, exit: 1, hint: 'ask for a range inside the file' },
  'too-many': { means: 'a limit on what may run at once is reached', status: 429, exit: 4, hint: 'wait until earlier requests have ended' },
  'unreachable': { means: 'the peer does not answer', status: 502, exit: 4, hint: 'check the cable and the address, then `patchcord doctor`' },
  'not-running': { means: 'no service answers at the control socket', status: 502, exit: 4, hint: 'start the service: patchcord up' },
  'upstream-down': { means: 'the CouchDB behind this port does not answer, or broke off', status: 502, exit: 4, hint: 'check that CouchDB runs at the address given' },
  'upstream-slow': { means: 'the CouchDB behind this port took longer than the limit', status: 504, exit: 4, hint: 'CouchDB did not answer in time; try again' },
  'verification': { means: 'bytes or signatures are not what their ID or key says', status: 500, exit: 5, hint: 'the source sent bytes that do not match the content ID; get it from another device' },
  'stopped': { means: 'the service is stopping, and begins nothing new', status: 503, exit: 4, hint: 'the service is stopping' },
  'internal': { means: 'patchcord did what it should not', status: 500, exit: 1, hint: 'this is a defect of patchcord; the log has the details' },
} as const satisfies Record<string, { means: string, status: number, exit: 0 | 1 | 2 | 3 | 4 | 5, hint: string }>

export type ErrorCode = keyof typeof ERRORS

/** An error with a code of the table. `message` names the thing and the problem, in lower case; `hint`
 * says the next step. Neither ever holds a secret. */
export class PatchcordError extends Error {
  override readonly name = 'PatchcordError'
  readonly code: ErrorCode
  readonly hint: string

  constructor (code: ErrorCode, message: string, options: { hint?: string, cause?: unknown } = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined)
    this.code = code
    this.hint = options.hint ?? ERRORS[code].hint
  }

  get status (): number { return ERRORS[this.code].status }
  get exit (): number { return ERRORS[this.code].exit }
}

/** The system's error code (`ENOENT`, `ECONNREFUSED`, …) of anything that was thrown, or undefined. */
export function systemCode (error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : undefined
}

/** Whether no room was left on the disk. */
export function isDiskFull (error: unknown): boolean {
  return error instanceof PatchcordError && error.code === 'disk-full'
}

/** The message of anything that was thrown. */
export function messageOf (error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** A file system error as one of ours, naming `path`. Errors of ours pass unchanged. */
export function fileError (error: unknown, path: string): PatchcordError {
  if (error instanceof PatchcordError) return error
  const code = systemCode(error)
  switch (code) {
    case 'ENOSPC':
    case 'EDQUOT':
      return new PatchcordError('disk-full', `no room left on the disk while writing ${path}`, { cause: error })
    case 'EMFILE':
    case 'ENFILE':
      return new PatchcordError('no-handles', `${path} cannot be opened: too many open files`, { cause: error })
    case 'ENOENT':
      return new PatchcordError('unreadable', `${path} does not exist`, { cause: error })
    case 'EACCES':
    case 'EPERM':
      return new PatchcordError('unreadable', `${path} cannot be opened: permission denied`, { cause: error })
    default:
      return new PatchcordError('unreadable', `${path}: ${messageOf(error)}`, { cause: error })
  }
}

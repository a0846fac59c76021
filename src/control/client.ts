import { request } from 'node:http'
import { createInterface } from 'node:readline'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { ERRORS, PatchcordError, systemCode, type ErrorCode } from '../core/errors.js'
import type { Args, EventOf, OperationName, Result } from './operations.js'
import { isSocketPath } from './socket-path.js'

interface AgentError { readonly code: string, readonly message: string, readonly hint: string }

/** Events have an `event`; the last line is the result or the error. */
type Line<Name extends OperationName> = (EventOf<Name> & { readonly event: string }) | { readonly result: Result<Name> } | { readonly error: AgentError }

/** The typed client of the control socket. */
export class ControlClient {
  readonly #path: string

  constructor (path: string) {
    this.#path = path
  }

  /** Runs one operation; `onEvent` sees its events as they come. Throws the agent's own error, or
   * `not-running` where nobody listens. Aborting ends the operation. */
  async call<Name extends OperationName> (name: Name, args: Args<Name>, onEvent: (event: EventOf<Name>) => void = () => undefined, signal?: AbortSignal): Promise<Result<Name>> {
    // No service can be there; `up` says why.
    if (!isSocketPath(this.#path)) throw new PatchcordError('not-running', 'the service is not running')
    const body = JSON.stringify(args)
    // A connection of its own: a kept one may be closed by the service at the moment when it is used again.
    const sent = request({ agent: false, socketPath: this.#path, method: 'POST', path: `/v1/${name}`, headers: { Host: 'localhost', 'Content-Length': Buffer.byteLength(body) }, ...signal === undefined ? {} : { signal } })
    sent.end(body)
    let response: IncomingMessage
    try {
      [response] = await once(sent, 'response') as [IncomingMessage]
    } catch (error) {
      throw this.#unreachable(error)
    }
    try {
      for await (const line of createInterface({ input: response })) {
        const message = JSON.parse(line) as Line<Name>
        if ('event' in message) onEvent(message)
        else if ('error' in message) throw fromAgent(message.error)
        else return message.result
      }
    } catch (error) {
      throw this.#unreachable(error)
    }
    throw stopped()
  }

  #unreachable (error: unknown): unknown {
    const code = systemCode(error)
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return new PatchcordError('not-running', 'the service is not running', { cause: error })
    if (code === 'EACCES') return new PatchcordError('unreadable', `the control socket ${this.#path} belongs to another user`, { cause: error })
    if (code === 'ECONNRESET' || code === 'EPIPE') return stopped(error)
    return error
  }
}

/** It was killed, say, in the middle of something. */
function stopped (cause?: unknown): PatchcordError {
  return new PatchcordError('stopped', 'the service stopped before it answered', { hint: 'start it again: patchcord up', cause })
}

function fromAgent ({ code, message, hint }: AgentError): PatchcordError {
  return new PatchcordError(Object.hasOwn(ERRORS, code) ? code as ErrorCode : 'internal', message, { hint })
}

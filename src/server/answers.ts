import type { IncomingMessage, ServerResponse } from 'node:http'
import { PatchcordError } from '../core/errors.js'
import { sendCouchFailure } from '../couch/errors.js'

/** Answers with an error, in the one form that the CouchDB surface has too, so that what was not granted
 * looks like what is not there. A 400 ends the connection (its framing is not to be trusted), and so does a
 * body that was not read. */
export function answerError (request: IncomingMessage, response: ServerResponse, failure: PatchcordError): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  if (failure.status === 400 || !request.complete) response.shouldKeepAlive = false
  sendCouchFailure(response, failure)
}

/** Answers with JSON of ours. */
export function answerJson (request: IncomingMessage, response: ServerResponse, value: unknown, headers: Record<string, string> = {}): number {
  const body = Buffer.from(`${JSON.stringify(value)}\n`)
  response.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': body.length, 'Cache-Control': 'private, no-cache', 'X-Content-Type-Options': 'nosniff', ...headers })
  response.end(request.method === 'HEAD' ? undefined : body)
  return request.method === 'HEAD' ? 0 : body.length
}

/** Anything that was thrown, as an error of the table. What is not one of ours tells the caller nothing. */
export function failureOf (error: unknown): PatchcordError {
  return error instanceof PatchcordError ? error : new PatchcordError('internal', 'an unexpected error', { cause: error })
}

import type { Answering } from '../core/answering.js'
import { PatchcordError } from '../core/errors.js'
import { sendCouchFailure } from '../core/couch-answers.js'

/** Answers with an error, in the one form that the CouchDB surface has too, so that what was not granted
 * looks like what is not there, and returns the bytes of its body. An error that ends the connection does,
 * and so does a body that was not read. */
export function answerError (isRead: boolean, response: Answering, failure: PatchcordError): number {
  if (response.headersSent) {
    response.destroy()
    return 0
  }
  if (endsConnection(failure) || !isRead) response.shouldKeepAlive = false
  return sendCouchFailure(response, failure)
}

/** Whether nothing more is taken from a connection after this: the framing of what is not canonical is not
 * to be trusted, and what a foreign page sends next is no better. */
export function endsConnection ({ status, code }: PatchcordError): boolean {
  return status === 400 || code === 'foreign-origin'
}

/** Answers with JSON of ours. */
export function answerJson (response: Answering, value: unknown, headers: Record<string, string> = {}): number {
  const body = Buffer.from(`${JSON.stringify(value)}\n`)
  response.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': body.length, 'Cache-Control': 'private, no-cache', 'X-Content-Type-Options': 'nosniff', ...headers })
  response.end(body)
  return response.req.method === 'HEAD' ? 0 : body.length
}

/** Anything that was thrown, as an error of the table. What is not one of ours tells the caller nothing. */
export function failureOf (error: unknown): PatchcordError {
  return error instanceof PatchcordError ? error : new PatchcordError('internal', 'an unexpected error', { cause: error })
}

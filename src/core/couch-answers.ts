import type { Answering } from './answering.js'
import { PatchcordError } from './errors.js'

/** Answers with a JSON value of ours, as CouchDB writes one: a line of its own. A HEAD request gets the
 * same headers. Sends nothing where an answer has begun. Returns the bytes of the body that are sent. */
export function sendCouchJson (response: Answering, status: number, value: unknown): number {
  if (response.headersSent || response.destroyed) return 0
  const body = Buffer.from(`${JSON.stringify(value)}\n`)
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': body.length,
    'cache-control': 'must-revalidate',
    'x-content-type-options': 'nosniff',
  })
  response.end(body)
  return response.req.method === 'HEAD' ? 0 : body.length
}

/** The one form of an error on the CouchDB surface. The gate's refusals and the proxy's answers both
 * come from here, so that what is absent and what is not granted are the same bytes. */
export function sendCouchError (response: Answering, status: number, error: string, reason: string): number {
  return sendCouchJson(response, status, { error, reason })
}

/** CouchDB's own words for a status, which its clients branch on. */
const WORDS: Readonly<Record<number, string>> = {
  400: 'bad_request',
  403: 'forbidden',
  404: 'not_found',
  405: 'method_not_allowed',
  409: 'conflict',
  412: 'precondition_failed',
  413: 'too_large',
  415: 'bad_content_type',
  429: 'too_many_requests',
  502: 'bad_gateway',
  503: 'service_unavailable',
  504: 'gateway_timeout',
}

/** The reason of every 404: nothing about it may tell absent from not granted. */
export const MISSING = 'missing'

/** Answers with an error of the table. Of what failed on our side, the client learns the hint alone. */
export function sendCouchFailure (response: Answering, failure: PatchcordError): number {
  const { status } = failure
  const reason = status === 404 ? MISSING : status < 500 ? failure.message : failure.hint
  return sendCouchError(response, status, WORDS[status] ?? 'internal_server_error', reason)
}

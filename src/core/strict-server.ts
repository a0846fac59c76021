import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Limits } from './limits.js'

type HttpLimits = Pick<Limits, 'headBytes' | 'headMs' | 'headers' | 'idleMs'>

/** Node's HTTP server with every default that is too generous replaced; whoever takes its requests refuses those with more than `headers`
 * headers, and cuts a body that stalls. Connections that let `headMs` pass are looked for every `checkMs`. */
export function strictServer (limits: HttpLimits, checkMs = 1_000): Server {
  const server = createServer({
    maxHeaderSize: limits.headBytes,
    headersTimeout: limits.headMs,
    // A long upload is no attack: a body has no total limit, only one on its silence.
    requestTimeout: 0,
    keepAliveTimeout: limits.idleMs,
    connectionsCheckingInterval: Math.min(checkMs, limits.headMs),
    // Two Host headers, or none, are refused by the canonical form.
    requireHostHeader: false,
    insecureHTTPParser: false,
    noDelay: true,
  })
  // One more than is allowed: past this number Node drops headers without a word.
  server.maxHeadersCount = limits.headers + 1
  server.on('connect', (_message: IncomingMessage, socket: Socket) => { socket.destroy() })
  return server
}

/** The same for programs of this machine, at most `connections` of them. `take` gets each request, also one that waits for `100 Continue`: whoever
 * reads its body sends that, so that a refused body never comes. */
export function localServer (limits: HttpLimits & { readonly connections: number }, take: (message: IncomingMessage, response: ServerResponse, expectsContinue: boolean) => void, checkMs?: number): Server {
  const server = strictServer(limits, checkMs)
  server.maxConnections = limits.connections
  server.on('request', (message, response) => { take(message, response, false) })
  server.on('checkContinue', (message, response) => { take(message, response, true) })
  server.on('checkExpectation', (message, response) => { take(message, response, false) })
  server.on('clientError', (_error: Error, socket: Socket) => {
    if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
    else socket.destroy()
  })
  return server
}

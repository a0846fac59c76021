import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { EmbeddedLimits } from './limits.js'

/** Node's HTTP server with every default that is too generous replaced. `take` gets each request, also one
 * that waits for `100 Continue`: whoever reads its body sends that, so that a refused body never comes. */
export function strictServer (limits: EmbeddedLimits, take: (incoming: IncomingMessage, response: ServerResponse) => void): Server {
  const server = createServer({
    maxHeaderSize: limits.headBytes,
    headersTimeout: limits.headMs,
    // A body has no total limit, only one on its silence (bodies.ts).
    requestTimeout: 0,
    keepAliveTimeout: limits.idleMs,
    connectionsCheckingInterval: Math.min(5000, limits.headMs),
    insecureHTTPParser: false,
    noDelay: true,
  })
  server.maxHeadersCount = limits.headers
  server.maxConnections = limits.connections
  server.on('request', take)
  server.on('checkContinue', take)
  server.on('checkExpectation', take)
  server.on('connect', (_: IncomingMessage, socket: Socket) => { socket.destroy() })
  server.on('clientError', (_: Error, socket: Socket) => {
    if (!socket.writable) return void socket.destroy()
    socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
  })
  return server
}

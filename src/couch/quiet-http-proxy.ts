import { EventEmitter } from 'node:events'
import { readFileSync } from 'node:fs'
import type { Agent, ClientRequest, IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { createRequire } from 'node:module'
import { isIPv4 } from 'node:net'
import type { Readable } from 'node:stream'
import type HttpProxy from 'http-proxy'

// Everything that knows http-proxy 1.18.1, kept at arm's length. It reads headers, path and method from
// the request it is given and pipes whatever is in it; so it is given no request of a client's, but a
// stand-in that holds what was written anew, and a stand-in for the response that it cannot write to.

/** What is sent. */
export interface UpstreamHead {
  readonly method: string
  readonly path: string
  readonly headers: OutgoingHttpHeaders
  readonly body: Readable
  readonly agent: Agent
}

/** `failed` may come after `answered`, and more than once; a request that ends always has one of them. */
export interface UpstreamListener {
  /** A connection is there, and nothing was written yet. */
  connected (request: ClientRequest): void
  answered (answer: IncomingMessage): void
  failed (error: Error): void
}

export interface UpstreamTarget {
  readonly host: string
  readonly port: number
}

export interface UpstreamCall {
  /** Ends the request, also while it waits for a connection. */
  abort (): void
}

/** Sends one request through http-proxy. What it throws itself arrives as `failed`. */
export function sendUpstream (target: UpstreamTarget, head: UpstreamHead, listener: UpstreamListener): UpstreamCall {
  const request = new StandIn(head, listener)
  const host = socketAddress(target.host)
  try {
    shared().web(request as unknown as IncomingMessage, NO_RESPONSE, {
      // An object, not a string: it would be parsed with url.parse(). No host of its own in front of the path.
      target: { protocol: 'http:', host, hostname: host, port: target.port },
      prependPath: false,
      agent: head.agent,
      buffer: head.body,
    }, error => { listener.failed(error) })
  } catch (error) {
    listener.failed(error as Error)
  }
  return { abort: () => { request.emit('aborted') } }
}

/** Where to connect to for an address. On Linux an IPv4 address is reached by an IPv6 socket (RFC 4291, 2.5.5.2): the
 * AppArmor profile of the server allows no other, since one that it may connect with it may listen with as well. Where
 * this machine's IPv6 sockets take no such address (`net.ipv6.bindv6only`), it is reached as it is. */
export function socketAddress (host: string, platform = process.platform, isMapped = takesMapped): string {
  return platform === 'linux' && isIPv4(host) && isMapped() ? `::ffff:${host}` : host
}

/** What a new IPv6 socket's IPV6_V6ONLY is (ipv6(7)), asked once: it is set when a machine is set up. */
function takesMapped (): boolean {
  mapped ??= (() => {
    try {
      return readFileSync('/proc/sys/net/ipv6/bindv6only', 'latin1').trim() !== '1'
    } catch {
      return true
    }
  })()
  return mapped
}

let mapped: boolean | undefined

/** It asks a request for these, and listens for `aborted` and `error`. Its own socket is never
 * destroyed: otherwise an error of the upstream's would be taken for the client's, and told to nobody. */
class StandIn extends EventEmitter {
  readonly method: string
  readonly url: string
  readonly headers: OutgoingHttpHeaders
  readonly socket = { destroyed: false }
  readonly listener: UpstreamListener

  constructor ({ method, path, headers }: UpstreamHead, listener: UpstreamListener) {
    super()
    this.method = method
    this.url = path
    this.headers = { ...headers }
    this.listener = listener
  }
}

const NO_RESPONSE = Object.freeze({ headersSent: false, finished: false }) as unknown as ServerResponse

let proxy: HttpProxy | undefined

/** toProxy: the path goes out as it is, where url.parse() would turn "\" into "/" and cut at "#". */
function shared (): HttpProxy {
  if (proxy !== undefined) return proxy
  proxy = loadQuietly().createProxyServer({ selfHandleResponse: true, toProxy: true, xfwd: false })
  proxy.on('proxyReq', (request, standIn) => {
    const { listener } = standInOf(standIn)
    // After a 101 that nobody asked for, Node closes the connection and tells no error.
    request.once('close', () => { listener.failed(new Error('the connection ended')) })
    listener.connected(request)
  })
  proxy.on('proxyRes', (answer, standIn) => { standInOf(standIn).listener.answered(answer) })
  return proxy
}

function standInOf (request: IncomingMessage): StandIn {
  return request as unknown as StandIn
}

/** It takes `util._extend` while it loads, which prints DEP0060 on Node 22 and later when it is called.
 * For that moment it finds Object.assign in its place. */
function loadQuietly (): typeof HttpProxy {
  const require = createRequire(import.meta.url)
  const util = require('node:util') as { _extend: unknown }
  const before = util._extend
  util._extend = Object.assign
  try {
    return require('http-proxy') as typeof HttpProxy
  } finally {
    util._extend = before
  }
}

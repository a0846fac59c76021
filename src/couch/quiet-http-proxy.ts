import { EventEmitter } from 'node:events'
import type { Agent, ClientRequest, IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { createRequire } from 'node:module'
import type { Readable } from 'node:stream'
import type HttpProxy from 'http-proxy'
import { PatchcordError } from '../core/errors.js'
import { socketAddress, type UpstreamCall, type UpstreamHead, type UpstreamListener, type UpstreamTarget } from './upstream.js'

// Everything that knows http-proxy 1.18.1, kept at arm's length. It carries the requests that have a body: streaming one up with
// its framing, backpressure and early answers is its work. It reads headers, path and method from
// the request it is given and pipes whatever is in it; so it is given no request of a client's, but a
// stand-in that holds what was written anew, and a stand-in for the response that it cannot write to.

export interface UpstreamBody {
  readonly body: Readable
  readonly agent: Agent
}

/** Sends one request through http-proxy. What it throws itself arrives as `failed`. */
export function sendUpstream (target: UpstreamTarget, head: UpstreamHead, { body, agent }: UpstreamBody, listener: UpstreamListener): UpstreamCall {
  const call = new ProxiedCall(head, listener)
  const host = socketAddress(target.host)
  try {
    shared().web(call.standIn as unknown as IncomingMessage, NO_RESPONSE, {
      // An object, not a string: it would be parsed with url.parse(). No host of its own in front of the path.
      target: { protocol: 'http:', host, hostname: host, port: target.port },
      prependPath: false,
      agent,
      buffer: body,
    }, error => { call.failed(error) })
  } catch (error) {
    call.failed(error as Error)
  }
  return call
}

class ProxiedCall implements UpstreamCall {
  readonly standIn: StandIn
  readonly #head: UpstreamHead
  #listener: UpstreamListener | undefined
  #request: ClientRequest | undefined
  #answer: IncomingMessage | undefined
  #mayBringMore = false

  constructor (head: UpstreamHead, listener: UpstreamListener) {
    this.#head = head
    this.#listener = listener
    this.standIn = new StandIn(head, this)
  }

  get isBacklogged (): boolean { return this.#request?.writableNeedDrain ?? true }

  abort (): void {
    this.#listener = undefined
    this.standIn.emit('aborted')
  }

  discard (): void {
    this.#listener = undefined
    this.#answer?.resume()
  }

  pause (): void { this.#answer?.pause() }
  resume (): void { this.#answer?.resume() }

  /** A connection is there, and nothing was written yet. */
  connected (request: ClientRequest): void {
    this.#request = request
    // After a 101 that nobody asked for, Node closes the connection and tells no error.
    request.once('close', () => { if (this.#answer === undefined) this.failed(new Error('the connection ended')) })
    const { path, method } = this.#head
    if (request.path === path && request.method === method) return
    this.failed(new PatchcordError('internal', 'http-proxy changed the request line'))
    this.abort()
  }

  answered (answer: IncomingMessage): void {
    this.#answer = answer
    answer.on('error', () => { /* its close follows, and tells more */ })
    if (this.#listener === undefined) return void answer.destroy()
    this.#listener.answered({ status: answer.statusCode ?? 0, headers: answer.headers })
    answer.on('data', (chunk: Buffer) => {
      this.#listener?.data(chunk, 0, chunk.length)
      if (this.#mayBringMore) return
      this.#mayBringMore = true
      // Every chunk of one read is handed out before anything else is done.
      process.nextTick(() => {
        this.#mayBringMore = false
        this.#listener?.caughtUp()
      })
    })
    answer.once('end', () => {
      const listener = this.#listener
      this.#listener = undefined
      listener?.ended()
    })
    answer.once('close', () => { this.failed(new Error('the connection ended in the middle of an answer')) })
  }

  /** http-proxy may say so after an answer began, and more than once. */
  failed (error: Error): void {
    const listener = this.#listener
    this.#listener = undefined
    listener?.failed(error)
  }
}

/** It asks a request for these, and listens for `aborted` and `error`. Its own socket is never
 * destroyed: otherwise an error of the upstream's would be taken for the client's, and told to nobody. */
class StandIn extends EventEmitter {
  readonly method: string
  readonly url: string
  readonly headers: OutgoingHttpHeaders
  readonly socket = { destroyed: false }
  readonly call: ProxiedCall

  constructor ({ method, path, headers }: UpstreamHead, call: ProxiedCall) {
    super()
    this.method = method
    this.url = path
    this.headers = { ...headers }
    this.call = call
  }
}

const NO_RESPONSE = Object.freeze({ headersSent: false, finished: false }) as unknown as ServerResponse

let proxy: HttpProxy | undefined

/** toProxy: the path goes out as it is, where url.parse() would turn "\" into "/" and cut at "#". */
function shared (): HttpProxy {
  if (proxy !== undefined) return proxy
  proxy = loadQuietly().createProxyServer({ selfHandleResponse: true, toProxy: true, xfwd: false })
  proxy.on('proxyReq', (request, standIn) => { callOf(standIn).connected(request) })
  proxy.on('proxyRes', (answer, standIn) => { callOf(standIn).answered(answer) })
  return proxy
}

function callOf (request: IncomingMessage): ProxiedCall {
  return (request as unknown as StandIn).call
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

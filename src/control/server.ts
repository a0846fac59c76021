import { once } from 'node:events'
import { chmod, unlink } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { dirname } from 'node:path'
import { ERRORS, PatchcordError, systemCode } from '../core/errors.js'
import type { Logger } from '../core/log.js'
import { makeFolders } from '../core/make-folders.js'
import type { Operation, OperationTable } from './operations.js'
import { checkSocketPath } from './socket-path.js'

/** Arguments hold bundles and paths, never bulk. */
const MOST_ARGS_BYTES = 4 * 1024 * 1024

/** A text of metrics and its media type. */
export interface Metrics { readonly type: string, readonly text: string }

/** The agent's end of the control socket. Who can enter the socket's folder (0700) is this user. */
export class ControlServer {
  readonly path: string
  readonly #operations: OperationTable
  readonly #logger: Logger
  readonly #http: Server
  readonly #metrics: (() => Promise<Metrics>) | undefined
  readonly #running = new Set<AbortController>()

  /** Throws `socket-path-too-long`. */
  constructor (path: string, operations: OperationTable, logger: Logger, { metrics }: { readonly metrics?: () => Promise<Metrics> } = {}) {
    this.#metrics = metrics
    checkSocketPath(path)
    this.path = path
    this.#operations = operations
    this.#logger = logger
    this.#http = createServer((message, response) => { void this.#answer(message, response) })
    this.#http.requestTimeout = 30_000
    this.#http.on('error', error => { this.#logger.error({ err: error }, 'the control socket cannot accept') })
  }

  /** The caller holds the lock of the home folder, so a socket that is there was left behind. */
  async listen (): Promise<void> {
    await makeFolders(dirname(this.path), 0o700)
    await unlink(this.path).catch((error: unknown) => { if (systemCode(error) !== 'ENOENT') throw error })
    this.#http.listen(this.path)
    await once(this.#http, 'listening')
    await chmod(this.path, 0o600)
  }

  async close (): Promise<void> {
    for (const abort of this.#running) abort.abort()
    const closed = new Promise<void>(resolve => { this.#http.close(() => { resolve() }) })
    this.#http.closeIdleConnections()
    setTimeout(() => { this.#http.closeAllConnections() }, 500).unref()
    await closed
  }

  async #answer (message: IncomingMessage, response: ServerResponse): Promise<void> {
    const abort = new AbortController()
    this.#running.add(abort)
    response.on('close', () => {
      this.#running.delete(abort)
      abort.abort()
    })
    if (message.method === 'GET' && message.url === '/metrics' && message.headers.origin === undefined && this.#metrics !== undefined) return await this.#tellMetrics(this.#metrics, response)
    const write = (line: object): void => {
      if (!response.headersSent) response.writeHead(200, { 'Content-Type': 'application/x-ndjson' })
      if (!response.destroyed) response.write(`${JSON.stringify(line)}\n`)
    }
    try {
      const operation = this.#find(message)
      const args = await readArgs(message)
      write({ result: await operation(args, write, abort.signal) })
    } catch (error) {
      // Whoever asked is gone, and that ended it.
      if (!(error instanceof PatchcordError) && !abort.signal.aborted) this.#logger.error({ operation: message.url, err: error }, 'operation failed')
      write({ error: describe(error) })
    }
    response.end()
  }

  async #tellMetrics (metrics: () => Promise<Metrics>, response: ServerResponse): Promise<void> {
    try {
      const { type, text } = await metrics()
      response.writeHead(200, { 'Content-Type': type }).end(text)
    } catch (error) {
      this.#logger.error({ err: error }, 'the metrics failed')
      response.writeHead(500).end()
    }
  }

  #find ({ method, url, headers }: IncomingMessage): Operation {
    // A web page cannot reach a unix socket; a proxy that somebody put before it could bring one here.
    if (headers.origin !== undefined) throw new PatchcordError('refused', 'the control socket answers no web page')
    const name = /^\/v1\/([a-z-]+)$/.exec(url ?? '')?.[1] ?? ''
    if (method !== 'POST' || !Object.hasOwn(this.#operations, name)) throw new PatchcordError('usage', `there is no operation ${method} ${url}`)
    return this.#operations[name as keyof OperationTable] as Operation
  }
}

async function readArgs (message: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of message as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > MOST_ARGS_BYTES) throw new PatchcordError('too-large', `the arguments are longer than ${MOST_ARGS_BYTES} bytes`)
    chunks.push(chunk)
  }
  if (size === 0) return {}
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown
  } catch {
    throw new PatchcordError('usage', 'the arguments are not JSON')
  }
}

function describe (error: unknown): { code: string, message: string, hint: string } {
  return error instanceof PatchcordError
    ? { code: error.code, message: error.message, hint: error.hint }
    : { code: 'internal', message: 'an unexpected error', hint: ERRORS.internal.hint }
}

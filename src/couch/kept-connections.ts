import { createConnection, type Socket } from 'node:net'
import { BadAnswer } from '../core/answer-head.js'
import type { Clock, Timer } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import { flushSoon } from '../core/writes.js'
import { AnswerParser } from './answer-parser.js'
import { FIELD_VALUE, socketAddress, type UpstreamAnswer, type UpstreamCall, type UpstreamHead, type UpstreamListener, type UpstreamTarget } from './upstream.js'

/** Node's servers close an idle connection after 5 s; a pool that keeps it longer loses requests. It is looked at
 * every second, so that none rests longer than 4 s. */
const MOST_IDLE_MS = 3000
const LOOK_MS = 1000

/** What is read is told at once, and only then is there anything new to be read: one buffer serves all connections
 * (libuv reads it when the socket is readable; only on Windows does it hand it to the system before). */
const READ_BYTES = 65_536
const READ_INTO = Buffer.allocUnsafeSlow(READ_BYTES)
const buffer = process.platform === 'win32' ? () => Buffer.allocUnsafeSlow(READ_BYTES) : READ_INTO

/**
 * Connections to CouchDB for requests without a body, kept and used again: at most `most`, and who finds all of them
 * busy waits in the order of asking. One request is on a connection at a time. What was read in vain, what came without being
 * asked for, and what was left in the middle of an answer, ends its connection.
 */
export class KeptConnections {
  readonly #target: UpstreamTarget
  readonly #most: number
  readonly #clock: Clock
  readonly #open = new Set<KeptConnection>()
  /** The one used last is used next. */
  readonly #idle: KeptConnection[] = []
  readonly #waiting = new Set<Call>()
  #timer: Timer | undefined

  constructor (target: UpstreamTarget, most: number, clock: Clock) {
    this.#target = target
    this.#most = most
    this.#clock = clock
  }

  /** Sends one request. Where CouchDB closed a kept connection just as it was used, it is sent again on a new one,
   * unless it is a DELETE (RFC 9110 section 9.2.2: only what changes nothing may be). */
  send (head: UpstreamHead, listener: UpstreamListener): UpstreamCall {
    const call = new Call(head, listener, this)
    this.place(call, true)
    return call
  }

  /** Ends every connection; what runs is told nothing. */
  close (): void {
    this.#timer?.cancel()
    this.#waiting.clear()
    for (const connection of this.#open) connection.destroy()
  }

  /** Puts a call on a connection, a kept one where it may be. */
  place (call: Call, mayBeKept: boolean): void {
    const kept = mayBeKept ? this.#idle.pop() : undefined
    if (kept !== undefined) kept.begin(call)
    else if (this.#open.size < this.#most) {
      const connection = new KeptConnection(this.#target, this)
      this.#open.add(connection)
      connection.begin(call)
    } else this.#waiting.add(call)
  }

  forget (call: Call): void {
    this.#waiting.delete(call)
  }

  /** A connection did its work. */
  rest (connection: KeptConnection): void {
    const [next] = this.#waiting
    if (next !== undefined) {
      this.#waiting.delete(next)
      connection.begin(next)
      return
    }
    connection.since = this.#clock.monotonic()
    this.#idle.push(connection)
    this.#look()
  }

  /** The rest of an answer is read that nobody waits for, for as long as a connection may rest. */
  drain (connection: KeptConnection): void {
    connection.since = this.#clock.monotonic()
    this.#look()
  }

  gone (connection: KeptConnection): void {
    this.#open.delete(connection)
    const at = this.#idle.indexOf(connection)
    if (at !== -1) this.#idle.splice(at, 1)
    const [next] = this.#waiting
    if (next === undefined) return
    this.#waiting.delete(next)
    this.place(next, true)
  }

  #look (): void {
    this.#timer ??= this.#clock.after(LOOK_MS, () => {
      this.#timer = undefined
      const now = this.#clock.monotonic()
      for (const connection of this.#open) {
        if (connection.since !== undefined && now - connection.since >= MOST_IDLE_MS) connection.destroy()
      }
      if ([...this.#open].some(({ since }) => since !== undefined)) this.#look()
    })
  }
}

class KeptConnection {
  /** When it began to rest, or to be drained, in monotonic time. */
  since: number | undefined
  readonly #socket: Socket
  readonly #pool: KeptConnections
  #call: Call | undefined
  #isNew = true
  #isPaused = false
  /** Whether the request was written that an answer is waited for. */
  #hasAsked = false
  #isOver = false

  constructor ({ host, port }: UpstreamTarget, pool: KeptConnections) {
    this.#pool = pool
    this.#socket = createConnection({
      host: socketAddress(host), port, noDelay: true,
      onread: { buffer, callback: (length, bytes) => { this.#read(bytes as Buffer, length); return true } },
    })
    this.#socket.on('error', error => { this.#end(error) })
    this.#socket.on('end', () => { this.#end(reset('CouchDB closed the connection')) })
    this.#socket.on('close', () => { this.#end(reset('the connection ended')) })
  }

  get isBacklogged (): boolean { return this.#socket.writableNeedDrain }

  begin (call: Call): void {
    this.since = undefined
    this.#call = call
    call.connection = this
    flushSoon(this)
  }

  /** Writes the request, unless it was aborted meanwhile. */
  flush (): void {
    const call = this.#call
    if (call === undefined) return
    this.#hasAsked = true
    this.#socket.write(call.text, 'latin1')
  }

  pause (): void {
    this.#isPaused = true
    this.#socket.pause()
  }

  resume (): void {
    if (!this.#isPaused) return
    this.#isPaused = false
    this.#socket.resume()
  }

  drain (): void {
    this.#pool.drain(this)
    this.resume()
  }

  /** Tells nobody. */
  destroy (): void {
    this.#call = undefined
    this.#end(UNTOLD)
  }

  #read (bytes: Buffer, length: number): void {
    const call = this.#call
    // Nobody asked: were it kept, the next request would take it for its answer.
    if (call === undefined) return this.destroy()
    if (!this.#hasAsked) return this.#end(reset('CouchDB sent what nobody had asked for'))
    let isWhole: boolean
    try {
      isWhole = call.parser.read(bytes, length)
    } catch (error) {
      return this.#end(error instanceof BadAnswer ? new PatchcordError('upstream-down', `CouchDB sent ${error.message}`) : error as Error)
    }
    // It may have been aborted by what it was told.
    if (this.#call !== call) return
    if (!isWhole) return call.caughtUp()
    this.#call = undefined
    this.#hasAsked = false
    this.#isNew = false
    this.resume()
    if (call.parser.isReusable) this.#pool.rest(this)
    else this.destroy()
    call.ended()
  }

  #end (error: Error): void {
    if (this.#isOver) return
    this.#isOver = true
    const call = this.#call
    this.#call = undefined
    this.#socket.destroy()
    this.#pool.gone(this)
    if (call === undefined) return
    if (!this.#isNew && call.mayBeSentAgain()) this.#pool.place(call, false)
    else call.failed(error)
  }
}

class Call implements UpstreamCall {
  readonly text: string
  connection: KeptConnection | undefined
  parser: AnswerParser
  readonly #method: string
  readonly #pool: KeptConnections
  #listener: UpstreamListener | undefined
  #wasSentAgain = false

  constructor (head: UpstreamHead, listener: UpstreamListener, pool: KeptConnections) {
    this.text = headText(head)
    this.#method = head.method
    this.#listener = listener
    this.#pool = pool
    this.parser = new AnswerParser(head.method, this)
  }

  get isBacklogged (): boolean { return this.connection?.isBacklogged ?? true }

  abort (): void {
    this.#listener = undefined
    if (this.connection === undefined) this.#pool.forget(this)
    else this.#leave()?.destroy()
  }

  discard (): void {
    this.#listener = undefined
    this.connection?.drain()
  }

  pause (): void { this.connection?.pause() }
  resume (): void { this.connection?.resume() }

  answered (answer: UpstreamAnswer): void { this.#listener?.answered(answer) }
  data (bytes: Buffer, from: number, to: number): void { this.#listener?.data(bytes, from, to) }
  caughtUp (): void { this.#listener?.caughtUp() }

  ended (): void {
    this.#leave()
    this.#listener?.ended()
  }

  failed (error: Error): void {
    this.#leave()
    this.#listener?.failed(error)
  }

  mayBeSentAgain (): boolean {
    if (this.#wasSentAgain || this.parser.hasBegun || this.#method === 'DELETE') return false
    this.#wasSentAgain = true
    this.connection = undefined
    return true
  }

  /** Its connection may serve another call by now. */
  #leave (): KeptConnection | undefined {
    const { connection } = this
    this.connection = undefined
    return connection
  }
}

/** What may stand in a request line: were anything else to come this far, there or in a header, it could write a request
 * of its own. */
const VISIBLE = /^[\x21-\x7e]+$/

function headText ({ method, path, headers }: UpstreamHead): string {
  if (!VISIBLE.test(path) || !/^[A-Z]+$/.test(method)) throw new PatchcordError('internal', 'a request line that is none')
  let text = `${method} ${path} HTTP/1.1\r\n`
  let values = ''
  for (const name in headers) {
    const value = headers[name]!
    values += value
    text += `${name}: ${value}\r\n`
  }
  if (!FIELD_VALUE.test(values)) throw new PatchcordError('internal', 'a header value that is none')
  return `${text}connection: keep-alive\r\n\r\n`
}

/** Nobody is told of it. */
const UNTOLD = new Error('the connection was closed')

function reset (message: string): Error {
  return Object.assign(new Error(message), { code: 'ECONNRESET' })
}

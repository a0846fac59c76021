import type { IncomingMessage, ServerResponse } from 'node:http'
import type { CanonicalRequest } from '../policy/canonical.js'
import { checkWeight, parseJson } from './json.js'
import type { EmbeddedLimits } from './limits.js'
import { badRequest, Problem } from './problem.js'

interface Held<T> { readonly value: T, readonly release: () => void }

/** Reads request bodies, few large ones at a time: what waits is not read from its socket. */
export class Bodies {
  readonly #limits: EmbeddedLimits
  readonly #held = new Map<string, number>()
  readonly #waiting: Array<{ readonly account: string, readonly start: () => void }> = []
  #total = 0

  constructor (limits: EmbeddedLimits) {
    this.#limits = limits
  }

  /** The JSON object of a body. Throws 415 for another type, 413 over `most`, 400 for what is not a JSON object. */
  async readObject (incoming: IncomingMessage, response: ServerResponse, request: CanonicalRequest, account: string, most: number, signal: AbortSignal): Promise<Held<Record<string, unknown>>> {
    const type = request.headers.get('content-type')?.split(';')[0]?.trim().toLowerCase()
    const isEmpty = request.body?.length === 0
    if (!isEmpty && type !== 'application/json') throw unsupported('Content-Type must be application/json')
    const { value, release } = await this.readBytes(incoming, response, request, account, most, signal)
    try {
      checkWeight(value)
      const parsed = parseJson(value)
      if (parsed === null || typeof parsed !== 'object' || Array.isArray(parsed)) throw badRequest('Request body must be a JSON object')
      return { value: parsed as Record<string, unknown>, release }
    } catch (error) {
      release()
      throw error
    }
  }

  async readBytes (incoming: IncomingMessage, response: ServerResponse, { headers, body }: CanonicalRequest, account: string, most: number, signal: AbortSignal): Promise<Held<Buffer>> {
    if (headers.has('content-encoding')) throw unsupported('Content-Encoding is not taken here')
    if (body?.length !== undefined && body.length > most) throw tooLarge(most)
    const isSmall = body?.length !== undefined && body.length <= this.#limits.smallBodyBytes
    const release = isSmall ? () => undefined : await this.#enter(account, signal)
    try {
      // Nothing was read before this: a refused request never gets to send its body.
      if (headers.has('expect')) response.writeContinue()
      return { value: await collect(incoming, most, this.#limits.stallMs, signal), release }
    } catch (error) {
      release()
      throw error
    }
  }

  async #enter (account: string, signal: AbortSignal): Promise<() => void> {
    if (!this.#hasRoom(account)) {
      if (this.#waiting.length >= this.#limits.bodiesWaiting) throw new Problem(429, 'too_many_requests', 'too many large bodies are waiting')
      await new Promise<void>((resolve, reject) => {
        const entry = { account, start: () => { signal.removeEventListener('abort', leave); resolve() } }
        const leave = (): void => {
          this.#waiting.splice(this.#waiting.indexOf(entry), 1)
          reject(new Problem(503, 'stopped', 'the client has gone'))
        }
        signal.addEventListener('abort', leave, { once: true })
        this.#waiting.push(entry)
      })
    } else {
      this.#take(account)
    }
    let held = true
    return () => {
      if (!held) return
      held = false
      this.#leave(account)
    }
  }

  #hasRoom (account: string): boolean {
    return this.#total < this.#limits.bodies && (this.#held.get(account) ?? 0) < this.#limits.bodiesPerAccount
  }

  #take (account: string): void {
    this.#total++
    this.#held.set(account, (this.#held.get(account) ?? 0) + 1)
  }

  #leave (account: string): void {
    this.#total--
    const left = (this.#held.get(account) ?? 1) - 1
    if (left === 0) this.#held.delete(account)
    else this.#held.set(account, left)
    const next = this.#waiting.findIndex(({ account }) => this.#hasRoom(account))
    if (next === -1) return
    const [{ account: entering, start }] = this.#waiting.splice(next, 1) as [{ account: string, start: () => void }]
    this.#take(entering)
    start()
  }
}

const unsupported = (reason: string): Problem => new Problem(415, 'bad_content_type', reason)
const tooLarge = (most: number): Problem => new Problem(413, 'too_large', `the body is larger than ${most} bytes`)

function collect (incoming: IncomingMessage, most: number, stallMs: number, signal: AbortSignal): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    // Who left before this has told so already, and would keep the turn of a body until the stall ends.
    if (signal.aborted || incoming.destroyed) {
      reject(badRequest('the body was cut off'))
      return
    }
    const parts: Buffer[] = []
    let length = 0
    const stall = setTimeout(() => { finish(() => { reject(new Problem(408, 'timeout', 'the body does not come')) }) }, stallMs)
    const finish = (settle: () => void): void => {
      clearTimeout(stall)
      incoming.off('data', take).off('end', whole).off('close', cut).off('error', cut)
      signal.removeEventListener('abort', cut)
      incoming.pause()
      settle()
    }
    const take = (part: Buffer): void => {
      stall.refresh()
      length += part.length
      if (length > most) finish(() => { reject(tooLarge(most)) })
      else parts.push(part)
    }
    const whole = (): void => { finish(() => { resolve(parts.length === 1 ? parts[0]! : Buffer.concat(parts, length)) }) }
    const cut = (): void => { finish(() => { reject(badRequest('the body was cut off')) }) }
    incoming.on('data', take).on('end', whole).on('close', cut).on('error', cut)
    signal.addEventListener('abort', cut)
    incoming.resume()
  })
}

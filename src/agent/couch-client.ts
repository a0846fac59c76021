import { Agent, request } from 'node:http'
import { createInterface } from 'node:readline'
import * as v from 'valibot'
import { readPrivate } from '../core/durable-file.js'
import { messageOf, PatchcordError, systemCode } from '../core/errors.js'
import { isDatabaseName, type DatabaseName } from '../core/ids.js'
import { parseJson } from '../core/shape.js'
import { parseCouchUrl } from '../couch/proxy.js'

export interface CouchLogin {
  readonly username: string
  readonly password: string
}

const Login = v.strictObject({ username: v.pipe(v.string(), v.minLength(1), v.excludes(':', 'must hold no colon')), password: v.string() })

/** Reads `--couch-credentials-file`. Throws `unsafe-mode` where others can read it, `bad-state` for what is
 * not `{"username","password"}`. */
export async function readLogin (path: string): Promise<CouchLogin> {
  const bytes = await readPrivate(path)
  if (bytes === undefined) throw new PatchcordError('unreadable', `${path} does not exist`)
  return parseJson(Login, bytes.toString('utf8'), path, 'bad-state')
}

const MOST_ANSWER_BYTES = 16 * 1024 * 1024
const ANSWER_MS = 10_000

/** A small client of the local CouchDB, for what the agent itself asks of it. */
export class CouchClient {
  readonly url: string
  readonly agent: Agent
  readonly #auth: { readonly auth?: string }
  readonly #target: { host: string, port: number }

  /** Without a login it asks as nobody. Throws `bad-env` for a URL that is not one of a literal loopback address. */
  constructor (url: string, login: CouchLogin | undefined, maxSockets = 16) {
    this.#target = parseCouchUrl(url)
    this.url = url.replace(/\/$/, '')
    this.#auth = login === undefined ? {} : { auth: `${login.username}:${login.password}` }
    this.agent = new Agent({ keepAlive: true, maxSockets })
  }

  /** One request with a JSON answer, whatever its status. Throws `upstream-down` or `upstream-slow`. */
  async ask (method: string, path: string, body?: unknown): Promise<{ status: number, value: unknown }> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    return await new Promise((resolve, reject) => {
      const sent = request({
        ...this.#target, agent: this.agent, method, path, ...this.#auth, timeout: ANSWER_MS,
        headers: { Accept: 'application/json', ...text === undefined ? {} : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) } },
      }, answer => {
        const chunks: Buffer[] = []
        let size = 0
        answer.on('data', (chunk: Buffer) => {
          size += chunk.length
          if (size > MOST_ANSWER_BYTES) answer.destroy(new PatchcordError('upstream-down', `${this.url} answered more than ${MOST_ANSWER_BYTES} bytes`))
          else chunks.push(chunk)
        })
        answer.on('error', reject)
        answer.on('end', () => {
          try {
            resolve({ status: answer.statusCode ?? 0, value: JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown })
          } catch {
            reject(new PatchcordError('upstream-down', `what listens at ${this.url} answers no JSON: it is no CouchDB`))
          }
        })
      })
      sent.on('timeout', () => { sent.destroy(new PatchcordError('upstream-slow', `${this.url} did not answer within ${ANSWER_MS / 1000} s`)) })
      sent.on('error', error => {
        reject(error instanceof PatchcordError ? error : new PatchcordError('upstream-down', `CouchDB at ${this.url} does not answer: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
      })
      sent.end(text)
    })
  }

  /** Hands over the lines of an answer that does not end by itself, and resolves when it ended or `signal` aborts,
   * with its status; only a 200 has lines. An empty line is a heartbeat. Throws `upstream-down`, and
   * `upstream-slow` where not even a heartbeat came for `quietMs`. */
  async follow (path: string, quietMs: number, signal: AbortSignal, onLine: (line: string) => void): Promise<number> {
    return await new Promise((resolve, reject) => {
      let status = 0
      const ended = (error?: Error): void => {
        if (error === undefined || signal.aborted) resolve(status)
        else reject(error instanceof PatchcordError ? error : new PatchcordError('upstream-down', `CouchDB at ${this.url} broke off: ${systemCode(error) ?? messageOf(error)}`, { cause: error }))
      }
      const sent = request({ ...this.#target, agent: false, path, ...this.#auth, timeout: quietMs, signal, headers: { Accept: 'application/json' } }, answer => {
        status = answer.statusCode ?? 0
        answer.on('error', ended)
        answer.on('close', () => { ended() })
        if (status !== 200) return void answer.destroy()
        createInterface({ input: answer }).on('line', onLine).on('error', ended)
      })
      sent.on('timeout', () => { sent.destroy(new PatchcordError('upstream-slow', `${this.url} sent nothing for ${quietMs / 1000} s`)) })
      sent.on('error', ended)
      sent.end()
    })
  }

  /** The databases that the login sees. Throws `refused` where the password is wrong, or where CouchDB tells
   * administrators alone, as it does unless configured otherwise. */
  async databases (): Promise<DatabaseName[]> {
    const { status, value } = await this.ask('GET', '/_all_dbs')
    if (status === 401 || status === 403) throw new PatchcordError('refused', `CouchDB at ${this.url} does not tell this user its databases`, { hint: 'check the password; unless admin_only_all_dbs of [chttpd] is false, only administrators may ask: see `patchcord couch setup`' })
    if (status !== 200 || !Array.isArray(value)) throw new PatchcordError('upstream-down', `CouchDB at ${this.url} answered ${status} for /_all_dbs`)
    return value.filter((name): name is DatabaseName => typeof name === 'string' && isDatabaseName(name))
  }

  /** Makes a database; one that is there stays as it is. */
  async createDatabase (name: DatabaseName): Promise<void> {
    const { status } = await this.ask('PUT', `/${encodeURIComponent(name)}`)
    if (status === 401 || status === 403) throw new PatchcordError('refused', `CouchDB at ${this.url} does not let this user create ${name}`, { hint: 'create it as an administrator, or give another login' })
    if (status !== 201 && status !== 202 && status !== 412) throw new PatchcordError('upstream-down', `CouchDB at ${this.url} answered ${status} when ${name} was created`)
  }

  close (): void { this.agent.destroy() }
}

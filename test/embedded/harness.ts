import { mkdtemp, rm } from 'node:fs/promises'
import { Agent, request, type IncomingHttpHeaders } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import PouchCore from 'pouchdb-core'
import http from 'pouchdb-adapter-http'
import leveldb from 'pouchdb-adapter-leveldb'
import replication from 'pouchdb-replication'
import type { Account } from '../../src/embedded/accounts.js'

export const ACCOUNTS: readonly Account[] = [
  { username: 'me', password: 'owner-secret', scope: { kind: 'owner' } },
  { username: 'laptop', password: 'own-secret', scope: { kind: 'own', databases: { notes: 'write', 'team-*': 'read' } } },
  { username: 'reader', password: 'reader-secret', scope: { kind: 'peer', databases: { notes: 'read' } } },
  { username: 'writer', password: 'writer-secret', scope: { kind: 'peer', databases: { notes: 'write', 'private-*': 'write' } } },
]

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly text: string
  /** The body as JSON; its members are what a test says about them. */
  readonly json: Record<string, unknown> & { error?: string, reason?: string, rev?: string, rows?: unknown[], results?: Array<Record<string, unknown>> }
}

export interface Ask {
  readonly as?: string | undefined
  /** `user:password`, where it is not one of ACCOUNTS. */
  readonly auth?: string
  readonly headers?: Record<string, string>
  readonly body?: unknown
  readonly raw?: string | Buffer
}

export const authorization = (name: string): string => {
  const account = ACCOUNTS.find(({ username }) => username === name)
  return `Basic ${Buffer.from(account === undefined ? name : `${account.username}:${account.password}`).toString('base64')}`
}

/** Sends the target exactly as it is written. */
export function ask (url: string, method: string, path: string, { as = 'me', auth, headers = {}, body, raw }: Ask = {}, agent?: Agent): Promise<Answer> {
  const sent = raw ?? (body === undefined ? undefined : JSON.stringify(body))
  const { hostname, port } = new URL(url)
  return new Promise((resolve, reject) => {
    const outgoing = request({
      host: hostname.replace(/^\[|\]$/g, ''), port, method, path, agent: agent ?? false, timeout: 15_000,
      headers: {
        host: `[::1]:${port}`,
        ...(auth === undefined ? { authorization: authorization(as) } : auth === '' ? {} : { authorization: authorization(auth) }),
        ...(sent !== undefined && { 'content-type': 'application/json' }),
        ...(sent !== undefined && !('transfer-encoding' in headers) && { 'content-length': Buffer.from(sent as string).length }),
        ...headers,
      },
    }, incoming => {
      const parts: Buffer[] = []
      incoming.on('data', (part: Buffer) => parts.push(part))
      incoming.on('end', () => {
        const text = parts.map(part => part.toString('latin1')).join('')
        let json: Answer['json'] | undefined
        resolve({ status: incoming.statusCode!, headers: incoming.headers, text, get json () { return json ??= JSON.parse(text) as Answer['json'] } })
      })
      incoming.on('error', reject)
    })
    outgoing.on('timeout', () => { outgoing.destroy(new Error(`no answer to ${method} ${path}`)) })
    outgoing.on('error', reject)
    outgoing.end(sent)
  })
}

export interface Feed {
  readonly text: () => string
  /** Resolves when the text matches. */
  until (pattern: RegExp): Promise<void>
  /** Resolves when the answer ended, with whether it was complete. */
  readonly ended: Promise<boolean>
  close (): void
}

/** Opens a `_changes` feed and keeps what it says. */
export function openFeed (url: string, path: string, as = 'me'): Promise<Feed> {
  const { port } = new URL(url)
  return new Promise((resolve, reject) => {
    const outgoing = request({ host: '::1', port, path, agent: false, headers: { host: `[::1]:${port}`, authorization: authorization(as) } }, incoming => {
      let text = ''
      let waiting: Array<[RegExp, () => void]> = []
      incoming.setEncoding('utf8').on('data', (part: string) => {
        text += part
        for (const [pattern, done] of waiting) if (pattern.test(text)) done()
        waiting = waiting.filter(([pattern]) => !pattern.test(text))
      })
      const ended = new Promise<boolean>(resolve => {
        incoming.on('error', () => undefined)
        incoming.on('close', () => { resolve(incoming.complete) })
      })
      resolve({
        text: () => text,
        until: pattern => pattern.test(text) ? Promise.resolve() : new Promise(resolve => { waiting.push([pattern, resolve]) }),
        ended,
        close: () => { outgoing.destroy() },
      })
    })
    outgoing.on('error', reject)
    outgoing.end()
  })
}

export async function temporary (t: { teardown (fn: () => unknown): void }): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'patchcord-embedded-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

export interface ClientPouch {
  put (doc: object): Promise<{ rev: string }>
  get (id: string, options?: object): Promise<Record<string, unknown> & { _rev: string, _attachments: Record<string, { data: string, digest: string }> }>
  bulkDocs (docs: object[]): Promise<unknown>
  allDocs (options?: object): Promise<{ rows: Array<{ id: string, value: { rev: string } }> }>
  info (): Promise<{ doc_count: number }>
  close (): Promise<void>
  readonly replicate: { to (other: ClientPouch, options?: object): Replication, from (other: ClientPouch, options?: object): Replication }
}

export interface Replication extends Promise<{ ok: boolean, docs_written: number, docs_read: number, doc_write_failures: number }> {
  on (event: string, listener: (value: { docs_written: number }) => void): this
  cancel (): void
}

interface PouchClass {
  plugin (plugin: unknown): PouchClass
  fetch (url: string, options: object): unknown
  new (name: string, options: object): ClientPouch
  readonly prototype: object
}

const Pouch = (PouchCore as unknown as PouchClass)
  .plugin(leveldb).plugin(http)
// A second time it would throw: the product's own replication may have loaded it.
if (!Object.hasOwn(Pouch.prototype, 'replicate')) Pouch.plugin(replication)

export const localPouch = (folder: string): ClientPouch => new Pouch(folder, { adapter: 'leveldb' })

/** PouchDB 9's own URL parser takes `[::1]` apart at its colons, so it is given a name and a fetch. */
export function remotePouch (url: string, database: string, as: string): ClientPouch {
  const { username, password } = ACCOUNTS.find(({ username }) => username === as)!
  return pouchAt(url, database, { auth: { username, password } })
}

/** A database behind `base`, which may need an agent with a client certificate. */
export function pouchAt (base: string, database: string, { agent, ...options }: { agent?: Agent, auth?: { username: string, password: string } }): ClientPouch {
  const fetch = (target: string, options: object): unknown => Pouch.fetch(target.replace('http://database.invalid', base), agent === undefined ? options : { ...options, agent })
  return new Pouch(`http://database.invalid/${encodeURIComponent(database)}`, { fetch, skip_setup: true, ...options })
}

/** A generator of numbers that a seed determines (mulberry32). */
export function seeded (seed: number): (below: number) => number {
  let state = seed
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

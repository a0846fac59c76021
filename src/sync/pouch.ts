import type { EventEmitter } from 'node:events'
import type { Agent } from 'node:http'
import { createRequire } from 'node:module'

// PouchDB over HTTP, as far as replication needs it. Its own types bring the DOM's globals with them.

export interface RevisionAsk { readonly missing: readonly string[] }

export interface WrittenDocument {
  readonly _id: string
  readonly _rev?: string
  /** `data` is base64 or a Buffer. */
  readonly _attachments?: Readonly<Record<string, { readonly data?: string | Buffer, readonly length?: number }>>
  readonly _revisions?: { readonly start: number, readonly ids: readonly string[] }
}

export interface PouchDatabase {
  revsDiff (asked: Record<string, string[]>): Promise<Record<string, RevisionAsk>>
  bulkDocs (request: { docs: WrittenDocument[], new_edits: false }, options?: object): Promise<unknown[]>
  info (): Promise<{ update_seq: number | string, doc_count: number }>
  close (): Promise<void>
}

export interface Replication extends EventEmitter {
  readonly state: string
  cancel (): void
}

interface PouchConstructor {
  new (url: string, options: object): PouchDatabase
  plugin (plugin: unknown): PouchConstructor
  fetch (url: string, options: object): Promise<unknown>
  replicate (source: PouchDatabase, target: PouchDatabase, options: object): Replication
}

const require = createRequire(import.meta.url)
let loaded: PouchConstructor | undefined

/** PouchDB takes some 20 MiB: a device that receives nothing does not load it. */
function pouch (): PouchConstructor {
  loaded ??= (require('pouchdb-core') as PouchConstructor).plugin(require('pouchdb-adapter-http')).plugin(require('pouchdb-replication'))
  return loaded
}

export interface HttpDatabaseOptions {
  readonly agent: Agent
  /** Aborts every request, and those to come. */
  readonly signal?: AbortSignal
  readonly auth?: { readonly username: string, readonly password: string }
}

/** PouchDB cannot parse an address in brackets, so databases have names here and the URL is put back where it
 * is fetched. Checkpoints are named after it: it must not change with an address or a port. */
const PLACEHOLDER = 'http://database.patchcord.invalid'

/** A database behind `base` (a URL without a slash at the end) under the name `id`, which has to stay the
 * same for as long as its checkpoints are to count. Nothing is asked of it yet, and it is never created. */
export function openHttpDatabase (id: string, base: string, { agent, auth, signal }: HttpDatabaseOptions): PouchDatabase {
  const name = `${PLACEHOLDER}/${encodeURIComponent(id)}`
  // It also asks the server itself for a `uuid`, to name checkpoints after.
  const server = base.slice(0, base.lastIndexOf('/'))
  const locate = (to: string): string => to.startsWith(name) ? base + to.slice(name.length) : server + to.slice(PLACEHOLDER.length)
  return new (pouch())(name, {
    skip_setup: true,
    ...auth === undefined ? {} : { auth },
    // PouchDB has a signal of its own for feeds.
    fetch: (to: string, options: { signal?: AbortSignal }) => pouch().fetch(locate(to), { ...options, ...signal === undefined ? {} : { signal: options.signal === undefined ? signal : AbortSignal.any([signal, options.signal]) }, agent }),
  })
}

export function replicate (source: PouchDatabase, target: PouchDatabase, options: { live: boolean, batch_size: number, heartbeat: number }): Replication {
  // pouchdb-replication 9 asks for it again after each batch, for a figure of progress that nobody reads, and
  // handles no rejection there: a cable pulled at that moment would end the process. The first answer does.
  const info = source.info.bind(source)
  let known: Awaited<ReturnType<PouchDatabase['info']>> | undefined
  source.info = async () => known ??= await info()
  return pouch().replicate(source, target, options)
}

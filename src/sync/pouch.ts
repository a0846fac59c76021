import type { EventEmitter } from 'node:events'
import type { Agent } from 'node:http'
import http from 'pouchdb-adapter-http'
import PouchCore from 'pouchdb-core'
import replication from 'pouchdb-replication'

// PouchDB over HTTP, as far as replication needs it. Its own types bring the DOM's globals with them.

export interface RevisionAsk { readonly missing: readonly string[] }

export interface WrittenDocument {
  readonly _id: string
  readonly _rev?: string
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

const PouchDB = (PouchCore as PouchConstructor).plugin(http).plugin(replication)

export interface HttpDatabaseOptions {
  readonly agent: Agent
  readonly auth?: { readonly username: string, readonly password: string }
}

/** A database behind a URL; nothing is asked of it yet, and it is never created. */
export function openHttpDatabase (url: string, { agent, auth }: HttpDatabaseOptions): PouchDatabase {
  return new PouchDB(url, {
    skip_setup: true,
    ...auth === undefined ? {} : { auth },
    fetch: (to: string, options: object) => PouchDB.fetch(to, { ...options, agent }),
  })
}

export function replicate (source: PouchDatabase, target: PouchDatabase, options: { live: boolean, batch_size: number, heartbeat: number }): Replication {
  return PouchDB.replicate(source, target, options)
}

import { Agent as HttpAgent } from 'node:http'
import type { Agent } from 'node:https'
import http from 'pouchdb-adapter-http'
import PouchCore from 'pouchdb-core'
import replication from 'pouchdb-replication'
import { hostOf, lookupHere } from './port.js'
import type { Device } from './device.js'

// PouchDB as any application has it, over HTTP alone. Its own types bring the DOM's globals with them.

export interface Document {
  readonly _id: string
  readonly _rev?: string
  readonly _attachments?: Readonly<Record<string, { content_type: string, data?: Buffer, length?: number }>>
  readonly [field: string]: unknown
}

export interface Pouch {
  put (document: Document): Promise<{ rev: string }>
  bulkDocs (documents: readonly Document[]): Promise<Array<{ ok?: boolean, error?: unknown }>>
  get (id: string): Promise<Document>
  getAttachment (id: string, name: string): Promise<Buffer>
  allDocs (options?: { keys?: string[], include_docs?: boolean }): Promise<{ rows: Array<{ id: string, doc?: Document }> }>
  info (): Promise<{ update_seq: number | string, doc_count: number }>
  close (): Promise<void>
}

interface PouchConstructor {
  new (url: string, options: object): Pouch
  plugin (plugin: unknown): PouchConstructor
  fetch (url: string, options: object): Promise<unknown>
  replicate (source: Pouch, target: Pouch, options?: object): Promise<{ ok: boolean, docs_written: number, doc_write_failures: number }>
}

const PouchDB = (PouchCore as PouchConstructor).plugin(http).plugin(replication)

const loopback = new HttpAgent({ keepAlive: true, lookup: lookupHere })

/** A database of a device, as that person's own programs have it: by the login that `patchcord couch` prints. */
export async function localDatabase (device: Device, name: string): Promise<Pouch> {
  const { url, username, password } = await device.run('couch') as { url: string, username: string, password: string }
  // PouchDB cannot parse an address in brackets.
  return openDatabase(`http://localhost:${new URL(url).port}/${name}`, loopback, { username, password })
}

/** A database of a device through its open port. */
export function remoteDatabase (device: Device, name: string, agent: Agent): Pouch {
  return openDatabase(`https://${hostOf(device)}:${device.port}/couch/${name}`, agent)
}

function openDatabase (url: string, agent: HttpAgent | Agent, auth?: { username: string, password: string }): Pouch {
  return new PouchDB(url, {
    skip_setup: true,
    ...auth === undefined ? {} : { auth },
    fetch: (to: string, options: object) => PouchDB.fetch(to, { ...options, agent }),
  })
}

/** Replicates once, to the end. */
export async function replicate (source: Pouch, target: Pouch): Promise<{ ok: boolean, docs_written: number, doc_write_failures: number }> {
  return await PouchDB.replicate(source, target)
}

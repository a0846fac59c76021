// Replicates one database into a new LevelDB and prints the seconds that it took, and the documents; for
// works/couch.ts, on cores of its own. argv: the path of a JSON file with {url, ca?…}: see `Source`.
import { readFileSync } from 'node:fs'
import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import http from 'pouchdb-adapter-http'
import leveldb from 'pouchdb-adapter-leveldb'
import PouchCore from 'pouchdb-core'
import replication from 'pouchdb-replication'
import { lookupHere } from '../demo/port.js'

/** Where from, and into which folder. */
export interface Source {
  readonly url: string
  readonly target: string
  readonly auth?: { readonly username: string, readonly password: string }
  readonly certificate?: string
  readonly key?: string
}

interface PouchConstructor {
  new (url: string, options: object): { close (): Promise<void> }
  plugin (plugin: unknown): PouchConstructor
  fetch (url: string, options: object): Promise<unknown>
  replicate (source: object, target: object, options?: object): Promise<{ docs_written: number, doc_write_failures: number }>
}

const { url, target, auth, certificate, key } = JSON.parse(readFileSync(process.argv[2]!, 'utf8')) as Source
const PouchDB = (PouchCore as PouchConstructor).plugin(http).plugin(leveldb).plugin(replication)
// The agent's own pulls ask the same way: pages of 500, 16 connections at most.
const agent = certificate === undefined || key === undefined
  ? new HttpAgent({ keepAlive: true, maxSockets: 16, lookup: lookupHere })
  // The server is a stand-in whose certificate names nobody; what is measured is the way, not the check of its name.
  : new HttpsAgent({ keepAlive: true, maxSockets: 16, lookup: lookupHere, cert: readFileSync(certificate), key: readFileSync(key), rejectUnauthorized: false, minVersion: 'TLSv1.3' })
const source = new PouchDB(url, { skip_setup: true, ...auth === undefined ? {} : { auth }, fetch: (to: string, options: object) => PouchDB.fetch(to, { ...options, agent }) })
const into = new PouchDB(target, { adapter: 'leveldb' })
const from = performance.now()
const { docs_written: documents, doc_write_failures: failures } = await PouchDB.replicate(source, into, { batch_size: 500 })
process.stdout.write(JSON.stringify({ seconds: (performance.now() - from) / 1000, documents, failures }))
process.exit()

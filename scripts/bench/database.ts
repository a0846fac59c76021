import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { parseDatabaseName } from '../../src/core/ids.js'
import { startEmbeddedChild } from '../../src/embedded/supervise.js'
import type { Materials } from './materials.js'

// A database behind the port: the CouchDB that PATCHCORD_TEST_COUCHDB_URL names, or the embedded one.

export interface Login { readonly username: string, readonly password: string }

export interface Filled {
  /** `host:port`, as in a URL. */
  readonly at: string
  readonly login: Login
  readonly database: string
  close (): Promise<void>
}

/** The document that is read. */
export const DOCUMENT = 'document-000000'
const DOCUMENTS = 1_000
const EMBEDDED: Login = { username: 'bench', password: 'bench' }

/** A database with a thousand small documents, of its own, which `close` takes away again. Throws where a CouchDB is
 * wanted and none is named. */
export async function openDatabase (materials: Materials, kind: 'couchdb' | 'any'): Promise<Filled> {
  const given = process.env['PATCHCORD_TEST_COUCHDB_URL']
  if (given === undefined && kind === 'couchdb') throw new Error('PATCHCORD_TEST_COUCHDB_URL names no CouchDB (http://admin:password@127.0.0.1:5984)')
  const filled = given === undefined ? await embedded(materials) : await couchDb(new URL(given))
  await fillWith({ url: `http://${filled.at}/${filled.database}`, login: filled.login, documents: DOCUMENTS, attachment: 0 })
  return filled
}

async function couchDb ({ host, username, password }: URL): Promise<Filled> {
  const login = { username: decodeURIComponent(username), password: decodeURIComponent(password) }
  const database = `bench-${randomBytes(6).toString('hex')}`
  const ask = async (method: string): Promise<void> => {
    const { ok, status } = await fetch(`http://${host}/${database}`, { method, headers: { authorization: basic(login) } })
    if (!ok) throw new Error(`the CouchDB of PATCHCORD_TEST_COUCHDB_URL answered ${status} to ${method} of a database`)
  }
  await ask('PUT')
  return { at: host, login, database, close: () => ask('DELETE') }
}

async function embedded ({ folder, cores }: Materials): Promise<Filled> {
  const child = await startEmbeddedChild({ dir: join(folder, 'couch'), listen: { host: '::1', port: 0 }, accounts: [{ ...EMBEDDED, scope: { kind: 'owner' } }] })
  execFileSync('taskset', ['-a', '-cp', cores.client.join(), String(child.pid)], { stdio: 'ignore' })
  await child.createDatabase(parseDatabaseName('bench'))
  return { at: `[::1]:${new URL(child.url).port}`, login: EMBEDDED, database: 'bench', close: () => child.stop() }
}

/** Writes so many documents of some 300 bytes, with an attachment of so many random bytes each. */
export async function fillWith ({ url, login, documents, attachment }: { readonly url: string, readonly login: Login, readonly documents: number, readonly attachment: number }): Promise<void> {
  const batch = attachment > 0 ? 5 : 1_000
  for (let from = 0; from < documents; from += batch) {
    const docs = Array.from({ length: Math.min(batch, documents - from) }, (_, at) => ({
      _id: `document-${String(from + at).padStart(6, '0')}`, title: 'a note', number: from + at, text: randomBytes(90).toString('hex'),
      ...attachment === 0 ? {} : { _attachments: { data: { content_type: 'application/octet-stream', data: randomBytes(attachment).toString('base64') } } },
    }))
    const answer = await fetch(`${url}/_bulk_docs`, { method: 'POST', headers: { 'content-type': 'application/json', 'authorization': basic(login) }, body: JSON.stringify({ docs }) })
    const results = await answer.json() as Array<{ ok?: boolean }>
    if (!answer.ok || !results.every(({ ok }) => ok === true)) throw new Error(`the database did not take the documents: ${answer.status}`)
  }
}

const basic = ({ username, password }: Login): string => `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`

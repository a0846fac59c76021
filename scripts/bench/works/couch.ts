import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseDatabaseName } from '../../../src/core/ids.js'
import { startEmbeddedChild } from '../../../src/embedded/supervise.js'
import type { Contestant } from '../contest.js'
import { MIB, TOP } from '../materials.js'
import { DATABASE, openPatchcord } from '../ports.js'
import { cpuSeconds, output } from '../processes.js'
import type { Source } from '../replicate-once.js'
import type { Prepared } from '../work.js'

// Replication by PouchDB out of the embedded database: through the open port, and from its own port directly. The
// database and the one who replicates share the client's cores; the open port has the contestant's.

const LOGIN = { username: 'bench', password: 'bench' }

interface Plan { readonly name: string, readonly title: string, readonly documents: number, readonly attachment: number, readonly rounds: number }

function replication ({ name, title, documents, attachment, rounds }: Plan): Prepared {
  return {
    work: { name, title, unit: 'documents/s', better: 'more', group: 'couch', rounds, ours: 'patchcord', goal: { of: 'direct', ratio: 0.95 } },
    prepare: async materials => {
      const { folder, cores, pki } = materials
      const embedded = await startEmbeddedChild({ dir: join(folder, 'couch'), listen: { host: '::1', port: 0 }, accounts: [{ ...LOGIN, scope: { kind: 'owner' } }] })
      execFileSync('taskset', ['-a', '-cp', cores.client.join(), String(embedded.pid)], { stdio: 'ignore' })
      const upstream = Number(new URL(embedded.url).port)
      await embedded.createDatabase(parseDatabaseName(DATABASE))
      await fill(embedded.url, documents, attachment)
      let turns = 0
      const once = async (source: Omit<Source, 'target'>): Promise<number> => {
        const target = join(folder, `target-${turns++}`)
        const path = join(folder, 'source.json')
        await mkdir(target)
        await writeFile(path, JSON.stringify({ ...source, target: join(target, 'db') }), { mode: 0o600 })
        const { seconds, documents: written, failures } = JSON.parse(await output(cores.client, [process.execPath, join(TOP, 'build/scripts/bench/replicate-once.js'), path])) as { seconds: number, documents: number, failures: number }
        await rm(target, { recursive: true, force: true })
        if (written !== documents || failures > 0) throw new Error(`${written} of ${documents} documents were written, ${failures} failed`)
        return documents / seconds
      }
      const contestants: Contestant[] = [
        {
          name: 'patchcord', version: process.version,
          async start () {
            const port = await openPatchcord(materials, { upstream, login: LOGIN })
            return {
              async turn () {
                const before = cpuSeconds(port.pid)
                const value = await once({ url: `https://${pki.device}.patchcord.invalid:${port.port}/couch/${DATABASE}`, certificate: pki.client.certificate, key: pki.client.key })
                return { value, busy: (cpuSeconds(port.pid) - before) / (documents / value) }
              },
              stop: () => port.stop(),
            }
          },
        },
        { name: 'direct', version: process.version, start: async () => ({ turn: async () => ({ value: await once({ url: `http://localhost:${upstream}/${DATABASE}`, auth: LOGIN }) }), stop: async () => {} }) },
      ]
      return { contestants, clean: () => embedded.stop() }
    },
  }
}

async function fill (url: string, documents: number, attachment: number): Promise<void> {
  const batch = attachment > 0 ? 5 : 1_000
  for (let from = 0; from < documents; from += batch) {
    const docs = Array.from({ length: Math.min(batch, documents - from) }, (_, at) => ({
      _id: `document-${String(from + at).padStart(6, '0')}`, title: 'a note', number: from + at, text: randomBytes(90).toString('hex'),
      ...attachment === 0 ? {} : { _attachments: { data: { content_type: 'application/octet-stream', data: randomBytes(attachment).toString('base64') } } },
    }))
    const answer = await fetch(`${url}/${DATABASE}/_bulk_docs`, { method: 'POST', headers: { 'content-type': 'application/json', 'authorization': `Basic ${Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString('base64')}` }, body: JSON.stringify({ docs }) })
    const results = await answer.json() as Array<{ ok?: boolean }>
    if (!answer.ok || !results.every(({ ok }) => ok === true)) throw new Error(`the database did not take the documents: ${answer.status}`)
  }
}

export const documents = replication({ name: 'replication', title: '10,000 documents replicated by PouchDB, through the port and from the database directly', documents: 10_000, attachment: 0, rounds: 3 })
export const attachments = replication({ name: 'attachments', title: '500 documents with 1 MiB attachments replicated by PouchDB, through the port and from the database directly', documents: 500, attachment: MIB, rounds: 3 })

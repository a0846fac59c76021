import { createHash } from 'node:crypto'
import { NOTES, type Cast } from './cast.js'
import { must, until } from './checks.js'
import { agentFor, proofOf } from './port.js'
import { localDatabase, remoteDatabase, replicate, type Document, type Pouch } from './pouch.js'
import type { Report } from './report.js'

const DOCUMENTS = 25
/** A database of the desktop that only this demo's own replication fills. */
const BY_HAND = 'notes-by-hand'

/** Documents with attachments go both ways: by the agents, and by a PouchDB of the person's own through the port. */
export async function moveDatabases (report: Report, { laptop, desktop }: Cast): Promise<void> {
  const onLaptop = await localDatabase(laptop, NOTES)
  const onDesktop = await localDatabase(desktop, NOTES)

  await report.step('PouchDB writes on both, the agents replicate', async () => {
    await until(`the desktop has ${NOTES}`, 10_000, () => isThere(onDesktop))
    const bytes = await write(onLaptop, 'from-laptop') + await write(onDesktop, 'from-desktop')
    await Promise.all([arrive(onLaptop, 'from-desktop'), arrive(onDesktop, 'from-laptop')])
    return `${2 * DOCUMENTS} documents both ways, ${(bytes / 1024 / 1024).toFixed(1)} MiB of attachments, compared by bytes`
  })

  const agent = agentFor(await proofOf(desktop), await proofOf(laptop))
  const port = remoteDatabase(laptop, NOTES, agent)
  await desktop.run('db', 'create', BY_HAND)
  const byHand = await localDatabase(desktop, BY_HAND)
  await report.step('PouchDB.replicate from the laptop\'s port', async () => {
    const { ok, docs_written: written } = await replicate(port, byHand)
    must(ok && written === 2 * DOCUMENTS, `${written} of ${2 * DOCUMENTS} documents were written`)
    await Promise.all([arrive(byHand, 'from-laptop'), arrive(byHand, 'from-desktop')])
    return `${written} documents over mutual TLS with the desktop's certificate, attachments compared`
  })
  await report.step('PouchDB.replicate to the laptop\'s port', async () => {
    await write(byHand, 'by-hand')
    const { ok, docs_written: written } = await replicate(byHand, port)
    must(ok && written === DOCUMENTS, `${written} of ${DOCUMENTS} documents were written`)
    await arrive(onLaptop, 'by-hand', 0)
    await arrive(onDesktop, 'by-hand')
    return `${written} documents are on the laptop, and from there on the desktop by the agents`
  })
  agent.destroy()
  await Promise.all([onLaptop, onDesktop, byHand, port].map(database => database.close()))
}

/** Whether a database exists and answers. */
async function isThere (database: Pouch): Promise<boolean> {
  return typeof (await database.info() as { doc_count?: number }).doc_count === 'number'
}

async function write (database: Pouch, prefix: string): Promise<number> {
  let bytes = 0
  for (let index = 0; index < DOCUMENTS; index++) {
    const attachments = attachmentsOf(prefix, index)
    await database.put({ ...documentOf(prefix, index), _attachments: attachments })
    for (const { data } of Object.values(attachments)) bytes += data.length
  }
  return bytes
}

/** Resolves when every document that `write` made is there with its attachments, byte for byte. */
async function arrive (database: Pouch, prefix: string, ms = 20_000): Promise<void> {
  for (let index = 0; index < DOCUMENTS; index++) {
    const { _id, text } = documentOf(prefix, index)
    const found = await until(`${_id} arrives`, ms, () => database.get(_id))
    must(found['text'] === text, `${_id} is not what was written`)
    for (const [name, { data }] of Object.entries(attachmentsOf(prefix, index))) {
      must(data.equals(await database.getAttachment(_id, name)), `${name} of ${_id} is not what was written`)
    }
  }
}

function documentOf (prefix: string, index: number): Document & { text: string } {
  return { _id: `${prefix}-${index}`, type: 'note', text: `note ${index} ${prefix} – ünïcödé ✓` }
}

/** One small and, on every fifth document, one of some hundred KiB. */
function attachmentsOf (prefix: string, index: number): Record<string, { content_type: string, data: Buffer }> {
  const make = (name: string, outputLength: number): { content_type: string, data: Buffer } =>
    ({ content_type: 'application/octet-stream', data: createHash('shake256', { outputLength }).update(`${prefix} ${index} ${name}`).digest() })
  return { 'small.bin': make('small.bin', 1 + index * 97), ...index % 5 === 0 ? { 'large photo.raw': make('large photo.raw', 200_000 + index * 40_000) } : {} }
}

import type { IncomingMessage } from 'node:http'
import { SHARED, type Cast } from './cast.js'
import { must, until } from './checks.js'
import { add, type Files } from './files.js'
import { agentFor, open, proofOf } from './port.js'
import { localDatabase } from './pouch.js'
import type { Report } from './report.js'
import { Wire } from './wire.js'

const MIB = 1024 * 1024
/** So slow that the download would take half a minute. */
const BYTES_PER_SECOND = 8 * MIB

/** `revoke` ends what the friend has running: a feed that waits, and a download that its reader holds back. */
export async function revokeFriend (report: Report, { laptop, friend }: Cast, { big }: Files): Promise<void> {
  const [proof, ca] = [await proofOf(friend), await proofOf(laptop)]
  // A connection each, as two programs would have.
  const agents = [agentFor(proof, ca), agentFor(proof, ca)] as const
  const feedWire = await Wire.to(laptop)
  const fileWire = await Wire.to(laptop, BYTES_PER_SECOND)
  let feed!: Reading
  let file!: Reading

  await report.step('friend: a _changes feed and a download run', async () => {
    await add(laptop, big.path, SHARED)
    feed = read(await open(agents[0], laptop, `/couch/${SHARED}/_changes?feed=continuous&since=now&heartbeat=1000`, {}, feedWire.port))
    file = read(await open(agents[1], laptop, `/files/${big.id}`, {}, fileWire.port))
    must(feed.status === 200 && file.status === 200, `they answered ${feed.status} and ${file.status}`)
    const database = await localDatabase(laptop, SHARED)
    await database.put({ _id: 'news' })
    await until('the feed tells of a document', 5_000, () => feed.text.includes('"news"'))
    await until('the download moves', 5_000, () => file.bytes > 4 * MIB)
    await database.close()
    return `the feed told of a document; ${(file.bytes / MIB).toFixed(0)} of 256 MiB at ${BYTES_PER_SECOND / MIB} MiB/s`
  })

  await report.step('laptop: revoke friend', async () => {
    const started = performance.now()
    let revoked: { readonly at: number, readonly cut: unknown, readonly feed: number, readonly file: number, readonly unsent: number } | undefined
    const code = await laptop.follow(['revoke', 'friend'], line => {
      // Everything in one go, so that nothing is read between.
      revoked = { at: performance.now(), cut: line['connectionsCut'], feed: feedWire.bytes, file: fileWire.bytes, unsent: feedWire.unsent() + fileWire.unsent() }
    })
    must(code === 0 && revoked !== undefined, `revoke ended with ${code}`)
    const { at, cut, feed: feedBytes, unsent } = revoked
    must(unsent === 0, `when revoke returned, ${unsent} bytes were still to be sent to the friend`)
    // What had arrived before is on this side already, and only waits to be read.
    fileWire.hurry()
    await until('both connections end', 5_000, () => feed.isOver && file.isOver)
    must(feedWire.bytes === feedBytes, `${feedWire.bytes - feedBytes} bytes of the feed followed`)
    must(!file.isWhole && file.bytes < 256 * MIB, 'the download came to its end')
    const ms = (time: number): string => `${Math.round(time - started)} ms`
    return `feed cut after ${ms(feedWire.cutAt ?? at)}, command back after ${ms(at)}, ${Number(cut)} connections cut; not one byte followed`
  })

  await report.step('friend: is a stranger now', async () => {
    await open(agents[0], laptop, '/').then(({ statusCode }) => { must(false, `the revoked friend got ${statusCode}`) }, (error: unknown) => {
      must((error as NodeJS.ErrnoException).code !== undefined, String(error))
    })
    const shown = (await laptop.lines('devices')).find(({ device }) => device === friend.id)
    must(shown?.['revoked'] === true, '`devices` does not show the friend as revoked')
    await until('the friend\'s service sees it', 5_000, async () => (await friend.status()).peers.every(({ connected }) => !connected))
    return 'no answer to its certificate; devices shows it as revoked'
  })
  for (const agent of agents) agent.destroy()
  feedWire.close()
  fileWire.close()
}

/** An answer that is being read. */
interface Reading {
  readonly status: number
  readonly bytes: number
  /** The start of it. */
  readonly text: string
  readonly isOver: boolean
  /** Whether it ended as it should have, rather than was cut. */
  readonly isWhole: boolean
}

function read (answer: IncomingMessage): Reading {
  const reading = { status: answer.statusCode ?? 0, bytes: 0, text: '', isOver: false, isWhole: false }
  answer.on('data', (chunk: Buffer) => {
    reading.bytes += chunk.length
    if (reading.text.length < 10_000) reading.text += chunk.toString('latin1', 0, 1_000)
  })
  answer.on('error', () => undefined)
  answer.on('close', () => {
    reading.isOver = true
    reading.isWhole = answer.complete
  })
  return reading
}

import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { connect as connectTcp } from 'node:net'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'
import { OTHER, PRIVATE, SHARED, type Cast } from './cast.js'
import { must, until } from './checks.js'
import type { Device } from './device.js'
import { add, hashOf, type Files } from './files.js'
import { agentFor, ask, hostOf, proofOf, type Answer, type Ask } from './port.js'
import { localDatabase, remoteDatabase, replicate } from './pouch.js'
import type { Report } from './report.js'

/** Well formed, and nowhere. */
const ABSENT_FILE = 'a'.repeat(52)
const ABSENT_DATABASE = 'dmedia-9'

/** The friend gets what is shared and nothing else; a stranger gets nothing. */
export async function holdBoundaries (report: Report, cast: Cast, files: Files): Promise<void> {
  const { laptop, friend, folder } = cast
  const proof = await proofOf(friend)
  const agent = agentFor(proof, await proofOf(laptop))

  await report.step(`friend: gets ${SHARED} and its file`, async () => {
    const path = join(folder, 'shared.bin')
    const content = randomBytes(3 * 1024 * 1024 + 17)
    await writeFile(path, content)
    const id = (await add(laptop, path, SHARED)).added.get(path)!
    const received = await localDatabase(friend, SHARED)
    await until('the document of the file arrives', 10_000, async () => (await received.get(id))._id === id)
    await friend.run('get', id, '-o', join(folder, 'shared-on-friend.bin'))
    must(await hashOf(join(folder, 'shared-on-friend.bin')) === await hashOf(path), 'the friend\'s copy is not the file')
    const all = await ask(agent, laptop, '/couch/_all_dbs')
    must(all.body.toString().trim() === JSON.stringify([SHARED]), `the friend sees the databases ${all.body.toString()}`)
    const { ok } = await replicate(remoteDatabase(laptop, SHARED, agent), received)
    must(ok, 'a PouchDB with the friend\'s certificate did not replicate')
    await received.close()
    return `document by replication, file verified; _all_dbs is [${SHARED}]`
  })

  await report.step('friend: everything else is as absent', async () => {
    const attempts = attemptsAt(files)
    const seen = new Set<string>()
    for (const { path, absent, ...options } of attempts) {
      const [refused, missing] = [await ask(agent, laptop, path, options), await ask(agent, laptop, absent, options)]
      must(refused.status === 404, `${options.method ?? 'GET'} ${path} answered ${refused.status}`)
      must(essence(refused) === essence(missing), `${options.method ?? 'GET'} ${path} is told from what is absent:\n  ${essence(refused)}\n  ${essence(missing)}`)
      // A body that is not read ends the connection, so that header depends on the request.
      if (options.method !== 'HEAD') seen.add(essence({ ...refused, headers: { ...refused.headers, 'connection': '', 'keep-alive': '' } }))
    }
    must(seen.size === 1, `404 has ${seen.size} forms: ${[...seen].join('\n  ')}`)
    const { code, lines } = await friend.command('get', files.big.id, '-o', join(folder, 'stolen.bin'))
    must(code === 1 && lines.at(-1)?.['code'] === 'not-found', `\`get\` of a private file ended with ${code}`)
    return `${attempts.length} requests for IDs and names that it knows: one 404, the same bytes`
  })

  await report.step('friend: writes are refused', async () => {
    const database = await localDatabase(laptop, SHARED)
    const before = await database.info()
    const [row] = (await database.allDocs({ include_docs: true })).rows
    const { _id: id, _rev: rev } = row!.doc!
    const writes: Array<[string, string, string?]> = [
      ['PUT', `/couch/${SHARED}/mine`, '{"planted":true}'],
      ['PUT', `/couch/${SHARED}/${id}?rev=${rev}`, '{"planted":true}'],
      ['PUT', `/couch/${SHARED}/${id}/film?rev=${rev}`, 'planted'],
      ['POST', `/couch/${SHARED}`, '{"planted":true}'],
      ['POST', `/couch/${SHARED}/_bulk_docs`, '{"docs":[{"_id":"mine"}]}'],
      ['POST', `/couch/${SHARED}/_bulk_docs`, '{"new_edits":false,"docs":[{"_id":"mine","_rev":"1-0123456789abcdef0123456789abcdef"}]}'],
      ['DELETE', `/couch/${SHARED}/${id}?rev=${rev}`],
    ]
    for (const [method, path, body] of writes) {
      const { status } = await ask(agent, laptop, path, { method, ...body === undefined ? {} : { body } })
      must(status === 403, `${method} ${path} answered ${status}`)
    }
    const after = await database.info()
    must(JSON.stringify(after) === JSON.stringify(before), 'a refused write changed the database')
    await database.close()
    return `${writes.length} ways: 403 each, the database unchanged`
  })

  await report.step('explain says the same', async () => {
    const lines: Array<[string, boolean, number]> = [
      [`/couch/${SHARED}/_changes`, true, 200], [`/couch/${PRIVATE}/_changes`, false, 404], [`/files/${files.big.id}`, false, 404],
    ]
    const rules = await Promise.all(lines.map(async ([path, allowed, status]) => {
      const said = await laptop.run('explain', 'friend', 'GET', path)
      must(said['allowed'] === allowed && said['status'] === status, `explain says ${JSON.stringify(said)} of ${path}`)
      return String(said['rule'])
    }))
    return rules.map(rule => `"${rule}"`).join(', ')
  })
  agent.destroy()

  await report.step('strangers get nothing', async () => {
    await cast.stranger.run('trust', join(folder, 'laptop.pem'), '--name', 'laptop', '--at', laptop.address)
    const { key, cert } = await proofOf(cast.stranger)
    // First that this way of asking gets an answer for somebody who is trusted: silence proves nothing else.
    const friendGot = await nothingFor(laptop, 'the friend', proof).then(() => '', (error: unknown) => String(error))
    must(friendGot.includes('HTTP/1.1 200'), `the friend got no answer: ${friendGot}`)
    await nothingFor(laptop, 'a certificate that nobody trusts', { key, cert })
    await nothingFor(laptop, 'no certificate', {})
    await nothingFor(laptop, 'the friend\'s certificate, with a key of another', { key, cert: proof.cert }).catch((error: unknown) => {
      // OpenSSL itself may refuse the pair before it connects.
      if ((error as NodeJS.ErrnoException).code !== 'ERR_OSSL_X509_KEY_VALUES_MISMATCH') throw error
    })
    await nothingFor(laptop, 'TLS 1.2', { ...proof, maxVersion: 'TLSv1.2' })
    await nothingInPlain(laptop)
    const own = await until('the stranger\'s own service tries', 5_000, async () => {
      const peer = (await cast.stranger.status()).peers.find(({ device }) => device === laptop.id)
      return peer !== undefined && (peer.connected || peer.problem !== null) && peer
    })
    must(!own.connected, 'the stranger\'s own service is connected')
    return 'unknown certificate, none, TLS 1.2, plain HTTP: not one byte of HTTP'
  })
}

/** Requests that the friend knows how to write, each beside the same for something that does not exist. */
function attemptsAt ({ big, small }: Files): Array<Ask & { path: string, absent: string }> {
  const attempts: Array<Ask & { path: string, absent: string }> = []
  for (const id of [big.id, small.id]) {
    for (const rest of ['', '/leaves', '/records']) attempts.push({ path: `/files/${id}${rest}`, absent: `/files/${ABSENT_FILE}${rest}` })
    attempts.push({ method: 'HEAD', path: `/files/${id}`, absent: `/files/${ABSENT_FILE}` })
    attempts.push({ path: `/files/${id}`, absent: `/files/${ABSENT_FILE}`, headers: { 'Range': 'bytes=0-0', 'If-None-Match': `"${id}"` } })
  }
  const bodies: Record<string, string> = { _all_docs: `{"keys":["${big.id}"]}`, _bulk_get: `{"docs":[{"id":"${big.id}"}]}`, _revs_diff: `{"${big.id}":["1-a"]}`, _bulk_docs: '{"docs":[{"_id":"mine"}]}' }
  for (const database of [PRIVATE, OTHER]) {
    for (const rest of ['', '/_changes', '/_all_docs', `/${big.id}`, '/_local/mine', '/_security', '/_design/app', `/${big.id}/film`]) {
      attempts.push({ path: `/couch/${database}${rest}`, absent: `/couch/${ABSENT_DATABASE}${rest}` })
    }
    attempts.push({ method: 'HEAD', path: `/couch/${database}`, absent: `/couch/${ABSENT_DATABASE}` })
    attempts.push({ method: 'PUT', body: '{"planted":true}', path: `/couch/${database}/mine`, absent: `/couch/${ABSENT_DATABASE}/mine` })
    for (const [endpoint, body] of Object.entries(bodies)) attempts.push({ method: 'POST', body, path: `/couch/${database}/${endpoint}`, absent: `/couch/${ABSENT_DATABASE}/${endpoint}` })
  }
  return attempts
}

/** All that an answer tells, but for the time it was given. */
function essence ({ status, headers: { date: _date, ...headers }, body }: Answer): string {
  return `${status} ${JSON.stringify(headers)} ${body.toString('latin1')}`
}

const QUIET_MS = 5_000

/** Sends a request as soon as TLS lets it and fails if a byte of an answer comes before the connection ends. */
async function nothingFor (device: Device, who: string, options: ConnectionOptions): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const socket = connectTls({ host: '::1', port: device.port, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'], ...options })
    const timer = setTimeout(() => {
      reject(new Error(`${who}: the connection was not ended within ${QUIET_MS / 1000} s`))
      socket.destroy()
    }, QUIET_MS)
    socket.on('secureConnect', () => { socket.write(`GET / HTTP/1.1\r\nHost: ${hostOf(device)}\r\n\r\n`) })
    socket.on('data', (bytes: Buffer) => { reject(new Error(`${who}: got ${JSON.stringify(bytes.toString('latin1').slice(0, 60))}`)) })
    // Being refused is what is wanted here, in whatever way.
    socket.on('error', () => undefined)
    socket.on('close', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}

/** HTTP without TLS: an alert of TLS may come back (RFC 8446 section 6), and nothing of HTTP. */
async function nothingInPlain (device: Device): Promise<void> {
  const socket = connectTcp({ host: '::1', port: device.port })
  socket.setTimeout(QUIET_MS, () => { socket.destroy() })
  socket.on('error', () => undefined)
  socket.write(`GET / HTTP/1.1\r\nHost: ${hostOf(device)}\r\n\r\n`)
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => { chunks.push(chunk) })
  await new Promise<void>(resolve => { socket.on('close', () => { resolve() }) })
  const got = Buffer.concat(chunks)
  must(got.length === 0 || (got[0] === 0x15 && got.length <= 7), `plain HTTP got ${JSON.stringify(got.toString('latin1').slice(0, 60))}`)
}

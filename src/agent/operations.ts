import { constants } from 'node:fs'
import { chmod, copyFile, link, lstat, rename, unlink } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import { basename, dirname, isAbsolute, join } from 'node:path'
import * as v from 'valibot'
import { syncFolder } from '../core/durable-file.js'
import { fileError, messageOf, PatchcordError, systemCode } from '../core/errors.js'
import { cut, parseContentId, parseDatabaseName, type ContentId } from '../core/ids.js'
import { parseShape } from '../core/shape.js'
import type { DeviceInfo, OperationTable } from '../control/operations.js'
import { walk } from '../files/walk.js'
import { expectPrincipal, isRefusal } from '../identity/admission.js'
import { parseBundle, parseRequest } from '../identity/bundle.js'
import { deviceIdOf } from '../identity/keys.js'
import { REASON, signRevocation, type SignedRecord } from '../identity/revocation.js'
import { canonicalise } from '../policy/canonical.js'
import { decide, needsFacts } from '../policy/decide.js'
import { route } from '../policy/route.js'
import { download } from '../sync/download.js'
import type { Agent } from './agent.js'
import { writeFileDocuments, type NamedFile } from './file-documents.js'
import { parseShare, type KnownDevice } from './trust-book.js'

const text = v.pipe(v.string(), v.maxLength(4096, 'must have at most 4096 characters'))
const label = v.pipe(v.string(), v.minLength(1, 'must not be empty'), v.maxLength(100, 'must have at most 100 characters'))
const bundle = v.pipe(v.string(), v.maxLength(64 * 1024, 'must have at most 64 KiB'))
const absolute = v.pipe(text, v.check(isAbsolute, 'must be an absolute path'))

function read<Schema extends v.GenericSchema> (schema: Schema, args: unknown): v.InferOutput<Schema> {
  return parseShape(schema, args, 'arguments', 'usage')
}

/** What the control socket does. Each operation checks its own arguments, and changes of trust run one after
 * the other. */
export function operationsOf (agent: Agent): OperationTable {
  const { book, keystore, store } = agent
  return {
    status: async () => agent.status(),

    identity: async () => {
      const { device, user, hasCaKey, notBefore, notAfter } = keystore.identity
      return { device, user, name: agent.name, hasCaKey, notBefore: new Date(notBefore).toISOString(), notAfter: new Date(notAfter).toISOString(), bundle: keystore.bundle() }
    },

    couch: async () => ({ url: agent.couch.url, ...pick(agent.programLogin) }),

    'db-create': async args => {
      const name = parseDatabaseName(read(v.strictObject({ name: text }), args).name)
      if (agent.databases.includes(name)) throw new PatchcordError('already-exists', `there is a database ${name} already`)
      await agent.createDatabase(name)
      return { name }
    },

    'db-ls': async () => ({ databases: await agent.couch.databases() }),

    'device-request': async () => ({ request: await keystore.request() }),

    'device-issue': async args => {
      const { request, name } = read(v.strictObject({ request: bundle, name: v.exactOptional(label) }), args)
      const device = deviceIdOf(parseRequest(request).deviceSpki)
      return await agent.serially(async () => {
        if (agent.revoked.has(device)) throw new PatchcordError('refused', `device ${device} is revoked`, { hint: 'give it a fresh key' })
        if (device === keystore.identity.device) throw new PatchcordError('refused', 'this request is this device\'s own', { hint: 'take it to the device that holds the user CA' })
        const known = book.known.get(device)
        if (known?.relation === 'peer') throw new PatchcordError('refused', `${known.name} is somebody else's device`, { hint: 'revoke it first if it is to become yours' })
        const certificates = await keystore.issue(request)
        const issued = parseBundle(bundleIn(certificates))
        await book.remember({ device, user: issued.user, name: name ?? known?.name ?? `device ${device.slice(0, 8)}`, relation: 'own', ca: issued.userCa, addresses: known?.addresses ?? [], certificate: { notBefore: issued.notBefore, notAfter: issued.notAfter } })
        await agent.apply('giving')
        return { device, certificates }
      })
    },

    'device-install': async args => {
      const { certificates } = read(v.strictObject({ certificates: bundle }), args)
      return await agent.serially(async () => {
        if (book.known.size > 0 && parseBundle(bundleIn(certificates)).user !== keystore.identity.user) {
          throw new PatchcordError('refused', `this device already knows ${book.known.size} other${book.known.size === 1 ? '' : 's'}: as another user's device it would keep their trust`, { hint: 'start it with a fresh --home, or revoke those devices first' })
        }
        const { device, user } = await keystore.installIssued(certificates)
        await agent.apply('taking')
        return { device, user }
      })
    },

    trust: async args => {
      const { bundle: pem, name, at, share = [] } = read(v.strictObject({ bundle, name: label, at: v.exactOptional(text), share: v.exactOptional(v.array(text)) }), args)
      const shares = Object.fromEntries(share.map(one => parseShare(one, parseDatabaseName)))
      const { device, user, userCa, notBefore, notAfter } = parseBundle(pem)
      return await agent.serially(async () => {
        if (agent.revoked.has(device)) throw new PatchcordError('refused', `device ${device} is revoked`, { hint: 'a revoked device needs a fresh key' })
        if (user === keystore.identity.user) throw new PatchcordError('refused', 'this bundle is of your own device: it is trusted already', { hint: 'tell where it is: patchcord connect <device> --at <host>:<port>' })
        const before = book.known.get(device)
        if (before !== undefined && before.user !== user) throw new PatchcordError('refused', `${before.name} is known as the device of another user`, { hint: `if it changed hands, revoke it first: patchcord revoke ${device}` })
        let known: KnownDevice = { device, user, name, relation: 'peer', ca: userCa, addresses: before?.addresses ?? [], certificate: { notBefore, notAfter } }
        await book.trustPeer(known, shares)
        if (at !== undefined) known = await book.addAddress(known, at)
        await agent.apply('giving')
        return describe(agent, known)
      })
    },

    devices: async () => ({ devices: [describeSelf(agent), ...[...book.known.values()].map(known => describe(agent, known))] }),

    rename: async args => {
      const { device, name } = read(v.strictObject({ device: text, name: label }), args)
      return await agent.serially(async () => {
        const known = { ...book.find(device), name }
        if (known.relation === 'peer') await book.trustPeer(known, {})
        else await book.remember(known)
        await agent.apply('giving')
        return describe(agent, known)
      })
    },

    revoke: async args => {
      const { device } = read(v.strictObject({ device: text }), args)
      return await agent.serially(async () => {
        if (device === keystore.identity.device) throw new PatchcordError('refused', 'this is the device you sit at: revoking it here would only lock you out of your own', { hint: 'revoke it from another of your devices' })
        const known = book.find(device)
        const body = { ca: keystore.identity.user, device: known.device, issuedAt: agent.clock.now(), reason: REASON.unspecified }
        let signed: SignedRecord | undefined
        if (keystore.identity.hasCaKey) signed = await keystore.withCaKey(caKey => Promise.resolve(signRevocation(body, caKey)))
        await book.revoke({ ...body, decided: 'here', ...signed === undefined ? {} : { signed } })
        await book.forgetAccepted(known.device)
        const connectionsCut = await agent.apply('taking')
        const others = [...book.known.values()].some(other => !agent.revoked.has(other.device))
        agent.emit({ event: 'revoked', device: known.device, connectionsCut })
        return { device: known.device, connectionsCut, spread: others ? 'pending' as const : 'done' as const }
      })
    },

    connect: async args => {
      const { device, at } = read(v.strictObject({ device: text, at: text }), args)
      return await agent.serially(async () => {
        const known = await book.addAddress(findOrOwn(agent, device), at)
        await agent.apply('giving')
        return describe(agent, known)
      })
    },

    share: async args => {
      const { database, with: whom, write = false } = read(v.strictObject({ database: text, with: text, write: v.exactOptional(v.boolean()) }), args)
      const name = parseDatabaseName(database)
      return await agent.serially(async () => {
        if (!agent.databases.includes(name)) throw new PatchcordError('not-found', `there is no database ${name} here`, { hint: `make it: patchcord db create ${name}` })
        return await grantAll(agent, name, whom, write ? 'write' : 'read')
      })
    },

    unshare: async args => {
      const { database, with: whom } = read(v.strictObject({ database: text, with: text }), args)
      const name = parseDatabaseName(database)
      return await agent.serially(() => grantAll(agent, name, whom, undefined))
    },

    shares: async () => ({
      shares: agent.peers.all().flatMap(peer => peer.mail.shares.map(({ database, access }) => ({
        peer: peer.device, name: book.known.get(peer.device)?.name ?? peer.device, database, access,
        accepted: book.accepted.find(one => one.peer === peer.device && one.database === database)?.as ?? null,
        reachable: peer.link.connected,
      }))),
    }),

    accept: async args => {
      const { peer, database, as, merge = false } = read(v.strictObject({ peer: text, database: text, as: v.exactOptional(text), merge: v.exactOptional(v.boolean()) }), args)
      const name = parseDatabaseName(database)
      const local = parseDatabaseName(as ?? database)
      return await agent.serially(async () => {
        const known = book.find(peer)
        const offered = agent.peers.peer(known.device)?.mail.shares.find(share => share.database === name)
        if (offered === undefined) throw new PatchcordError('not-found', `${known.name} offers no database ${name}`, { hint: '`patchcord shares` lists what is offered; the other device must be connected' })
        const before = book.accepted.find(one => one.peer === known.device && one.database === name)
        if (agent.databases.includes(local) && before?.as !== local && !merge) {
          throw new PatchcordError('already-exists', `there is a database ${local} already, and it would be merged into`, { hint: 'take another name with --as, or say --merge' })
        }
        await agent.createDatabase(local)
        await book.accept({ peer: known.device, database: name, as: local, access: offered.access })
        // Shared with --write, accepting is the counter-grant: the other pulls what is written here.
        if (offered.access === 'write') await book.grant(known, local, book.grantOf(known).databases[local] ?? 'read')
        await agent.apply('giving')
        return { peer: known.device, database: name, as: local, access: offered.access }
      })
    },

    explain: async args => {
      const { device, method, path } = read(v.strictObject({ device: text, method: text, path: text }), args)
      const { identity } = keystore
      const canonical = canonicalise({ method, target: path, httpVersion: '1.1', rawHeaders: ['Host', '[::1]'] }, identity.device)
      if ('refusal' in canonical) return { allowed: false, status: canonical.refusal.code === 'foreign-origin' ? 403 : 400, rule: canonical.refusal.rule, reason: canonical.refusal.reason }
      const who = device === identity.device || device === 'self' ? identity : findOrOwn(agent, device)
      const now = agent.clock.now()
      const principal = expectPrincipal(book.trust(identity.userCa, [...agent.revoked]), who, now)
      if (isRefusal(principal)) return { allowed: false, status: 403, rule: principal.refused, reason: principal.reason }
      const action = route(canonical.request)
      if (action === undefined) return { allowed: false, status: 404, rule: 'no action', reason: `${cut(method)} ${cut(path)} is nothing that this port answers` }
      const facts = needsFacts(principal, action) ? { records: await store.records(action.id) } : undefined
      const { allowed, status, rule, reason } = decide(principal, action, now, facts)
      return { allowed, status, rule, reason }
    },

    add: async (args, emit, signal) => {
      const { paths, to } = read(v.strictObject({ paths: v.array(absolute), to: v.exactOptional(text) }), args)
      const database = to === undefined ? undefined : parseDatabaseName(to)
      if (database !== undefined && !agent.databases.includes(database)) throw new PatchcordError('not-found', `there is no database ${database}`, { hint: `make it: patchcord db create ${database}` })
      const started = agent.clock.monotonic()
      let files = 0
      let bytes = 0
      let failed = 0
      let batch: NamedFile[] = []
      const record = async (): Promise<void> => {
        if (database === undefined || batch.length === 0) return
        const named = batch
        batch = []
        for (const { id } of named) await store.record(id, database)
        await writeFileDocuments(agent.couch.client, database, named)
      }
      for await (const added of store.addAll(walkAll(paths), { signal })) {
        if ('error' in added) {
          failed += 1
          emit({ event: 'failed', path: added.path, error: added.error.message, hint: added.error.hint })
          continue
        }
        files += 1
        bytes += added.size
        emit({ event: 'added', id: added.id, size: added.size, path: added.path, new: added.isNew })
        if (database !== undefined) {
          const status = await lstat(added.path).catch(() => undefined)
          batch.push({ id: added.id, size: added.size, path: added.path, mtime: status?.mtimeMs ?? agent.clock.now() })
          if (batch.length >= RECORD_BATCH) await record()
        }
      }
      await record()
      if (failed > 0) throw new PatchcordError('unreadable', `${failed} of ${failed + files} files were not added`, { hint: 'the lines above name each one and what to do' })
      return { files, bytes, seconds: (agent.clock.monotonic() - started) / 1000 }
    },

    ls: async (_args, emit, signal) => {
      let files = 0
      let bytes = 0
      for await (const { id, size } of store.list()) {
        signal.throwIfAborted()
        emit({ event: 'file', id, size, databases: await store.records(id) })
        files += 1
        bytes += size
      }
      return { files, bytes }
    },

    get: async (args, emit, signal) => {
      const { id: given, output, from, force = false } = read(v.strictObject({ id: text, output: absolute, from: v.exactOptional(text), force: v.exactOptional(v.boolean()) }), args)
      const id = parseContentId(given)
      if (!force && await exists(output)) throw new PatchcordError('already-exists', `${output} is there already`, { hint: 'choose another path, or say --force' })
      const started = agent.clock.monotonic()
      const sources: string[] = []
      if (!await store.has(id)) {
        let last = { at: started, done: 0 }
        const source = await fetchFile(agent, id, from, signal, (done, total) => {
          const now = agent.clock.monotonic()
          if (now - last.at < PROGRESS_MS && done < total) return
          emit({ event: 'progress', done, total, rate: Math.round((done - last.done) / Math.max(0.001, (now - last.at) / 1000)), sources: 1 })
          last = { at: now, done }
        })
        sources.push(source)
      }
      await copyOut(store.path(id), output, force)
      const { size } = await lstat(store.path(id))
      return { id, size, seconds: (agent.clock.monotonic() - started) / 1000, sources }
    },

    events: async (_args, emit, signal) => {
      const forward = emit as (event: object) => void
      agent.events.on('event', forward)
      await new Promise<void>(resolve => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })
      agent.events.off('event', forward)
      return {}
    },
  }
}

const RECORD_BATCH = 200
const PROGRESS_MS = 250

const pick = ({ username, password }: { username: string, password: string }): { username: string, password: string } => ({ username, password })

/** The device certificate and the CA of what `device issue` wrote: its first and its last block. */
function bundleIn (certificates: string): string {
  const blocks = certificates.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----\n?/g) ?? []
  return `${blocks[0] ?? ''}${blocks.at(-1) ?? ''}`
}

async function * walkAll (paths: readonly string[]): AsyncIterable<string> {
  for (const path of paths) for await (const found of walk(path)) yield found.path
}

/** A device that is known, or an own one by its full ID: what it shows must be signed by this user's CA. */
function findOrOwn (agent: Agent, text: string): KnownDevice {
  try {
    return agent.book.find(text)
  } catch (error) {
    if (!(error instanceof PatchcordError) || error.code !== 'not-found' || !/^[a-z2-7]{51}[aq]$/.test(text)) throw error
    const { user, userCa } = agent.keystore.identity
    return { device: text as KnownDevice['device'], user, name: `device ${text.slice(0, 8)}`, relation: 'own', ca: userCa, addresses: [], certificate: undefined }
  }
}

async function grantAll (agent: Agent, database: ReturnType<typeof parseDatabaseName>, whom: string, access: 'read' | 'write' | undefined): Promise<{ database: string, with: string, grant: DeviceInfo['grant'] }> {
  const devices = agent.book.findAll(whom)
  let grant: DeviceInfo['grant'] = { databases: {}, files: 'referenced' }
  for (const known of devices) grant = await agent.book.grant(known, database, access)
  await agent.apply(access === undefined ? 'taking' : 'giving')
  return { database, with: devices.length === 1 ? devices[0]!.device : whom, grant }
}

function describeSelf (agent: Agent): DeviceInfo {
  const { device, user, notBefore, notAfter } = agent.keystore.identity
  return {
    device, user, name: agent.name, relation: 'own', grant: agent.book.grants['own'] ?? { databases: {}, files: 'referenced' },
    addresses: agent.listen.map(({ host, port }) => `[${host}]:${port}`), certificate: dates({ notBefore, notAfter }), state: 'this device', revoked: false,
  }
}

function describe (agent: Agent, known: KnownDevice): DeviceInfo {
  const revoked = agent.revoked.has(known.device)
  const { device, user, name, relation, addresses, certificate } = known
  return { device, user, name, relation, grant: agent.book.grantOf(known), addresses: [...addresses], certificate: certificate === undefined ? null : dates(certificate), state: revoked ? 'revoked' : 'trusted', revoked }
}

const dates = ({ notBefore, notAfter }: { notBefore: number, notAfter: number }): { notBefore: string, notAfter: string } =>
  ({ notBefore: new Date(notBefore).toISOString(), notAfter: new Date(notAfter).toISOString() })

/** Fetches from the device given, or from those that answer, one after the other; which one had it. */
async function fetchFile (agent: Agent, id: ContentId, from: string | undefined, signal: AbortSignal, onProgress: (done: number, total: number) => void): Promise<string> {
  const peers = from === undefined ? agent.peers.all().filter(({ link }) => link.connected) : [agent.peers.peer(agent.book.find(from).device)].filter(peer => peer !== undefined)
  if (peers.length === 0) throw new PatchcordError('unreachable', `no device that may have ${id} is connected`, { hint: '`patchcord status` says why' })
  let problem: unknown
  for (const { device, link } of peers) {
    try {
      await download(agent.store, { device, agent: link.agent }, id, { signal, onProgress })
      return device
    } catch (error) {
      signal.throwIfAborted()
      agent.logger.info({ device, id, reason: messageOf(error) }, 'a download failed')
      // A lie is worse news than an absence, whoever is asked last.
      if (!(problem instanceof PatchcordError && problem.code === 'verification')) problem = error
    }
  }
  throw problem
}

async function exists (path: string): Promise<boolean> {
  try {
    await lstat(path)
    return true
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false
    throw fileError(error, path)
  }
}

/** Copies a file out of the store under a name that appears whole. Never a link: the copy is the person's
 * to change. */
async function copyOut (from: string, to: string, force: boolean): Promise<void> {
  const temporary = join(dirname(to), `.${basename(to).slice(0, 100)}.${randomBytes(6).toString('hex')}.part`)
  try {
    await copyFile(from, temporary, constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL)
    await chmod(temporary, 0o666 & ~process.umask())
    if (force) await rename(temporary, to)
    else {
      // rename(2) would replace what came there meanwhile; link(2) does not.
      await link(temporary, to)
      await unlink(temporary)
    }
    await syncFolder(dirname(to))
  } catch (error) {
    await unlink(temporary).catch((left: unknown) => { if (systemCode(left) !== 'ENOENT') throw left })
    throw error instanceof PatchcordError ? error : fileError(error, to)
  }
}

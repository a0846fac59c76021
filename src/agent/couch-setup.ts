import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { readState, writeState } from '../core/state-file.js'
import type { CouchSetupResult, CouchUndoResult } from '../control/operations.js'
import { openDistribution } from '../machine/check-couch.js'
import { CouchClient, type CouchLogin } from './couch-client.js'
import { isAdministrator } from './couch-own.js'
import { ANY_USER, deleteUser, isPublic, listUsers, OWN_ROLE, readSecurity, unexpected, userPrefix, withoutUsers, writeSecurity } from './couch-users.js'

// An administrator of patchcord's own in the person's CouchDB: made with the person's password, which is used once
// and kept nowhere, and taken out again by `undo`, together with every user and membership that patchcord made.

/** The administrator that `setup` made; in a file that only its user can read. */
const Shape = v.strictObject({ version: v.literal(1), url: v.string(), username: v.string(), password: v.pipe(v.string(), v.minLength(20)) })
export type CouchAdministrator = v.InferOutput<typeof Shape>

const pathIn = (root: string): string => join(root, 'couch-admin.json')

/** Undefined where `setup` was not run, or was undone. Throws `bad-state` naming the file. */
export async function readAdministrator (root: string): Promise<CouchAdministrator | undefined> {
  return await readState(pathIn(root), Shape)
}

export interface SetupOptions {
  readonly root: string
  readonly device: DeviceId
  readonly url: string
  /** The person's administrator. */
  readonly login: CouchLogin
  /** Makes public databases members-only; otherwise they are named and left as they are. */
  readonly closePublic: boolean
  /** Goes on although others than this machine's programs reach the CouchDB. */
  readonly allowExposed: boolean
}

/** What CouchDB needs for users, and for the feed of its databases. */
const SYSTEM_DATABASES = ['_users', '_replicator', '_global_changes'] as const
/** CouchDB hashes a new administrator's password in the background. */
const MOST_WAIT_MS = 10_000

/** Makes the administrator, or finds it made. Every step can be done again. Throws `refused` for a login that is no
 * administrator's, a CouchDB without any, and one that listens beyond loopback; nothing was changed then. */
export async function setUpCouch ({ root, device, url, login, closePublic, allowExposed }: SetupOptions): Promise<Omit<CouchSetupResult, 'restart'>> {
  const client = new CouchClient(url, login)
  try {
    if (!await isAdministrator(client)) throw new PatchcordError('refused', `${login.username} is no administrator of CouchDB at ${client.url}`, { hint: 'give the login of one; it is used once and not kept' })
    const exposed = await exposure(client)
    if (exposed.length > 0 && !allowExposed) throw new PatchcordError('refused', exposed.join('; '), { hint: 'keep it to loopback (bind_address of [chttpd]; for Erlang inet_dist_use_interface in vm.args, and ERL_EPMD_ADDRESS), or say --allow-exposed' })
    const created: string[] = []
    for (const name of SYSTEM_DATABASES) {
      const { status } = await client.ask('PUT', `/${name}`)
      if (status === 201 || status === 202) created.push(`database ${name}`)
      else if (status !== 412) throw unexpected(status, `${name} was made`)
    }
    const administrator = await makeAdministrator(client, root, device)
    if (administrator.isNew) created.push(`administrator ${administrator.username}`)
    const { open, closed } = await closePublicOnes(client, closePublic)
    return { url: client.url, administrator: administrator.username, created, closed, public: open, warnings: exposed }
  } finally {
    client.close()
  }
}

async function makeAdministrator (client: CouchClient, root: string, device: DeviceId): Promise<CouchAdministrator & { isNew: boolean }> {
  const before = await readAdministrator(root)
  if (before?.url === client.url && await works(before)) return { ...before, isNew: false }
  if (before !== undefined && before.url !== client.url) throw new PatchcordError('already-exists', `CouchDB at ${before.url} is set up already`, { hint: 'undo that first: patchcord couch undo' })
  const made: CouchAdministrator = { version: 1, url: client.url, username: `${ANY_USER}${device.slice(0, 12)}`, password: randomBytes(24).toString('base64url') }
  // Written before it is made, so that a crash leaves nobody with rights whom `undo` does not know.
  await writeState(pathIn(root), Shape, made)
  const { status } = await client.ask('PUT', `/_node/_local/_config/admins/${made.username}`, made.password)
  if (status !== 200) throw unexpected(status, 'an administrator was made')
  const deadline = performance.now() + MOST_WAIT_MS
  while (!await works(made)) {
    if (performance.now() > deadline) throw new PatchcordError('upstream-slow', `CouchDB at ${client.url} does not know its new administrator after ${MOST_WAIT_MS / 1000} s`)
    await sleep(100)
  }
  return { ...made, isNew: true }
}

async function works (login: CouchAdministrator): Promise<boolean> {
  const client = new CouchClient(login.url, login)
  try {
    return await isAdministrator(client)
  } catch (error) {
    if (error instanceof PatchcordError && error.code === 'refused') return false
    throw error
  } finally {
    client.close()
  }
}

async function closePublicOnes (client: CouchClient, closePublic: boolean): Promise<{ open: DatabaseName[], closed: DatabaseName[] }> {
  const open: DatabaseName[] = []
  const closed: DatabaseName[] = []
  for (const name of await client.databases()) {
    const security = await readSecurity(client, name)
    if (security === undefined || !isPublic(security)) continue
    if (closePublic) await writeSecurity(client, name, { ...security, members: { ...security.members, roles: [OWN_ROLE] } })
    ;(closePublic ? closed : open).push(name)
  }
  return { open, closed }
}

/** Takes out what patchcord made: memberships, users, and last its administrator. Throws `not-found` where there is
 * none. What could not be taken out is still known then, and `undo` can be run again. */
export async function undoCouch (root: string, device: DeviceId): Promise<CouchUndoResult> {
  const administrator = await readAdministrator(root)
  if (administrator === undefined) throw new PatchcordError('not-found', 'no CouchDB is set up', { hint: '`patchcord couch setup` does that' })
  const client = new CouchClient(administrator.url, administrator)
  try {
    const removed: string[] = []
    const prefix = userPrefix(device)
    const users = await listUsers(client, ANY_USER)
    // Another device that uses this CouchDB keeps its own devices' role.
    const isShared = [...users.keys()].some(name => !name.startsWith(prefix))
    for (const name of await client.databases()) {
      const security = await readSecurity(client, name)
      const without = security === undefined ? undefined : withoutUsers(security, prefix, isShared)
      if (without === undefined || without === security) continue
      await writeSecurity(client, name, without)
      removed.push(`members of ${name}`)
    }
    for (const [name, rev] of users) {
      if (!name.startsWith(prefix)) continue
      await deleteUser(client, name, rev)
      removed.push(`user ${name}`)
    }
    const { status } = await client.ask('DELETE', `/_node/_local/_config/admins/${administrator.username}`)
    if (status !== 200 && status !== 404) throw unexpected(status, 'its administrator was removed')
    removed.push(`administrator ${administrator.username}`)
    await rm(pathIn(root))
    return { url: administrator.url, removed }
  } finally {
    client.close()
  }
}

/** Why others than this machine's programs may reach the CouchDB; empty where none do. `doctor` asks the same without a login (machine/check-couch.ts). */
export async function exposure (client: CouchClient): Promise<string[]> {
  const found: string[] = []
  if (await isParty(client.url)) found.push(`CouchDB at ${client.url} has no administrator: whoever reaches it may do anything`)
  const { status, value } = await client.ask('GET', '/_node/_local/_config/chttpd/bind_address')
  if (status !== 200 && status !== 404) throw unexpected(status, 'its bind_address was asked for')
  const address = status === 200 && typeof value === 'string' ? value : '127.0.0.1'
  if (!/^(?:127\.\d+\.\d+\.\d+|::1|\[::1\]|localhost)$/.test(address)) found.push(`CouchDB listens on ${address}, beyond loopback`)
  // The person's own programs listen too, this service among them.
  const distribution = openDistribution('/', [0, process.getuid?.() ?? 0])
  if (distribution !== undefined) found.push(`Erlang's distribution (port ${distribution}) listens beyond loopback: with CouchDB's cookie it gives whoever reaches it the machine`)
  return found
}

/** "Admin party": without a login everybody is an administrator. */
async function isParty (url: string): Promise<boolean> {
  const anonymous = new CouchClient(url, undefined)
  try {
    const { status, value } = await anonymous.ask('GET', '/_session')
    return status === 200 && JSON.stringify(value).includes('"_admin"')
  } finally {
    anonymous.close()
  }
}

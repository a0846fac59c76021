import type { KeyObject } from 'node:crypto'
import { lstat, mkdir, readdir, readlink, rename, rm, symlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { systemClock, type Clock } from '../core/clock.js'
import { readPrivate, syncFolder, writeDurably } from '../core/durable-file.js'
import { fileError, messageOf, PatchcordError, systemCode } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { makeFolders } from '../core/make-folders.js'
import { readAuthority } from './authority.js'
import { formatBundle, formatIssue, formatRequest, parseIssue, parseRequest } from './bundle.js'
import { createUserCa, issueDevice, issueServer } from './certificates.js'
import { deviceIdOf, generateKey, privateKeyFromPem, privateKeyToPem, spkiOf, userIdOf } from './keys.js'
import { keyFormOf } from './key-form.js'
import { readLeaf } from './leaf.js'
import { decodeOnePem } from './pem.js'

// The identity of one device on disk:
//
//   identity/            0700, every file 0600
//     device.key         P-256, PKCS#8; its hash is the device ID, and it never leaves the agent
//     server.key         what the confined process gets
//     current -> 1       which of the folders counts
//     1/ ca.pem device.pem server.pem, and ca.key on the device that made the CA; device.key and server.key
//        where `renewKeys` made fresh ones, which then count instead of those above
//
// A numbered folder is complete before it has its name and is never changed after. Becoming another
// user's device, or a renewal, writes the next folder and then switches `current` by one rename. A crash
// leaves the old identity or the new one; the old CA stays in its folder and is not trusted.

/** Who this device is. Certificates are PEM, dates milliseconds since 1970 (those of the device's). */
export interface Identity {
  readonly device: DeviceId
  readonly user: UserId
  readonly deviceCertificate: string
  readonly serverCertificate: string
  readonly userCa: string
  readonly hasCaKey: boolean
  readonly notBefore: number
  readonly notAfter: number
}

export interface CreateOptions {
  /** Runs after everything is on disk and before it counts: what must exist together with the identity
   * (`revoked.json`) is made here. It may run again after a crash. */
  readonly alongside?: () => Promise<void>
}

const FILE = { deviceKey: 'device.key', serverKey: 'server.key', current: 'current', ca: 'ca.pem', caKey: 'ca.key', device: 'device.pem', server: 'server.pem' } as const
const NUMBER = /^[1-9]\d{0,8}$/
/** Unfinished things: they are removed, never read. `core/durable-file` names its own `.….tmp`. */
const UNFINISHED = '.new-'
const isUnfinished = (name: string): boolean => name.startsWith(UNFINISHED) || (name.startsWith('.') && name.endsWith('.tmp'))

export class Keystore {
  readonly #dir: string
  readonly #clock: Clock
  #number: string
  #identity: Identity

  private constructor (dir: string, clock: Clock, number: string, identity: Identity) {
    this.#dir = dir
    this.#clock = clock
    this.#number = number
    this.#identity = identity
  }

  /** Whether `dir` holds a finished identity. Half of one is none. */
  static async exists (dir: string): Promise<boolean> {
    return await currentNumber(dir) !== undefined
  }

  /** Reads the identity in `dir`. Throws `unsafe-mode` where others can read it, `bad-state` naming the
   * file where one is missing, damaged or does not belong to the others, and where there is no finished
   * identity. Dates are not judged: a device whose certificate ended has to fetch a new one. */
  static async open (dir: string, clock: Clock = systemClock): Promise<Keystore> {
    await checkFolder(dir)
    const number = await currentNumber(dir)
    if (number === undefined) throw new PatchcordError('bad-state', `${dir} holds no identity`, { hint: 'run `patchcord up` to make one, or restore the folder from a backup' })
    return new Keystore(dir, clock, number, await load(dir, number))
  }

  /** Makes a user CA, the keys and certificates of this device, and opens them. What an interrupted run
   * left is finished or made again. Throws `already-exists` where an identity is there, and `bad-state`
   * where there are folders of one that nothing points to. */
  static async create (dir: string, clock: Clock = systemClock, { alongside }: CreateOptions = {}): Promise<Keystore> {
    await makeFolders(dir, 0o700)
    // An earlier run may have made it and not come to that.
    await syncFolder(dirname(dir))
    await checkFolder(dir)
    if (await currentNumber(dir) !== undefined) throw new PatchcordError('already-exists', `${dir} holds an identity`)
    await removeUnfinished(dir)
    const deviceKey = await readOrMakeKey(join(dir, FILE.deviceKey))
    const serverKey = await readOrMakeKey(join(dir, FILE.serverKey))
    const [first = '1', ...more] = await numbers(dir)
    if (first !== '1' || more.length > 0) throw new PatchcordError('bad-state', `${join(dir, FILE.current)} is missing, and ${dir} holds several identities`, { hint: 'make it a symbolic link to the number of the folder that counted' })
    if ((await numbers(dir)).length === 0) {
      const now = clock.now()
      const { privateKey: caKey } = await generateKey()
      const ca = await createUserCa(caKey, now)
      const device = deviceIdOf(spkiOf(deviceKey))
      await writeFolder(dir, '1', {
        [FILE.ca]: ca,
        [FILE.caKey]: privateKeyToPem(caKey),
        [FILE.device]: await issueDevice({ ca, caKey, spki: spkiOf(deviceKey), now }),
        [FILE.server]: await issueServer({ ca, caKey, spki: spkiOf(serverKey), device, now }),
      })
    }
    const identity = await load(dir, '1')
    await alongside?.()
    await pointTo(dir, '1')
    return new Keystore(dir, clock, '1', identity)
  }

  /** `open`, or `create` where there is no finished identity. */
  static async openOrCreate (dir: string, clock: Clock = systemClock, options: CreateOptions = {}): Promise<Keystore> {
    return await Keystore.exists(dir) ? await Keystore.open(dir, clock) : await Keystore.create(dir, clock, options)
  }

  get identity (): Identity { return this.#identity }

  /** The device key as PKCS#8 PEM: for outgoing connections of the agent. */
  async deviceKey (): Promise<string> { return privateKeyToPem(await this.#key(FILE.deviceKey)) }

  /** The server key as PKCS#8 PEM: for the confined process. */
  async serverKey (): Promise<string> { return privateKeyToPem(await this.#key(FILE.serverKey)) }

  /** Hands `use` the CA's key and certificate (PEM). The key is read for this call and not kept: `use` must
   * not keep it either. Throws `no-ca-key` on a device that does not hold it. */
  async withCaKey<Result> (use: (caKey: KeyObject, ca: string) => Promise<Result>): Promise<Result> {
    if (!this.#identity.hasCaKey) throw new PatchcordError('no-ca-key', 'this device does not hold the key of its user CA')
    return await use(await readKey(join(this.#dir, this.#number, FILE.caKey)), this.#identity.userCa)
  }

  /** The device certificate and its CA, as PEM: what others need in order to trust this device. */
  bundle (): string { return formatBundle(this.#identity.deviceCertificate, this.#identity.userCa) }

  /** Signing requests of both keys, as PEM: what a CA holder needs for `issue`. `nonce` is what that holder
   * gave, where it did. */
  async request (nonce?: string): Promise<string> {
    return await formatRequest(await this.#key(FILE.deviceKey), await this.#key(FILE.serverKey), nonce)
  }

  /** Certifies the keys of a request as an own device, and gives what `installIssued` takes. Whether that
   * device may have it (listed, not revoked) is for the caller to decide first. Throws `no-ca-key`, and
   * `bad-certificate` for a bad request. */
  async issue (request: string, now = this.#clock.now()): Promise<string> {
    const { deviceSpki, serverSpki } = parseRequest(request)
    return await this.withCaKey(async (caKey, ca) => {
      return formatIssue(
        await issueDevice({ ca, caKey, spki: deviceSpki, now }),
        await issueServer({ ca, caKey, spki: serverSpki, device: deviceIdOf(deviceSpki), now }),
        ca)
    })
  }

  /** Takes what a CA holder issued for this device's keys and becomes that user's own device. Throws
   * `bad-certificate`, and keeps the old identity, unless everything holds: keys, signatures, profiles,
   * dates (at `now`). A CA key stays only where the CA does. */
  async installIssued (pem: string, now = this.#clock.now()): Promise<Identity> {
    const issued = parseIssue(pem, now)
    const deviceSpki = spkiOf(await this.#key(FILE.deviceKey))
    const serverSpki = spkiOf(await this.#key(FILE.serverKey))
    if (!issued.deviceSpki.equals(deviceSpki)) throw new PatchcordError('bad-certificate', `the certificate is for device ${issued.device}, not for this one`, { hint: 'send a fresh `patchcord device request` of this device' })
    if (!issued.serverSpki.equals(serverSpki)) throw new PatchcordError('bad-certificate', 'the server certificate is not over the server key of this device', { hint: 'send a fresh `patchcord device request` of this device' })
    const caKey = this.#identity.hasCaKey && issued.user === this.#identity.user
      ? { [FILE.caKey]: await this.withCaKey(async key => privateKeyToPem(key)) }
      : {}
    return await this.#switchTo({ [FILE.ca]: issued.userCa, [FILE.device]: issued.deviceCertificate, [FILE.server]: issued.serverCertificate, ...caKey })
  }

  /** Fresh certificates from the CA key that this device holds, for the same keys. Throws `no-ca-key`. */
  async renew (now?: number): Promise<Identity> {
    return await this.installIssued(await this.issue(await this.request(), now), now)
  }

  /** Takes a CA and its key in, out of a kit or made for a succession: this device becomes that user's, or,
   * where it is so already, also holds the key. Throws `bad-certificate`, and keeps the old identity, where
   * the two do not belong together or the CA is outside its dates. */
  async adopt (caKey: KeyObject, ca: string): Promise<Identity> {
    const files = { [FILE.ca]: ca, [FILE.caKey]: privateKeyToPem(caKey) }
    return await this.#switchTo({ ...files, ...await this.#certify(caKey, ca, await this.#key(FILE.deviceKey), await this.#key(FILE.serverKey)) })
  }

  /** Makes fresh keys, so a new device ID, and writes an identity for them that counts from the next `open`
   * on; this object keeps the old one. Where the CA key is held the new device is the same user's; elsewhere
   * it begins anew with a user CA of its own. Who it will be. */
  async renewKeys (): Promise<{ device: DeviceId, user: UserId }> {
    const now = this.#clock.now()
    const [{ privateKey: deviceKey }, { privateKey: serverKey }] = await Promise.all([generateKey(), generateKey()])
    const keys = { [FILE.deviceKey]: privateKeyToPem(deviceKey), [FILE.serverKey]: privateKeyToPem(serverKey) }
    const withCa = async (caKey: KeyObject, ca: string): Promise<Readonly<Record<string, string>>> =>
      ({ ...keys, [FILE.ca]: ca, [FILE.caKey]: privateKeyToPem(caKey), ...await this.#certify(caKey, ca, deviceKey, serverKey) })
    let files: Readonly<Record<string, string>>
    if (this.#identity.hasCaKey) files = await this.withCaKey(withCa)
    else {
      const { privateKey: caKey } = await generateKey()
      files = await withCa(caKey, await createUserCa(caKey, now))
    }
    const { device, user } = await this.#writeNext(files)
    return { device, user }
  }

  async #certify (caKey: KeyObject, ca: string, deviceKey: KeyObject, serverKey: KeyObject): Promise<Readonly<Record<string, string>>> {
    const now = this.#clock.now()
    return {
      [FILE.device]: await issueDevice({ ca, caKey, spki: spkiOf(deviceKey), now }),
      [FILE.server]: await issueServer({ ca, caKey, spki: spkiOf(serverKey), device: deviceIdOf(spkiOf(deviceKey)), now }),
    }
  }

  async #key (name: string): Promise<KeyObject> { return await readKey(await keyPath(this.#dir, this.#number, name)) }

  /** Writes the next folder and makes it count. Keys that this one has of its own go along. */
  async #switchTo (files: Readonly<Record<string, string>>): Promise<Identity> {
    const own: Record<string, string> = {}
    for (const name of [FILE.deviceKey, FILE.serverKey]) {
      const key = await readPrivate(join(this.#dir, this.#number, name))
      if (key !== undefined) own[name] = key.toString()
    }
    const { number, ...identity } = await this.#writeNext({ ...own, ...files })
    this.#number = number
    this.#identity = Object.freeze(identity)
    return this.#identity
  }

  async #writeNext (files: Readonly<Record<string, string>>): Promise<Identity & { readonly number: string }> {
    await removeUnfinished(this.#dir)
    const number = String(Number((await numbers(this.#dir)).at(-1) ?? 0) + 1)
    await writeFolder(this.#dir, number, files)
    const identity = await load(this.#dir, number)
    await pointTo(this.#dir, number)
    return { ...identity, number }
  }
}

/** Everything in a folder, after it was found to belong together. */
async function load (dir: string, number: string): Promise<Identity> {
  const folder = join(dir, number)
  await checkFolder(folder)
  const deviceKey = await readKey(await keyPath(dir, number, FILE.deviceKey))
  const serverKey = await readKey(await keyPath(dir, number, FILE.serverKey))
  const [ca, device, server] = await Promise.all([FILE.ca, FILE.device, FILE.server].map(async name => await readText(join(folder, name)))) as [string, string, string]
  const authority = named(join(folder, FILE.ca), () => readAuthority(ca))
  for (const [name, pem] of [[FILE.device, device], [FILE.server, server]] as const) named(join(folder, name), () => readLeaf(decodeOnePem(pem, 'CERTIFICATE')))
  const issue = named(folder, () => parseIssue(formatIssue(device, server, ca)))
  if (!issue.deviceSpki.equals(spkiOf(deviceKey))) throw mismatch(join(folder, FILE.device), FILE.deviceKey)
  if (!issue.serverSpki.equals(spkiOf(serverKey))) throw mismatch(join(folder, FILE.server), FILE.serverKey)
  const caKey = await readPrivate(join(folder, FILE.caKey))
  if (caKey !== undefined && named(join(folder, FILE.caKey), () => userIdOf(spkiOf(privateKeyFromPem(caKey.toString())))) !== authority.user) throw mismatch(join(folder, FILE.ca), FILE.caKey)
  return Object.freeze({
    device: issue.device,
    user: issue.user,
    deviceCertificate: issue.deviceCertificate,
    serverCertificate: issue.serverCertificate,
    userCa: issue.userCa,
    hasCaKey: caKey !== undefined,
    notBefore: issue.notBefore,
    notAfter: issue.notAfter,
  })
}

/** Writes a folder under a name that does not count, and renames it once all of it is on disk. */
async function writeFolder (dir: string, number: string, files: Readonly<Record<string, string>>): Promise<void> {
  const unfinished = join(dir, `${UNFINISHED}${number}`)
  await mkdir(unfinished, { mode: 0o700 }).catch((error: unknown) => { throw fileError(error, unfinished) })
  for (const [name, content] of Object.entries(files)) await writeDurably(join(unfinished, name), content)
  await rename(unfinished, join(dir, number))
  await syncFolder(dir)
}

async function pointTo (dir: string, number: string): Promise<void> {
  const unfinished = join(dir, `${UNFINISHED}${FILE.current}`)
  await rm(unfinished, { force: true })
  await symlink(number, unfinished)
  await rename(unfinished, join(dir, FILE.current))
  await syncFolder(dir)
}

async function currentNumber (dir: string): Promise<string | undefined> {
  const path = join(dir, FILE.current)
  let target: string
  try {
    target = await readlink(path)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    if (systemCode(error) === 'EINVAL') throw new PatchcordError('bad-state', `${path} is not a symbolic link`)
    throw fileError(error, path)
  }
  if (!NUMBER.test(target)) throw new PatchcordError('bad-state', `${path} points outside of its folder`)
  return target
}

/** The finished folders, lowest number first. */
async function numbers (dir: string): Promise<string[]> {
  return (await readdir(dir)).filter(name => NUMBER.test(name)).toSorted((one, other) => Number(one) - Number(other))
}

async function removeUnfinished (dir: string): Promise<void> {
  for (const name of await readdir(dir)) {
    if (isUnfinished(name)) await rm(join(dir, name), { recursive: true, force: true })
  }
}

async function checkFolder (path: string): Promise<void> {
  const found = await lstat(path).catch((error: unknown) => { throw fileError(error, path) })
  if (!found.isDirectory()) throw new PatchcordError('bad-state', `${path} is not a folder`)
  if ((found.mode & 0o077) !== 0) throw new PatchcordError('unsafe-mode', `others can enter ${path} (mode ${(found.mode & 0o777).toString(8)})`)
}

/** Where a key lies: in the folder, where that has its own, else beside all of them. */
async function keyPath (dir: string, number: string, name: string): Promise<string> {
  const own = join(dir, number, name)
  return await readPrivate(own) === undefined ? join(dir, name) : own
}

// A key file is written under another name first, so one that exists is whole.
async function readOrMakeKey (path: string): Promise<KeyObject> {
  if (await readPrivate(path) === undefined) await writeDurably(path, privateKeyToPem((await generateKey()).privateKey))
  return await readKey(path)
}

async function readKey (path: string): Promise<KeyObject> {
  const pem = await readText(path)
  return named(path, () => {
    const key = privateKeyFromPem(pem)
    if (keyFormOf(spkiOf(key)) !== 'p256') throw new PatchcordError('bad-certificate', 'the key is not P-256')
    return key
  })
}

async function readText (path: string): Promise<string> {
  const content = await readPrivate(path)
  if (content === undefined) throw new PatchcordError('bad-state', `${path} is missing`)
  return content.toString()
}

/** An error about certificates as one about the file that holds them. */
function named<Result> (path: string, read: () => Result): Result {
  try {
    return read()
  } catch (error) {
    throw new PatchcordError('bad-state', `${path}: ${messageOf(error)}`, { cause: error })
  }
}

const mismatch = (certificate: string, key: string): PatchcordError => new PatchcordError('bad-state', `${certificate} does not belong to ${key}`)

import { X509Certificate } from 'node:crypto'
import { lstatSync, readdirSync } from 'node:fs'
import { readFile, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { systemCode } from '../core/errors.js'
import type { Check, Examined } from './doctor.js'

const DAY_MS = 86_400_000
/** A certificate is renewed by itself long before; fewer days than this and it was not. */
const FEWEST_DAYS = 14
/** Clocks that are set by hand are a little off. */
const TOLERANCE_MS = 10 * 60_000
const FEWEST_BYTES = 1024 ** 3
const FEWEST_SHARE = 0.02

async function certificateOf ({ home }: Examined): Promise<X509Certificate | undefined> {
  try {
    return new X509Certificate(await readFile(join(home.identity, 'current', 'device.pem')))
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Certificates, revocations and codes all rest on the time. What was written here cannot be of the future. */
export async function checkClock (examined: Examined): Promise<Check> {
  const now = examined.clock.now()
  const certificate = await certificateOf(examined)
  const written = ['settings.json', 'revoked.json', 'lock'].map(name => join(examined.home.root, name)).flatMap(path => {
    const stat = lstatSync(path, { throwIfNoEntry: false })
    return stat === undefined ? [] : [{ path, at: stat.mtimeMs }]
  }).find(({ at }) => at > now + TOLERANCE_MS)
  const hint = 'set the clock: timedatectl set-ntp true; without a network, timedatectl set-time'
  if (certificate !== undefined && now < Date.parse(certificate.validFrom) - TOLERANCE_MS) return { name: 'clock', ok: false, detail: `it is ${iso(now)} by this machine's clock, and its own certificate begins on ${iso(Date.parse(certificate.validFrom))}`, hint }
  if (written !== undefined) return { name: 'clock', ok: false, detail: `it is ${iso(now)} by this machine's clock, and ${written.path} was written on ${iso(written.at)}`, hint }
  return { name: 'clock', ok: true, detail: `it is ${iso(now)} by this machine's clock`, hint: '' }
}

const iso = (ms: number): string => new Date(ms).toISOString().slice(0, 19) + 'Z'

export async function checkCertificate (examined: Examined): Promise<Check> {
  const certificate = await certificateOf(examined)
  if (certificate === undefined) return { name: 'certificate', ok: false, detail: 'this device has no identity yet', hint: 'the first start makes it: patchcord up' }
  const end = Date.parse(certificate.validTo)
  const days = Math.floor((end - examined.clock.now()) / DAY_MS)
  if (days < 0) return { name: 'certificate', ok: false, detail: `this device's certificate ended on ${iso(end)}`, hint: 'connect it to the device of yours that holds the CA key, which renews it' }
  if (days < FEWEST_DAYS) return { name: 'certificate', ok: false, detail: `this device's certificate ends in ${days} days, on ${iso(end)}`, hint: 'connect it to the device of yours that holds the CA key, which renews it' }
  return { name: 'certificate', ok: true, detail: `ends on ${iso(end)}, in ${days} days`, hint: '' }
}

/** Everything of state is its user's alone. */
export function checkPermissions ({ home }: Examined): Check {
  const mine = process.getuid?.()
  const wrong: Array<{ path: string, problem: string }> = []
  const look = (path: string, isDeep: boolean): void => {
    const stat = lstatSync(path, { throwIfNoEntry: false })
    if (stat === undefined || stat.isSymbolicLink()) return
    if (mine !== undefined && stat.uid !== mine) wrong.push({ path, problem: `belongs to user ${stat.uid}` })
    else if ((stat.mode & 0o077) !== 0 && !stat.isSocket()) wrong.push({ path, problem: `others may enter or read it (mode ${(stat.mode & 0o777).toString(8)})` })
    if (isDeep && stat.isDirectory()) for (const name of readdirSync(path)) look(join(path, name), true)
  }
  const root = lstatSync(home.root, { throwIfNoEntry: false })
  if (root === undefined) return { name: 'permissions', ok: true, detail: 'there is no state yet', hint: '' }
  look(home.root, false)
  look(home.identity, true)
  for (const name of readdirSync(home.root)) if (name.endsWith('.json')) look(join(home.root, name), false)
  const [first, ...others] = wrong
  if (first === undefined) return { name: 'permissions', ok: true, detail: `${home.root} is yours alone`, hint: '' }
  return { name: 'permissions', ok: false, detail: `${first.path}: ${first.problem}${others.length === 0 ? '' : `, and ${others.length} more`}`, hint: `chmod -R u=rwX,go= '${home.root}'; if it belongs to somebody else, chown it first. Who could read a key may have it: patchcord identity renew-key` }
}

export function checkStore ({ home }: Examined): Check {
  const files = lstatSync(home.files, { throwIfNoEntry: false })
  if (files === undefined) return { name: 'store', ok: true, detail: 'there is no store yet', hint: '' }
  if (!files.isDirectory()) return { name: 'store', ok: false, detail: `${home.files} is not a folder`, hint: 'move it away, and start the service again' }
  const damaged = namesIn(join(home.root, 'quarantine'))
  if (damaged.length > 0) return { name: 'store', ok: false, detail: `${damaged.length} damaged ${damaged.length === 1 ? 'file was' : 'files were'} put aside in ${join(home.root, 'quarantine')}: ${damaged[0]}${damaged.length > 1 ? ', …' : ''}`, hint: 'fetch them again from another device (patchcord get), remove what is put aside, and look at the disk (smartctl -a)' }
  return { name: 'store', ok: true, detail: 'no file was found damaged (`patchcord verify` reads them all)', hint: '' }
}

function namesIn (folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return []
    throw error
  }
}

export async function checkDisk ({ home }: Examined): Promise<Check> {
  const folder = lstatSync(home.root, { throwIfNoEntry: false }) === undefined ? join(home.root, '..') : home.root
  const { bavail, blocks, bsize, files, ffree } = await statfs(folder)
  const free = bavail * bsize
  const detail = `${(free / 1024 ** 3).toFixed(1)} GiB of ${(blocks * bsize / 1024 ** 3).toFixed(1)} GiB are free for ${home.root}`
  if (files > 0 && ffree / files < 0.001) return { name: 'disk', ok: false, detail: 'the disk takes hardly any more files (no inodes are left)', hint: 'remove small files, or move the home folder to another disk' }
  if (free < FEWEST_BYTES || bavail / blocks < FEWEST_SHARE) return { name: 'disk', ok: false, detail, hint: 'make room: `patchcord gc` lists files that nothing refers to' }
  return { name: 'disk', ok: true, detail, hint: '' }
}

import { createCipheriv, createDecipheriv, randomBytes, scrypt, type KeyObject } from 'node:crypto'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import { parseJson } from '../core/shape.js'
import { readAuthority } from './authority.js'
import { keyFormOf } from './key-form.js'
import { privateKeyFromPem, privateKeyToPem, spkiOf, userIdOf } from './keys.js'

// The kit: everything that survives the loss of all devices, in one file under one passphrase. It holds the
// CA key, and the recovery key, which exists nowhere else.
//
//   {"patchcord":"ca-kit/1","user":…,"made":…,"salt":…,"nonce":…,"sealed":…}     base64url
//
//   key    = scrypt(passphrase as UTF-8 NFC, salt 32 bytes, N 2^17, r 8, p 1), 32 bytes
//   sealed = AES-256-GCM(key, nonce 12 bytes, {"ca","caKey","recoveryKey"}) and its tag; the head is
//            authenticated with it
//
// The cost is fixed: a file cannot make its reader work harder. 2^17 takes 128 MiB and about half a second.

export interface Kit {
  /** PEM of the CA. */
  readonly ca: string
  readonly caKey: KeyObject
  readonly recoveryKey: KeyObject
}

/** The fewest characters of a passphrase. It is all that stands between a found kit and the CA. */
export const LEAST_PASSPHRASE = 12

const SCRYPT = { N: 2 ** 17, r: 8, p: 1, maxmem: 256 * 1024 * 1024 } as const
const TAG_BYTES = 16

const bytes = (length: number): v.GenericSchema<string> => v.pipe(v.string(), v.check(text => Buffer.from(text, 'base64url').toString('base64url') === text && Buffer.from(text, 'base64url').length === length, `must be the base64url of ${length} bytes`))
const KitShape = v.strictObject({
  patchcord: v.literal('ca-kit/1'),
  user: v.pipe(v.string(), v.maxLength(52)),
  made: v.pipe(v.string(), v.maxLength(30)),
  salt: bytes(32),
  nonce: bytes(12),
  sealed: v.pipe(v.string(), v.maxLength(16_384), v.regex(/^[A-Za-z0-9_-]+$/, 'must be base64url')),
})
const SealedShape = v.strictObject({ ca: v.string(), caKey: v.string(), recoveryKey: v.string() })

/** A kit as text. Throws `usage` for a passphrase that is too short. `now` is milliseconds since 1970. */
export async function sealKit ({ ca, caKey, recoveryKey }: Kit, passphrase: string, now: number): Promise<string> {
  if (passphrase.length < LEAST_PASSPHRASE) throw new PatchcordError('usage', `the passphrase is shorter than ${LEAST_PASSPHRASE} characters`, { hint: 'take several words: whoever finds the kit can guess for years' })
  const head = { patchcord: 'ca-kit/1', user: readAuthority(ca).user, made: new Date(now).toISOString(), salt: randomBytes(32).toString('base64url'), nonce: randomBytes(12).toString('base64url') }
  const cipher = createCipheriv('aes-256-gcm', await keyOf(passphrase, head.salt), Buffer.from(head.nonce, 'base64url'))
  cipher.setAAD(Buffer.from(JSON.stringify(head)))
  const plain = JSON.stringify({ ca, caKey: privateKeyToPem(caKey), recoveryKey: privateKeyToPem(recoveryKey) })
  const sealed = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final(), cipher.getAuthTag()])
  return `${JSON.stringify({ ...head, sealed: sealed.toString('base64url') })}\n`
}

/** Opens a kit. Throws `usage` for what is no kit, and `refused` for the wrong passphrase or a kit that was
 * changed, which look the same. */
export async function openKit (text: string, passphrase: string): Promise<Kit> {
  const { sealed, ...head } = parseJson(KitShape, text, 'the kit', 'usage')
  const all = Buffer.from(sealed, 'base64url')
  if (all.length <= TAG_BYTES) throw new PatchcordError('usage', 'the kit is cut off', { hint: 'take another copy of it' })
  const decipher = createDecipheriv('aes-256-gcm', await keyOf(passphrase, head.salt), Buffer.from(head.nonce, 'base64url'), { authTagLength: TAG_BYTES })
  decipher.setAAD(Buffer.from(JSON.stringify({ patchcord: head.patchcord, user: head.user, made: head.made, salt: head.salt, nonce: head.nonce })))
  decipher.setAuthTag(all.subarray(-TAG_BYTES))
  let plain: string
  try {
    plain = Buffer.concat([decipher.update(all.subarray(0, -TAG_BYTES)), decipher.final()]).toString('utf8')
  } catch (error) {
    throw new PatchcordError('refused', 'the passphrase does not open this kit', { hint: 'try again; a kit that was damaged looks the same, so try another copy too', cause: error })
  }
  const { ca, caKey, recoveryKey } = parseJson(SealedShape, plain, 'the kit', 'usage')
  const kit = { ca, caKey: privateKeyFromPem(caKey), recoveryKey: privateKeyFromPem(recoveryKey) }
  if (userIdOf(spkiOf(kit.caKey)) !== readAuthority(ca).user || keyFormOf(spkiOf(kit.recoveryKey)) !== 'p256') throw new PatchcordError('bad-certificate', 'what the kit holds does not belong together')
  return kit
}

function keyOf (passphrase: string, salt: string): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    scrypt(passphrase.normalize('NFC'), Buffer.from(salt, 'base64url'), 32, SCRYPT, (error, key) => {
      if (error === null) resolve(key)
      else reject(error)
    })
  })
}

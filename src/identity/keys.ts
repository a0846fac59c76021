import { createHash, createPrivateKey, createPublicKey, generateKeyPair, sign, verify, type KeyObject } from 'node:crypto'
import { promisify } from 'node:util'
import { encodeBase32 } from '../core/base32.js'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { keyFormOf, P256_SPKI_HEAD } from './key-form.js'
import { decodeOnePem } from './pem.js'

const generate = promisify(generateKeyPair)

export interface KeyPair { readonly privateKey: KeyObject, readonly publicKey: KeyObject }

/** A fresh P-256 key pair: what devices, servers and user CAs have. */
export async function generateKey (): Promise<KeyPair> {
  return await generate('ec', { namedCurve: 'P-256' })
}

/** A fresh RSA-3072 key pair, e = 65537, for clients that cannot run patchcord (`patchcord export`). */
export async function generateClientKey (): Promise<KeyPair> {
  return await generate('rsa', { modulusLength: 3072, publicExponent: 65537 })
}

/** The canonical SubjectPublicKeyInfo of a private or public key: 91 bytes for P-256, however the key was
 * spelled when it was loaded. Throws `bad-certificate` for a key that is neither P-256 nor RSA-3072. */
export function spkiOf (key: KeyObject): Buffer {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key
  const spki = publicKey.asymmetricKeyType === 'ec' ? p256SpkiOf(publicKey) : publicKey.export({ type: 'spki', format: 'der' })
  if (keyFormOf(spki) === 'other') throw new PatchcordError('bad-certificate', 'the key is neither P-256 nor RSA-3072')
  return spki
}

/** The device ID of a canonical SubjectPublicKeyInfo: its SHA-256, base32. */
export const deviceIdOf = (spki: Uint8Array): DeviceId => encodeBase32(sha256(spki)) as DeviceId

/** The user ID of a user CA's canonical SubjectPublicKeyInfo: its SHA-256, base32. */
export const userIdOf = (spki: Uint8Array): UserId => encodeBase32(sha256(spki)) as UserId

/** A private key as PKCS#8 PEM, without a passphrase: the folder's mode protects it. */
export function privateKeyToPem (key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }).toString()
}

/** A private key out of PKCS#8 PEM. Throws `bad-certificate` for anything but a P-256 or RSA-3072
 * key that is whole. */
export function privateKeyFromPem (pem: string): KeyObject {
  const der = decodeOnePem(pem, 'PRIVATE KEY')
  let key: KeyObject
  try {
    key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  } catch (error) {
    throw new PatchcordError('bad-certificate', 'not a PKCS#8 private key', { cause: error })
  }
  const publicKey = publicKeyFromSpki(spkiOf(key))
  // PKCS#8 holds both halves, and OpenSSL does not compare them: one flipped bit would make a key that
  // loads, matches its certificate and signs nothing that anybody accepts.
  if (!verify('sha256', PROBE, publicKey, sign('sha256', PROBE, key))) throw new PatchcordError('bad-certificate', 'the private key does not fit its public half')
  return key
}

const PROBE = Buffer.from('patchcord-key-probe')

/** A public key out of its canonical SubjectPublicKeyInfo. */
export const publicKeyFromSpki = (spki: Buffer): KeyObject => createPublicKey({ key: spki, format: 'der', type: 'spki' })

// A key object keeps the point form it was loaded with and exports it again, so the canonical bytes are
// put together from the coordinates.
function p256SpkiOf (key: KeyObject): Buffer {
  const { crv, x, y } = key.export({ format: 'jwk' })
  if (crv !== 'P-256' || x === undefined || y === undefined) return Buffer.alloc(0)
  return Buffer.concat([P256_SPKI_HEAD, Buffer.from(x, 'base64url'), Buffer.from(y, 'base64url')])
}

const sha256 = (bytes: Uint8Array): Buffer => createHash('sha256').update(bytes).digest()

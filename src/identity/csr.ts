import 'reflect-metadata'
import { verify, type KeyObject } from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { PatchcordError } from '../core/errors.js'
import { toCryptoKey, toPublicCryptoKey } from './certificates.js'
import { DerReader, TAG } from './der.js'
import { keyFormOf } from './key-form.js'
import { deviceIdOf, publicKeyFromSpki, spkiOf } from './keys.js'
import { decodeOnePem, encodePem } from './pem.js'
import { bitsOf, ecdsaHashOf } from './x509.js'

/** The longest certificate signing request that is read, in bytes of DER. */
export const CSR_LIMIT = 8192

/** A request to certify this P-256 private key, as PEM. It proves that the asker has the key; whoever
 * signs takes nothing else from it, but may compare `nonce` with the one it asked for. */
export async function createCsr (key: KeyObject, nonce?: string): Promise<string> {
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: [deviceIdOf(spkiOf(key))] }],
    keys: { privateKey: await toCryptoKey(key), publicKey: await toPublicCryptoKey(key) },
    signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
    attributes: nonce === undefined ? [] : [new x509.ChallengePasswordAttribute(nonce)],
  })
  return encodePem('CERTIFICATE REQUEST', new Uint8Array(request.rawData))
}

/** Reads a request (RFC 2986) for its public key, and its nonce where it has one. Its own signature is
 * checked; subject and extensions are never looked at. Throws `bad-certificate` where it is longer than
 * 8 KiB, not canonical, not over a P-256 key in the 91-byte form, or not signed by that key. */
export function readCsr (pemOrDer: string | Uint8Array): { spki: Buffer, nonce?: string } {
  // A copy, so that what is returned does not change when the caller's bytes do.
  const der = typeof pemOrDer === 'string' ? decodeOnePem(pemOrDer, 'CERTIFICATE REQUEST') : Buffer.from(pemOrDer)
  if (der.length > CSR_LIMIT) throw bad(`is longer than ${CSR_LIMIT} bytes`)
  const request = DerReader.of(der).enter(TAG.sequence)
  const signed = request.whole(TAG.sequence)
  const hash = ecdsaHashOf(request.whole(TAG.sequence))
  const signature = bitsOf(request.content(TAG.bitString))
  request.finish()
  const info = DerReader.of(signed).enter(TAG.sequence)
  if (!info.content(TAG.integer).equals(Buffer.of(0))) throw bad('has a version other than 1')
  info.whole(TAG.sequence)
  const spki = info.whole(TAG.sequence)
  const nonce = info.is(0xa0) ? readNonce(info.enter(0xa0)) : undefined
  info.finish()
  if (keyFormOf(spki) !== 'p256') throw bad('is not over a P-256 key in the canonical 91-byte form')
  if (hash === undefined || !verify(hash, signed, publicKeyFromSpki(spki), signature)) throw bad('is not signed by the key that it names')
  return nonce === undefined ? { spki } : { spki, nonce }
}

/** challengePassword of RFC 2985 section 5.4.1. */
const CHALLENGE_PASSWORD = '2a864886f70d010907'

function readNonce (attributes: DerReader): string | undefined {
  let nonce: string | undefined
  while (!attributes.done) {
    const attribute = attributes.enter(TAG.sequence)
    const type = attribute.content(TAG.oid).toString('hex')
    const values = attribute.enter(TAG.set)
    attribute.finish()
    if (type !== CHALLENGE_PASSWORD) continue
    if (nonce !== undefined) throw bad('has two nonces')
    nonce = values.any().content.toString('latin1')
    values.finish()
  }
  return nonce
}

const bad = (problem: string): PatchcordError => new PatchcordError('bad-certificate', `the signing request ${problem}`)

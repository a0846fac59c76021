import 'reflect-metadata'
import { randomBytes, webcrypto, type KeyObject } from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import { serverUri } from './admission.js'
import { readAuthority } from './authority.js'
import { keyFormOf } from './key-form.js'
import { deviceIdOf, publicKeyFromSpki, spkiOf, userIdOf } from './keys.js'
import { decodeOnePem, encodePem } from './pem.js'

// The profiles of the certificates that patchcord makes (certs/README.md has them as a table). Names are
// IDs, never a person's, a host's or a login; nothing is copied out of a request but its key.

const MINUTE = 60_000
const DAY = 24 * 60 * MINUTE

/** How long a user CA lives, in milliseconds: 20 years. */
export const CA_LIFETIME_MS = 20 * 365.25 * DAY
/** How long a device's or a server's certificate lives, in milliseconds. */
export const LEAF_LIFETIME_MS = 365 * DAY
/** How far before the present a leaf begins, for clocks that are behind. */
export const BACKDATE_MS = 5 * MINUTE
/** How far before the present a CA begins: before every leaf it will ever sign. */
export const CA_BACKDATE_MS = 60 * MINUTE

/** The only DNS names that a user CA may certify: none that a website has (RFC 2606). */
export const PERMITTED_DNS = 'patchcord.invalid'

/** A self-signed user CA over `key` (a P-256 private key), as PEM. `now` is milliseconds since 1970. */
export async function createUserCa (key: KeyObject, now: number): Promise<string> {
  const spki = spkiOf(key)
  const name = commonName(userIdOf(spki))
  return await create({
    subject: name,
    issuer: name,
    notBefore: now - CA_BACKDATE_MS,
    notAfter: now + CA_LIFETIME_MS,
    spki,
    signingKey: key,
    issuerSpki: spki,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign | x509.KeyUsageFlags.digitalSignature, true),
      new x509.Extension('2.5.29.30', true, NAME_CONSTRAINTS),
    ],
  })
}

export interface Issuing {
  /** PEM of the user CA, and its private key. */
  readonly ca: string
  readonly caKey: KeyObject
  /** The key to certify: the canonical P-256 SubjectPublicKeyInfo. */
  readonly spki: Buffer
  /** Milliseconds since 1970. */
  readonly now: number
}

/** A certificate for a device key: clientAuth alone, one year, PEM. Throws `bad-certificate` where the key
 * is not canonical P-256, the CA is outside its dates or `caKey` is not its key. */
export async function issueDevice (issuing: Issuing): Promise<string> {
  return await issueLeaf(issuing, 'p256', deviceIdOf(issuing.spki), [
    new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth]),
    new x509.SubjectAlternativeNameExtension([{ type: 'url', value: serverUri(deviceIdOf(issuing.spki)) }]),
  ])
}

/** The same for a client that cannot run patchcord: an RSA-3072 key. It is admitted only where its device
 * ID is listed. */
export async function issueClient (issuing: Issuing): Promise<string> {
  return await issueLeaf(issuing, 'rsa3072', deviceIdOf(issuing.spki), [
    new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth]),
    new x509.SubjectAlternativeNameExtension([{ type: 'url', value: serverUri(deviceIdOf(issuing.spki)) }]),
  ])
}

/** A certificate for the server key of `device`: serverAuth alone, one year, PEM. Throws as `issueDevice`. */
export async function issueServer ({ device, ...issuing }: Issuing & { readonly device: DeviceId }): Promise<string> {
  return await issueLeaf(issuing, 'p256', device, [
    new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
    new x509.SubjectAlternativeNameExtension([{ type: 'url', value: serverUri(device) }, { type: 'dns', value: `${device}.${PERMITTED_DNS}` }]),
  ])
}

/** A certificate over a device key that the key signed itself, as PEM: for pairing, where nothing is believed
 * yet. It names nobody, and admits nowhere. */
export async function selfSigned (key: KeyObject, now: number): Promise<string> {
  const spki = spkiOf(key)
  const nobody = commonName('patchcord')
  return await create({ subject: nobody, issuer: nobody, notBefore: now - BACKDATE_MS, notAfter: now + DAY, spki, signingKey: key, issuerSpki: spki, extensions: [new x509.BasicConstraintsExtension(false, undefined, true)] })
}

async function issueLeaf ({ ca, caKey, spki, now }: Issuing, form: 'p256' | 'rsa3072', id: DeviceId, extensions: x509.Extension[]): Promise<string> {
  const authority = readAuthority(ca)
  const issuerSpki = spkiOf(caKey)
  if (userIdOf(issuerSpki) !== authority.user) throw new PatchcordError('bad-certificate', 'the CA key does not belong to the CA certificate')
  if (!(now >= authority.notBefore && now < authority.notAfter)) throw new PatchcordError('bad-certificate', 'the CA certificate is outside its dates', { hint: 'check the clock of this device' })
  if (keyFormOf(spki) !== form) throw new PatchcordError('bad-certificate', `the key to certify is not ${form === 'p256' ? 'P-256' : 'RSA-3072'} in canonical form`)
  return await create({
    subject: commonName(id),
    issuer: new x509.X509Certificate(decodeOnePem(ca, 'CERTIFICATE')).subjectName,
    notBefore: Math.max(now - BACKDATE_MS, authority.notBefore),
    notAfter: Math.min(now + LEAF_LIFETIME_MS, authority.notAfter),
    spki,
    signingKey: caKey,
    issuerSpki,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      ...extensions,
    ],
  })
}

interface Creation {
  readonly subject: x509.JsonName
  readonly issuer: x509.JsonName | x509.Name
  readonly notBefore: number
  readonly notAfter: number
  readonly spki: Buffer
  readonly signingKey: KeyObject
  readonly issuerSpki: Buffer
  readonly extensions: x509.Extension[]
}

async function create ({ subject, issuer, notBefore, notAfter, spki, signingKey, issuerSpki, extensions }: Creation): Promise<string> {
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial(),
    subject,
    issuer,
    // Certificates count in seconds; a fraction would be cut off one way or the other.
    notBefore: new Date(Math.ceil(notBefore / 1000) * 1000),
    notAfter: new Date(Math.floor(notAfter / 1000) * 1000),
    publicKey: new x509.PublicKey(spki),
    signingKey: await toCryptoKey(signingKey),
    signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
    extensions: [
      ...extensions,
      await x509.SubjectKeyIdentifierExtension.create(new x509.PublicKey(spki)),
      await x509.AuthorityKeyIdentifierExtension.create(new x509.PublicKey(issuerSpki)),
    ],
  })
  return encodePem('CERTIFICATE', new Uint8Array(certificate.rawData))
}

// A string name would be parsed ("O=a+CN=b"), so names go in as JSON.
const commonName = (id: string): x509.JsonName => [{ CN: [id] }]

/** 16 random bytes as a positive integer whose first byte is never padding (RFC 5280 section 4.1.2.2). */
function serial (): string {
  const bytes = randomBytes(16)
  bytes[0] = bytes[0]! & 0x7f | 0x40
  return bytes.toString('hex')
}

/** What @peculiar/x509 signs with. `KeyObject.toCryptoKey` came after Node 20. */
export async function toCryptoKey (key: KeyObject): Promise<webcrypto.CryptoKey> {
  return await webcrypto.subtle.importKey('pkcs8', key.export({ type: 'pkcs8', format: 'der' }), { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
}

/** The public half for @peculiar/x509. */
export async function toPublicCryptoKey (key: KeyObject): Promise<webcrypto.CryptoKey> {
  return await webcrypto.subtle.importKey('spki', publicKeyFromSpki(spkiOf(key)).export({ type: 'spki', format: 'der' }), { name: 'ECDSA', namedCurve: 'P-256' }, true, ['verify'])
}

// RFC 5280 section 4.2.1.10: permitted DNS patchcord.invalid and IP fe80::/10, so that a person who imports
// the CA into a browser endangers no website. URIs stay free: OpenSSL finds no host in a urn and refuses.
const NAME_CONSTRAINTS = Buffer.concat([
  Buffer.from('303ba0393013', 'hex'),
  Buffer.from('8211', 'hex'), Buffer.from(PERMITTED_DNS),
  Buffer.from('30228720', 'hex'), Buffer.from(`fe80${'00'.repeat(14)}ffc0${'00'.repeat(14)}`, 'hex'),
])

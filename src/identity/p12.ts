import type { KeyObject } from 'node:crypto'
import forge from 'node-forge'
import { PatchcordError } from '../core/errors.js'
import { readLeaf } from './leaf.js'
import { decodeOnePem } from './pem.js'

// PKCS#12 (RFC 7292) for clients that cannot run patchcord. node-forge has the ASN.1, the key encryption and
// the MAC; the bag of the certificate is put together here from the raw DER, because forge would parse and
// write anew a certificate that ECDSA signed, and its signature would no longer verify. Nothing here reads a
// bundle: the iteration count of a foreign one is its maker's choice.

/** Iterations of PBKDF2-HMAC-SHA-256 over the passphrase, and of the MAC's own derivation. OWASP's number of
 * 2023 for PBKDF2; forge's default is 2048. */
export const P12_ITERATIONS = 600_000

export interface P12Parts {
  /** RSA: forge knows no other private keys. */
  readonly key: KeyObject
  /** PEM of the leaf, then of its CA. */
  readonly certificate: string
  readonly ca: string
  /** What the certificate is called in the store it is imported into. */
  readonly name: string
  readonly passphrase: string
  readonly iterations?: number
}

const { asn1, pki, util } = forge
const { Class, Type } = asn1

/** A PKCS#12 bundle: the key under AES-256-CBC with PBKDF2-HMAC-SHA-256, the leaf and its CA as they are, and
 * a MAC over all of it. Throws `bad-certificate` for a leaf that is not RSA. It blocks for about as long as
 * somebody who guesses passphrases needs for one guess. */
export function writeP12 ({ key, certificate, ca, name, passphrase, iterations = P12_ITERATIONS }: P12Parts): Buffer {
  const leaf = decodeOnePem(certificate, 'CERTIFICATE')
  if (key.asymmetricKeyType !== 'rsa' || readLeaf(leaf).keyForm !== 'rsa3072') throw new PatchcordError('bad-certificate', 'a PKCS#12 bundle is made for RSA-3072 keys alone')
  // What ties the key to its certificate: any bytes that both bags have.
  const attributes = set(
    sequence(oid(pki.oids['localKeyId']!), set(octets(forge.random.getBytesSync(20)))),
    sequence(oid(pki.oids['friendlyName']!), set(primitive(Type.BMPSTRING, bmp(name)))))
  const privateKeyInfo = asn1.fromDer(binary(key.export({ type: 'pkcs8', format: 'der' })))
  const shrouded = pki.encryptPrivateKeyInfo(privateKeyInfo, passphrase, { algorithm: 'aes256', prfAlgorithm: 'sha256', count: iterations, saltSize: 16 } as Parameters<typeof pki.encryptPrivateKeyInfo>[2])
  const safe = der(sequence(
    data(der(sequence(certificateBag(leaf, attributes), certificateBag(decodeOnePem(ca, 'CERTIFICATE'))))),
    data(der(sequence(sequence(oid(pki.oids['pkcs8ShroudedKeyBag']!), explicit(shrouded), attributes))))))
  return Buffer.from(der(sequence(integer(3), data(safe), macOf(safe, passphrase, iterations))), 'latin1')
}

type Asn1 = forge.asn1.Asn1

/** RFC 7292 section 4: MacData with SHA-256. */
function macOf (safe: string, passphrase: string, iterations: number): Asn1 {
  const salt = forge.random.getBytesSync(16)
  const key = forge.pkcs12.generateKey(passphrase, util.createBuffer(salt), 3, iterations, 32, forge.md.sha256.create())
  const mac = forge.hmac.create()
  mac.start('sha256', key)
  mac.update(safe)
  return sequence(
    sequence(sequence(oid(pki.oids['sha256']!), primitive(Type.NULL, '')), octets(mac.digest().getBytes())),
    octets(salt),
    integer(iterations))
}

const certificateBag = (certificate: Buffer, attributes?: Asn1): Asn1 => sequence(
  oid(pki.oids['certBag']!),
  explicit(sequence(oid(pki.oids['x509Certificate']!), explicit(octets(binary(certificate))))),
  ...attributes === undefined ? [] : [attributes])

/** PKCS#7 ContentInfo of plain data. */
const data = (content: string): Asn1 => sequence(oid(pki.oids['data']!), explicit(octets(content)))

const primitive = (type: forge.asn1.Type, content: string): Asn1 => asn1.create(Class.UNIVERSAL, type, false, content)
const constructed = (type: forge.asn1.Type, content: Asn1[]): Asn1 => asn1.create(Class.UNIVERSAL, type, true, content)
const sequence = (...content: Asn1[]): Asn1 => constructed(Type.SEQUENCE, content)
const set = (...content: Asn1[]): Asn1 => constructed(Type.SET, content)
const explicit = (content: Asn1): Asn1 => asn1.create(Class.CONTEXT_SPECIFIC, 0, true, [content])
const octets = (content: string): Asn1 => primitive(Type.OCTETSTRING, content)
const oid = (dotted: string): Asn1 => primitive(Type.OID, asn1.oidToDer(dotted).getBytes())
const integer = (value: number): Asn1 => primitive(Type.INTEGER, asn1.integerToDer(value).getBytes())

// forge carries bytes in strings, one character each, and converts BMP strings to UTF-16 when it writes them.
const der = (value: Asn1): string => asn1.toDer(value).getBytes()
const binary = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1')
/** BMPString has no characters beyond the basic plane. */
const bmp = (text: string): string => text.replace(/[\ud800-\udfff]/g, '?')

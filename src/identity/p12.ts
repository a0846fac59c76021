import { createCipheriv, createHash, createHmac, pbkdf2, randomBytes, type KeyObject } from 'node:crypto'
import { setImmediate as turn } from 'node:timers/promises'
import { promisify } from 'node:util'
import forge from 'node-forge'
import { PatchcordError } from '../core/errors.js'
import { readLeaf } from './leaf.js'
import { decodeOnePem } from './pem.js'

// PKCS#12 (RFC 7292) for clients that cannot run patchcord. node-forge writes the ASN.1; the bag of the
// certificate is put together from the raw DER, because forge would parse and write anew a certificate that
// ECDSA signed, and its signature would no longer verify. Keys are derived by node:crypto: forge's own loops
// take 13 s for as many iterations, and the service would stand still meanwhile. Nothing here reads a bundle:
// the iteration count of a foreign one is its maker's choice.

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

const { asn1 } = forge
const { Class, Type } = asn1
const OID = forge.pki.oids as Readonly<Record<'localKeyId' | 'friendlyName' | 'pkcs8ShroudedKeyBag' | 'certBag' | 'x509Certificate' | 'data' | 'sha256' | 'pkcs5PBES2' | 'pkcs5PBKDF2' | 'hmacWithSHA256' | 'aes256-CBC', string>>

/** A PKCS#12 bundle: the key under AES-256-CBC with PBKDF2-HMAC-SHA-256, the leaf and its CA as they are, and
 * a MAC over all of it. Throws `bad-certificate` for a leaf that is not RSA. */
export async function writeP12 ({ key, certificate, ca, name, passphrase, iterations = P12_ITERATIONS }: P12Parts): Promise<Buffer> {
  const leaf = decodeOnePem(certificate, 'CERTIFICATE')
  if (key.asymmetricKeyType !== 'rsa' || readLeaf(leaf).keyForm !== 'rsa3072') throw new PatchcordError('bad-certificate', 'a PKCS#12 bundle is made for RSA-3072 keys alone')
  // What ties the key to its certificate: any bytes that both bags have.
  const attributes = set(
    sequence(oid(OID.localKeyId), set(octets(randomBytes(20)))),
    sequence(oid(OID.friendlyName), set(primitive(Type.BMPSTRING, bmp(name)))))
  const shrouded = await encryptKey(key, passphrase, iterations)
  const safe = der(sequence(
    data(der(sequence(certificateBag(leaf, attributes), certificateBag(decodeOnePem(ca, 'CERTIFICATE'))))),
    data(der(sequence(sequence(oid(OID.pkcs8ShroudedKeyBag), explicit(shrouded), attributes))))))
  return der(sequence(integer(3), data(safe), await macOf(safe, passphrase, iterations)))
}

type Asn1 = forge.asn1.Asn1

/** RFC 8018 section 6.2: EncryptedPrivateKeyInfo under PBES2. */
async function encryptKey (key: KeyObject, passphrase: string, iterations: number): Promise<Asn1> {
  const salt = randomBytes(16)
  const iv = randomBytes(16)
  const cipher = createCipheriv('aes-256-cbc', await promisify(pbkdf2)(passphrase, salt, iterations, 32, 'sha256'), iv)
  const encrypted = Buffer.concat([cipher.update(key.export({ type: 'pkcs8', format: 'der' })), cipher.final()])
  const derivation = sequence(oid(OID.pkcs5PBKDF2), sequence(octets(salt), integer(iterations), integer(32), sequence(oid(OID.hmacWithSHA256), nothing())))
  const encryption = sequence(oid(OID['aes256-CBC']), octets(iv))
  return sequence(sequence(oid(OID.pkcs5PBES2), sequence(derivation, encryption)), octets(encrypted))
}

/** RFC 7292 section 4: MacData with HMAC-SHA-256. */
async function macOf (safe: Buffer, passphrase: string, iterations: number): Promise<Asn1> {
  const salt = randomBytes(16)
  const mac = createHmac('sha256', await macKey(passphrase, salt, iterations)).update(safe).digest()
  return sequence(sequence(sequence(oid(OID.sha256), nothing()), octets(mac)), octets(salt), integer(iterations))
}

/** RFC 7292 appendix B.2 for ID 3 (integrity) and one block of SHA-256, in turns that leave others time. */
async function macKey (passphrase: string, salt: Buffer, iterations: number): Promise<Buffer> {
  const password = Buffer.from(`${bmp(passphrase)}\0`, 'utf16le').swap16()
  let hash = createHash('sha256').update(Buffer.alloc(64, 3)).update(repeated(salt)).update(repeated(password)).digest()
  for (let done = 1; done < iterations; done++) {
    hash = createHash('sha256').update(hash).digest()
    if (done % 5_000 === 0) await turn()
  }
  return hash
}

/** Repeated up to the next multiple of SHA-256's block. */
const repeated = (bytes: Buffer): Buffer => Buffer.alloc(Math.ceil(bytes.length / 64) * 64, bytes)

const certificateBag = (certificate: Buffer, attributes?: Asn1): Asn1 => sequence(
  oid(OID.certBag),
  explicit(sequence(oid(OID.x509Certificate), explicit(octets(certificate)))),
  ...attributes === undefined ? [] : [attributes])

/** PKCS#7 ContentInfo of plain data. */
const data = (content: Buffer): Asn1 => sequence(oid(OID.data), explicit(octets(content)))

const primitive = (type: forge.asn1.Type, content: string): Asn1 => asn1.create(Class.UNIVERSAL, type, false, content)
const constructed = (type: forge.asn1.Type, content: Asn1[]): Asn1 => asn1.create(Class.UNIVERSAL, type, true, content)
const sequence = (...content: Asn1[]): Asn1 => constructed(Type.SEQUENCE, content)
const set = (...content: Asn1[]): Asn1 => constructed(Type.SET, content)
const explicit = (content: Asn1): Asn1 => asn1.create(Class.CONTEXT_SPECIFIC, 0, true, [content])
const octets = (content: Uint8Array): Asn1 => primitive(Type.OCTETSTRING, Buffer.from(content).toString('latin1'))
const nothing = (): Asn1 => primitive(Type.NULL, '')
const oid = (dotted: string): Asn1 => primitive(Type.OID, asn1.oidToDer(dotted).getBytes())
const integer = (value: number): Asn1 => primitive(Type.INTEGER, asn1.integerToDer(value).getBytes())

// forge carries bytes in strings, one character each, and converts BMP strings to UTF-16 when it writes them.
const der = (value: Asn1): Buffer => Buffer.from(asn1.toDer(value).getBytes(), 'latin1')
/** BMPString has no characters beyond the basic plane. */
const bmp = (text: string): string => text.replace(/[\ud800-\udfff]/g, '?')

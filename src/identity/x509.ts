import { PatchcordError } from '../core/errors.js'
import { checkDer, DerReader, TAG } from './der.js'

// A strict reading of RFC 5280 certificates, for leaves and authorities alike. It keeps the very bytes that
// were signed, so that the facts and the signature can never come from two different readings.

export interface X509Facts {
  /** What the signature is over, and the signature with its hash. */
  readonly signed: Buffer
  readonly signature: Buffer
  /** The hash of an ECDSA signature; undefined for every other algorithm. */
  readonly ecdsaHash: 'sha256' | 'sha384' | 'sha512' | undefined
  /** Raw DER of the names. They are hints where to look; nothing is decided by them. */
  readonly issuer: Buffer
  readonly subject: Buffer
  /** Milliseconds since 1970; both moments are still inside (RFC 5280 section 4.1.2.5). */
  readonly notBefore: number
  readonly notAfter: number
  readonly spki: Buffer
  readonly isCa: boolean
  /** undefined where there is no keyUsage extension, which then restricts nothing. */
  readonly keyUsage: { readonly digitalSignature: boolean, readonly keyCertSign: boolean } | undefined
  readonly clientAuth: boolean
  readonly serverAuth: boolean
  readonly uris: readonly string[]
  readonly authorityKeyId: Buffer | undefined
  readonly subjectKeyId: Buffer | undefined
  /** Critical nameConstraints: right in an authority, unknown in a leaf. */
  readonly criticalNameConstraints: boolean
  readonly unknownCritical: boolean
}

/** Reads one certificate in DER. Throws `bad-certificate` for what is not canonical DER, not a certificate,
 * or holds an extension twice. */
export function parseX509 (der: Uint8Array): X509Facts {
  const file = DerReader.of(der)
  const certificate = file.enter(TAG.sequence)
  const signed = certificate.whole(TAG.sequence)
  const algorithm = certificate.whole(TAG.sequence)
  const signature = bitsOf(certificate.content(TAG.bitString))
  certificate.finish()

  const tbs = DerReader.of(signed).enter(TAG.sequence)
  const version = tbs.is(0xa0) ? tbs.enter(0xa0).content(TAG.integer).toString('hex') : '00'
  if (version !== '02' && version !== '00') refuse('a version other than 1 and 3')
  const serial = tbs.content(TAG.integer)
  if (serial.length > 20 || serial[0]! >= 0x80) refuse('a serial number that is negative or longer than 20 bytes')
  if (!tbs.whole(TAG.sequence).equals(algorithm)) refuse('two different signature algorithms')
  const issuer = tbs.whole(TAG.sequence)
  const validity = tbs.enter(TAG.sequence)
  const notBefore = readTime(validity)
  const notAfter = readTime(validity)
  validity.finish()
  const subject = tbs.whole(TAG.sequence)
  const spki = tbs.whole(TAG.sequence)
  const extensions = version === '02' && tbs.is(0xa3) ? tbs.enter(0xa3) : undefined
  // Unique identifiers (RFC 5280 section 4.1.2.8) are never made and end here as something left over.
  tbs.finish()
  return {
    signed, signature, ecdsaHash: ecdsaHashOf(algorithm), issuer, subject, notBefore, notAfter, spki, ...readExtensions(extensions),
  }
}

type ExtensionFacts = Pick<X509Facts, 'isCa' | 'keyUsage' | 'clientAuth' | 'serverAuth' | 'uris' | 'authorityKeyId' | 'subjectKeyId' | 'criticalNameConstraints' | 'unknownCritical'>

const EXTENSION = {
  subjectKeyId: '551d0e',
  keyUsage: '551d0f',
  subjectAltName: '551d11',
  basicConstraints: '551d13',
  nameConstraints: '551d1e',
  authorityKeyId: '551d23',
  extendedKeyUsage: '551d25',
} as const

const CLIENT_AUTH = '2b06010505070302'
const SERVER_AUTH = '2b06010505070301'

function readExtensions (wrapper: DerReader | undefined): ExtensionFacts {
  const facts: { -readonly [Name in keyof ExtensionFacts]: ExtensionFacts[Name] } = {
    isCa: false, keyUsage: undefined, clientAuth: false, serverAuth: false, uris: [], authorityKeyId: undefined, subjectKeyId: undefined, criticalNameConstraints: false, unknownCritical: false,
  }
  if (wrapper === undefined) return facts
  const list = wrapper.enter(TAG.sequence)
  wrapper.finish()
  if (list.done) refuse('an empty list of extensions')
  const seen = new Set<string>()
  while (!list.done) {
    const extension = list.enter(TAG.sequence)
    const id = extension.content(TAG.oid).toString('hex')
    const critical = extension.optional(TAG.boolean)
    if (critical?.[0] === 0) refuse('a default that is spelled out')
    const value = extension.content(TAG.octetString)
    extension.finish()
    if (seen.has(id)) refuse('the same extension twice')
    seen.add(id)
    switch (id) {
      case EXTENSION.basicConstraints: facts.isCa = readBasicConstraints(value); break
      case EXTENSION.keyUsage: facts.keyUsage = readKeyUsage(value); break
      case EXTENSION.extendedKeyUsage: Object.assign(facts, readExtendedKeyUsage(value)); break
      case EXTENSION.subjectAltName: facts.uris = readUris(value); break
      case EXTENSION.authorityKeyId: facts.authorityKeyId = readAuthorityKeyId(value); break
      case EXTENSION.subjectKeyId: facts.subjectKeyId = only(value, reader => reader.content(TAG.octetString)); break
      case EXTENSION.nameConstraints: checkDer(value); facts.criticalNameConstraints = critical !== undefined; break
      default: if (critical !== undefined) facts.unknownCritical = true
    }
  }
  return facts
}

function readBasicConstraints (value: Buffer): boolean {
  const reader = DerReader.of(value).enter(TAG.sequence)
  const ca = reader.optional(TAG.boolean)
  if (ca?.[0] === 0) refuse('a default that is spelled out')
  const pathLength = reader.optional(TAG.integer)
  if (pathLength !== undefined && (ca === undefined || pathLength[0]! >= 0x80)) refuse('a path length that means nothing')
  reader.finish()
  return ca !== undefined
}

function readKeyUsage (value: Buffer): { digitalSignature: boolean, keyCertSign: boolean } {
  const bits = only(value, reader => reader.content(TAG.bitString))
  const first = bits[1] ?? 0
  return { digitalSignature: (first & 0x80) !== 0, keyCertSign: (first & 0x04) !== 0 }
}

// anyExtendedKeyUsage counts for nothing: a certificate has to say what it is for.
function readExtendedKeyUsage (value: Buffer): { clientAuth: boolean, serverAuth: boolean } {
  const list = DerReader.of(value).enter(TAG.sequence)
  if (list.done) refuse('an empty extendedKeyUsage')
  let clientAuth = false
  let serverAuth = false
  while (!list.done) {
    const purpose = list.content(TAG.oid).toString('hex')
    if (purpose === CLIENT_AUTH) clientAuth = true
    if (purpose === SERVER_AUTH) serverAuth = true
  }
  return { clientAuth, serverAuth }
}

function readUris (value: Buffer): string[] {
  const uris: string[] = []
  const list = DerReader.of(value).enter(TAG.sequence)
  while (!list.done) {
    const { tag, content } = list.any()
    if (tag !== 0x86) continue
    if (content.some(byte => byte < 0x21 || byte > 0x7e)) refuse('a URI that is not plain ASCII')
    uris.push(content.toString('latin1'))
  }
  return uris
}

function readAuthorityKeyId (value: Buffer): Buffer | undefined {
  return DerReader.of(value).enter(TAG.sequence).optional(0x80)
}

function only (value: Buffer, read: (reader: DerReader) => Buffer): Buffer {
  const reader = DerReader.of(value)
  const content = read(reader)
  reader.finish()
  return content
}

/** The bytes of a bit string that has whole bytes. */
export function bitsOf (content: Buffer): Buffer {
  if (content[0] !== 0) refuse('a bit string with unused bits')
  return content.subarray(1)
}

// RFC 5758 section 3.2: the parameters are absent.
const ECDSA_HASHES = new Map([
  ['300a06082a8648ce3d040302', 'sha256'],
  ['300a06082a8648ce3d040303', 'sha384'],
  ['300a06082a8648ce3d040304', 'sha512'],
] as const)

/** The hash that a whole AlgorithmIdentifier stands for, where it is ECDSA with SHA-2. */
export const ecdsaHashOf = (algorithm: Buffer): 'sha256' | 'sha384' | 'sha512' | undefined => ECDSA_HASHES.get(algorithm.toString('hex') as '300a06082a8648ce3d040302')

const UTC_TIME = /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/
const GENERALIZED_TIME = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/

function readTime (reader: DerReader): number {
  const { tag, content } = reader.any()
  const match = tag === TAG.utcTime ? UTC_TIME.exec(content.toString('latin1')) : tag === TAG.generalizedTime ? GENERALIZED_TIME.exec(content.toString('latin1')) : null
  if (match === null) return refuse('a date')
  const [year, month, day, hour, minute, second] = match.slice(1).map(Number) as [number, number, number, number, number, number]
  const date = new Date(0)
  date.setUTCFullYear(tag === TAG.generalizedTime ? year : year < 50 ? 2000 + year : 1900 + year, month - 1, day)
  date.setUTCHours(hour, minute, second)
  // What rolled over (31 February, 24:00) was no date.
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day || date.getUTCHours() !== hour || date.getUTCMinutes() !== minute || date.getUTCSeconds() !== second) return refuse('a date')
  return date.getTime()
}

function refuse (problem: string): never {
  throw new PatchcordError('bad-certificate', `the certificate has ${problem}`)
}

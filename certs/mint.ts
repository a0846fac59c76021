import { createHash, createPublicKey, generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto'

// Makes any certificate at all, byte by byte: the good, and above all those that no library would make. It
// is for tests and for trying by hand; patchcord itself issues through src/identity/certificates.ts.

/** One DER value: a tag, and content in any number of pieces. */
export function der (tag: number, ...content: Uint8Array[]): Buffer {
  const body = Buffer.concat(content)
  const head = body.length < 0x80 ? [tag, body.length] : body.length < 0x100 ? [tag, 0x81, body.length] : body.length < 0x10000 ? [tag, 0x82, body.length >> 8, body.length & 255] : [tag, 0x83, body.length >> 16, body.length >> 8 & 255, body.length & 255]
  return Buffer.concat([Buffer.from(head), body])
}

export const sequence = (...content: Uint8Array[]): Buffer => der(0x30, ...content)
export const set = (...content: Uint8Array[]): Buffer => der(0x31, ...content)
export const octets = (...content: Uint8Array[]): Buffer => der(0x04, ...content)
export const bits = (bytes: Uint8Array, unused = 0): Buffer => der(0x03, Buffer.of(unused), bytes)
export const TRUE = Buffer.from('0101ff', 'hex')

/** An integer of these big-endian bytes, which is not negative. */
export function integer (bytes: Uint8Array): Buffer {
  let at = 0
  while (at < bytes.length - 1 && bytes[at] === 0) at++
  const rest = bytes.subarray(at)
  return rest[0]! >= 0x80 ? der(0x02, Buffer.of(0), rest) : der(0x02, rest)
}

export function oid (dotted: string): Buffer {
  const [first, second, ...rest] = dotted.split('.').map(Number) as [number, number, ...number[]]
  const bytes: number[] = []
  for (let arc of [first * 40 + second, ...rest]) {
    const group = [arc & 0x7f]
    while ((arc >>>= 7) > 0) group.unshift(arc & 0x7f | 0x80)
    bytes.push(...group)
  }
  return der(0x06, Buffer.from(bytes))
}

/** A name of one common name. */
export const nameOf = (commonName: string): Buffer => sequence(set(sequence(oid('2.5.4.3'), der(0x0c, Buffer.from(commonName)))))

function time (milliseconds: number): Buffer {
  const text = new Date(milliseconds).toISOString().replace(/[-:T]|\.\d+/g, '')
  const year = Number(text.slice(0, 4))
  return year >= 1950 && year < 2050 ? der(0x17, Buffer.from(text.slice(2))) : der(0x18, Buffer.from(text))
}

/** `critical: 'no'` spells the default out, which DER forbids. */
export interface Extension { readonly id: string, readonly critical?: boolean | 'no', readonly value: Uint8Array }

export const EKU = { clientAuth: '1.3.6.1.5.5.7.3.2', serverAuth: '1.3.6.1.5.5.7.3.1', any: '2.5.29.37.0', codeSigning: '1.3.6.1.5.5.7.3.3' } as const

export const basicConstraints = (ca: boolean, pathLength?: number): Extension => ({ id: '2.5.29.19', critical: true, value: ca ? sequence(TRUE, ...(pathLength === undefined ? [] : [integer(Buffer.of(pathLength))])) : sequence() })
export const extendedKeyUsage = (...purposes: string[]): Extension => ({ id: '2.5.29.37', value: sequence(...purposes.map(oid)) })
export const subjectKeyId = (id: Uint8Array): Extension => ({ id: '2.5.29.14', value: octets(id) })
export const authorityKeyId = (id: Uint8Array): Extension => ({ id: '2.5.29.35', value: sequence(der(0x80, id)) })
export const uris = (...values: string[]): Extension => ({ id: '2.5.29.17', value: sequence(...values.map(uri => der(0x86, Buffer.from(uri)))) })

/** keyUsage by its bits, first bit first: digitalSignature 0, keyCertSign 5, cRLSign 6. */
export function keyUsage (...numbers: number[]): Extension {
  let byte = 0
  for (const number of numbers) byte |= 0x80 >> number
  const unused = byte === 0 ? 0 : 7 - Math.max(...numbers)
  return { id: '2.5.29.15', critical: true, value: byte === 0 ? bits(Buffer.alloc(0)) : bits(Buffer.of(byte), unused) }
}

export interface Minting {
  readonly subject?: Buffer
  readonly issuer?: Buffer
  /** Whole seconds count. */
  readonly notBefore: number
  readonly notAfter: number
  readonly spki: Uint8Array
  readonly signer: KeyObject
  /** The order stays, and so does what stands there twice. */
  readonly extensions: readonly Extension[]
  /** 1 leaves the version out; 3 is the default. */
  readonly version?: 1 | 2 | 3
  readonly serial?: Uint8Array
  readonly hash?: 'sha1' | 'sha256' | 'sha384' | 'sha512'
  /** The algorithm outside of the signed part, where it is to differ. */
  readonly outerAlgorithm?: Buffer
}

/** The certificate, in DER. */
export function mint ({ subject = nameOf('device'), issuer = nameOf('user'), notBefore, notAfter, spki, signer, extensions, version = 3, serial = positive(randomBytes(16)), hash = 'sha256', outerAlgorithm }: Minting): Buffer {
  const algorithm = algorithmOf(signer, hash)
  const tbs = sequence(
    ...(version === 1 ? [] : [der(0xa0, integer(Buffer.of(version - 1)))]),
    integer(serial),
    algorithm,
    issuer,
    sequence(time(notBefore), time(notAfter)),
    subject,
    spki,
    ...(extensions.length === 0 ? [] : [der(0xa3, sequence(...extensions.map(extensionOf)))]))
  return sequence(tbs, outerAlgorithm ?? algorithm, bits(sign(hash, tbs, signer)))
}

const extensionOf = ({ id, critical, value }: Extension): Buffer => sequence(oid(id), ...(critical === true ? [TRUE] : critical === 'no' ? [Buffer.from('010100', 'hex')] : []), octets(value))

export function algorithmOf (signer: KeyObject, hash: 'sha1' | 'sha256' | 'sha384' | 'sha512'): Buffer {
  if (signer.asymmetricKeyType === 'rsa') return sequence(oid(`1.2.840.113549.1.1.${{ sha1: 5, sha256: 11, sha384: 12, sha512: 13 }[hash]}`), der(0x05))
  return sequence(oid(hash === 'sha1' ? '1.2.840.10045.4.1' : `1.2.840.10045.4.3.${{ sha256: 2, sha384: 3, sha512: 4 }[hash]}`))
}

function positive (bytes: Buffer): Buffer {
  bytes[0] = bytes[0]! & 0x7f | 0x40
  return bytes
}

export interface MintedKey { readonly privateKey: KeyObject, readonly spki: Buffer }

export const p256Key = (): MintedKey => withSpki(generateKeyPairSync('ec', { namedCurve: 'P-256' }))
export const p384Key = (): MintedKey => withSpki(generateKeyPairSync('ec', { namedCurve: 'P-384' }))
export const ed25519Key = (): MintedKey => withSpki(generateKeyPairSync('ed25519'))
export const rsaKey = (modulusLength: number, publicExponent = 65537): MintedKey => withSpki(generateKeyPairSync('rsa', { modulusLength, publicExponent }))
/** P-256 with the curve's parameters spelled out instead of its name. */
export const explicitP256Key = (): MintedKey => withSpki(generateKeyPairSync('ec', { namedCurve: 'P-256', paramEncoding: 'explicit' }))

const withSpki = ({ privateKey, publicKey }: { privateKey: KeyObject, publicKey: KeyObject }): MintedKey => ({ privateKey, spki: publicKey.export({ type: 'spki', format: 'der' }) })

/** The same P-256 key with its point in another form: compressed (33 bytes) or hybrid (65 bytes). */
export function respellP256 (spki: Buffer, form: 'compressed' | 'hybrid'): Buffer {
  const [x, y] = [spki.subarray(27, 59), spki.subarray(59, 91)]
  const odd = y[31]! & 1
  const point = form === 'compressed' ? Buffer.concat([Buffer.of(2 | odd), x]) : Buffer.concat([Buffer.of(6 | odd), x, y])
  return sequence(sequence(oid('1.2.840.10045.2.1'), oid('1.2.840.10045.3.1.7')), bits(point))
}

/** The key identifier of RFC 5280 section 4.2.1.2, method 1. */
export const keyIdOf = (key: KeyObject): Buffer => {
  const { x, y } = createPublicKey(key).export({ format: 'jwk' })
  return createHash('sha1').update(Buffer.concat([Buffer.of(4), Buffer.from(x!, 'base64url'), Buffer.from(y!, 'base64url')])).digest()
}

/** A certificate authority of a test: a user's own, a friend's, or a stranger's. */
export interface MintedCa {
  readonly key: KeyObject
  readonly spki: Buffer
  readonly name: Buffer
  readonly keyId: Buffer
  readonly der: Buffer
  readonly pem: string
}

export const YEAR_MS = 365 * 24 * 60 * 60 * 1000

/** A user CA as patchcord makes it, but for its names; `changes` replace any part of it. */
export function mintCa (label: string, now: number, changes: Partial<Minting> = {}): MintedCa {
  const { privateKey, spki } = p256Key()
  const name = changes.subject ?? nameOf(label)
  const keyId = keyIdOf(privateKey)
  const certificate = mint({
    subject: name, issuer: name, notBefore: now - 3_600_000, notAfter: now + 20 * YEAR_MS, spki, signer: privateKey,
    extensions: [basicConstraints(true, 0), keyUsage(0, 5, 6), subjectKeyId(keyId)],
    ...changes,
  })
  return { key: privateKey, spki, name, keyId, der: certificate, pem: toPem(certificate) }
}

/** A device's certificate as patchcord makes it, signed by `ca`; `changes` replace any part of it. */
export function mintLeaf (ca: MintedCa, spki: Buffer, now: number, changes: Partial<Minting> = {}): Buffer {
  return mint({
    issuer: ca.name, notBefore: now - 300_000, notAfter: now + YEAR_MS, spki, signer: ca.key,
    extensions: [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.clientAuth), authorityKeyId(ca.keyId)],
    ...changes,
  })
}

export function toPem (bytes: Uint8Array, label = 'CERTIFICATE'): string {
  return `-----BEGIN ${label}-----\n${Buffer.from(bytes).toString('base64').match(/.{1,64}/g)!.join('\n')}\n-----END ${label}-----\n`
}

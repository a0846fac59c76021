import { createHash, verify } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { DeviceId } from '../core/ids.js'
import type { Authority } from './authority.js'
import { keyFormOf, type KeyForm } from './key-form.js'
import { deviceIdOf } from './keys.js'
import { parseX509 } from './x509.js'

/** What a certificate says of itself, before anyone believed it. Frozen; it depends on the bytes alone and
 * never on the time, the whitelist or a revocation. */
export interface Leaf {
  readonly der: Buffer
  /** SHA-256 of the whole certificate, hex. */
  readonly fingerprint: string
  readonly spki: Buffer
  readonly keyForm: KeyForm
  /** SHA-256 of `spki`, base32, whatever the form. It counts only where `keyForm` is not `other`. */
  readonly deviceId: DeviceId
  /** Milliseconds since 1970; both moments are still inside. */
  readonly notBefore: number
  readonly notAfter: number
  readonly isCa: boolean
  readonly canSignCertificates: boolean
  /** Whether the key may sign a handshake: digitalSignature, or no keyUsage at all (RFC 8446 4.4.2.2). */
  readonly canAuthenticate: boolean
  /** Named in extendedKeyUsage; anyExtendedKeyUsage does not count. */
  readonly clientAuth: boolean
  readonly serverAuth: boolean
  /** URIs of the subjectAltName. */
  readonly uris: readonly string[]
  /** Raw DER of the issuer's name: a hint where to look for the CA, never a reason. */
  readonly issuer: Buffer
  readonly authorityKeyId?: Buffer
  readonly unknownCritical: boolean
}

/** Reads a certificate in DER. Throws `bad-certificate` for what is not one in its canonical form. A
 * certificate that was read before comes from a bounded cache, as the same object. */
export function readLeaf (der: Uint8Array): Leaf {
  const fingerprint = createHash('sha256').update(der).digest('hex')
  const known = cache.get(fingerprint)
  if (known !== undefined) return known
  // A copy: the bytes belong to the caller, and what is cached must not change under us.
  const bytes = Buffer.from(der)
  const facts = parseX509(bytes)
  const leaf: Leaf = Object.freeze({
    der: bytes,
    fingerprint,
    spki: facts.spki,
    keyForm: keyFormOf(facts.spki),
    deviceId: deviceIdOf(facts.spki),
    notBefore: facts.notBefore,
    notAfter: facts.notAfter,
    isCa: facts.isCa,
    canSignCertificates: facts.keyUsage?.keyCertSign ?? false,
    canAuthenticate: facts.keyUsage?.digitalSignature ?? true,
    clientAuth: facts.clientAuth,
    serverAuth: facts.serverAuth,
    uris: Object.freeze([...facts.uris]),
    issuer: facts.issuer,
    ...(facts.authorityKeyId === undefined ? {} : { authorityKeyId: facts.authorityKeyId }),
    // nameConstraints are an authority's; a leaf that holds them, critical, says something we do not know.
    unknownCritical: facts.unknownCritical || facts.criticalNameConstraints,
  })
  cache.set(fingerprint, leaf)
  signatures.set(leaf, { signed: facts.signed, signature: facts.signature, hash: facts.ecdsaHash, verified: new Map() })
  return leaf
}

/** Whether this authority's key signed the leaf: ECDSA with SHA-2 over the very bytes that were read. Each
 * answer is kept with the leaf, since neither the bytes nor the key can change. Dates are not looked at. */
export function isSignedBy (leaf: Leaf, authority: Authority): boolean {
  const own = signatures.get(leaf)
  // Only `readLeaf` makes leaves; one that somebody put together has no signature to check.
  if (own === undefined || own.hash === undefined) return false
  const known = own.verified.get(authority.user)
  if (known !== undefined) return known
  const good = verify(own.hash, own.signed, authority.publicKey, own.signature)
  // The set of CAs asked about grows only by this user's own whitelist; the bound is a second net.
  if (own.verified.size >= MOST_ANSWERS) own.verified.clear()
  own.verified.set(authority.user, good)
  return good
}

interface Signature {
  readonly signed: Buffer
  readonly signature: Buffer
  readonly hash: 'sha256' | 'sha384' | 'sha512' | undefined
  /** By the ID of the CA's key, since a signature depends on the key alone. */
  readonly verified: Map<string, boolean>
}

const MOST_ANSWERS = 64

// A stranger may fill it with certificates of its own making. That costs the others one more parse, and
// never more memory than this: entries are counted, and their bytes.
const cache = new LRUCache<string, Leaf>({ max: 1024, maxSize: 2 * 1024 * 1024, sizeCalculation: leaf => leaf.der.length })

const signatures = new WeakMap<Leaf, Signature>()

// A device ID is the hash of a key's SubjectPublicKeyInfo, so one key must have one spelling: else it has
// several IDs and a revocation names only one of them. Both forms are compared byte by byte, not parsed.

/** `p256`: the 91-byte uncompressed form (RFC 5480) with the point on the curve. `rsa3072`: the 422-byte
 * form (RFC 8017 A.1.1) with e = 65537. Everything else is `other`: a compressed or hybrid point,
 * explicit curve parameters, another curve, another size, another exponent. */
export type KeyForm = 'p256' | 'rsa3072' | 'other'

/** The length of the canonical P-256 SubjectPublicKeyInfo, in bytes. */
export const P256_SPKI_BYTES = 91

/** Everything before x and y, with the 0x04 of an uncompressed point. */
export const P256_SPKI_HEAD = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex')
/** Everything before the modulus. Its own first byte is 0x00, because an integer has a sign. */
const RSA3072_HEAD = Buffer.from('308201a2300d06092a864886f70d01010105000382018f003082018a0282018100', 'hex')
const RSA_65537 = Buffer.from('0203010001', 'hex')
const RSA3072_MODULUS = 384

/** Which form a SubjectPublicKeyInfo in DER has. Never throws. */
export function keyFormOf (spki: Buffer): KeyForm {
  if (isP256(spki)) return 'p256'
  return isRsa3072(spki) ? 'rsa3072' : 'other'
}

function isP256 (spki: Buffer): boolean {
  const head = P256_SPKI_HEAD.length
  if (spki.length !== P256_SPKI_BYTES || P256_SPKI_HEAD.compare(spki, 0, head) !== 0) return false
  return isOnP256(toBigInt(spki, head, head + 32), toBigInt(spki, head + 32, head + 64))
}

function isRsa3072 (spki: Buffer): boolean {
  const head = RSA3072_HEAD.length
  const end = head + RSA3072_MODULUS
  return spki.length === end + RSA_65537.length &&
    RSA3072_HEAD.compare(spki, 0, head) === 0 &&
    RSA_65537.compare(spki, end) === 0 &&
    spki[head]! >= 0x80 && // exactly 3072 bits
    (spki[end - 1]! & 1) === 1
}

// SEC 2 section 2.4.2. The numbers are public, so BigInt's timing gives nothing away, and this takes a
// tenth of what an import by OpenSSL does.
const P = 0xffffffff00000001000000000000000000000000ffffffffffffffffffffffffn
const B = 0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604bn

const isOnP256 = (x: bigint, y: bigint): boolean => x < P && y < P && (y * y - (x * x - 3n) * x - B) % P === 0n

const toBigInt = (bytes: Buffer, from: number, to: number): bigint => BigInt(`0x${bytes.toString('hex', from, to)}`)

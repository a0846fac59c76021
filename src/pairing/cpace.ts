import { createHash } from 'node:crypto'
import { ristretto255_hasher } from '@noble/curves/ed25519.js'
import { lvCat } from '../core/lv-cat.js'

// CPace with ristretto255 and SHA-512: draft-irtf-cfrg-cpace-21, sections 6, 7.1 and 7.3. The arithmetic is
// noble's. JavaScript's big integers take a time that depends on their values, so this is not constant in
// time; what a clock on the same link may learn is of one scalar that is used once (THREATS.md).

/** The length of a share in bytes: the canonical encoding of a group element (RFC 9496). */
export const SHARE_BYTES = 32
/** The length of ISK in bytes. */
export const ISK_BYTES = 64
/** How many random bytes a share takes. */
export const SCALAR_BYTES = 32

const DSI = Buffer.from('CPaceRistretto255')
const DSI_ISK = Buffer.from('CPaceRistretto255_ISK')
/** The input block of SHA-512: the password fills one, so that hashing it takes the same time always. */
const BLOCK_BYTES = 128

/** What both sides must agree in: the password, the channel's identifier and who the two are. */
export interface Terms {
  readonly prs: Uint8Array
  readonly ci: Uint8Array
  readonly sid: Uint8Array
}

/** One side's share, and the secret that goes with it: a scalar, little endian, used once. */
export interface OwnShare {
  readonly scalar: Buffer
  readonly share: Buffer
}

/** What each side sent: its share and its associated data. */
export interface Sent {
  readonly share: Uint8Array
  readonly ad: Uint8Array
}

/** A share out of 32 random bytes, of which the draft's sample_scalar takes 252 bits. Throws RangeError for
 * another length, or where those bits are all zero. */
export function makeShare (terms: Terms, random: Uint8Array): OwnShare {
  if (random.length !== SCALAR_BYTES) throw new RangeError(`a share takes ${SCALAR_BYTES} random bytes, not ${random.length}`)
  const scalar = Buffer.from(random)
  scalar[SCALAR_BYTES - 1]! &= 0x0f
  return { scalar, share: Buffer.from(generatorOf(terms).multiply(integerOf(scalar)).toBytes()) }
}

/** The intermediate session key of the initiator-responder setting, `initiator` being A; `own.scalar` belongs
 * to the share of either. undefined, and nothing is to be believed, where the other's share is not the
 * canonical encoding of an element, is the identity, or equals our own (a reflection). */
export function deriveIsk (terms: Terms, own: OwnShare, other: Uint8Array, { initiator, responder }: { readonly initiator: Sent, readonly responder: Sent }): Buffer | undefined {
  if (own.share.equals(other)) return undefined
  const secret = multiplyVerified(own.scalar, other)
  if (secret === undefined) return undefined
  return createHash('sha512')
    .update(lvCat(DSI_ISK, terms.sid, secret))
    // transcript_ir
    .update(lvCat(initiator.share, initiator.ad)).update(lvCat(responder.share, responder.ad))
    .digest()
}

/** scalar_mult_vfy: undefined stands for the identity, which is also what an encoding that is none gives. */
export function multiplyVerified (scalar: Uint8Array, encoded: Uint8Array): Buffer | undefined {
  if (encoded.length !== SHARE_BYTES) return undefined
  let point: InstanceType<typeof ristretto255_hasher.Point>
  try {
    point = ristretto255_hasher.Point.fromBytes(encoded)
  } catch {
    return undefined
  }
  // noble decodes the identity as any element.
  if (point.is0()) return undefined
  const product = point.multiply(integerOf(scalar))
  return product.is0() ? undefined : Buffer.from(product.toBytes())
}

/** The generator that the terms give, encoded: for the draft's vectors. */
export const encodedGenerator = (terms: Terms): Buffer => Buffer.from(generatorOf(terms).toBytes())

/** generator_string of section 7.1. */
export function generatorString ({ prs, ci, sid }: Terms): Buffer {
  const padding = Math.max(0, BLOCK_BYTES - 1 - lvCat(prs).length - lvCat(DSI).length)
  return lvCat(DSI, prs, Buffer.alloc(padding), ci, sid)
}

function generatorOf (terms: Terms): InstanceType<typeof ristretto255_hasher.Point> {
  return ristretto255_hasher.deriveToCurve!(createHash('sha512').update(generatorString(terms)).digest())
}

/** noble's `multiply` throws for zero and for what is not below the group's order. */
const integerOf = (littleEndian: Uint8Array): bigint => BigInt(`0x${Buffer.from(littleEndian).reverse().toString('hex')}`)

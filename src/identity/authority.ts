import type { KeyObject } from 'node:crypto'
import { PatchcordError } from '../core/errors.js'
import type { UserId } from '../core/ids.js'
import { keyFormOf } from './key-form.js'
import { publicKeyFromSpki, userIdOf } from './keys.js'
import { decodeOnePem } from './pem.js'
import { parseX509 } from './x509.js'

/** A user CA that somebody decided to trust. Its key is what counts; its names are hints. */
export interface Authority {
  readonly user: UserId
  readonly publicKey: KeyObject
  /** Milliseconds since 1970; outside of them nothing that it signed counts. */
  readonly notBefore: number
  readonly notAfter: number
  /** Raw DER of its own name. */
  readonly subject: Buffer
  readonly subjectKeyId: Buffer | undefined
}

/** Reads a user CA's certificate: one PEM block, CA:TRUE, allowed to sign certificates, P-256 in the
 * canonical form, no critical extension but nameConstraints unknown to us. Throws `bad-certificate`. Its
 * dates are read and not judged; its own signature proves nothing and is not looked at. */
export function readAuthority (pem: string): Authority {
  return readAuthorityDer(decodeOnePem(pem, 'CERTIFICATE'))
}

/** The same, from DER. */
export function readAuthorityDer (der: Uint8Array): Authority {
  const facts = parseX509(der)
  if (!facts.isCa) throw bad('is not a CA (basicConstraints CA:TRUE is missing)')
  if (facts.keyUsage?.keyCertSign === false) throw bad('may not sign certificates (keyUsage without keyCertSign)')
  if (facts.unknownCritical) throw bad('has a critical extension that patchcord does not know')
  if (keyFormOf(facts.spki) !== 'p256') throw bad('has a key that is not P-256 in the canonical 91-byte form')
  const { notBefore, notAfter } = facts
  // Copies, so that the whole certificate need not stay in memory for them.
  const spki = Buffer.from(facts.spki)
  let publicKey: KeyObject | undefined
  return Object.freeze({
    user: userIdOf(spki),
    // A whitelist may hold thousands that never connect: the key is imported when a signature needs it.
    get publicKey () { return publicKey ??= publicKeyFromSpki(spki) },
    notBefore,
    notAfter,
    subject: Buffer.from(facts.subject),
    subjectKeyId: facts.subjectKeyId === undefined ? undefined : Buffer.from(facts.subjectKeyId),
  })
}

const bad = (problem: string): PatchcordError => new PatchcordError('bad-certificate', `the CA certificate ${problem}`)

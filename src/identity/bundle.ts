import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import { admitClient, admitServer, buildTrust, isRefusal } from './admission.js'
import { readAuthorityDer, type Authority } from './authority.js'
import { createCsr, readCsr } from './csr.js'
import { keyFormOf } from './key-form.js'
import { isSignedBy, readLeaf, type Leaf } from './leaf.js'
import { decodePem, encodePem, type PemBlock } from './pem.js'
import { OWN_GRANT } from './trust.js'
import type { KeyObject } from 'node:crypto'

// What devices hand each other as files: a bundle says who a device is (`identity --export`, `trust`), a
// request asks for certificates (`device request`), an issue answers it (`device issue`, `device install`).
// Each is PEM blocks in one fixed order and nothing else, and each is judged by admission itself.

/** Who a bundle speaks of. The certificates are PEM; dates are milliseconds since 1970. */
export interface Bundle {
  readonly device: DeviceId
  readonly user: UserId
  readonly deviceCertificate: string
  readonly userCa: string
  /** The public half of that user's recovery key (SubjectPublicKeyInfo), where it was told. */
  readonly recoveryKey?: Buffer
  readonly notBefore: number
  readonly notAfter: number
}

/** A device certificate followed by its CA, as PEM; after them the recovery key, where there is one. */
export const formatBundle = (deviceCertificate: string, userCa: string, recoveryKey?: Buffer): string => deviceCertificate + userCa + formatRecoveryKey(recoveryKey)

/** The public half of a recovery key as a PEM block, or nothing. It goes at the end of a bundle or an issue. */
export const formatRecoveryKey = (recoveryKey: Buffer | undefined): string => recoveryKey === undefined ? '' : encodePem('PUBLIC KEY', recoveryKey)

/** Reads such a bundle. The CA signed the certificate, which would be admitted as that user's device at the
 * time it was made; whether it still is in its dates is for the caller to say, and for admission to
 * decide. Throws `bad-certificate`. */
export function parseBundle (pem: string): Bundle {
  const { found: [device, ca], recoveryKey } = certificates(pem, 2, 'a device certificate and its CA')
  const { leaf, authority } = checkDevice(device!.der, ca!.der)
  return Object.freeze({
    device: leaf.deviceId,
    user: authority.user,
    deviceCertificate: encodePem('CERTIFICATE', device!.der),
    userCa: encodePem('CERTIFICATE', ca!.der),
    ...recoveryKey === undefined ? {} : { recoveryKey },
    notBefore: leaf.notBefore,
    notAfter: leaf.notAfter,
  })
}

/** What a CA holder answers to a request. */
export interface Issue extends Bundle {
  readonly serverCertificate: string
  readonly deviceSpki: Buffer
  readonly serverSpki: Buffer
}

/** A device certificate, the server certificate that goes with it, and their CA, as PEM. */
export const formatIssue = (deviceCertificate: string, serverCertificate: string, userCa: string): string => deviceCertificate + serverCertificate + userCa

/** Reads such an issue: both certificates are over different keys, good for what they are for and signed
 * by that CA. Dates are judged at `now`, where it is given. Throws `bad-certificate`. */
export function parseIssue (pem: string, now?: number): Issue {
  const { found: [device, server, ca], recoveryKey } = certificates(pem, 3, 'a device certificate, a server certificate and their CA')
  const { leaf, authority } = checkDevice(device!.der, ca!.der, now)
  const serverLeaf = readLeaf(server!.der)
  const admitted = admitServer({ device: leaf.deviceId, ca: authority, revoked: NOBODY }, serverLeaf, now ?? firstMoment(serverLeaf, authority))
  if (isRefusal(admitted)) throw bad(`the server certificate is refused: ${admitted.reason}`)
  if (serverLeaf.spki.equals(leaf.spki)) throw bad('the server certificate is over the device key, which must stay with the agent')
  return Object.freeze({
    ...parseBundle(formatBundle(encodePem('CERTIFICATE', device!.der), encodePem('CERTIFICATE', ca!.der), recoveryKey)),
    serverCertificate: encodePem('CERTIFICATE', server!.der),
    deviceSpki: leaf.spki,
    serverSpki: serverLeaf.spki,
  })
}

/** Two signing requests in one file, of the device key and of the server key, as PEM; both say the nonce. */
export async function formatRequest (deviceKey: KeyObject, serverKey: KeyObject, nonce?: string): Promise<string> {
  return await createCsr(deviceKey, nonce) + await createCsr(serverKey, nonce)
}

/** Reads such a file for its two public keys, and the nonce where both requests say the same one. Throws
 * `bad-certificate` unless each request is signed by the key that it names, and the keys differ. */
export function parseRequest (pem: string): { deviceSpki: Buffer, serverSpki: Buffer, nonce?: string } {
  const [device, server] = blocks(decodePem(pem), 'CERTIFICATE REQUEST', 2, 'two signing requests, of the device key and of the server key')
  const { spki: deviceSpki, nonce } = readCsr(device!.der)
  const { spki: serverSpki, nonce: serverNonce } = readCsr(server!.der)
  if (deviceSpki.equals(serverSpki)) throw bad('both requests are over one key; the server key must be another than the device key')
  return { deviceSpki, serverSpki, ...nonce === undefined || nonce !== serverNonce ? {} : { nonce } }
}

/** A device certificate and its CA, judged by the predicate that would admit it as an own device. Without
 * `now` the dates are left aside. */
function checkDevice (device: Buffer, ca: Buffer, now?: number): { leaf: Leaf, authority: Authority } {
  const authority = readAuthorityDer(ca)
  // Nothing rests on a CA's own signature, but one that does not hold shows that the file is damaged.
  if (!isSignedBy(readLeaf(ca), authority)) throw bad('the CA certificate is damaged: its own signature does not hold')
  const leaf = readLeaf(device)
  const trust = buildTrust({ userCa: encodePem('CERTIFICATE', ca), whitelist: [], revoked: [], grants: { [OWN_GRANT]: { databases: {}, files: 'referenced' } } })
  const admitted = admitClient(trust, leaf, now ?? firstMoment(leaf, authority))
  if (isRefusal(admitted)) throw bad(`the device certificate is refused: ${admitted.refused === 'unknown' ? 'the CA beside it did not sign it' : admitted.reason}`)
  return { leaf, authority }
}

/** The first moment at which a certificate could have been good. */
const firstMoment = (leaf: Leaf, authority: Authority): number => Math.max(leaf.notBefore, authority.notBefore)

const NOBODY: ReadonlySet<DeviceId> = new Set()

function certificates (pem: string, count: number, what: string): { found: PemBlock[], recoveryKey?: Buffer } {
  const all = decodePem(pem)
  const last = all.at(-1)
  if (last?.label !== 'PUBLIC KEY') return { found: blocks(all, 'CERTIFICATE', count, what) }
  if (keyFormOf(last.der) !== 'p256') throw bad('the recovery key is not P-256 in the canonical 91-byte form')
  return { found: blocks(all.slice(0, -1), 'CERTIFICATE', count, what), recoveryKey: last.der }
}

function blocks (found: PemBlock[], label: string, count: number, what: string): PemBlock[] {
  if (found.length !== count || found.some(block => block.label !== label)) throw bad(`the file does not hold exactly ${what}`)
  return found
}

const bad = (problem: string): PatchcordError => new PatchcordError('bad-certificate', problem)

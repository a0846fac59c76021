import * as v from 'valibot'
import type { DeviceId } from '../core/ids.js'
import { deviceId } from '../core/shape.js'
import { CaRecordShape, type WireCaRecord } from '../identity/ca-records.js'
import { SignedRecordShape, type SignedRecord } from '../identity/revocation.js'

// What devices tell each other by mail about trust. Signatures are believed, never the server that had it.
//
//   {"nonce":"…",                                CA holder to own device: what a signing request has to say
//    "csr":{"request":PEM,"at":ms},              own device to CA holder: two requests with that nonce, and its clock
//    "certificates":PEM,                         CA holder to own device: the answer
//    "revocations":[{"v":1,"body","sig"}],       to own devices, and to peers about this user's devices
//    "revoke":[{"device"}],                      own device without the CA key to one that has it: please confirm
//    "statements":[…]}                           ends and successions of this user's CA (identity/ca-records.ts)

/** The most records in one mail: 100 take about 25 KB of its 64. */
export const MOST_RECORDS = 100
const MOST_STATEMENTS = 20

export interface TrustMail {
  readonly nonce?: string | undefined
  readonly csr?: { readonly request: string, readonly at: number } | undefined
  readonly certificates?: string | undefined
  readonly revocations: readonly SignedRecord[]
  readonly revoke: ReadonlyArray<{ readonly device: DeviceId }>
  readonly statements: readonly WireCaRecord[]
}

const time = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
/** Each field on its own: one that is not of its form is passed over, so that it hides no other. */
const FIELDS = {
  nonce: v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{20,64}$/)),
  csr: v.object({ request: v.pipe(v.string(), v.maxLength(16_384)), at: time }),
  certificates: v.pipe(v.string(), v.maxLength(32_768)),
  revocations: v.pipe(v.array(SignedRecordShape), v.maxLength(MOST_RECORDS)),
  revoke: v.pipe(v.array(v.object({ device: deviceId })), v.maxLength(MOST_RECORDS)),
  statements: v.pipe(v.array(CaRecordShape), v.maxLength(MOST_STATEMENTS * 2)),
}

/** What a mail says about trust, whatever else is in it. Never throws. */
export function parseTrustMail (mail: unknown): TrustMail {
  const of = <Name extends keyof typeof FIELDS>(name: Name): v.InferOutput<(typeof FIELDS)[Name]> | undefined => {
    const value: unknown = typeof mail === 'object' && mail !== null && Object.hasOwn(mail, name) ? (mail as Record<string, unknown>)[name] : undefined
    if (value === undefined) return undefined
    const parsed = v.safeParse(FIELDS[name], value)
    return parsed.success ? parsed.output as v.InferOutput<(typeof FIELDS)[Name]> : undefined
  }
  return { nonce: of('nonce'), csr: of('csr'), certificates: of('certificates'), revocations: of('revocations') ?? [], revoke: of('revoke') ?? [], statements: of('statements') ?? [] }
}

/** The fields to send: those that say something. */
export function writeTrustMail (mail: Partial<TrustMail>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(mail).filter(([, value]) => value !== undefined && !(Array.isArray(value) && value.length === 0)))
}

import type { UserId } from '../core/ids.js'
import { recoveryKeyId, type CaRecord, type RecoveryKeyId, type Succession } from './ca-records.js'

// What became of a user CA, worked out anew from a set of verified records. The set only grows (up to a
// bound, past which nothing is believed), and what is read out of it depends on the set alone: no order,
// repetition or loss of messages leads elsewhere than to less trust for a while.

/** Where trust in a person starts: a CA that was accepted, with the recovery key that was told along. */
export interface Pin {
  readonly ca: UserId
  /** Without one nobody can ever name a CA that follows. */
  readonly recoveryKey?: RecoveryKeyId
}

export interface Standing {
  /** `frozen`: the recovery key signed two different things under one number, or too many; somebody else has it. Like
   * `retired` it ends what the CA certifies, until the person decides. */
  readonly state: 'good' | 'retired' | 'frozen'
  /** The CA that counts now: the pinned one, or the last that followed. */
  readonly ca: UserId
  /** PEM of it, where it is not the pinned one. */
  readonly pem?: string
  /** Its recovery key: what a next succession has to be signed by. */
  readonly recoveryKey?: RecoveryKeyId
  /** The public half of it, where a record carried it. */
  readonly recoverySpki?: Buffer
  /** Number of the last succession; 0 where there was none. */
  readonly seq: number
  /** Every CA on the way, the pinned one first and the present one last. */
  readonly line: readonly UserId[]
}

/** The most successions kept for one CA. More are no accident. */
export const MOST_SUCCESSIONS = 16

/** A set of records by what they say: the same body counts once, whatever its signature. */
export type CaRecords = ReadonlyMap<string, CaRecord>

/** The union. Where one recovery key signed more successions of one CA than are kept, those with the smallest
 * bodies stay: one more than is allowed, which freezes the CA, and the same ones whatever came first. */
export function mergeCaRecords (some: CaRecords, others: Iterable<CaRecord>): CaRecords {
  const merged = new Map(some)
  for (const record of others) {
    const key = record.kind === 'retire' ? `retire ${record.ca}` : `succeed ${record.ca} ${record.record.body}`
    const known = merged.get(key)
    if (known === undefined || precedes(record, known)) merged.set(key, record)
  }
  const bySigner = new Map<string, string[]>()
  for (const [key, record] of merged) {
    if (record.kind !== 'succeed') continue
    const signer = `${record.ca} ${record.record.key}`
    bySigner.set(signer, [...bySigner.get(signer) ?? [], key])
  }
  for (const keys of bySigner.values()) {
    for (const key of keys.toSorted().slice(MOST_SUCCESSIONS + 1)) merged.delete(key)
  }
  return merged
}

/** Of two records that say the same, which is kept. A retirement's date is informative: the earliest stays. */
function precedes (one: CaRecord, other: CaRecord): boolean {
  if (one.issuedAt !== other.issuedAt) return one.issuedAt < other.issuedAt
  return one.record.sig < other.record.sig
}

/** What became of the pinned CA. Fails closed: two bodies for one (CA, number) freeze it, whichever comes
 * later, and numbers must rise along the line. */
export function standingOf (pin: Pin, records: CaRecords): Standing {
  let { ca, recoveryKey } = pin
  let last: Succession | undefined
  const line = [ca]
  for (;;) {
    const seq = last?.seq ?? 0
    const here = { ca, seq, line, ...recoveryKey === undefined ? {} : { recoveryKey }, ...last === undefined ? {} : { pem: last.newCaPem, recoverySpki: last.nextRecoveryKey } }
    const next = [...records.values()].filter(record => record.kind === 'succeed')
      .filter(record => record.ca === ca && recoveryKeyId(record.recoveryKey) === recoveryKey && record.seq > seq)
    const numbers = new Set(next.map(record => record.seq))
    if (numbers.size < next.length || next.length > MOST_SUCCESSIONS) return { ...here, state: 'frozen' }
    const newest = next.reduce<Succession | undefined>((most, record) => most === undefined || record.seq > most.seq ? record : most, undefined)
    if (newest === undefined || line.includes(newest.newCa)) return { ...here, state: records.has(`retire ${ca}`) ? 'retired' : 'good' }
    last = newest
    ca = newest.newCa
    recoveryKey = recoveryKeyId(newest.nextRecoveryKey)
    line.push(ca)
  }
}

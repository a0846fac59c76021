import { PatchcordError } from '../core/errors.js'
import type { DeviceId, UserId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import type { Authority } from '../identity/authority.js'
import { parseBody, verifyRevocation } from '../identity/revocation.js'
import type { Revocation } from '../identity/revocations.js'
import type { KnownDevice, TrustBook } from './trust-book.js'
import { MOST_RECORDS, type TrustMail } from './trust-mail.js'

// Revocations spread by mail: every signed record to own devices, and those about this user's own devices to
// every peer. What comes in is verified with the CA it names, which must be known here, and added to the set.

export interface SpreadOptions {
  readonly book: TrustBook
  readonly logger: Logger
  /** The CAs that are or were this user's own; the present one last. */
  readonly ownLine: () => readonly UserId[]
  readonly authority: (ca: UserId) => Authority | undefined
  readonly hasCaKey: () => boolean
}

/** A device without the CA key that asks for a revocation to be confirmed. */
export interface AskedRevocation { readonly by: DeviceId, readonly device: DeviceId }

export class RevocationSpread {
  readonly #options: SpreadOptions
  /** In memory: the other device goes on asking until it is done. */
  readonly #asked = new Map<DeviceId, readonly DeviceId[]>()

  constructor (options: SpreadOptions) {
    this.#options = options
  }

  /** What other own devices ask to be revoked and is not yet. */
  get asked (): AskedRevocation[] {
    const done = new Set(this.#options.book.revocations.filter(({ signed }) => signed !== undefined).map(({ device }) => device))
    return [...this.#asked].flatMap(([by, devices]) => devices.filter(device => !done.has(device)).map(device => ({ by, device })))
  }

  /** What was revoked here and waits for a device that holds the CA key. */
  get pending (): DeviceId[] {
    return this.#options.book.revocations.filter(({ decided, signed }) => decided === 'here' && signed === undefined).map(({ device }) => device)
  }

  mailFor ({ relation }: KnownDevice): Pick<TrustMail, 'revocations' | 'revoke'> {
    const { book, ownLine, hasCaKey, logger } = this.#options
    if (relation === 'client') return { revocations: [], revoke: [] }
    const own = new Set(ownLine())
    const isOwn = ({ ca }: Revocation): boolean => own.has(ca)
    const all = book.revocations.filter(({ signed }) => signed !== undefined)
    // That this user no longer trusts a friend's device is no other friend's business.
    const told = relation === 'own' ? all : all.filter(record => isOwn(record) && book.known.get(record.device)?.relation !== 'peer')
    const newestFirst = told.toSorted((one, other) => Number(isOwn(other)) - Number(isOwn(one)) || other.issuedAt - one.issuedAt || (one.device < other.device ? -1 : 1))
    if (newestFirst.length > MOST_RECORDS) logger.warn({ records: newestFirst.length, told: MOST_RECORDS }, 'more revocations than one mail takes; the newest are told')
    return {
      revocations: newestFirst.slice(0, MOST_RECORDS).map(({ signed }) => signed!),
      revoke: relation === 'own' && !hasCaKey() ? this.pending.slice(0, MOST_RECORDS).map(device => ({ device })) : [],
    }
  }

  /** Takes in what a device said; resolves to whether there was any record that was new. */
  async received (from: KnownDevice, { revocations, revoke }: TrustMail): Promise<boolean> {
    const { book } = this.#options
    if (from.relation === 'own' && this.#options.hasCaKey()) this.#asked.set(from.device, revoke.map(({ device }) => device))
    const known = new Set(book.revocations.filter(({ signed }) => signed !== undefined).map(({ ca, device }) => `${ca} ${device}`))
    const records = revocations.flatMap(record => this.#believe(from, record, known) ?? [])
    return records.length > 0 && await book.addRevocations(records)
  }

  #believe ({ device: from }: KnownDevice, record: TrustMail['revocations'][number], known: ReadonlySet<string>): Revocation | undefined {
    const { authority, ownLine, logger } = this.#options
    try {
      const { ca, device } = parseBody(record)
      if (known.has(`${ca} ${device}`)) return undefined
      const signer = authority(ca)
      if (signer === undefined) return undefined
      return { ...verifyRevocation(record, signer), decided: ownLine().includes(ca) ? 'here' : 'there', signed: record }
    } catch (error) {
      if (!(error instanceof PatchcordError)) throw error
      logger.warn({ device: from, reason: error.message }, 'a revocation that came by mail is not believed')
      return undefined
    }
  }
}

import { createHmac, randomBytes } from 'node:crypto'
import type { DeviceId } from '../core/ids.js'
import type { Account, AccountScope } from '../embedded/accounts.js'
import { OWN_GRANT } from '../identity/trust.js'
import type { KnownDevice, TrustBook } from './trust-book.js'

/** Who logs in to the embedded database, and what each may do. Passwords are made from a secret of this
 * run, so that none is on disk but that of the person's own programs. */
export class AccountBook {
  readonly #secret = randomBytes(32)
  /** The agent itself. */
  readonly owner: Account
  /** The person's own programs (`patchcord couch`). */
  readonly program: Account

  constructor (programPassword: string) {
    this.owner = this.#account('patchcord-agent', { kind: 'owner' })
    this.program = { username: 'me', password: programPassword, scope: { kind: 'owner' } }
  }

  /** All accounts that the book of trust calls for; none for a device that is revoked. */
  all (book: TrustBook, revoked: ReadonlySet<DeviceId>): Account[] {
    const grants = [...this.grants(book)].filter(([name]) => !revoked.has(name as DeviceId))
    const known = [...book.known.values()].filter(({ device }) => !revoked.has(device))
    return [this.owner, this.program, ...grants.map(([, account]) => account), ...known.map(one => this.sync(book, one))]
  }

  /** What the server logs in with, by the name of the grant. */
  grants (book: TrustBook): Map<string, Account> {
    return new Map(Object.entries(book.grants).map(([name, { databases }]) =>
      [name, this.#account(`grant-${name}`, { kind: name === OWN_GRANT ? 'own' : 'peer', databases })]))
  }

  /** What a pull from a device writes with: the databases it is received into, no others. */
  sync (book: TrustBook, { device, relation }: KnownDevice): Account {
    if (relation === 'own') return this.#account('sync-own', { kind: 'own', databases: { '*': 'write' } })
    return this.#account(`sync-${device}`, { kind: 'peer', databases: receivedFrom(book, device) })
  }

  #account (username: string, scope: AccountScope): Account {
    return { username, password: createHmac('sha256', this.#secret).update(username).digest('base64url'), scope }
  }
}

/** The local databases that documents of a peer may come into: those accepted, and those it may write. */
function receivedFrom (book: TrustBook, device: DeviceId): Record<string, 'write'> {
  const databases: Record<string, 'write'> = {}
  for (const { peer, as } of book.accepted) if (peer === device) databases[as] = 'write'
  for (const [name, access] of Object.entries(book.grants[device]?.databases ?? {})) if (access === 'write') databases[name] = 'write'
  return databases
}

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { parseDeviceId } from '../core/ids.js'
import type { Principal } from '../policy/principal.js'

/** A name and password that the embedded database answers to, and what they may do. */
export interface Account {
  readonly username: string
  readonly password: string
  readonly scope: AccountScope
}

/** `owner`: the agent and the person's own programs: every database, and may create them. The others are
 * what a grant says (policy/principal.ts). */
export type AccountScope =
  | { readonly kind: 'owner' }
  | { readonly kind: 'own' | 'peer', readonly databases: Readonly<Record<string, 'read' | 'write'>> }

/** Who asks: what the policy decides by, and the one right that no grant has. */
export interface Caller {
  readonly username: string
  readonly principal: Principal
  readonly mayCreate: boolean
}

/** The accounts as they are now. Nothing here keeps a password: they are compared by a keyed digest. */
export class Accounts {
  readonly #key = randomBytes(32).toString('hex')
  #entries: ReadonlyArray<{ readonly digest: Uint8Array, readonly caller: Caller }> = []

  constructor (accounts: readonly Account[]) {
    this.replace(accounts)
  }

  /** Replaces them all at once. */
  replace (accounts: readonly Account[]): void {
    this.#entries = accounts.map(({ username, password, scope }) => ({
      digest: this.#digest(username, password),
      caller: { username, principal: principalOf(username, scope), mayCreate: scope.kind === 'owner' },
    }))
  }

  /** The digest of what an Authorization header says, or undefined where it is not Basic. It finds the
   * caller again after the accounts were replaced, without keeping the password. */
  credential (authorization: string | undefined): Uint8Array | undefined {
    const encoded = /^Basic +([A-Za-z0-9+/]{1,2048}={0,2})$/i.exec(authorization ?? '')?.[1]
    const text = encoded === undefined ? '' : Buffer.from(encoded, 'base64').toString('utf8')
    const colon = text.indexOf(':')
    // Digested in every case, so that a malformed header takes as long as a wrong password.
    const digest = this.#digest(text.slice(0, Math.max(0, colon)), text.slice(colon + 1))
    return colon === -1 ? undefined : digest
  }

  /** Who the credential is, or undefined. Compares with every account, so that time tells nobody which
   * names exist. */
  find (credential: Uint8Array): Caller | undefined {
    let found: Caller | undefined
    for (const { digest, caller } of this.#entries) {
      if (timingSafeEqual(digest, credential)) found = caller
    }
    return found
  }

  #digest (username: string, password: string): Uint8Array {
    return createHmac('sha256', this.#key).update(JSON.stringify([username, password])).digest()
  }
}

/** No device stands behind an account: the gate has already decided about the device itself. */
const NO_DEVICE = parseDeviceId('a'.repeat(52))

function principalOf (username: string, scope: AccountScope): Principal {
  return {
    device: NO_DEVICE,
    user: undefined,
    relation: scope.kind === 'peer' ? 'peer' : 'own',
    entry: username,
    name: username,
    grantName: username,
    grant: { databases: scope.kind === 'owner' ? { '*': 'write' } : { ...scope.databases }, files: 'referenced' },
    checkpoints: '',
    endsAt: Infinity,
  }
}

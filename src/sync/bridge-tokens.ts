import { createHash, timingSafeEqual } from 'node:crypto'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { PatchcordError } from '../core/errors.js'

/** A secret by which a program of this user may use the bridge. */
export interface BridgeToken {
  /** At least 128 bits of randomness, in characters of Basic authentication (no control characters). */
  readonly token: string
  /** Whose it is, for the log. */
  readonly program: string
  /** One database of one device, or everything that this device may reach (`patchcord bridge --json`). */
  readonly scope: 'general' | { readonly device: DeviceId, readonly database: DatabaseName, readonly mode: 'read' | 'write' }
}

/** The user name that goes with every token. */
export const BRIDGE_USER = 'patchcord'
const SHORTEST_TOKEN = 22

/** The tokens in force. Kept and compared as hashes: how long a comparison takes says nothing of a token,
 * not even its length, and how many are compared does not depend on which one fits. */
export class BridgeTokens {
  readonly #tokens: ReadonlyArray<readonly [Buffer, BridgeToken]>

  /** Throws `bad-env` for a token that could be guessed. */
  constructor (tokens: readonly BridgeToken[]) {
    if (tokens.some(({ token }) => token.length < SHORTEST_TOKEN)) throw new PatchcordError('bad-env', `a bridge token is shorter than ${SHORTEST_TOKEN} characters`)
    this.#tokens = tokens.map(token => [digest(`${BRIDGE_USER}:${token.token}`), token])
  }

  /** The token that an Authorization header shows, or undefined. */
  find (authorization: string | undefined): BridgeToken | undefined {
    const encoded = /^basic +([A-Za-z0-9+/]{1,1024}={0,2})$/i.exec(authorization ?? '')?.[1]
    if (encoded === undefined) return undefined
    const shown = digest(Buffer.from(encoded, 'base64'))
    let found: BridgeToken | undefined
    for (const [hash, token] of this.#tokens) if (timingSafeEqual(hash, shown)) found = token
    return found
  }

  /** Whether this very token is in force. */
  has ({ token, scope }: BridgeToken): boolean {
    return this.#tokens.some(([, other]) => other.token === token && JSON.stringify(other.scope) === JSON.stringify(scope))
  }
}

function digest (value: string | Buffer): Buffer {
  return createHash('sha256').update(value).digest()
}

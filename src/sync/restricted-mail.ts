import type { Address } from '../core/address.js'
import type { Clock } from '../core/clock.js'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import { RENEWABLE_MS, type RefusalRule } from '../identity/admission.js'
import { askPeer, PeerAgent, readBody, type PeerCredentials, type RefusedServer } from './peer-agent.js'

// What is still fetched of a device whose server cannot be admitted: its mail, for what in it is signed. A
// certificate that ended keeps its device from telling that it needs another one; a CA that was replaced keeps
// everybody from learning so from the very devices that changed. Nothing else is ever asked of such a server,
// and nothing is told to it that a stranger at that address could not have seen in the handshake.

/** Where a mail came from: an admitted server; one whose certificate ended at most a year ago; or one that the
 * pinned CA did not sign, which may be anybody's. */
export type MailOrigin = 'admitted' | 'expired' | 'unproved'

/** How a refused server's mail may still be read, or undefined where it may not. */
export function restrictedOrigin ({ refused, leaf }: RefusedServer, now: number): Exclude<MailOrigin, 'admitted'> | undefined {
  // `expired` is asked last by admission: name, form and signature hold.
  if (refused === 'expired') return now - leaf.notAfter <= RENEWABLE_MS ? 'expired' : undefined
  return refused === 'bad-signature' ? 'unproved' : undefined
}

export interface RestrictedMailOptions {
  readonly device: DeviceId
  readonly credentials: () => Promise<PeerCredentials>
  readonly address: Address
  readonly clock: Clock
  readonly signal: AbortSignal
  readonly most: number
  /** What admission may have refused this time. */
  readonly tolerates: (rule: RefusalRule) => boolean
}

/** Fetches the mail of a server that is not admitted, over one connection of its own. Throws where it was refused
 * for anything that is not tolerated. */
export async function fetchRestrictedMail ({ device, credentials, address, clock, signal, most, tolerates }: RestrictedMailOptions): Promise<Buffer> {
  const agent = new PeerAgent({ device, credentials, address: () => address, clock, tolerates: ({ refused }) => tolerates(refused) }, { keepAlive: false, maxSockets: 1 })
  try {
    const answer = await askPeer(agent, device, '/mail', { signal })
    const body = await readBody(answer, most)
    if (answer.statusCode !== 200) throw new PatchcordError('unreachable', `its mail answered ${answer.statusCode}`)
    return body
  } finally {
    agent.destroy()
  }
}

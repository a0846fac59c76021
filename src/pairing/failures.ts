import { PatchcordError, type ErrorCode } from '../core/errors.js'
import { cut } from '../core/ids.js'
import type { Refusal } from './messages.js'

/** Why an exchange ended without a pair: what crosses the wire, and what only one side sees. */
export type FailureReason = Refusal | 'hung-up' | 'unreachable' | 'spent' | 'cancelled' | 'wrong-device'

/** `by` says who found it; `detail` is ours or, escaped, somebody else's words, and never a secret. */
export interface Failure {
  readonly reason: FailureReason
  readonly by: 'us' | 'them'
  readonly detail?: string
}

/** A failure as an error with its exit code and the next step: the one place where it becomes words. */
export function failureError ({ reason, by, detail }: Failure): PatchcordError {
  const { code, us, them, hint: theirs, ourHint } = FAILURES[reason]
  const hint = by === 'us' ? ourHint ?? theirs : theirs
  const message = by === 'us' ? us : them ?? us
  return new PatchcordError(code, detail === undefined ? message : `${message}: ${cut(detail, 200)}`, { hint })
}

interface Words { readonly code: ErrorCode, readonly us: string, readonly them?: string, readonly hint: string, /** Where it is another one for who found it. */ readonly ourHint?: string }

const AGAIN = 'ask for a new code, or use the link: `patchcord pair` on the other device shows both'

const FAILURES: Readonly<Record<FailureReason, Words>> = {
  'wait': { code: 'too-many', us: 'the other device is pairing with another one just now', hint: 'wait ten seconds, then try again' },
  'ended': { code: 'not-found', us: 'the pairing window ended, or its code was used up', hint: AGAIN },
  'version': { code: 'refused', us: 'the two devices run versions of patchcord that cannot pair with each other', hint: 'bring both to the newest version' },
  'proof': { code: 'verification', us: 'the code did not match: it was mistyped, or somebody stands between the two devices', hint: AGAIN },
  'garbled': { code: 'verification', us: 'the other device sent what is no message of this protocol', them: 'the other device could not read what this one sent', hint: 'check that both run the newest version, then try again' },
  'record': { code: 'verification', us: 'what the other device says of itself does not fit the key it proved', them: 'the other device did not believe what this one says of itself', hint: 'check the clock and `patchcord identity` on both devices' },
  'relation': { code: 'refused', us: 'the two of you chose different relations', hint: 'agree on --as own (one person) or --as peer (two people), on both devices' },
  'declined': { code: 'refused', us: 'you said no', them: 'the person at the other device said no', hint: 'nothing was changed on either device' },
  'revoked': { code: 'refused', us: 'that device was revoked', them: 'the other device has revoked this one', hint: 'a revoked device needs a fresh key: `patchcord identity renew-key` on it' },
  'refused': { code: 'refused', us: 'these two devices cannot pair in this way', them: 'the other device cannot pair with this one in this way', hint: 'the other device says why', ourHint: 'nothing was changed on either device' },
  'slow': { code: 'unreachable', us: 'the other device, or its person, did not answer in time', them: 'this device, or its person, did not answer in time', hint: 'try again' },
  'failed': { code: 'unreadable', us: 'this device could not write down what it had to', them: 'the other device could not write down what it had to', hint: 'look for a full disk, then pair again: it mends what was left half done' },
  'hung-up': { code: 'unreachable', us: 'the connection ended in the middle', hint: 'try again; pairing again mends what was left half done' },
  'unreachable': { code: 'unreachable', us: 'no pairing window answers there', hint: 'check that `patchcord pair` still waits on the other device, and the cable; --at takes the address that it shows, whose port is not the service\'s' },
  'spent': { code: 'refused', us: 'this code was tried three times already', hint: AGAIN },
  'cancelled': { code: 'refused', us: 'it was cancelled', hint: 'nothing was changed on either device' },
  'wrong-device': { code: 'verification', us: 'the device that answered is not the one in the link', hint: 'somebody else answers at that address; check the cable and ask for a new link' },
}

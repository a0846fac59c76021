import type { Failure } from './failures.js'
import type { Frame } from './frames.js'
import type { Relation, SecretKind } from './messages.js'
import type { Other, Pair, Self } from './party.js'
import type { Channel, Keys } from './proof.js'

// What the responder's machine (responder.ts) knows, hears and does.

/** Attempts per code, over all addresses. */
export const MOST_CHARGES = 3
/** How long a window lasts. */
export const WINDOW_MS = 120_000
/** From accept to the initiator's tag; and, after it, for each answer that no person has to give. */
export const STEP_MS = 10_000
/** For each person's answer. */
export const CONFIRM_MS = 120_000
/** Connections that have not said anything yet. */
export const MOST_WAITING = 16

/** Names one connection of a window. */
export type SessionId = number

export interface ResponderOptions {
  readonly self: Self
  /** Six digits; absent while codes back off. */
  readonly code?: string
  /** 16 bytes. */
  readonly link?: Uint8Array
}

export type ResponderEvent =
  | { readonly type: 'accepted', readonly session: SessionId }
  | { readonly type: 'secured', readonly session: SessionId, readonly channel: Channel }
  | { readonly type: 'frame', readonly session: SessionId, readonly frame: Frame }
  /** The stream is not one of frames. */
  | { readonly type: 'broken', readonly session: SessionId }
  | { readonly type: 'closed', readonly session: SessionId }
  | { readonly type: 'charged', readonly session: SessionId, readonly ok: boolean }
  /** What the person confirmed; without a relation, that they refused. */
  | { readonly type: 'answered', readonly session: SessionId, readonly relation?: Relation }
  | { readonly type: 'issued', readonly session: SessionId, readonly certificates?: readonly Buffer[] }
  | { readonly type: 'written', readonly session: SessionId, readonly ok: boolean }
  /** The person closes the window. */
  | { readonly type: 'cancelled' }
  | { readonly type: 'tick' }

export type ResponderEffect =
  /** Write durably that the code has been tried this often, then say `charged`. */
  | { readonly do: 'charge', readonly session: SessionId, readonly charges: number }
  /** Somebody proved the secret: take back what the charges did to the back-off, and stop listening. */
  | { readonly do: 'proven' }
  | { readonly do: 'send', readonly session: SessionId, readonly frame: Buffer }
  /** Show the person who asks for what, then say `answered`. */
  | { readonly do: 'ask', readonly session: SessionId, readonly other: Other }
  /** The question is void. */
  | { readonly do: 'withdraw', readonly session: SessionId }
  /** Sign certificates for its two requests, then say `issued`. They count only once written. */
  | { readonly do: 'issue', readonly session: SessionId, readonly other: Other }
  /** Write the pair durably, whole or not at all, then say `written`. */
  | { readonly do: 'commit', readonly session: SessionId, readonly pair: Pair }
  | { readonly do: 'close', readonly session: SessionId }
  | { readonly do: 'tell', readonly failure: Failure, readonly attemptsLeft: number }
  /** The window is over. `confirmed` says whether the other side said that it has the pair, too. */
  | { readonly do: 'end', readonly pair?: Pair, readonly confirmed: boolean }

/** A connection that has not said anything yet. */
export interface Waiting { readonly deadline: number, readonly channel?: Channel }

interface Base { readonly id: SessionId, readonly channel: Channel, readonly kind: SecretKind, readonly deadline: number }
interface Proof { readonly keys: Keys, /** Every frame so far, in order. */ readonly transcript: Buffer }
interface Proven extends Proof { /** M1 to M4. */ readonly proof: Buffer, readonly other: Other }

/** The one connection that speaks, by what it waits for. */
export type Session = Base & (
  | { readonly at: 'charge', readonly secret: Uint8Array, readonly share: Buffer }
  | { readonly at: 'tag' } & Proof
  | { readonly at: 'record' } & Proof
  | { readonly at: 'answer' } & Proven
  | { readonly at: 'accept' } & Proven
  | { readonly at: 'issue' } & Proven
  | { readonly at: 'write', readonly pair: Pair, /** Nobody is there to be told. */ readonly lost: boolean } & Proven
  | { readonly at: 'done', readonly pair: Pair } & Proven)

export type SessionAt<Stage extends Session['at']> = Extract<Session, { at: Stage }>

export interface ResponderState {
  readonly options: ResponderOptions
  /** `open` takes attempts, `proven` has one that succeeded, `over` does nothing any more. */
  readonly phase: 'open' | 'proven' | 'over'
  readonly endsAt: number
  readonly charges: number
  readonly waiting: ReadonlyMap<SessionId, Waiting>
  readonly session?: Session | undefined
}

export interface ResponderStep {
  readonly state: ResponderState
  readonly effects: readonly ResponderEffect[]
}

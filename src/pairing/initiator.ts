import type { DeviceId } from '../core/ids.js'
import { MESSAGE, type Frame } from './frames.js'
import type { Failure } from './failures.js'
import { encodeHello, encodeRecord, encodeRefusal, encodeShare, encodeSignedRecord, encodeTag, parseCommit, parseRecord, parseRefusal, parseShare, parseSignedRecord, parseTag, REFUSALS, encodeCommit, type Relation, type SecretKind } from './messages.js'
import { isFailure, meet, type Other, type Pair, type Self } from './party.js'
import { confirmationTag, isSameTag, keysOf, recordTag, shareOf, type Binding, type Channel, type Keys } from './proof.js'
import type { OwnShare } from './cpace.js'
import { CONFIRM_MS, STEP_MS } from './responder-state.js'

// I: the device that joins. One machine is one connection to one listener; how often a typed code is tried
// over all of them is counted outside (`spend`). A pure function of (state, event, now); `now` is monotonic
// milliseconds.

/** How long the responder may take to issue and to write. */
export const COMMIT_MS = 30_000

export interface InitiatorOptions {
  readonly self: Self
  readonly kind: SecretKind
  /** Six ASCII digits, or 16 bytes. */
  readonly secret: Uint8Array
  /** Who the link says is there. */
  readonly device?: DeviceId
  /** What our person asked for. */
  readonly relation: Relation
  /** Signing requests of the device key and of the server key: for `own`. */
  readonly requests: readonly Buffer[]
}

export type InitiatorEvent =
  | { readonly type: 'connected', readonly channel: Channel }
  | { readonly type: 'spent', readonly ok: boolean }
  | { readonly type: 'frame', readonly frame: Frame }
  | { readonly type: 'broken' }
  | { readonly type: 'closed' }
  /** What the person confirmed; without a relation, that they refused. */
  | { readonly type: 'answered', readonly relation?: Relation }
  /** After `hold` and after `settle`. */
  | { readonly type: 'written', readonly ok: boolean }
  | { readonly type: 'cancelled' }
  | { readonly type: 'tick' }

export type InitiatorEffect =
  /** Count one more share for this code, then say `spent`: ok where it is at most the third. */
  | { readonly do: 'spend' }
  | { readonly do: 'send', readonly frame: Buffer }
  | { readonly do: 'ask', readonly other: Other }
  | { readonly do: 'withdraw' }
  /** Write the pair down as pending, durably, then say `written`. It gives no right to anybody. */
  | { readonly do: 'hold', readonly pair: Pair }
  /** The pending pair came to nothing. */
  | { readonly do: 'drop', readonly pair: Pair }
  /** Write the pair, durably, in place of the pending one, then say `written`. */
  | { readonly do: 'settle', readonly pair: Pair }
  | { readonly do: 'close' }
  | { readonly do: 'end', readonly outcome: InitiatorOutcome }

export type InitiatorOutcome =
  | { readonly result: 'paired', readonly pair: Pair }
  | { readonly result: 'failed', readonly failure: Failure }
  /** We confirmed and do not know whether the other side has the pair. Its open port knows. */
  | { readonly result: 'pending', readonly pair: Pair, readonly failure: Failure }

interface Bound { readonly channel: Channel }
interface Proof extends Bound { readonly keys: Keys, /** Every frame so far, in order. */ readonly transcript: Buffer }
interface Known extends Proof { readonly other: Other }

/** What is waited for. */
export type InitiatorState = { readonly options: InitiatorOptions, readonly deadline: number } & (
  | { readonly at: 'connection' }
  | { readonly at: 'spending' } & Bound
  | { readonly at: 'share', readonly own: OwnShare, readonly binding: Binding } & Bound
  | { readonly at: 'tag' } & Proof
  | { readonly at: 'record', readonly proof: Buffer } & Proof
  | { readonly at: 'answer' } & Known
  | { readonly at: 'holding', readonly pair: Pair, readonly lost?: Failure } & Known
  | { readonly at: 'commit', readonly pair: Pair } & Known
  | { readonly at: 'settling', readonly pair: Pair } & Known
  | { readonly at: 'over' })

type At<Stage extends InitiatorState['at']> = Extract<InitiatorState, { at: Stage }>

export interface InitiatorStep {
  readonly state: InitiatorState
  readonly effects: readonly InitiatorEffect[]
}

/** A machine for a connection that is being made now. */
export const startJoining = (options: InitiatorOptions, now: number): InitiatorState => ({ options, at: 'connection', deadline: now + STEP_MS })

/** When a `tick` is next due; Infinity for never. */
export const initiatorDeadline = (state: InitiatorState): number => state.at === 'over' ? Infinity : state.deadline

/** One step. What is due at `now` happens before the event. */
export function initiate (state: InitiatorState, event: InitiatorEvent, now: number): InitiatorStep {
  if (state.at === 'over') return stay(state)
  if (now >= state.deadline) return fail(state, { reason: state.at === 'connection' ? 'unreachable' : 'slow', by: 'us' })
  switch (event.type) {
    case 'tick': return stay(state)
    case 'closed': return fail(state, { reason: state.at === 'connection' ? 'unreachable' : 'hung-up', by: 'us' })
    case 'broken': return fail(state, { reason: 'garbled', by: 'us' })
    case 'cancelled': return fail(state, { reason: 'declined', by: 'us' })
    case 'frame': return takeFrame(state, event.frame, now)
    default:
  }
  if (state.at === 'connection' && event.type === 'connected') return connected(state, event.channel, now)
  if (state.at === 'spending' && event.type === 'spent') return event.ok ? greet(state, now) : fail(state, { reason: 'spent', by: 'us' })
  if (state.at === 'answer' && event.type === 'answered') return answered(state, event.relation)
  if (state.at === 'holding' && event.type === 'written') return held(state, event.ok, now)
  if (state.at === 'settling' && event.type === 'written') return settled(state, event.ok)
  return stay(state)
}

function takeFrame (state: InitiatorState, { number, body }: Frame, now: number): InitiatorStep {
  if (number === MESSAGE.refuse) return fail(state, { reason: parseRefusal(body) ?? 'garbled', by: 'them' })
  if (state.at === 'share' && number === MESSAGE.share) return checkShare(state, body, now)
  if (state.at === 'tag' && number === MESSAGE.tagR) return checkTag(state, body, now)
  if (state.at === 'record' && number === MESSAGE.recordR) return checkRecord(state, body, now)
  if (state.at === 'commit' && number === MESSAGE.commit) return checkCommit(state, body)
  return fail(state, { reason: 'garbled', by: 'us' })
}

function connected (state: At<'connection'>, channel: Channel, now: number): InitiatorStep {
  const { self, device, kind } = state.options
  if (channel.other === self.device) return fail(state, { reason: 'garbled', by: 'us' })
  if (device !== undefined && channel.other !== device) return fail(state, { reason: 'wrong-device', by: 'us' })
  if (self.isRevoked(channel.other)) return fail(state, { reason: 'revoked', by: 'us' })
  const next: At<'spending'> = { ...state, at: 'spending', channel, deadline: now + STEP_MS }
  return kind === 'code' ? stay(next, { do: 'spend' }) : greet(next, now)
}

/** M1. A lying responder learns from our tag whether its guess at the code was right, so each share of ours
 * is one guess of theirs, and is counted before it leaves. */
function greet (state: At<'spending'>, now: number): InitiatorStep {
  const { options: { self, kind, secret }, channel } = state
  const binding: Binding = { kind, secret, sid: channel.sid, initiator: self.device, responder: channel.other }
  const own = shareOf(binding, channel.random)
  return stay({ ...state, at: 'share', own, binding, deadline: now + STEP_MS }, { do: 'send', frame: encodeHello(kind, own.share) })
}

/** M2, answered by M3. */
function checkShare (state: At<'share'>, body: Buffer, now: number): InitiatorStep {
  const { options, channel, own, binding } = state
  const theirs = parseShare(body)
  const keys = theirs === undefined ? undefined : keysOf(binding, 'I', own, theirs)
  if (theirs === undefined || keys === undefined) return fail(state, { reason: 'garbled', by: 'us' })
  const frame = encodeTag(MESSAGE.tagI, keys.tags.I)
  return stay({ options, channel, at: 'tag', keys, transcript: Buffer.concat([encodeHello(options.kind, own.share), encodeShare(theirs), frame]), deadline: now + STEP_MS }, { do: 'send', frame })
}

/** M4, answered by M5: the first byte that says anything of us. */
function checkTag (state: At<'tag'>, body: Buffer, now: number): InitiatorStep {
  const { options: { self, relation, requests }, keys } = state
  const theirs = parseTag(body)
  if (theirs === undefined) return fail(state, { reason: 'garbled', by: 'us' })
  if (!isSameTag(theirs, keys.tags.R)) return fail(state, { reason: 'proof', by: 'us' })
  const proof = Buffer.concat([state.transcript, encodeTag(MESSAGE.tagR, theirs)])
  const record = encodeRecord({ ...self.record, role: 'I', relation, requests: relation === 'own' ? requests : [] })
  const frame = encodeSignedRecord('I', record, recordTag(keys, 'I', proof, record))
  return stay({ ...state, at: 'record', proof, transcript: Buffer.concat([proof, frame]), deadline: now + CONFIRM_MS + STEP_MS }, { do: 'send', frame })
}

/** M6: the other person confirmed, and says what. */
function checkRecord (state: At<'record'>, body: Buffer, now: number): InitiatorStep {
  const { options: { self, relation }, keys, proof, channel } = state
  const signed = parseSignedRecord(body)
  const record = signed === undefined ? undefined : parseRecord(signed.record)
  if (signed === undefined || record === undefined || record.role !== 'R') return fail(state, { reason: 'garbled', by: 'us' })
  if (!isSameTag(signed.tag, recordTag(keys, 'R', proof, signed.record))) return fail(state, { reason: 'proof', by: 'us' })
  if (record.relation !== relation) return fail(state, { reason: 'relation', by: 'us' })
  const other = meet(self, record, channel.other)
  if (isFailure(other)) return fail(state, other)
  // A little less than the responder waits, so that a yes does not come too late.
  return stay({ ...state, at: 'answer', other, transcript: Buffer.concat([state.transcript, encodeSignedRecord('R', signed.record, signed.tag)]), deadline: now + CONFIRM_MS - STEP_MS }, { do: 'ask', other })
}

function answered (state: At<'answer'>, relation: Relation | undefined): InitiatorStep {
  const { options, other } = state
  const { at: _at, ...rest } = state
  const pair: Pair = { role: 'I', relation: other.relation, other, certificates: [] }
  const holding: At<'holding'> = { ...rest, at: 'holding', pair, deadline: Infinity }
  if (relation === undefined) return end(holding, { reason: 'declined', by: 'us' })
  if (relation !== options.relation) return end(holding, { reason: 'relation', by: 'us' })
  return stay(holding, { do: 'hold', pair })
}

/** M7, after the pending pair is on disk: should we die now, we know on waking that R may have the pair. */
function held (state: At<'holding'>, ok: boolean, now: number): InitiatorStep {
  const { keys, transcript, pair, lost } = state
  if (lost !== undefined) return end(state, lost, { do: 'drop', pair })
  if (!ok) return end(state, { reason: 'failed', by: 'us' }, { do: 'drop', pair })
  if (state.options.self.isRevoked(pair.other.device)) return end(state, { reason: 'revoked', by: 'us' }, { do: 'drop', pair })
  const frame = encodeTag(MESSAGE.accept, confirmationTag(keys, 'accept', transcript))
  return stay({ ...state, at: 'commit', transcript: Buffer.concat([transcript, frame]), deadline: now + COMMIT_MS }, { do: 'send', frame })
}

/** M8: R has the pair on disk. */
function checkCommit (state: At<'commit'>, body: Buffer): InitiatorStep {
  const { options: { self, relation }, keys, transcript, other } = state
  const commit = parseCommit(body)
  if (commit === undefined) return fail(state, { reason: 'garbled', by: 'us' })
  if (!isSameTag(commit.tag, confirmationTag(keys, 'commit', transcript, commit.signed))) return fail(state, { reason: 'proof', by: 'us' })
  if (commit.certificates.length !== (relation === 'own' ? 2 : 0)) return fail(state, { reason: 'record', by: 'us' })
  if (relation === 'own' && !isIssuedTo(self, commit.certificates, other.userCa)) return fail(state, { reason: 'record', by: 'us', detail: 'the certificates it sent are not for this device' })
  const pair: Pair = { ...state.pair, certificates: commit.certificates }
  return stay({ ...state, at: 'settling', pair, transcript: Buffer.concat([transcript, encodeCommit(commit.signed, commit.tag)]), deadline: Infinity }, { do: 'settle', pair })
}

function settled (state: At<'settling'>, ok: boolean): InitiatorStep {
  const { keys, transcript, pair } = state
  if (!ok) return over(state, { result: 'pending', pair, failure: { reason: 'failed', by: 'us' } })
  return over(state, { result: 'paired', pair }, { do: 'send', frame: encodeTag(MESSAGE.done, confirmationTag(keys, 'done', transcript)) })
}

/** What an event that ends things means where we are. After M7 only R's own refusal says that it has no
 * pair; silence says nothing. */
function fail (state: InitiatorState, failure: Failure): InitiatorStep {
  switch (state.at) {
    // Both wait for our own disk, which answers.
    case 'holding': return stay({ ...state, lost: failure })
    case 'settling': return stay(state)
    case 'commit': {
      const { pair } = state
      // It crossed the channel that the secret proved, so it is R's word.
      if (failure.by === 'them') return end(state, failure, { do: 'drop', pair })
      return over(state, { result: 'pending', pair, failure })
    }
    case 'answer': return end(state, failure, { do: 'withdraw' })
    default: return end(state, failure)
  }
}

function end (state: InitiatorState, failure: Failure, ...first: InitiatorEffect[]): InitiatorStep {
  const says = failure.by === 'us' && failure.reason !== 'hung-up' && state.at !== 'connection'
  const word = REFUSALS.find(reason => reason === failure.reason) ?? 'failed'
  return over(state, { result: 'failed', failure }, ...first, ...says ? [{ do: 'send', frame: encodeRefusal(word) } as const] : [])
}

/** Nothing secret is left. */
function over ({ options }: InitiatorState, outcome: InitiatorOutcome, ...first: InitiatorEffect[]): InitiatorStep {
  return { state: { options: { ...options, secret: new Uint8Array(0) }, at: 'over', deadline: Infinity }, effects: [...first, { do: 'close' }, { do: 'end', outcome }] }
}

const stay = (state: InitiatorState, ...effects: InitiatorEffect[]): InitiatorStep => ({ state, effects })

function isIssuedTo ({ device, certificates }: Self, issued: readonly Buffer[], ca: Buffer): boolean {
  try {
    return certificates.deviceOfIssue(issued, ca) === device
  } catch {
    return false
  }
}

import { MESSAGE } from './frames.js'
import type { Failure } from './failures.js'
import { encodeCertificates, encodeCommit, encodeHello, encodeRecord, encodeRefusal, encodeShare, encodeSignedRecord, encodeTag, parseHello, parseRecord, parseRefusal, parseSignedRecord, parseTag, REFUSALS, type Refusal, type Relation } from './messages.js'
import { isFailure, meet, type Pair } from './party.js'
import { confirmationTag, isSameTag, keysOf, recordTag, shareOf, type Binding } from './proof.js'
import { CONFIRM_MS, MOST_CHARGES, MOST_WAITING, STEP_MS, WINDOW_MS, type ResponderEffect, type ResponderEvent, type ResponderOptions, type ResponderState, type ResponderStep, type Session, type SessionAt, type SessionId, type Waiting } from './responder-state.js'

// R: the device that opened the window. A pure function of (state, event, now); `now` is monotonic
// milliseconds. Effects are carried out in order; those that answer do so with an event.

/** A window that opens now. */
export const openWindow = (options: ResponderOptions, now: number): ResponderState =>
  ({ options, phase: 'open', endsAt: now + WINDOW_MS, charges: 0, waiting: new Map() })

/** When a `tick` is next due; Infinity for never. */
export function responderDeadline ({ phase, endsAt, waiting, session }: ResponderState): number {
  return phase === 'over' ? Infinity : Math.min(phase === 'open' ? endsAt : Infinity, session?.deadline ?? Infinity, ...[...waiting.values()].map(({ deadline }) => deadline))
}

/** One step. What is due at `now` happens before the event, so a late one finds its session gone. */
export function respond (state: ResponderState, event: ResponderEvent, now: number): ResponderStep {
  const { state: current, effects } = expire(state, now)
  const next = take(current, event, now)
  return { state: next.state, effects: [...effects, ...next.effects] }
}

function expire (state: ResponderState, now: number): ResponderStep {
  if (state.phase === 'over') return stay(state)
  if (state.phase === 'open' && now >= state.endsAt) {
    const { state: after, effects } = state.session === undefined ? stay(state) : fail(state, state.session, { reason: 'ended', by: 'us' })
    const rest = end(after)
    return { state: rest.state, effects: [...effects, ...rest.effects] }
  }
  const stale = [...state.waiting].filter(([, { deadline }]) => now >= deadline).map(([session]) => session)
  const waiting = without(state.waiting, ...stale)
  const closed = stale.map(session => ({ do: 'close', session }) as const)
  const { session } = state
  if (session === undefined || now < session.deadline) return { state: { ...state, waiting }, effects: closed }
  const { state: after, effects } = session.at === 'done' ? finish(state, session, false) : fail({ ...state, waiting }, session, { reason: 'slow', by: 'us' })
  return { state: after, effects: [...closed, ...effects] }
}

function take (state: ResponderState, event: ResponderEvent, now: number): ResponderStep {
  if (event.type === 'tick') return stay(state)
  if (event.type === 'cancelled') return cancel(state)
  const id = event.session
  if (event.type === 'accepted') {
    if (state.phase !== 'open' || state.waiting.size >= MOST_WAITING) return stay(state, { do: 'close', session: id })
    return stay({ ...state, waiting: new Map(state.waiting).set(id, { deadline: now + STEP_MS }) })
  }
  const waiting = state.waiting.get(id)
  if (waiting !== undefined) return takeFromWaiting(state, id, waiting, event)
  const { session } = state
  return session?.id === id ? takeInSession(state, session, event, now) : stay(state)
}

function takeFromWaiting (state: ResponderState, id: SessionId, { deadline, channel }: Waiting, event: ResponderEvent): ResponderStep {
  if (event.type === 'closed') return stay({ ...state, waiting: without(state.waiting, id) })
  if (event.type === 'secured') return stay({ ...state, waiting: new Map(state.waiting).set(id, { deadline, channel: event.channel }) })
  if (event.type === 'broken') return turnAway(state, id, 'garbled')
  if (event.type !== 'frame' || channel === undefined) return stay(state)
  const { self, code, link } = state.options
  const hello = event.frame.number === MESSAGE.hello ? parseHello(event.frame.body) : undefined
  if (hello === undefined || hello === 'version') return turnAway(state, id, hello ?? 'garbled')
  if (channel.other === self.device) return turnAway(state, id, 'garbled')
  if (self.isRevoked(channel.other)) return turnAway(state, id, 'revoked')
  if (state.phase !== 'open') return turnAway(state, id, 'ended')
  if (state.session !== undefined) return turnAway(state, id, 'wait')
  const secret = hello.kind === 'link' ? link : state.charges < MOST_CHARGES && code !== undefined ? Buffer.from(code) : undefined
  if (secret === undefined) return turnAway(state, id, 'ended')
  const session = { id, channel, deadline, kind: hello.kind, at: 'charge', secret, share: hello.share } as const
  const seated: ResponderState = { ...state, waiting: without(state.waiting, id), session }
  // A link has 128 bits: nobody guesses it, so it costs no charge.
  if (hello.kind === 'link') return share(seated, session)
  return stay({ ...seated, charges: state.charges + 1 }, { do: 'charge', session: id, charges: state.charges + 1 })
}

function takeInSession (state: ResponderState, session: Session, event: ResponderEvent, now: number): ResponderStep {
  if (event.type === 'closed' || event.type === 'broken') {
    if (session.at === 'write') return stay({ ...state, session: { ...session, lost: true } })
    if (session.at === 'done') return finish(state, session, false)
    return fail(state, session, event.type === 'closed' ? { reason: 'hung-up', by: 'us' } : { reason: 'garbled', by: 'us' })
  }
  switch (session.at) {
    case 'charge':
      if (event.type === 'charged') return event.ok ? share(state, session) : fail(state, session, { reason: 'failed', by: 'us' })
      break
    case 'answer':
      if (event.type === 'answered') return answered(state, session, event.relation, now)
      break
    case 'issue':
      if (event.type === 'issued') return event.certificates === undefined ? fail(state, session, { reason: 'failed', by: 'us' }) : commit(state, session, event.certificates)
      break
    case 'write':
      if (event.type === 'written') return written(state, session, event.ok, now)
      break
    default:
  }
  if (event.type !== 'frame') return stay(state)
  const { number, body } = event.frame
  if (number === MESSAGE.refuse) {
    const reason = parseRefusal(body)
    if (session.at === 'write') return stay({ ...state, session: { ...session, lost: true } })
    if (session.at === 'done') return finish(state, session, false)
    return fail(state, session, { reason: reason ?? 'garbled', by: 'them' }, false)
  }
  if (session.at === 'tag' && number === MESSAGE.tagI) return checkTag(state, session, body, now)
  if (session.at === 'record' && number === MESSAGE.recordI) return checkRecord(state, session, body, now)
  if (session.at === 'accept' && number === MESSAGE.accept) return checkAcceptance(state, session, body)
  if (session.at === 'done') return finish(state, session, number === MESSAGE.done && isTag(body, confirmationTag(session.keys, 'done', session.transcript)))
  // Whatever a lying initiator sends now, the grant may be on disk already.
  if (session.at === 'write') return stay({ ...state, session: { ...session, lost: true } })
  return fail(state, session, { reason: 'garbled', by: 'us' })
}

/** M2. It leaves only after its charge is on disk. */
function share (state: ResponderState, { secret, share: theirs, ...session }: SessionAt<'charge'>): ResponderStep {
  const { kind, channel } = session
  const binding: Binding = { kind, secret, sid: channel.sid, initiator: channel.other, responder: state.options.self.device }
  const own = shareOf(binding, channel.random)
  const keys = keysOf(binding, 'R', own, theirs)
  if (keys === undefined) return fail(state, { ...session, secret, share: theirs }, { reason: 'garbled', by: 'us' })
  const frame = encodeShare(own.share)
  return stay({ ...state, session: { ...session, at: 'tag', keys, transcript: Buffer.concat([encodeHello(kind, theirs), frame]) } }, { do: 'send', session: session.id, frame })
}

/** M3. A right one ends the window for everybody else, and its secrets with it; M4 answers. */
function checkTag (state: ResponderState, session: SessionAt<'tag'>, body: Buffer, now: number): ResponderStep {
  const { id, keys } = session
  const theirs = parseTag(body)
  if (theirs === undefined) return fail(state, session, { reason: 'garbled', by: 'us' })
  if (!isSameTag(theirs, keys.tags.I)) return fail(state, session, { reason: 'proof', by: 'us' })
  const frame = encodeTag(MESSAGE.tagR, keys.tags.R)
  const transcript = Buffer.concat([session.transcript, encodeTag(MESSAGE.tagI, theirs), frame])
  return stay(
    { ...state, options: { self: state.options.self }, phase: 'proven', waiting: new Map(), session: { ...session, at: 'record', transcript, deadline: now + STEP_MS } },
    ...[...state.waiting.keys()].flatMap(other => goodbye(other, 'ended')),
    { do: 'proven' },
    { do: 'send', session: id, frame })
}

/** M5. */
function checkRecord (state: ResponderState, session: SessionAt<'record'>, body: Buffer, now: number): ResponderStep {
  const { id, keys, transcript, channel } = session
  const signed = parseSignedRecord(body)
  const record = signed === undefined ? undefined : parseRecord(signed.record)
  if (signed === undefined || record === undefined || record.role !== 'I') return fail(state, session, { reason: 'garbled', by: 'us' })
  if (!isSameTag(signed.tag, recordTag(keys, 'I', transcript, signed.record))) return fail(state, session, { reason: 'proof', by: 'us' })
  const other = meet(state.options.self, record, channel.other)
  if (isFailure(other)) return fail(state, session, other)
  const next: Session = { ...session, at: 'answer', proof: transcript, transcript: Buffer.concat([transcript, encodeSignedRecord('I', signed.record, signed.tag)]), other, deadline: now + CONFIRM_MS }
  return stay({ ...state, session: next }, { do: 'ask', session: id, other })
}

/** M6 says what our person confirmed: it is the first of the two equal confirmations. */
function answered (state: ResponderState, session: SessionAt<'answer'>, relation: Relation | undefined, now: number): ResponderStep {
  const { id, keys, proof, transcript, other } = session
  const { self } = state.options
  const asked: ResponderState = { ...state, session: { ...session, at: 'accept' } }
  if (relation === undefined) return fail(asked, asked.session!, { reason: 'declined', by: 'us' })
  if (relation !== other.relation) return fail(asked, asked.session!, { reason: 'relation', by: 'us' })
  const record = encodeRecord({ ...self.record, role: 'R', relation, requests: [] })
  const frame = encodeSignedRecord('R', record, recordTag(keys, 'R', proof, record))
  return stay({ ...state, session: { ...session, at: 'accept', transcript: Buffer.concat([transcript, frame]), deadline: now + CONFIRM_MS } }, { do: 'send', session: id, frame })
}

/** M7 is the second confirmation; only after both is anything issued or written. */
function checkAcceptance (state: ResponderState, session: SessionAt<'accept'>, body: Buffer): ResponderStep {
  const { id, keys, transcript, other } = session
  const theirs = parseTag(body)
  if (theirs === undefined) return fail(state, session, { reason: 'garbled', by: 'us' })
  if (!isSameTag(theirs, confirmationTag(keys, 'accept', transcript))) return fail(state, session, { reason: 'proof', by: 'us' })
  if (state.options.self.isRevoked(other.device)) return fail(state, session, { reason: 'revoked', by: 'us' })
  // From here on our own disk is waited for, not the other side.
  const next: Session = { ...session, at: 'issue', transcript: Buffer.concat([transcript, encodeTag(MESSAGE.accept, theirs)]), deadline: Infinity }
  return other.relation === 'peer' ? commit(state, next, []) : stay({ ...state, session: next }, { do: 'issue', session: id, other })
}

function commit (state: ResponderState, session: SessionAt<'issue'>, certificates: readonly Buffer[]): ResponderStep {
  const { id, other } = session
  const pair: Pair = { role: 'R', relation: other.relation, other, certificates }
  return stay({ ...state, session: { ...session, at: 'write', pair, lost: false } }, { do: 'commit', session: id, pair })
}

/** M8, after the pair is on disk. From here on it is only ever revoked. */
function written (state: ResponderState, session: SessionAt<'write'>, ok: boolean, now: number): ResponderStep {
  const { id, keys, transcript, pair, lost } = session
  if (!ok) return fail(state, session, { reason: 'failed', by: 'us' }, !lost)
  const done = { ...session, at: 'done', deadline: now + STEP_MS } as const
  if (lost) return finish(state, done, false)
  const certificates = encodeCertificates(pair.certificates)
  const frame = encodeCommit(certificates, confirmationTag(keys, 'commit', transcript, certificates))
  return stay({ ...state, session: { ...done, transcript: Buffer.concat([transcript, frame]) } }, { do: 'send', session: id, frame })
}

function finish (state: ResponderState, { id, pair }: SessionAt<'done'>, confirmed: boolean): ResponderStep {
  return { state: over(state), effects: [{ do: 'close', session: id }, { do: 'end', pair, confirmed }] }
}

/** Ends the session that speaks. A window whose secret was proved ends with it; one that nobody can use any
 * more does, too. */
function fail (state: ResponderState, session: Session, failure: Failure, say = failure.reason !== 'hung-up'): ResponderStep {
  const attemptsLeft = state.phase === 'open' && state.options.code !== undefined ? MOST_CHARGES - state.charges : 0
  const effects: ResponderEffect[] = [
    ...session.at === 'answer' ? [{ do: 'withdraw', session: session.id } as const] : [],
    ...say ? goodbye(session.id, wordFor(failure)) : [{ do: 'close', session: session.id } as const],
    { do: 'tell', failure, attemptsLeft },
  ]
  const after: ResponderState = { ...state, session: undefined }
  if (state.phase === 'open' && (attemptsLeft > 0 || state.options.link !== undefined)) return { state: after, effects }
  const rest = end(after)
  return { state: rest.state, effects: [...effects, ...rest.effects] }
}

function cancel (state: ResponderState): ResponderStep {
  const { session } = state
  if (state.phase === 'over') return stay(state)
  // The pair may be on disk already: what comes of it is told when it is known.
  if (session?.at === 'write') return stay({ ...state, session: { ...session, lost: true } })
  if (session?.at === 'done') return finish(state, session, false)
  const { state: after, effects } = session === undefined ? stay(state) : fail(state, session, { reason: 'declined', by: 'us' })
  const rest = end(after)
  return { state: rest.state, effects: [...effects, ...rest.effects] }
}

/** Somebody who does not get a session. No attempt was made, so nobody is told. */
const turnAway = (state: ResponderState, id: SessionId, reason: Refusal): ResponderStep =>
  stay({ ...state, waiting: without(state.waiting, id) }, ...goodbye(id, reason))

const goodbye = (session: SessionId, reason: Refusal): ResponderEffect[] => [{ do: 'send', session, frame: encodeRefusal(reason) }, { do: 'close', session }]

function end (state: ResponderState): ResponderStep {
  if (state.phase === 'over') return stay(state)
  return { state: over(state), effects: [...[...state.waiting.keys()].flatMap(id => goodbye(id, 'ended')), { do: 'end', confirmed: false }] }
}

/** Nothing secret is left. */
const over = ({ options, endsAt, charges }: ResponderState): ResponderState => ({ options: { self: options.self }, phase: 'over', endsAt, charges, waiting: new Map() })

const stay = (state: ResponderState, ...effects: ResponderEffect[]): ResponderStep => ({ state, effects })

const isTag = (body: Buffer, expected: Buffer): boolean => {
  const tag = parseTag(body)
  return tag !== undefined && isSameTag(tag, expected)
}

const wordFor = ({ reason }: Failure): Refusal => REFUSALS.find(word => word === reason) ?? 'failed'

function without<Key, Value> (map: ReadonlyMap<Key, Value>, ...keys: Key[]): ReadonlyMap<Key, Value> {
  const next = new Map(map)
  for (const key of keys) next.delete(key)
  return next
}

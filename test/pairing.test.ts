import fc from 'fast-check'
import t from 'tap'
import { decodeBase32 } from '../src/core/base32.js'
import type { DatabaseName } from '../src/core/ids.js'
import { lvCat } from '../src/core/lv-cat.js'
import { encodeFrame, FrameReader, MESSAGE, type MessageNumber } from '../src/pairing/frames.js'
import { initiate, startJoining } from '../src/pairing/initiator.js'
import { dialable, formatLink, newCode, ownAddresses, parseInvitation } from '../src/pairing/invitation.js'
import { encodeHello, encodeRecord, encodeShare, encodeSignedRecord, encodeTag, parseCommit, parseHello, parseRecord, parseRefusal, parseShare, parseSignedRecord, parseTag, type PartyRecord, type Relation } from '../src/pairing/messages.js'
import { confirmationTag, keysOf, recordTag, shareOf, termsOf, type Binding } from '../src/pairing/proof.js'
import { openWindow, respond, responderDeadline } from '../src/pairing/responder.js'
import { CONFIRM_MS, MOST_WAITING, STEP_MS, WINDOW_MS, type ResponderEffect, type ResponderState } from '../src/pairing/responder-state.js'
import { fuzz, fuzzTargets } from './fixtures/pairing-fuzz.js'
import { channelBetween, Duet, framesIn, idFor, issueFor, paper, paperSelf, requestsOf, sha256 } from './pairing-fixtures.js'

// The properties at the end of 4-pairing.md, on the pure machines. FUZZ_RUNS multiplies what is random:
// `npm test` takes a seeded sample, test:fuzz the rest.
const RUNS = Number(process.env['FUZZ_RUNS'] ?? '1')
const seed = Number(process.env['FUZZ_SEED'] ?? '20301')

const YES = { relationI: 'peer', relationR: 'peer', confirmI: 'peer' } as const
const OWN = { relationI: 'own', relationR: 'own', confirmI: 'own' } as const

await t.test('two devices pair', t => {
  for (const choices of [YES, OWN]) {
    for (const link of [undefined, sha256('link').subarray(0, 16)]) {
      const duet = new Duet(choices, link === undefined ? {} : { link }).run()
      t.equal(duet.outcomeI?.result, 'paired')
      t.match(duet.outcomeR, { confirmed: true, pair: { relation: choices.relationI } })
      t.equal(duet.pairI?.other.device, duet.selfR.device)
      t.equal(duet.pairR?.other.device, duet.selfI.device)
      t.equal(duet.pairI?.other.name, 'NAME-rob')
      t.same(duet.pairI?.certificates, choices === OWN ? issueFor(duet.selfI.device, duet.selfR.user) : [])
      t.same(duet.pairR?.certificates, duet.pairI?.certificates)
      t.same([...duet.sentI, ...duet.sentR].map(frame => frame[0]).toSorted((a, b) => a! - b!), [1, 2, 3, 4, 5, 6, 7, 8, 9])
      t.equal(duet.effectsR.filter(effect => effect.do === 'charge').length, link === undefined ? 1 : 0)
    }
  }
  t.end()
})

await t.test('the messages are those of the design', t => {
  const duet = new Duet(OWN).run()
  const [m1, m3, m5, m7, m9] = duet.sentI as [Buffer, Buffer, Buffer, Buffer, Buffer]
  const [m2, m4, m6, m8] = duet.sentR as [Buffer, Buffer, Buffer, Buffer]
  const body = (frame: Buffer): Buffer => frame.subarray(3)
  const [channelI, channelR] = channelBetween('duet', duet.selfI.device, duet.selfR.device)
  const binding: Binding = { kind: 'code', secret: Buffer.from('123456'), sid: channelI.sid, initiator: duet.selfI.device, responder: duet.selfR.device }
  const ownI = shareOf(binding, channelI.random)
  const ownR = shareOf(binding, channelR.random)
  const keys = keysOf(binding, 'I', ownI, ownR.share)!
  t.same(m1, Buffer.concat([Buffer.from('010028', 'hex'), lvCat(Buffer.of(1), Buffer.from('code'), ownI.share)]))
  t.same(m2, Buffer.concat([Buffer.from('020021', 'hex'), lvCat(ownR.share)]))
  t.same(termsOf(binding), {
    prs: lvCat(Buffer.from('code'), Buffer.from('123456')),
    ci: lvCat(Buffer.from('patchcord-pair/1'), Buffer.from('code'), decodeBase32(duet.selfI.device), decodeBase32(duet.selfR.device)),
    sid: channelI.sid,
  })
  t.same(body(m3), lvCat(keys.tags.I))
  t.same(body(m4), lvCat(keys.tags.R))
  const proof = Buffer.concat([m1, m2, m3, m4])
  const empty = Buffer.alloc(0)
  const record = (role: 'I' | 'R', name: string, user: string, csr: Buffer): Buffer =>
    lvCat(Buffer.from(role), Buffer.from('own'), Buffer.from(`NAME-${name}`), paper('device', idFor(`device of ${name}`), user), paper('ca', user), empty, csr, lvCat(Buffer.from('1378', 'hex'), Buffer.from(`db-${name}`), Buffer.from('read')))
  const recordI = record('I', 'ida', duet.selfI.user, lvCat(...requestsOf(duet.selfI)))
  t.same(body(m5), lvCat(recordI, recordTag(keys, 'I', proof, recordI)))
  const recordR = record('R', 'rob', duet.selfR.user, empty)
  t.same(body(m6), lvCat(recordR, recordTag(keys, 'R', proof, recordR)))
  t.same(body(m7), lvCat(confirmationTag(keys, 'accept', Buffer.concat([proof, m5, m6]))))
  const certificates = lvCat(...issueFor(duet.selfI.device, duet.selfR.user))
  t.same(body(m8), lvCat(certificates, confirmationTag(keys, 'commit', Buffer.concat([proof, m5, m6, m7]), certificates)))
  t.same(body(m9), lvCat(confirmationTag(keys, 'done', Buffer.concat([proof, m5, m6, m7, m8]))))
  t.end()
})

await t.test('no two equal confirmations, no pair', t => {
  const relations: Array<Relation | undefined> = ['own', 'peer', undefined]
  for (const relationI of ['own', 'peer'] as const) {
    for (const relationR of relations) {
      for (const confirmI of relations) {
        const duet = new Duet({ relationI, relationR, confirmI }).run().settle()
        const equal = relationI === relationR && relationI === confirmI
        t.equal(duet.pairI !== undefined, equal)
        t.equal(duet.pairR !== undefined, equal, `${relationI} ${relationR} ${confirmI}`)
        t.equal(duet.outcomeI?.result, equal ? 'paired' : 'failed')
        t.equal(duet.outcomeR?.confirmed, equal)
        if (!equal) t.equal(duet.effectsR.filter(effect => effect.do === 'issue').length, 0)
      }
    }
  }
  t.end()
})

await t.test('a responder that lies about what was proved or agreed', t => {
  // It knows the code, and plays its part but for one message. K makes its own tags good.
  const plain = new Duet(YES).run()
  const [m1, m3, m5] = plain.sentI as [Buffer, Buffer, Buffer]
  const [m2, m4] = plain.sentR as [Buffer, Buffer]
  const [channelI, channelR] = channelBetween('duet', plain.selfI.device, plain.selfR.device)
  const binding: Binding = { kind: 'code', secret: Buffer.from('123456'), sid: channelI.sid, initiator: plain.selfI.device, responder: plain.selfR.device }
  const keys = keysOf(binding, 'R', shareOf(binding, channelR.random), m1.subarray(11))!
  const lie = (frames: Buffer[]): Duet => {
    const duet = new Duet(YES)
    for (const bytes of frames) duet.tellI({ type: 'frame', frame: framesIn(bytes).frames[0]! })
    return duet
  }
  t.equal(lie([m2, m4]).sentI.length, 3, 'played straight, I answers with its record')
  const wrongTag = lie([m2, encodeTag(MESSAGE.tagR, Buffer.alloc(64, 7))])
  t.match(wrongTag.outcomeI, { failure: { reason: 'proof', by: 'us' } })
  t.notOk(Buffer.concat(wrongTag.sentI).includes('NAME-'), 'no record leaves for a wrong tag')
  // The tag of I, sent back as that of R.
  t.match(lie([m2, Buffer.concat([Buffer.of(MESSAGE.tagR), m3.subarray(1)])]).outcomeI, { failure: { reason: 'proof', by: 'us' } })
  const proof = Buffer.concat([m1, m2, m3, m4])
  t.ok(m5.length > 100)
  for (const [relation, role, reason] of [['peer', 'R', undefined], ['own', 'R', 'relation'], ['peer', 'I', 'garbled']] as const) {
    const record = encodeRecord({ ...plain.selfR.record, role, relation, requests: [] })
    const duet = lie([m2, m4, encodeSignedRecord('R', record, recordTag(keys, 'R', proof, record))])
    t.equal(duet.effectsI.some(effect => effect.do === 'ask'), reason === undefined, `${relation} ${role}`)
    if (reason !== undefined) t.match(duet.outcomeI, { failure: { reason, by: 'us' } })
  }
  t.end()
})

await t.test('a wrong code: both sides say why, nothing about a person crosses, and the code is charged', t => {
  const duet = new Duet(YES, { codeI: '123457' }).run()
  t.match(duet.outcomeI, { result: 'failed', failure: { reason: 'proof', by: 'them' } })
  t.match(duet.effectsR.filter(effect => effect.do === 'tell'), [{ failure: { reason: 'proof', by: 'us' }, attemptsLeft: 2 }])
  t.equal(duet.responder.charges, 1)
  t.equal(duet.responder.phase, 'open')
  t.notOk(Buffer.concat([...duet.sentI, ...duet.sentR]).includes('NAME-'))
  t.end()
})

await t.test('no name and no CA byte leaves before both tags', t => {
  const duet = new Duet(YES)
  const sent: Buffer[] = []
  duet.run(bytes => { sent.push(bytes); return bytes })
  const telling = (bytes: Buffer): boolean => ['NAME-', 'device ', 'ca ', 'db-', duet.selfI.user, duet.selfR.user].some(word => bytes.includes(word))
  const firstTelling = sent.findIndex(telling)
  t.same(sent.slice(0, firstTelling).map(frame => frame[0]), [MESSAGE.hello, MESSAGE.share, MESSAGE.tagI, MESSAGE.tagR])
  t.equal(sent[firstTelling]?.[0], MESSAGE.recordI, 'and this test can see a name')
  t.end()
})

await t.test('flipping any byte of any message fails both sides', t => {
  for (const choices of [YES, OWN]) {
    // The two as they were before each message arrived: what came before need not be computed again.
    const moments: Array<{ duet: Duet, message: Buffer }> = []
    const plain = new Duet(choices)
    while (plain.toR.length + plain.toI.length > 0) {
      const [next] = [...plain.toR, ...plain.toI]
      moments.push({ duet: plain.fork(), message: next! })
      plain.step()
    }
    t.equal(moments.length, 9)
    let flips = 0
    for (const { duet: before, message } of moments) {
      for (let at = 0; at < message.length; at++) {
        flips++
        let isFirst = true
        const duet = before.fork().run(bytes => {
          if (!isFirst) return bytes
          isFirst = false
          const flipped = Buffer.from(bytes)
          flipped[at]! ^= 1 << (at % 8)
          return flipped
        }).settle()
        const { pairI, pairR, outcomeI, outcomeR } = duet
        const name = `M${message[0]} byte ${at}`
        // R wrote the pair down before it sent M8, and says that nobody confirmed it. I has none, or, at M9, has it.
        if (message[0] === MESSAGE.done) {
          if (outcomeI?.result !== 'paired' || outcomeR?.confirmed !== false) t.fail(name)
        } else if (message[0] === MESSAGE.commit) {
          if (pairI !== undefined || outcomeI?.result === 'paired' || outcomeR?.confirmed !== false) t.fail(name)
        } else if (pairI !== undefined || pairR !== undefined || outcomeI?.result !== 'failed' || outcomeR === undefined || outcomeR.pair !== undefined) t.fail(name)
      }
    }
    t.ok(flips > 900, `${flips} flips`)
  }
  t.end()
})

await t.test('one’s own messages, reflected, fail', t => {
  // A mirror: R's connection leads back to R's own device, or I's to its own.
  const self = paperSelf('ida')
  const [channel] = channelBetween('mirror', self.device, self.device)
  const state = startJoining({ self, kind: 'code', secret: Buffer.from('123456'), relation: 'peer', requests: [] }, 0)
  t.match(initiate(state, { type: 'connected', channel }, 0).effects.at(-1), { do: 'end', outcome: { result: 'failed' } }, 'one device at both ends')

  // Each message of I comes back to it with the number that the answer would have.
  const answers: Partial<Record<number, MessageNumber>> = { [MESSAGE.hello]: MESSAGE.share, [MESSAGE.tagI]: MESSAGE.tagR, [MESSAGE.recordI]: MESSAGE.recordR, [MESSAGE.accept]: MESSAGE.commit }
  for (const stage of [1, 2, 3, 4]) {
    const duet = new Duet(YES)
    duet.run((bytes, from, nth) => {
      if (from !== 'R' || nth !== stage) return bytes
      const own = duet.sentI.at(-1)!
      const body = own.subarray(3)
      const fields = body[0] === 1 ? body.subarray(7) : body
      const answer = Buffer.from(own[0] === MESSAGE.accept ? lvCat(Buffer.alloc(0), body.subarray(1)) : fields)
      const head = Buffer.of(answers[own[0]!]!, answer.length >> 8, answer.length & 255)
      return Buffer.concat([head, answer])
    })
    t.equal(duet.pairI, undefined)
    t.not(duet.outcomeI?.result, 'paired', `message ${stage} reflected`)
    t.ok(duet.outcomeI)
  }
  t.end()
})

await t.test('a man in the middle with keys of his own', t => {
  // He relays every byte; only the channels differ, as two TLS connections do.
  const [ida, rob, mallory] = [paperSelf('ida'), paperSelf('rob'), paperSelf('mallory')]
  const [towardsMallory] = channelBetween('left', ida.device, mallory.device)
  const [, fromMallory] = channelBetween('right', mallory.device, rob.device)
  const duet = new Duet(YES, { selfI: ida, selfR: rob, channels: [towardsMallory, fromMallory] }).run().settle()
  t.match(duet.outcomeI, { result: 'failed', failure: { reason: 'proof' } })
  t.match(duet.effectsR.find(effect => effect.do === 'tell'), { failure: { reason: 'proof', by: 'us' }, attemptsLeft: 2 })
  t.equal(duet.pairI ?? duet.pairR, undefined)
  // The same keys at both ends and another session: the exporter alone tells them apart.
  const [left] = channelBetween('left', ida.device, rob.device)
  const [, right] = channelBetween('right', ida.device, rob.device)
  t.match(new Duet(YES, { selfI: ida, selfR: rob, channels: [left, right] }).run().outcomeI, { result: 'failed' })
  t.end()
})

await t.test('records that do not fit', t => {
  const rob = paperSelf('rob')
  const ida = paperSelf('ida')
  const lying = (record: Partial<PartyRecord>, changes: object = {}): Duet => new Duet(YES, { selfI: { ...ida, ...changes, record: { ...ida.record, ...record } } }).run().settle()
  const told = (duet: Duet): string | undefined => duet.effectsR.flatMap(effect => effect.do === 'tell' ? [effect.failure.reason] : [])[0]
  t.equal(told(lying({ deviceCertificate: paper('device', idFor('device of eve'), ida.user) })), 'record', 'a certificate over another key')
  t.equal(told(lying({ userCa: paper('ca', idFor('user of eve')) })), 'record', 'a CA that did not sign it')
  t.equal(told(lying({ userCa: paper('ca', rob.user), deviceCertificate: paper('device', ida.device, rob.user) })), 'refused', 'our own CA, as a peer')
  t.equal(told(lying({ deviceCertificate: Buffer.from('nonsense') })), 'record')
  const otherRequests = new Duet(OWN)
  otherRequests.initiator = { ...otherRequests.initiator, options: { ...otherRequests.initiator.options, requests: requestsOf(paperSelf('eve')) } }
  t.equal(told(otherRequests.run().settle()), 'record', 'a signing request over another key')
  const revoked = new Duet(YES, { selfR: { ...rob, isRevoked: device => device === ida.device } }).run()
  t.match(revoked.outcomeI, { failure: { reason: 'revoked', by: 'them' } })
  t.equal(revoked.responder.charges, 0)
  t.match(new Duet(YES, { selfI: { ...ida, isRevoked: () => true } }).run().outcomeI, { failure: { reason: 'revoked', by: 'us' } })
  const objected = new Duet(YES, { selfR: { ...rob, objection: ({ name }) => `it is known as something else than ${name}` } }).run()
  t.match(objected.effectsR.find(effect => effect.do === 'tell'), { failure: { reason: 'refused', detail: 'it is known as something else than NAME-ida' } })
  // Revoked while the person still thinks: it does not reach the disk.
  let isRevoked = false
  const late = new Duet(YES, { selfR: { ...rob, isRevoked: () => isRevoked } })
  late.run((bytes, from, nth) => { if (from === 'I' && nth === 4) isRevoked = true; return bytes })
  t.equal(late.pairR, undefined)
  t.equal(told(late), 'revoked')
  // A name that would turn the line around.
  const bidi = lying({ name: 'friend\u202e\u0007' })
  t.equal(bidi.pairR?.other.name, 'friend\ufffd\ufffd')
  t.end()
})

await t.test('a guesser with 1,000 addresses has 3 attempts, however he leaves', t => {
  const rob = paperSelf('rob')
  for (const leaving of ['with a wrong tag', 'at once', 'before the charge is written', 'by waiting']) {
    let state = openWindow({ self: rob, code: '123456', link: sha256('link').subarray(0, 16) }, 0)
    let now = 0
    let shares = 0
    const charges: number[] = []
    const attemptsLeft: number[] = []
    const step = (event: Parameters<typeof respond>[1]): readonly ResponderEffect[] => {
      const { state: next, effects } = respond(state, event, now)
      state = next
      for (const effect of effects) {
        if (effect.do === 'charge') charges.push(effect.charges)
        if (effect.do === 'tell') attemptsLeft.push(effect.attemptsLeft)
        if (effect.do === 'send' && effect.frame[0] === MESSAGE.share) {
          shares++
          if (charges.length < shares) t.fail('a share left before its charge')
        }
      }
      return effects
    }
    for (let session = 1; session <= 1000; session++) {
      const eve = paperSelf(`eve ${session}`)
      const [channelI, channel] = channelBetween(`guess ${leaving} ${session}`, eve.device, rob.device)
      const binding: Binding = { kind: 'code', secret: Buffer.from(String(session).padStart(6, '0')), sid: channelI.sid, initiator: eve.device, responder: rob.device }
      step({ type: 'accepted', session })
      step({ type: 'secured', session, channel })
      const charged = charges.length
      // A share costs 2 ms; beyond the first attempts any will do.
      const own = session < 6 ? shareOf(binding, channelI.random) : { scalar: Buffer.alloc(32), share: rob.certificates === undefined ? Buffer.alloc(32) : sha256('x') }
      step({ type: 'frame', session, frame: framesIn(encodeHello('code', own.share)).frames[0]! })
      if (charges.length === charged) continue
      if (leaving === 'before the charge is written') {
        step({ type: 'closed', session })
        step({ type: 'charged', session, ok: true })
        continue
      }
      const [answer] = step({ type: 'charged', session, ok: true })
      if (leaving === 'with a wrong tag' && answer?.do === 'send') {
        const keys = keysOf(binding, 'I', own, parseShare(answer.frame.subarray(3))!)!
        step({ type: 'frame', session, frame: framesIn(encodeTag(MESSAGE.tagI, keys.tags.I)).frames[0]! })
      } else if (leaving === 'by waiting') {
        now += STEP_MS
        step({ type: 'tick' })
      } else step({ type: 'closed', session })
    }
    t.same(charges, [1, 2, 3], leaving)
    t.equal(shares, leaving === 'before the charge is written' ? 0 : 3)
    t.same(attemptsLeft, [2, 1, 0])
    t.equal(state.phase, 'open', 'the link still works')
    now = WINDOW_MS
    step({ type: 'tick' })
    t.equal(state.phase, 'over')
    t.equal(state.options.code, undefined)
  }
  t.end()
})

await t.test('one session at a time, stale ones gone, and the window ends', t => {
  const rob = paperSelf('rob')
  let state: ResponderState = openWindow({ self: rob, code: '123456' }, 0)
  let now = 0
  const step = (event: Parameters<typeof respond>[1]): readonly ResponderEffect[] => {
    const { state: next, effects } = respond(state, event, now)
    state = next
    return effects
  }
  const hello = framesIn(encodeHello('code', shareOf({ kind: 'code', secret: Buffer.from('000000'), sid: sha256(''), initiator: idFor('a'), responder: rob.device }, sha256('r')).share)).frames[0]!
  const arrive = (session: number): readonly ResponderEffect[] => {
    step({ type: 'accepted', session })
    step({ type: 'secured', session, channel: channelBetween(`s${session}`, idFor(`x${session}`), rob.device)[1] })
    return step({ type: 'frame', session, frame: hello })
  }
  const word = (effects: readonly ResponderEffect[]): string | undefined => effects.flatMap(effect => effect.do === 'send' ? [parseRefusal(effect.frame.subarray(3))] : [])[0]
  t.match(arrive(1), [{ do: 'charge', charges: 1 }])
  t.equal(word(arrive(2)), 'wait')
  t.equal(state.charges, 1, 'being told to wait costs nothing')
  step({ type: 'charged', session: 1, ok: true })
  // Somebody who connects and says nothing holds no place.
  for (let session = 10; session < 10 + MOST_WAITING; session++) step({ type: 'accepted', session })
  t.match(step({ type: 'accepted', session: 99 }), [{ do: 'close', session: 99 }])
  now = STEP_MS
  t.equal(responderDeadline(state), STEP_MS)
  const stale = step({ type: 'tick' })
  t.equal(stale.filter(effect => effect.do === 'close').length, MOST_WAITING + 1)
  t.match(stale.find(effect => effect.do === 'tell'), { failure: { reason: 'slow' }, attemptsLeft: 2 })
  t.match(arrive(3), [{ do: 'charge', charges: 2 }], 'the place is free again')
  // A charge that cannot be written: no share.
  const unwritten = step({ type: 'charged', session: 3, ok: false })
  t.equal(word(unwritten), 'failed')
  t.notOk(unwritten.some(effect => effect.do === 'send' && effect.frame[0] === MESSAGE.share))
  // An answer that comes at the very end of the window comes too late.
  now = WINDOW_MS - 1
  t.match(arrive(4), [{ do: 'charge', charges: 3 }])
  now = WINDOW_MS
  const late = step({ type: 'charged', session: 4, ok: true })
  t.notOk(late.some(effect => effect.do === 'send' && effect.frame[0] === MESSAGE.share))
  t.match(late.at(-1), { do: 'end', confirmed: false })
  t.match(arrive(5), [], 'a window that is over answers nothing')
  t.equal(state.options.link ?? state.options.code, undefined)

  // Without a link, the third failure ends the window.
  state = openWindow({ self: rob, code: '123456' }, now = 0)
  for (const session of [1, 2, 3]) {
    arrive(session)
    step({ type: 'closed', session })
  }
  t.equal(state.phase, 'over')
  t.end()
})

await t.test('a proven session outlives its window, and a person who does not answer ends it', t => {
  const duet = new Duet(YES)
  const held: ResponderEffect[] = []
  // Drive R by hand up to its person.
  let state = duet.responder
  const step = (event: Parameters<typeof respond>[1], now: number): void => {
    const next = respond(state, event, now)
    state = next.state
    held.push(...next.effects)
  }
  const plain = new Duet(YES).run()
  const frame = (bytes: Buffer) => framesIn(bytes).frames[0]!
  step({ type: 'frame', session: 1, frame: frame(plain.sentI[0]!) }, 1)
  step({ type: 'charged', session: 1, ok: true }, 2)
  step({ type: 'frame', session: 1, frame: frame(plain.sentI[1]!) }, 3)
  t.equal(state.phase, 'proven')
  t.equal(state.options.code ?? state.options.link, undefined, 'the secret is gone')
  step({ type: 'frame', session: 1, frame: frame(plain.sentI[2]!) }, 4)
  t.equal(held.at(-1)?.do, 'ask')
  step({ type: 'tick' }, CONFIRM_MS + 3)
  t.equal(state.phase, 'proven')
  step({ type: 'tick' }, CONFIRM_MS + 4)
  t.equal(state.phase, 'over')
  t.same(held.slice(-5).map(effect => effect.do), ['withdraw', 'send', 'close', 'tell', 'end'])
  t.end()
})

await t.test('the frame reader', t => {
  const one = encodeShare(sha256('a'))
  const two = encodeTag(MESSAGE.tagR, Buffer.alloc(64, 1))
  fc.assert(fc.property(fc.array(fc.nat(200), { maxLength: 12 }), cuts => {
    const stream = Buffer.concat([one, two])
    const reader = new FrameReader()
    const points = [0, ...cuts.map(cut => cut % stream.length).toSorted((a, b) => a - b), stream.length]
    const frames = points.slice(1).flatMap((end, index) => reader.push(stream.subarray(points[index], end)).frames)
    return frames.length === 2 && Buffer.concat(frames.map(({ number, body }) => Buffer.concat([Buffer.of(number, body.length >> 8, body.length & 255), body]))).equals(stream)
  }), { seed, numRuns: 200 * RUNS })
  t.ok(new FrameReader().push(Buffer.of(0)).broken, 'no message has the number 0')
  t.ok(new FrameReader().push(Buffer.from('GET / HTTP/1.1')).broken)
  t.ok(new FrameReader().push(Buffer.of(MESSAGE.share, 0, 34)).broken, 'one over the cap, before its body')
  t.ok(new FrameReader().push(Buffer.concat(Array.from({ length: 40 }, () => one))).broken, 'a flood')
  t.throws(() => encodeFrame(MESSAGE.share, Buffer.alloc(40)), RangeError)
  t.end()
})

const bytes = (maxLength: number, minLength = 0): fc.Arbitrary<Buffer> => fc.uint8Array({ minLength, maxLength }).map(array => Buffer.from(array))
const databases = fc.uniqueArray(fc.stringMatching(/^[a-z][a-z0-9_$()+/-]{0,20}$/), { maxLength: 64 }).map(names => new Map(names.map((name, index) => [name as DatabaseName, index % 2 === 0 ? 'read' as const : 'write' as const])))
const records: fc.Arbitrary<PartyRecord> = fc.record({
  role: fc.constantFrom('I', 'R'), relation: fc.constantFrom('own', 'peer'), name: fc.string({ minLength: 1, maxLength: 30, unit: 'binary' }),
  deviceCertificate: bytes(4096, 1), userCa: bytes(900, 1), databases, port: fc.option(fc.integer({ min: 1, max: 65535 }), { nil: undefined }), key: fc.option(bytes(91, 91), { nil: undefined }), requests: fc.tuple(bytes(900, 1), bytes(900, 1)),
}).map(({ port, key, requests, ...rest }) => ({ ...rest, role: rest.role as 'I' | 'R', relation: rest.relation as Relation, requests: rest.role === 'I' && rest.relation === 'own' ? requests : [], ...(port === undefined ? {} : { port }), ...(key === undefined ? {} : { recoveryKey: key }) }))

await t.test('records: what was written is read, and nothing else is', t => {
  fc.assert(fc.property(records, record => {
    const read = parseRecord(encodeRecord(record))
    return read !== undefined && encodeRecord(read).equals(encodeRecord(record)) && read.name === record.name && [...read.databases].length === record.databases.size
  }), { seed, numRuns: 300 * RUNS })
  // Any other bytes that are read at all are spelled as they were.
  fc.assert(fc.property(records, fc.nat(), fc.integer({ min: 1, max: 255 }), (record, at, change) => {
    const encoded = Buffer.from(encodeRecord(record))
    encoded[at % encoded.length]! ^= change
    const read = parseRecord(encoded)
    return read === undefined || encodeRecord(read).equals(encoded)
  }), { seed, numRuns: 1000 * RUNS })
  const record: PartyRecord = { role: 'R', relation: 'peer', name: 'x', deviceCertificate: Buffer.of(1), userCa: Buffer.of(2), requests: [], databases: new Map() }
  for (const bad of [{ name: '' }, { name: 'x'.repeat(101) }, { deviceCertificate: Buffer.alloc(4097) }, { userCa: Buffer.alloc(0) }, { port: 0 }, { port: 65536 }, { recoveryKey: Buffer.alloc(90) }, { requests: [Buffer.of(1), Buffer.of(2)] }, { role: 'I', relation: 'own' }, { databases: new Map([['_users' as DatabaseName, 'read']]) }] as Array<Partial<PartyRecord>>) {
    t.throws(() => encodeRecord({ ...record, ...bad }), RangeError, Object.keys(bad).join())
  }
  t.equal(parseRecord(Buffer.concat([encodeRecord(record), Buffer.of(0)])), undefined)
  t.equal(parseRecord(lvCat(...Array.from({ length: 9 }, () => Buffer.of(1)))), undefined)
  const swapped = lvCat(...['R', 'peer', 'x', '1', '2', '', ''].map(text => Buffer.from(text)), lvCat(...['', 'b', 'read', 'a', 'read'].map(text => Buffer.from(text))))
  t.equal(parseRecord(swapped), undefined, 'databases out of order')
  t.equal(parseRecord(lvCat(...['R', 'peer', 'x', '1', '2', '', ''].map(text => Buffer.from(text)), lvCat(...['', 'a', 'read', 'a', 'write'].map(text => Buffer.from(text))))), undefined, 'one twice')
  t.equal(parseRecord(lvCat(Buffer.from('R'), Buffer.from('peer'), Buffer.of(0xff), Buffer.of(1), Buffer.of(2), Buffer.alloc(0), Buffer.alloc(0), lvCat(Buffer.alloc(0)))), undefined, 'a name that is not UTF-8')
  t.end()
})

await t.test('the parsers take anything', t => {
  fc.assert(fc.property(bytes(300), body => {
    for (const parse of [parseHello, parseShare, parseTag, parseSignedRecord, parseCommit, parseRefusal, parseRecord]) parse(body)
    return true
  }), { seed, numRuns: 2000 * RUNS })
  t.equal(parseHello(lvCat(Buffer.of(2), Buffer.from('code'), Buffer.alloc(32))), 'version')
  t.equal(parseHello(lvCat(Buffer.of(1), Buffer.from('Code'), Buffer.alloc(32))), undefined)
  t.equal(parseHello(lvCat(Buffer.of(1), Buffer.from('code'), Buffer.alloc(31))), undefined)
  t.equal(parseTag(Buffer.concat([Buffer.of(0xc0, 0x00), Buffer.alloc(64)])), undefined, 'a length spelled long')
  t.end()
})

await t.test('mutated messages, records, signing requests and certificates crash nothing, bring nobody trust and cost less than 50 ms', async t => {
  // The whole is `npm run test:fuzz`.
  const counts = { messages: 5000, records: 2000, requests: 1000, certificates: 1000 }
  for (const target of await fuzzTargets()) {
    const { inputs, outliers } = fuzz(target, counts[target.kind], seed)
    t.same(outliers, [], `${inputs} ${target.kind}`)
  }
})

await t.test('codes, links and addresses', t => {
  const codes = Array.from({ length: 2000 }, newCode)
  t.ok(codes.every(code => /^\d{6}$/.test(code)))
  t.ok(codes.some(code => code.startsWith('0')), 'leading zeros are kept')
  t.ok(new Set(codes).size > 1900)
  for (const text of ['123456', '123 456', '123-456', ' 123456\n']) t.same(parseInvitation(text), { kind: 'code', code: '123456' })
  const link = { secret: sha256('s').subarray(0, 16), device: idFor('r'), addresses: [{ host: 'fe80::1', zone: 'eth0', port: 40123 }, { host: '::1', port: 1 }] }
  const text = formatLink(link)
  t.equal(text, `patchcord:pair?secret=${link.secret.toString('base64url')}&device=${link.device}&at=[fe80::1%25eth0]:40123&at=[::1]:1`)
  t.same(parseInvitation(text), { kind: 'link', link })
  for (const bad of ['', '12345', '1234567', '12 34 56', 'abcdef', '１２３４５６', text.slice(0, -1), `${text}&at=`, text.replace('secret', 'Secret'), text.replace('%25', '%'), text.replace('%25eth0', ''), `${text}&x=1`, text.replace(/&at=.*/, ''), text + '&at=[::1]:1'.repeat(7)]) {
    t.throws(() => parseInvitation(bad), { code: 'usage' }, bad)
  }
  // Half of a secret is never quoted.
  t.notMatch((() => { try { parseInvitation('98765'); return '' } catch (error) { return String(error) } })(), /98765/)
  fc.assert(fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.string(), fc.integer({ min: 1, max: 65535 }), (secret, device, port) => {
    const made = { secret: Buffer.from(secret), device: idFor(device), addresses: [{ host: 'fe80::a:b', zone: 'enp3s0', port }] }
    const parsed = parseInvitation(formatLink(made))
    return parsed.kind === 'link' && parsed.link.secret.equals(made.secret) && parsed.link.device === made.device
  }), { seed, numRuns: 100 * RUNS })

  const entry = (address: string) => ({ address, netmask: '', family: 'IPv6' as const, mac: '', internal: false, cidr: null, scopeid: 0 })
  const interfaces = { lo: [entry('::1')], eth0: [entry('fe80::2'), entry('2001:db8::2')], wlan0: [entry('fe80::3')] }
  t.same(ownAddresses(7, interfaces).map(({ host, zone }) => `${host} ${zone ?? ''}`), ['fe80::2 eth0', 'fe80::3 wlan0', '2001:db8::2 '])
  t.same(ownAddresses(7, { lo: [entry('::1')] }), [{ host: '::1', port: 7 }])
  t.same(dialable([{ host: 'fe80::9', zone: 'wlan0', port: 1 }, { host: '2001:db8::9', port: 1 }], interfaces), [{ host: 'fe80::9', zone: 'wlan0', port: 1 }, { host: 'fe80::9', zone: 'eth0', port: 1 }, { host: '2001:db8::9', port: 1 }])
  t.end()
})

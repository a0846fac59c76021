import { createHash } from 'node:crypto'
import { encodeBase32 } from '../src/core/base32.js'
import { PatchcordError } from '../src/core/errors.js'
import type { DatabaseName, DeviceId, UserId } from '../src/core/ids.js'
import { FrameReader, type Frame } from '../src/pairing/frames.js'
import { initiate, initiatorDeadline, startJoining, type InitiatorEffect, type InitiatorEvent, type InitiatorOptions, type InitiatorState } from '../src/pairing/initiator.js'
import type { Relation } from '../src/pairing/messages.js'
import type { Certificates, Self } from '../src/pairing/party.js'
import type { Channel } from '../src/pairing/proof.js'
import { openWindow, respond, responderDeadline } from '../src/pairing/responder.js'
import type { ResponderEffect, ResponderEvent, ResponderOptions, ResponderState } from '../src/pairing/responder-state.js'

// Two parties without sockets, disks or certificates worth the name, for what is to be tried thousands of
// times. The real ones are in pairing-sockets.test.ts.

export const sha256 = (text: string): Buffer => createHash('sha256').update(text).digest()
export const idFor = (name: string): DeviceId => encodeBase32(sha256(name)) as DeviceId

/** A certificate says `<kind> <device> <user>`. */
export const paper = (kind: string, ...words: string[]): Buffer => Buffer.from([kind, ...words].join(' '))
const words = (bytes: Buffer, kind: string, count: number): string[] => {
  const [first, ...rest] = bytes.toString('latin1').split(' ')
  if (first !== kind || rest.length !== count || rest.some(word => !/^[a-z2-7]{52}$/.test(word))) throw new PatchcordError('bad-certificate', `not ${kind}`)
  return rest
}

export const paperCertificates: Certificates = {
  deviceOf: certificate => words(certificate, 'self', 1)[0] as DeviceId,
  identify: (certificate, ca) => {
    const [device, user] = words(certificate, 'device', 2)
    if (words(ca, 'ca', 1)[0] !== user) throw new PatchcordError('bad-certificate', 'signed by another CA')
    return { device: device as DeviceId, user: user as UserId }
  },
  deviceOfRequests: requests => words(requests[0]!, 'request', 1)[0] as DeviceId,
  deviceOfIssue: ([certificate], ca) => {
    const [device, user] = words(certificate!, 'device', 2)
    if (words(ca, 'ca', 1)[0] !== user) throw new PatchcordError('bad-certificate', 'signed by another CA')
    return device as DeviceId
  },
}

export function paperSelf (name: string, changes: Partial<Self> = {}): Self {
  const device = idFor(`device of ${name}`)
  const user = idFor(`user of ${name}`) as string as UserId
  return {
    device, user, certificates: paperCertificates,
    isRevoked: () => false,
    objection: () => undefined,
    record: { name: `NAME-${name}`, deviceCertificate: paper('device', device, user), userCa: paper('ca', user), requests: [], port: 4984, databases: new Map([[`db-${name}` as DatabaseName, 'read']]) },
    ...changes,
  }
}

export const requestsOf = ({ device }: Self): Buffer[] => [paper('request', device), paper('request', idFor(`server of ${device}`))]
export const issueFor = (device: DeviceId, user: UserId): Buffer[] => [paper('device', device, user), paper('server', device, user)]

/** A channel between two, as both ends see it: 32 bytes are the same, the other and the randomness are not. */
export function channelBetween (label: string, one: DeviceId, other: DeviceId): [Channel, Channel] {
  const sid = sha256(`sid ${label}`)
  return [{ sid, other, random: sha256(`random I ${label}`) }, { sid, other: one, random: sha256(`random R ${label}`) }]
}

/** The frames in some bytes. */
export const framesIn = (bytes: Buffer): { frames: Frame[], broken: boolean } => new FrameReader().push(bytes)

/** What stands between a machine's effects and the other machine: everything that is not a message. */
export interface Choices {
  readonly relationI: Relation
  readonly relationR: Relation | undefined
  readonly confirmI: Relation | undefined
}

/** One responder, one initiator and what happened to them, driven message by message. */
export class Duet {
  readonly choices: Choices
  readonly selfI: Self
  readonly selfR: Self
  initiator: InitiatorState
  responder: ResponderState
  now = 0
  readonly session = 1
  readonly sentI: Buffer[] = []
  readonly sentR: Buffer[] = []
  readonly effectsI: InitiatorEffect[] = []
  readonly effectsR: ResponderEffect[] = []
  /** In flight. */
  toR: Buffer[] = []
  toI: Buffer[] = []
  closedByI = false
  closedByR = false

  constructor (choices: Choices, { codeI = '123456', codeR = '123456', link, selfI = paperSelf('ida'), selfR = paperSelf('rob'), channels = channelBetween('duet', selfI.device, selfR.device) }: { codeI?: string, codeR?: string, link?: Buffer, selfI?: Self, selfR?: Self, channels?: [Channel, Channel] } = {}) {
    this.choices = choices
    this.selfI = selfI
    this.selfR = selfR
    const optionsI: InitiatorOptions = { self: selfI, kind: link === undefined ? 'code' : 'link', secret: link ?? Buffer.from(codeI), relation: choices.relationI, requests: choices.relationI === 'own' ? requestsOf(selfI) : [] }
    const optionsR: ResponderOptions = { self: selfR, code: codeR, ...(link === undefined ? {} : { link }) }
    this.initiator = startJoining(optionsI, 0)
    this.responder = openWindow(optionsR, 0)
    this.tellR({ type: 'accepted', session: this.session })
    this.tellR({ type: 'secured', session: this.session, channel: channels[1] })
    this.tellI({ type: 'connected', channel: channels[0] })
  }

  get pairI () { return this.effectsI.flatMap(effect => effect.do === 'settle' ? [effect.pair] : [])[0] }
  get pairR () { return this.effectsR.flatMap(effect => effect.do === 'commit' ? [effect.pair] : [])[0] }
  get outcomeI () { return this.effectsI.flatMap(effect => effect.do === 'end' ? [effect.outcome] : [])[0] }
  get outcomeR () { return this.effectsR.flatMap(effect => effect.do === 'end' ? [effect] : [])[0] }

  tellI (event: InitiatorEvent): void {
    const { state, effects } = initiate(this.initiator, event, this.now)
    this.initiator = state
    this.effectsI.push(...effects)
    for (const effect of effects) {
      switch (effect.do) {
        case 'spend': this.tellI({ type: 'spent', ok: true }); break
        case 'send': this.sentI.push(effect.frame); this.toR.push(effect.frame); break
        case 'ask': this.tellI({ type: 'answered', ...(this.choices.confirmI === undefined ? {} : { relation: this.choices.confirmI }) }); break
        case 'hold':
        case 'settle': this.tellI({ type: 'written', ok: true }); break
        case 'close': this.closedByI = true; break
        default:
      }
    }
  }

  tellR (event: ResponderEvent): void {
    const { state, effects } = respond(this.responder, event, this.now)
    this.responder = state
    this.effectsR.push(...effects)
    const { session } = this
    for (const effect of effects) {
      switch (effect.do) {
        case 'charge': this.tellR({ type: 'charged', session, ok: true }); break
        case 'send': this.sentR.push(effect.frame); this.toI.push(effect.frame); break
        case 'ask': this.tellR({ type: 'answered', session, ...(this.choices.relationR === undefined ? {} : { relation: this.choices.relationR }) }); break
        case 'issue': this.tellR({ type: 'issued', session, certificates: issueFor(effect.other.device, this.selfR.user) }); break
        case 'commit': this.tellR({ type: 'written', session, ok: true }); break
        case 'close': this.closedByR = true; break
        default:
      }
    }
  }

  /** Everything that is in flight arrives, and what that brings about, until nothing moves; `change` may alter
   * a message on its way, and is told who sent it and which it is, from 1. */
  run (change: (bytes: Buffer, from: 'I' | 'R', nth: number) => Buffer = bytes => bytes): this {
    const readers = { I: new FrameReader(), R: new FrameReader() }
    let [nthI, nthR] = [0, 0]
    while (this.toR.length > 0 || this.toI.length > 0) {
      const forR = this.toR.shift()
      if (forR !== undefined) {
        const { frames, broken } = readers.R.push(change(forR, 'I', ++nthI))
        for (const frame of frames) this.tellR({ type: 'frame', session: this.session, frame })
        if (broken) this.tellR({ type: 'broken', session: this.session })
        continue
      }
      const { frames, broken } = readers.I.push(change(this.toI.shift()!, 'R', ++nthR))
      for (const frame of frames) this.tellI({ type: 'frame', frame })
      if (broken) this.tellI({ type: 'broken' })
    }
    return this
  }

  /** Closed ends are noticed, and time passes until nobody waits any more. */
  settle (): this {
    if (this.closedByR) this.tellI({ type: 'closed' })
    if (this.closedByI) this.tellR({ type: 'closed', session: this.session })
    for (let turns = 0; turns < 20; turns++) {
      const due = Math.min(initiatorDeadline(this.initiator), responderDeadline(this.responder))
      if (!Number.isFinite(due)) break
      this.now = Math.max(this.now, due)
      this.tellI({ type: 'tick' })
      this.tellR({ type: 'tick' })
      this.run()
    }
    return this
  }
}

import { createHash } from 'node:crypto'
import type { Answering } from '../core/answering.js'
import type { Clock } from '../core/clock.js'
import type { DeviceId } from '../core/ids.js'
import { answerJson } from './answers.js'

export type Mailboxes = Readonly<Record<string, unknown>>

const EMPTY = Object.freeze({})
const EMPTY_TAG = tagOf(EMPTY)

/** What this device has for one caller, as a long-poll: `If-None-Match` with the newest ETag waits until
 * there is something else, or until `mailPollMs` have passed (304). Nobody posts anything here. */
export class Mail {
  readonly #clock: Clock
  readonly #pollMs: number
  readonly #waiting = new Map<DeviceId, Set<() => void>>()
  #boxes: Mailboxes
  readonly #tags = new Map<DeviceId, string>()

  constructor (boxes: Mailboxes, pollMs: number, clock: Clock) {
    this.#boxes = boxes
    this.#pollMs = pollMs
    this.#clock = clock
  }

  /** Replaces all mail and wakes those who wait for theirs. */
  replace (boxes: Mailboxes): void {
    if (boxes === this.#boxes) return
    this.#boxes = boxes
    this.#tags.clear()
    for (const wakes of this.#waiting.values()) for (const wake of [...wakes]) wake()
  }

  async answer (response: Answering, device: DeviceId, known: string | undefined): Promise<number> {
    const since = known?.trim()
    const deadline = this.#clock.monotonic() + this.#pollMs
    while (since !== undefined && since === this.#tag(device)) {
      const left = deadline - this.#clock.monotonic()
      if (left <= 0 || response.destroyed || !await this.#change(device, response, left)) break
    }
    if (response.destroyed) return 0
    const etag = this.#tag(device)
    if (etag === since) {
      response.writeHead(304, { ETag: etag, 'Cache-Control': 'private, no-cache' })
      response.end()
      return 0
    }
    return answerJson(response, this.#box(device), { ETag: etag })
  }

  #box (device: DeviceId): unknown {
    return Object.hasOwn(this.#boxes, device) ? this.#boxes[device] : EMPTY
  }

  #tag (device: DeviceId): string {
    // Nothing is kept for who has no mail: a listed CA may make any number of devices.
    if (!Object.hasOwn(this.#boxes, device)) return EMPTY_TAG
    let tag = this.#tags.get(device)
    if (tag === undefined) {
      tag = tagOf(this.#box(device))
      this.#tags.set(device, tag)
    }
    return tag
  }

  /** Resolves true at the next replacement, false when the time is over or the caller is gone. */
  #change (device: DeviceId, response: Answering, delay: number): Promise<boolean> {
    return new Promise(resolve => {
      const waiting = this.#waiting.get(device) ?? new Set()
      this.#waiting.set(device, waiting)
      const settle = (changed: boolean): void => {
        waiting.delete(wake)
        if (waiting.size === 0) this.#waiting.delete(device)
        timer.cancel()
        response.off('close', gone)
        resolve(changed)
      }
      const wake = (): void => { settle(true) }
      const gone = (): void => { settle(false) }
      const timer = this.#clock.after(delay, gone)
      waiting.add(wake)
      response.on('close', gone)
    })
  }
}

function tagOf (box: unknown): string {
  return `"${createHash('sha256').update(JSON.stringify(box)).digest('base64url')}"`
}

import { join } from 'node:path'
import * as v from 'valibot'
import type { Clock } from '../core/clock.js'
import type { DeviceId } from '../core/ids.js'
import { contentId, deviceId, instant } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const Sent = v.strictObject({ offer: v.string(), device: deviceId, list: contentId, size: count, files: v.array(contentId), bytes: count, until: instant, answer: v.picklist(['none', 'accepted', 'refused', 'done']) })
/** A name in a folder, and never a way out of it. */
const name = v.pipe(v.string(), v.check(text => !/^\.{0,2}$|[/\0]/.test(text), 'must be a name, without folders'))
/** `landing` is there once something may have landed in `to` (landing.ts). */
const Received = v.strictObject({ offer: v.string(), device: deviceId, list: contentId, size: count, files: count, bytes: count, state: v.picklist(['offered', 'accepted', 'refused', 'done']), to: v.exactOptional(v.string()), landing: v.exactOptional(v.array(v.strictObject({ name, as: name }))) })
const Rule = v.strictObject({ device: deviceId, rule: v.picklist(['ask', 'accept', 'refuse']), to: v.exactOptional(v.string()) })
const Shape = v.strictObject({ version: v.literal(1), sent: v.array(Sent), received: v.array(Received), rules: v.array(Rule) })

type OfferState = v.InferOutput<typeof Shape>
export type SentOffer = OfferState['sent'][number]
export type ReceivedOffer = OfferState['received'][number]

interface OfferBookCollaborators {
  readonly clock: Clock
  readonly isRevoked: (device: DeviceId) => boolean
  /** Told of each change, once it is on the disk, and whether other files are lent than before. */
  readonly changed: (isLent: boolean) => Promise<void>
}

/** Whether the files of an offer are lent. */
export function isOpen ({ answer }: SentOffer): boolean {
  return answer === 'none' || answer === 'accepted'
}

function lentBy ({ sent }: OfferState): string {
  return sent.filter(isOpen).map(({ offer }) => offer).join(' ')
}

/** What was offered, by whom and to whom, what became of it, and the rules: `offers.json`. What is over is in it until something changes, and
 * `standing` is without it. */
export class OfferBook {
  readonly #path: string
  readonly #collaborators: OfferBookCollaborators
  #state: OfferState
  #writing: Promise<void> = Promise.resolve()

  private constructor (path: string, state: OfferState, collaborators: OfferBookCollaborators) {
    this.#path = path
    this.#state = state
    this.#collaborators = collaborators
  }

  /** Throws `bad-state`, naming the file and the field. */
  static async open (root: string, collaborators: OfferBookCollaborators): Promise<OfferBook> {
    const path = join(root, 'offers.json')
    return new OfferBook(path, await readState(path, Shape) ?? { version: 1, sent: [], received: [], rules: [] }, collaborators)
  }

  get now (): OfferState { return this.#state }

  /** Without offers that are over: their time is up, or the device is trusted no more. */
  get standing (): OfferState { return this.#standing(this.#state) }

  /** Resolves when nothing is on its way to the disk: what follows in the same turn can be worked out from what is there. */
  async settled (): Promise<void> {
    for (let before: Promise<void> | undefined; before !== this.#writing;) await (before = this.#writing)
  }

  /** In force, and told, when it is on the disk. */
  change (change: (state: OfferState) => OfferState): Promise<void> {
    const written = this.#writing.then(async () => {
      const next = this.#standing(change(this.#state))
      await writeState(this.#path, Shape, next)
      const before = lentBy(this.#state)
      this.#state = next
      await this.#collaborators.changed(lentBy(next) !== before)
    })
    this.#writing = written.catch(() => undefined)
    return written
  }

  #standing (state: OfferState): OfferState {
    const { clock, isRevoked } = this.#collaborators
    const now = clock.now()
    return { ...state, sent: state.sent.filter(({ device, until }) => Date.parse(until) > now && !isRevoked(device)), received: state.received.filter(({ device }) => !isRevoked(device)) }
  }
}

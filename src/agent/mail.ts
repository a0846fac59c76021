import * as v from 'valibot'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import { contentId, databaseName } from '../core/shape.js'
import type { KnownDevice, TrustBook } from './trust-book.js'

// What devices tell each other by mail, today:
//   {"shares":[{"database":"dmedia-0-foo","access":"read"}],   what the reader may have of the writer
//    "accepted":[{"database":"dmedia-0-foo","as":"foo"}],      what the writer pulls of the reader, and where to
//    "databases":["dmedia-0"],                                 own devices: every database there is
//    "offers":[{"offer":"9f…","list":"mcpw4…","size":93,"files":1,"bytes":3}],   files lent to the reader (offers.ts)
//    "answers":[{"offer":"9f…","answer":"accepted","done":3}]} what became of the reader's offers, and how many bytes are there

const MOST_ENTRIES = 1_000
/** Offers, and answers, in one mail: a longer one says nothing to anybody. */
export const MOST_OFFERS = 100

const offer = v.pipe(v.string(), v.regex(/^[0-9a-f]{8,40}$/))
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))

const MailShape = v.object({
  shares: v.optional(v.pipe(v.array(v.object({ database: databaseName, access: v.picklist(['read', 'write']) })), v.maxLength(MOST_ENTRIES)), []),
  accepted: v.optional(v.pipe(v.array(v.object({ database: databaseName, as: databaseName })), v.maxLength(MOST_ENTRIES)), []),
  databases: v.optional(v.pipe(v.array(databaseName), v.maxLength(10 * MOST_ENTRIES)), []),
  offers: v.optional(v.pipe(v.array(v.object({ offer, list: contentId, size: count, files: count, bytes: count })), v.maxLength(MOST_OFFERS)), []),
  answers: v.optional(v.pipe(v.array(v.object({ offer, answer: v.picklist(['accepted', 'refused', 'done']), done: v.optional(count, 0) })), v.maxLength(MOST_OFFERS)), []),
})

/** What a receiver says of an offer. */
export type OfferAnswer = 'accepted' | 'refused' | 'done'

export type PeerMail = v.InferOutput<typeof MailShape>

export const NO_MAIL: PeerMail = Object.freeze({ shares: [], accepted: [], databases: [], offers: [], answers: [] })

/** What a peer's mail says; undefined where it is not of the form. Fields of later versions are passed over. */
export function parseMail (mail: unknown): PeerMail | undefined {
  const parsed = v.safeParse(MailShape, mail)
  return parsed.success ? parsed.output : undefined
}

/** The mail for every device that this one knows. */
export function writeMail (book: TrustBook, databases: readonly DatabaseName[], offersFor: (device: DeviceId) => Pick<PeerMail, 'offers' | 'answers'> = () => NO_MAIL): Record<DeviceId, PeerMail> {
  const mail: Record<DeviceId, PeerMail> = {}
  for (const known of book.known.values()) mail[known.device] = { ...mailFor(book, known, databases), ...offersFor(known.device) }
  return mail
}

function mailFor (book: TrustBook, known: KnownDevice, databases: readonly DatabaseName[]): PeerMail {
  if (known.relation === 'own') return { ...NO_MAIL, databases: [...databases] }
  const accepted = book.accepted.filter(({ peer }) => peer === known.device)
  // What only lets the other pull back what it shared with us is no offer of ours.
  const returned = new Set(accepted.filter(({ access }) => access === 'write').map(({ as }) => as))
  const shares = Object.entries(book.grantOf(known).databases)
    .filter(([database]) => !returned.has(database as DatabaseName))
    .map(([database, access]) => ({ database: database as DatabaseName, access }))
  return { shares, accepted: accepted.filter(({ access }) => access === 'write').map(({ database, as }) => ({ database, as })), databases: [], offers: [], answers: [] }
}

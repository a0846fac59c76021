import { randomBytes } from 'node:crypto'
import type { Exchange } from './exchange.js'
import type { Pouch, StoredAttachment, StoredDocument } from './pouch.js'
import { Problem } from './problem.js'
import type { Store } from './store.js'

// `attachments=true` puts every attachment into its document as base64. PouchDB does so in memory, for all
// documents of an answer at once: a gigabyte of attachments took three of heap. Here documents are read with
// stubs; small attachments are filled in under the same lock, and each large one is read when its turn to
// be sent has come.

/** Attachments of a document that are together no larger than this are read with it. */
const SMALL = 1024 * 1024

/** Fills in what is small. Call it in the task that read the document, so that both are of one moment. */
export async function fillSmall (pouch: Pouch, document: StoredDocument): Promise<StoredDocument> {
  const attachments = Object.entries(document._attachments ?? {})
  if (attachments.length === 0 || attachments.reduce((sum, [, { length }]) => sum + length, 0) > SMALL) return document
  const filled = await Promise.all(attachments.map(async ([name, attachment]): Promise<[string, StoredAttachment]> =>
    [name, withData(attachment, (await readBytes(pouch, document, name, attachment)).toString('base64'))]))
  return { ...document, _attachments: Object.fromEntries(filled) }
}

function withData ({ content_type: type, digest, revpos }: StoredAttachment, data: string): StoredAttachment {
  return { ...(type !== undefined && { content_type: type }), ...(revpos !== undefined && { revpos }), digest, data } as StoredAttachment
}

/** An attachment's bytes. Throws 404 where the revision was replaced, 500 where PouchDB, which then answers
 * an empty one, has lost them. */
export async function readBytes (pouch: Pouch, { _id: id, _rev: rev }: StoredDocument, name: string, { length }: StoredAttachment): Promise<Buffer> {
  const bytes = await pouch.getAttachment(id, name, { rev })
  if (bytes.length !== length) throw new Problem(500, 'database_unusable', `the bytes of attachment ${name.slice(0, 80)} are lost`)
  return bytes
}

interface Large { readonly document: StoredDocument, readonly name: string, readonly attachment: StoredAttachment }

/** Writes JSON that holds documents with large attachments. `mark` puts a random word in each one's place,
 * which nobody can have put into a document before; `write` sends the bytes where it finds the word. */
export class Inliner {
  readonly #exchange: Exchange
  readonly #store: Store
  readonly #word = randomBytes(16).toString('hex')
  readonly #large: Large[] = []

  constructor (exchange: Exchange, store: Store) {
    this.#exchange = exchange
    this.#store = store
  }

  mark (document: StoredDocument): StoredDocument {
    const attachments = Object.entries(document._attachments ?? {})
    if (!attachments.some(([, { data }]) => data === undefined)) return document
    const marked = attachments.map(([name, attachment]): [string, StoredAttachment] => {
      if (attachment.data !== undefined) return [name, attachment]
      this.#large.push({ document, name, attachment })
      return [name, withData(attachment, this.#word)]
    })
    return { ...document, _attachments: Object.fromEntries(marked) }
  }

  /** Sends text whose documents were marked, in the order in which they were. */
  async write (text: string): Promise<void> {
    const parts = text.split(this.#word)
    for (const [index, part] of parts.entries()) {
      await this.#exchange.write(part)
      const large = index === parts.length - 1 ? undefined : this.#large.shift()
      if (large === undefined) continue
      const bytes = await this.#store.read(pouch => readBytes(pouch, large.document, large.name, large.attachment))
      await this.#exchange.write(bytes.toString('base64'))
    }
  }
}

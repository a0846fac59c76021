import { PatchcordError } from '../core/errors.js'
import { SURFACE, type BodyForm } from '../policy/surface.js'

/**
 * What each body form may hold, as data for the walk of body-check.ts. CouchDB reads IDs at fixed places
 * alone (`docs[i]._id`, the names of `_revs_diff`); an `_id` deeper inside a document is content.
 */
export interface Shape {
  readonly takes: 'anything' | 'object' | 'array' | 'string' | 'no-container'
  /** Members that mean something, each at most once: which of two counts differs between JSON readers. */
  readonly members?: ReadonlyMap<string, Shape>
  /** Every other member; where absent, there may be none. */
  readonly others?: Shape
  readonly items?: Shape
  /** Judges the name of every member. Throws the refusal. */
  readonly name?: (name: string) => void
  /** Judges a string value. Throws the refusal. */
  readonly text?: (text: string) => void
}

/** Content that nobody looks at, however deep. */
export const ANYTHING: Shape = { takes: 'anything' }

/** The shape of a form's body, or undefined where the body is not JSON. Peers may ask less of a selector. */
export function shapeOf (form: BodyForm, relation: 'own' | 'peer'): Shape | undefined {
  switch (form) {
    case 'none':
    case 'attachment': return undefined
    case 'document': return DOCUMENT
    case 'bulk-docs': return BULK_DOCS
    case 'bulk-get': return BULK_GET
    case 'revisions': return REVISIONS
    case 'keys': return KEYS
    case 'changes-filter': return relation === 'own' ? OWN_FILTER : PEER_FILTER
    case 'selector': return relation === 'own' ? OWN_QUERY : PEER_QUERY
    case 'checkpoint': return { takes: 'object', others: ANYTHING }
    case 'empty': return { takes: 'object' }
  }
}

// ---- IDs

/** Nothing here writes an ID with an underscore in front: `_design` and `_local` are refused, CouchDB
 * knows no others, and what a later release may invent is not ours to let in. */
function writable (id: string): void {
  wellFormed(id)
  if (id.startsWith('_')) throw new PatchcordError('refused', 'the body names a document that nobody writes here (_design, _local)')
}

/** Design documents may be read: refusing them fails whole pulls. */
function readable (id: string): void {
  wellFormed(id)
  if (id.startsWith('_') && !id.startsWith('_design/')) throw new PatchcordError('refused', 'the body names a document that nobody reads here (_local)')
}

/** Keys of views may be any text; CouchDB answers other principals' checkpoints for these. */
function notLocal (key: string): void {
  wellFormed(key)
  if (key.startsWith('_local')) throw new PatchcordError('refused', 'the body names _local documents')
}

/** What JSON readers make of half a surrogate pair differs. */
function wellFormed (text: string): void {
  if (/\p{Cs}/u.test(text)) throw new PatchcordError('not-canonical', 'an ID or key in the body holds half a surrogate pair')
}

function object (members: Record<string, Shape>, others?: Shape): Shape {
  const shape = { takes: 'object', members: new Map(Object.entries(members)) } as const
  return others === undefined ? shape : { ...shape, others }
}

const array = (items: Shape): Shape => ({ takes: 'array', items })
const id = (text: (id: string) => void): Shape => ({ takes: 'string', text })

// ---- writes

const DOCUMENT = object({ _id: id(writable) }, ANYTHING)
const BULK_DOCS = object({ docs: array(DOCUMENT), new_edits: ANYTHING }, ANYTHING)

// ---- reads

const BULK_GET = object({ docs: array(object({ id: id(readable) }, ANYTHING)) }, ANYTHING)
const REVISIONS: Shape = { takes: 'object', name: readable, others: ANYTHING }

/** A value none of whose strings names a local document, at any depth. */
const NOT_LOCAL = recursive({ takes: 'anything', text: notLocal })

/** CouchDB takes query parameters from this body too, so it may hold those of the row and no others. */
const PAGE = Object.fromEntries(SURFACE
  .filter(row => row.body === 'keys')
  .flatMap(row => Object.keys(row.query))
  .map(name => [name, name === 'keys' ? { ...NOT_LOCAL, takes: 'array' as const } : NOT_LOCAL]))
const KEYS = object({ ...PAGE, queries: array(object(PAGE)) })

// ---- selectors

/** A peer's regular expression would run on our machine, over every document. */
function notRegex (name: string): void {
  if (name === '$regex') throw new PatchcordError('refused', 'selectors of other people may not use $regex')
}

const PEER_SELECTOR_DEPTH = 8

function peerSelector (depth: number): Shape {
  if (depth > PEER_SELECTOR_DEPTH) return { takes: 'no-container' }
  const inner = peerSelector(depth + 1)
  return { takes: depth === 1 ? 'object' : 'anything', name: notRegex, others: inner, items: inner }
}

const DOC_IDS = array(id(readable))
const filter = (selector: Shape): Shape => object({ doc_ids: DOC_IDS, selector, fields: ANYTHING })
const query = (selector: Shape): Shape => object({ selector }, ANYTHING)

const OWN_SELECTOR: Shape = { takes: 'object', others: ANYTHING }
const OWN_FILTER = filter(OWN_SELECTOR)
const PEER_FILTER = filter(peerSelector(1))
const OWN_QUERY = query(OWN_SELECTOR)
const PEER_QUERY = query(peerSelector(1))

/** A shape whose members and items are of the same shape. */
function recursive (shape: Shape): Shape {
  const self: { -readonly [Key in keyof Shape]: Shape[Key] } = { ...shape }
  self.others = self
  self.items = self
  return self
}

import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import { cut, parseContentId, type ContentId } from '../core/ids.js'
import { safeName } from '../core/safe-name.js'
import { contentId, parseJson } from '../core/shape.js'
import { LEAF_BYTES } from '../files/content-id.js'

// The list of an offer is itself a file of the store, so that any number of files fits into a mail:
//   {"patchcord":"offer/1","files":[{"path":["holiday","a.jpg"],"size":3,"id":"mcpw4…"}],"folders":[["holiday","to sort"]]}
// `folders` are those that are empty, and may be left out: a receiver of before passes them over.
// It is written by somebody else. A path is parts, never text with slashes, and every part is made safe.

const MOST_FILES = 10_000
/** The largest list (bytes): one leaf, some 7,000 files. */
export const MOST_LIST_BYTES = LEAF_BYTES

/** How deep a file may lie. */
const MOST_PARTS = 64

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const path = v.pipe(v.array(v.pipe(v.string(), v.maxLength(1_000))), v.minLength(1), v.maxLength(MOST_PARTS))
const ListShape = v.object({
  patchcord: v.literal('offer/1'),
  files: v.pipe(v.array(v.object({ path, size, id: contentId })), v.maxLength(MOST_FILES)),
  folders: v.exactOptional(v.pipe(v.array(path), v.maxLength(MOST_FILES))),
})

/** The parts of a name, below the folder that it lands in. */
export type OfferedPath = readonly string[]

/** One file of an offer. */
export interface OfferedFile {
  readonly path: OfferedPath
  readonly size: number
  readonly id: ContentId
}

/** What an offer has: files, and folders that are empty. */
export interface OfferedList {
  readonly files: readonly OfferedFile[]
  readonly folders?: readonly OfferedPath[]
}

/** The text of a list. Throws `too-large` for one that `parseList` would not take, or that is longer than a list may be. */
export function formatList ({ files, folders = [] }: OfferedList): Buffer {
  const deep = [...files.map(file => file.path), ...folders].find(path => path.length > MOST_PARTS)
  if (deep !== undefined) throw new PatchcordError('too-large', `${cut(deep.join('/'))} lies more than ${MOST_PARTS} folders deep`, { hint: 'send the inner folder by itself' })
  const list = Buffer.from(JSON.stringify({ patchcord: 'offer/1', files, ...folders.length === 0 ? {} : { folders } }))
  if (files.length > MOST_FILES || folders.length > MOST_FILES || list.length > MOST_LIST_BYTES) throw new PatchcordError('too-large', `a list of ${files.length} files is too long for one offer`, { hint: 'send fewer at once' })
  return list
}

/** What a list says, with every name safe. Throws `verification` for what is none. */
export function parseList (text: string): Required<OfferedList> {
  const { files, folders = [] } = parseJson(ListShape, text, 'the list of an offer', 'verification')
  return { files: files.map(file => ({ ...file, path: file.path.map(safeName), id: parseContentId(file.id) })), folders: folders.map(path => path.map(safeName)) }
}

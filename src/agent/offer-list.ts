import * as v from 'valibot'
import { syncFolder } from '../core/durable-file.js'
import { fileError, PatchcordError } from '../core/errors.js'
import { cut, parseContentId, type ContentId } from '../core/ids.js'
import { safeName } from '../core/safe-name.js'
import { contentId, parseJson } from '../core/shape.js'
import { LEAF_BYTES } from '../files/content-id.js'
import type { FileStore } from '../files/store.js'
import { copySynced, makeFolder, prepareFolder, underFreeName, type OnBytes } from './copy-out.js'

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

/** Files that are given their names, or copied out, at once. */
const AT_ONCE = 64

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

/** Writes files, of the store or of what was fetched aside, and the empty folders below `to` (made where it is missing) in the shape of the
 * list. Nothing there is replaced: a top name that is taken gets a number, and what is below it is so always in a folder
 * that was just made. All of it is on the disk when it resolves. Where each top name landed. Throws what the disk says. */
export async function land (store: FileStore, { files, folders: empty = [] }: OfferedList, to: string, { asides = new Set(), onBytes }: { readonly asides?: ReadonlySet<ContentId>, readonly onBytes?: OnBytes } = {}): Promise<string[]> {
  await prepareFolder(to)
  const folders = new Map<string, string>()
  const landed: string[] = []
  const folder = async (parts: readonly string[]): Promise<string> => {
    if (parts.length === 0) return to
    const key = parts.join('/')
    const known = folders.get(key)
    if (known !== undefined) return known
    const above = await folder(parts.slice(0, -1))
    const path = await underFreeName(above, parts.at(-1) ?? '_', makeFolder)
    folders.set(key, path)
    if (parts.length === 1) landed.push(path)
    return path
  }
  // What was fetched for this offer alone becomes the person's file; what the store keeps is copied.
  const put = ({ id, size }: OfferedFile, at: string, name: string): Promise<string> => underFreeName(at, name, async target => {
    const isAside = asides.has(id)
    if (isAside && await store.asides.giveTo(id, target)) onBytes?.(size)
    else await copySynced(isAside ? store.asides.path(id) : store.path(id), target, onBytes)
  })
  const below: Array<{ at: string, name: string, file: OfferedFile }> = []
  for (const file of files) {
    const { path } = file
    const name = path.at(-1)
    if (name === undefined) throw new PatchcordError('verification', 'a file of an offer has no name')
    const at = await folder(path.slice(0, -1))
    // Beside what is there already, names that are taken get their numbers in the order of the list.
    if (path.length === 1) landed.push(await put(file, at, name))
    else below.push({ at, name, file })
  }
  for (const path of empty) await folder(path)
  const left = below.values()
  const lanes = await Promise.allSettled(Array.from({ length: AT_ONCE }, async () => {
    for (const { at, name, file } of left) await put(file, at, name)
  }))
  for (const ended of lanes) if (ended.status === 'rejected') throw ended.reason
  await Promise.all([to, ...folders.values()].map(async path => { await syncFolder(path).catch((error: unknown) => { throw fileError(error, path) }) }))
  return landed
}

import { writeFile } from 'node:fs/promises'
import { setImmediate as turn } from 'node:timers/promises'
import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import { cut, parseContentId, type ContentId } from '../core/ids.js'
import { safeName } from '../core/safe-name.js'
import { contentId, parseJson, parseShape } from '../core/shape.js'
import { contentIdOf, LEAF_BYTES, leafHash } from '../files/content-id.js'
import { partialOf, unlinkIfThere } from '../files/folders.js'
import { temporaryIn } from '../files/staging.js'
import type { FileStore } from '../files/store.js'

// The list of an offer is itself a file of the store, so that any number of files fits into a mail:
//   {"patchcord":"offer/1","files":[{"path":["holiday","a.jpg"],"size":3,"id":"mcpw4…"}],"folders":[["holiday","to sort"]]}
// `folders` are those that are empty, and may be left out: a receiver of before passes them over.
// It is written by somebody else. A path is parts, never text with slashes, and every part is made safe.

/** Files of one offer, and folders, those above others counted. What is lent is in the server's env, which has half a second for a change of it. */
export const MOST_FILES = 50_000
/** The largest list (bytes). A file takes 80 bytes and its path. */
export const MOST_LIST_BYTES = 8 * LEAF_BYTES
/** How deep a file may lie. */
const MOST_PARTS = 64

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
/** How long a name may be: longer than any file system takes, since to order the marks of one costs the square of it. */
const MOST_NAME = 255
/** Its length is looked at before what is in it. */
const listOf = (least: number, most: number): v.GenericSchema<unknown[]> => v.custom<unknown[]>(value => Array.isArray(value) && value.length >= least && value.length <= most, `must be a list of ${least} to ${most}`)
const PathShape = v.pipe(listOf(1, MOST_PARTS), v.array(v.pipe(v.string(), v.maxLength(MOST_NAME))))
const FileShape = v.object({ path: PathShape, size, id: contentId })
/** What is in the two is looked at some at a time. */
const ListShape = v.object({
  patchcord: v.literal('offer/1'),
  files: listOf(0, MOST_FILES),
  folders: v.exactOptional(listOf(0, MOST_FILES)),
})
/** Characters of names that are made safe in one turn, a name counting some more: a few milliseconds. */
const CHARACTERS_IN_A_TURN = 20_000
const NAME_COUNTS = 8
/** How deep the JSON of a list may nest, that of a later version too, and how many fields it may have: what V8 parses in a second for who wants it to take long. */
const MOST_DEPTH = 16
const MOST_FIELDS = 8 * MOST_FILES

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

/** How long a list becomes, while it is not known yet what the files are. */
export class ListLength {
  #files = 0
  readonly #folders = new Folders()
  #bytes = '{"patchcord":"offer/1","files":[],"folders":[]}'.length

  /** Counts one more file, of this size, or empty folder. Throws `too-large` where it lies too deep. */
  add (path: OfferedPath, size?: number): void {
    if (path.length > MOST_PARTS) throw new PatchcordError('too-large', `${cut(path.join('/'))} lies more than ${MOST_PARTS} folders deep`, { hint: 'send the inner folder by itself' })
    this.#bytes += Buffer.byteLength(JSON.stringify(path)) + 1
    this.#folders.add(size === undefined ? path : path.slice(0, -1))
    if (size !== undefined) {
      this.#files += 1
      this.#bytes += `{"path":,"size":${size},"id":""}`.length + ID_LENGTH
    }
  }

  get fits (): boolean { return this.#files <= MOST_FILES && this.#folders.count <= MOST_FILES && this.#bytes <= MOST_LIST_BYTES }

  /** Throws `too-large` where that is longer than a list may be. */
  check (): void {
    if (this.fits) return
    const [count, what] = this.#files < this.#folders.count ? [this.#folders.count, 'folders'] : [this.#files, 'files']
    throw new PatchcordError('too-large', count > MOST_FILES
      ? `${count} ${what} are more than one offer can have, which is ${MOST_FILES}`
      : `the names of ${this.#files} files make a list of ${this.#bytes} bytes, and one offer can have ${MOST_LIST_BYTES}`, { hint: 'send them in several offers, a folder at a time' })
  }
}

/** The folders that a list makes: a short one can name millions, each in another. */
class Folders {
  /** By the number of the one above, so that a key is as long as a name. */
  readonly #numbers = new Map<string, number>()

  add (path: OfferedPath): void {
    let above = 0
    for (const name of path) {
      const key = `${above}/${name}`
      above = this.#numbers.get(key) ?? this.#numbers.size + 1
      this.#numbers.set(key, above)
    }
  }

  get count (): number { return this.#numbers.size }
}

const ID_LENGTH = 52

/** The text of a list. Throws `too-large` for one that `parseList` would not take, or that is longer than a list may be. */
export function formatList ({ files, folders = [] }: OfferedList): Buffer {
  const length = new ListLength()
  for (const { path, size } of files) length.add(path, size)
  for (const path of folders) length.add(path)
  length.check()
  return Buffer.from(JSON.stringify({ patchcord: 'offer/1', files, ...folders.length === 0 ? {} : { folders } }))
}

/** Puts the text of a list into the store, durably. */
export async function keepList (store: FileStore, list: Buffer): Promise<ContentId> {
  if (list.length <= LEAF_BYTES) {
    const id = contentIdOf(leafHash(list))
    await store.put(id, list)
    return id
  }
  const path = temporaryIn(partialOf(store.root))
  try {
    await writeFile(path, list, { flag: 'wx', mode: 0o600 })
    return (await store.add(path)).id
  } finally {
    await unlinkIfThere(path)
  }
}

/** What a list says, with every name safe. A long one is read in several turns: it is somebody else's, and nothing waits for it. Throws
 * `verification` for what is none. */
export async function parseList (text: string): Promise<Required<OfferedList>> {
  const what = 'the list of an offer'
  if (!isPlain(text)) throw new PatchcordError('verification', `${what} nests too deep, or has too many fields`)
  const list = parseJson(ListShape, text, what, 'verification')
  // Most names are those of folders, again and again.
  const safe = new Map<string, string>()
  const made = new Folders()
  let characters = 0
  const pathOf = async (path: readonly string[], isFile: boolean): Promise<string[]> => {
    characters += path.reduce((sum, name) => sum + name.length + NAME_COUNTS, 0)
    if (characters > CHARACTERS_IN_A_TURN) {
      characters = 0
      await turn()
    }
    const safely = path.map(name => {
      const known = safe.get(name) ?? safeName(name)
      safe.set(name, known)
      return known
    })
    made.add(isFile ? safely.slice(0, -1) : safely)
    if (made.count > MOST_FILES) throw new PatchcordError('verification', `${what} has more than ${MOST_FILES} folders`)
    return safely
  }
  const files: OfferedFile[] = []
  for (const [at, one] of list.files.entries()) {
    const file = parseShape(FileShape, one, `${what}: files.${at}`, 'verification')
    files.push({ path: await pathOf(file.path, true), size: file.size, id: parseContentId(file.id) })
  }
  const folders: OfferedPath[] = []
  for (const [at, one] of (list.folders ?? []).entries()) folders.push(await pathOf(parseShape(PathShape, one, `${what}: folders.${at}`, 'verification'), false))
  return { files, folders }
}

/** Whether JSON is no work to parse beyond its length. */
function isPlain (json: string): boolean {
  let depth = 0
  let fields = 0
  let isName = false
  for (let at = 0; at < json.length; at++) {
    switch (json.charCodeAt(at)) {
      case 0x22: // "
        isName = !isName
        break
      case 0x5C: // a backslash: whatever is next is a part of the name
        at += 1
        break
      case 0x5B: case 0x7B: // [ {
        if (!isName && ++depth > MOST_DEPTH) return false
        break
      case 0x5D: case 0x7D: // ] }
        if (!isName) depth -= 1
        break
      case 0x3A: // :
        if (!isName && ++fields > MOST_FIELDS) return false
        break
    }
  }
  return true
}

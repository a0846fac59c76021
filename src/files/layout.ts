import { isAbsolute, join, normalize } from 'node:path'
import { PatchcordError } from '../core/errors.js'
import { isContentId, type ContentId } from '../core/ids.js'

// Where a file lies under the store's root: `<first 2 of the ID>/<other 50>`, with `.leaves` and `.refs`
// beside. Everything the server may read is so exactly two levels down, which is what its AppArmor
// profile says (`files/*/*`).

/** What lies beside a file: its leaf list (files of more than one leaf), and the databases it is recorded for. */
export type Beside = '.leaves' | '.refs'

export function shardOf (root: string, id: ContentId): string {
  return join(root, id.slice(0, 2))
}

export function pathOf (root: string, id: ContentId, beside: Beside | '' = ''): string {
  return join(root, id.slice(0, 2), `${id.slice(2)}${beside}`)
}

/** The ID that `name` in the folder `shard` stands for, or undefined where it is not a name of that kind. */
export function idOf (shard: string, name: string, beside: Beside | '' = ''): ContentId | undefined {
  if (shard.length !== 2 || !name.endsWith(beside)) return undefined
  const text = `${shard}${name.slice(0, name.length - beside.length)}`
  return isContentId(text) ? text : undefined
}

/** The root of a store, checked once. Throws `usage` where it is not an absolute path. */
export function checkRoot (root: string): string {
  if (typeof root !== 'string' || !isAbsolute(root)) throw new PatchcordError('usage', 'the root of the file store is not an absolute path', { hint: 'give the path from /, such as /home/me/.local/share/patchcord/files' })
  return normalize(join(root, '.'))
}

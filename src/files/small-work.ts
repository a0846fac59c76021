import type { ContentId } from '../core/ids.js'

// What `SmallFiles` asks its threads for. Both ends import this: it loads nothing.

/** The largest file that goes this way (bytes). */
export const SMALL_MOST = 131_072

/** What can be asked for, and what comes back. */
export interface SmallWork {
  /** Copies and hashes a regular file into `folder`, unless the store at `root` has it; synced where that is asked. */
  readonly take: { readonly asked: { readonly path: string, readonly root: string, readonly folder: string, readonly isSynced: boolean }, readonly done: { readonly id: ContentId, readonly size: number, readonly temporary: string | undefined } }
  /** Gives a file of `take` its name in the store, and makes the folder where it is missing; or removes it where the name has a file of that size. */
  readonly place: { readonly asked: { readonly temporary: string, readonly to: string, readonly size: number }, readonly done: 'new' | 'in a new folder' | 'there' }
  /** Writes a file that is not there, and syncs it. */
  readonly write: { readonly asked: { readonly to: string, readonly at: number, readonly length: number }, readonly done: true }
  /** Gives a file that has one name another. */
  readonly link: { readonly asked: { readonly from: string, readonly to: string }, readonly done: true }
  /** Removes a file; whether there was one. */
  readonly remove: { readonly asked: { readonly path: string }, readonly done: boolean }
  /** Makes a file, or the names in a folder, durable. */
  readonly sync: { readonly asked: { readonly path: string }, readonly done: true }
  /** Whether there is a regular file with one name and of that size. */
  readonly has: { readonly asked: { readonly path: string, readonly size: number }, readonly done: boolean }
}

export type SmallKind = keyof SmallWork
export type SmallAsked = { [Kind in SmallKind]: { readonly kind: Kind } & SmallWork[Kind]['asked'] }[SmallKind]
export type SmallDone = SmallWork[SmallKind]['done'] | undefined

/** What a worker is handed: many at once; `bytes` holds all that is to be written. */
export interface SmallTask { readonly asked: readonly SmallAsked[], readonly bytes: Uint8Array }
export interface SmallAnswer { readonly done: readonly SmallDone[] }

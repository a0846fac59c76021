import { isBase32Id } from './base32.js'
import { PatchcordError } from './errors.js'

// The core room: the words that every other room speaks: IDs (here), errors, limits, shapes, addresses, time,
// and how a file of state is written.
//
// It promises that a value of a branded type went through its parser, that an error has a code of the one
// table (errors.ts), and that state on disk is the old or the new one, whole (durable-file.ts). It must never
// know a room, decide anything, or hold state of its own.

// Branded types: a value of one of these can only come out of its parser, so code that takes one need
// not check it again. The brand exists for the compiler alone.

type Branded<Base, Name extends string> = Base & { readonly __brand: Name }

/** SHA-256 of a device key's SubjectPublicKeyInfo (DER), base32: 52 characters. It survives renewal. */
export type DeviceId = Branded<string, 'DeviceId'>
/** SHA-256 of a user CA's SubjectPublicKeyInfo (DER), base32: 52 characters. It stands for a person. */
export type UserId = Branded<string, 'UserId'>
/** RFC 9162 Merkle root of a file's 1 MiB leaves, base32: 52 characters. */
export type ContentId = Branded<string, 'ContentId'>
/** A CouchDB database name: `^[a-z][a-z0-9_$()+/-]*$`, at most 238 characters (CouchDB's own limit). */
export type DatabaseName = Branded<string, 'DatabaseName'>

/** Also the pattern of docs/env.schema.json. */
export const DATABASE_NAME = /^[a-z][a-z0-9_$()+/-]{0,237}$/

export const isDeviceId = (text: string): text is DeviceId => isBase32Id(text)
export const isContentId = (text: string): text is ContentId => isBase32Id(text)
export const isUserId = (text: string): text is UserId => isBase32Id(text)
export const isDatabaseName = (text: string): text is DatabaseName => DATABASE_NAME.test(text)

/** Each throws `usage`, naming the text (cut to 80 characters) and the form that would be right. */
export function parseDeviceId (text: string): DeviceId {
  if (isDeviceId(text)) return text
  throw new PatchcordError('usage', `"${cut(text)}" is not a device ID`, { hint: 'a device ID has 52 characters of a-z and 2-7; `patchcord devices` lists them' })
}

export function parseUserId (text: string): UserId {
  if (isUserId(text)) return text
  throw new PatchcordError('usage', `"${cut(text)}" is not a user ID`, { hint: 'a user ID has 52 characters of a-z and 2-7; `patchcord devices` lists them' })
}

export function parseContentId (text: string): ContentId {
  if (isContentId(text)) return text
  throw new PatchcordError('usage', `"${cut(text)}" is not a content ID`, { hint: 'a content ID has 52 characters of a-z and 2-7; `patchcord ls` lists them' })
}

export function parseDatabaseName (text: string): DatabaseName {
  if (isDatabaseName(text)) return text
  throw new PatchcordError('usage', `"${cut(text)}" is not a database name`, { hint: 'it starts with a-z and holds only a-z, 0-9 and _$()+/-' })
}

/** For messages: what somebody sent, bounded and without control or bidirectional characters. */
export function cut (text: string, most = 80): string {
  const plain = text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, '\ufffd')
  return plain.length > most ? `${plain.slice(0, most)}…` : plain
}

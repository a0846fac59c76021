import * as v from 'valibot'
import { readPrivate, writeDurably } from '../core/durable-file.js'
import { messageOf, PatchcordError } from '../core/errors.js'

/** A JSON file of state, in the shape of `schema`, or undefined where there is none. Throws `bad-state`,
 * naming the file and the field, where the content is not of that shape; it is never repaired. */
export async function readState<Schema extends v.GenericSchema> (path: string, schema: Schema): Promise<v.InferOutput<Schema> | undefined> {
  const content = await readPrivate(path)
  if (content === undefined) return undefined
  let json: unknown
  try {
    json = JSON.parse(content.toString())
  } catch (error) {
    throw new PatchcordError('bad-state', `${path} is not JSON: ${messageOf(error)}`, { cause: error })
  }
  return check(path, schema, json)
}

/** Replaces such a file, durably. Throws `bad-state` before anything is written where `state` could not be
 * read back. */
export async function writeState<Schema extends v.GenericSchema> (path: string, schema: Schema, state: v.InferInput<Schema>): Promise<void> {
  check(path, schema, state)
  await writeDurably(path, `${JSON.stringify(state, null, 2)}\n`)
}

function check<Schema extends v.GenericSchema> (path: string, schema: Schema, state: unknown): v.InferOutput<Schema> {
  const result = v.safeParse(schema, state, { abortEarly: true })
  if (result.success) return result.output
  const [issue] = result.issues
  const field = v.getDotPath(issue)
  throw new PatchcordError('bad-state', `${path}${field === null ? '' : `, ${field}`}: ${issue.message}`)
}

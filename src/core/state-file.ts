import type * as v from 'valibot'
import { readPrivate, writeDurably } from './durable-file.js'
import { parseJson, parseShape } from './shape.js'

/** A JSON file of state, in the shape of `schema`, or undefined where there is none. Throws `bad-state`,
 * naming the file and the field, where the content is not of that shape; it is never repaired. */
export async function readState<Schema extends v.GenericSchema> (path: string, schema: Schema): Promise<v.InferOutput<Schema> | undefined> {
  const content = await readPrivate(path)
  return content === undefined ? undefined : parseJson(schema, content.toString('utf8'), path, 'bad-state')
}

/** Replaces such a file, durably. Throws `bad-state` before anything is written where `state` could not be
 * read back. */
export async function writeState<Schema extends v.GenericSchema> (path: string, schema: Schema, state: v.InferInput<Schema>): Promise<void> {
  parseShape(schema, state, path, 'bad-state')
  await writeDurably(path, `${JSON.stringify(state, null, 2)}\n`)
}

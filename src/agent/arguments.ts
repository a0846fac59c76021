import { isAbsolute } from 'node:path'
import * as v from 'valibot'
import { parseShape } from '../core/shape.js'

// What comes over the control socket is checked by each operation, in these words.

export const text = v.pipe(v.string(), v.maxLength(4096, 'must have at most 4096 characters'))
export const label = v.pipe(v.string(), v.minLength(1, 'must not be empty'), v.maxLength(100, 'must have at most 100 characters'))
export const pemText = v.pipe(v.string(), v.maxLength(64 * 1024, 'must have at most 64 KiB'))
export const absolutePath = v.pipe(text, v.check(isAbsolute, 'must be an absolute path'))

/** The arguments of an operation. Throws `usage`, naming the field. */
export function readArguments<Schema extends v.GenericSchema> (schema: Schema, args: unknown): v.InferOutput<Schema> {
  return parseShape(schema, args, 'arguments', 'usage')
}

import * as v from 'valibot'
import { PatchcordError, type ErrorCode } from './errors.js'
import { cut, isContentId, isDatabaseName, isDeviceId, isUserId, type ContentId, type DatabaseName, type DeviceId, type UserId } from './ids.js'

// The words in which rooms say what JSON from outside may look like. valibot is used in every room that
// reads such JSON; it gives the type, the check and the message from one declaration.

export const deviceId = v.custom<DeviceId>(value => typeof value === 'string' && isDeviceId(value), 'must be a device ID: 52 characters of a-z and 2-7')
export const userId = v.custom<UserId>(value => typeof value === 'string' && isUserId(value), 'must be a user ID: 52 characters of a-z and 2-7')
export const contentId = v.custom<ContentId>(value => typeof value === 'string' && isContentId(value), 'must be a content ID: 52 characters of a-z and 2-7')
export const databaseName = v.custom<DatabaseName>(value => typeof value === 'string' && isDatabaseName(value), 'must be a database name: a-z first, then a-z, 0-9 and _$()+/-')
export const positiveInteger = v.pipe(v.number('must be a number'), v.safeInteger('must be a whole number'), v.minValue(1, 'must be at least 1'))
export const port = v.pipe(v.number('must be a number'), v.safeInteger('must be a whole number'), v.minValue(0, 'must be 0 to 65535'), v.maxValue(65535, 'must be 0 to 65535'))

/** An ISO 8601 instant with a zone, such as 2026-01-31T12:00:00Z. */
export const instant = v.pipe(v.string('must be an ISO 8601 time'),
  v.check(text => /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$/.test(text) && Number.isFinite(Date.parse(text)), 'must be an ISO 8601 time with a zone, such as 2026-01-31T12:00:00Z'))

export const pem = (label: string): v.GenericSchema<string> =>
  v.pipe(v.string(`must be a PEM text (${label})`), v.check(text => text.includes(`-----BEGIN ${label}-----`), `must be a PEM text with -----BEGIN ${label}-----`))

/** `value` as the schema's type. Throws `code`, naming the field (as a path) and what would be right. No
 * value is quoted: it may be a secret. */
export function parseShape<Schema extends v.GenericSchema> (schema: Schema, value: unknown, what: string, code: ErrorCode): v.InferOutput<Schema> {
  const result = v.safeParse(schema, value, { abortEarly: true, abortPipeEarly: true })
  if (result.success) return result.output
  const issue = result.issues[0]
  const path = v.getDotPath(issue)
  const problem = issue.expected === 'never' ? 'is not a known field' : plainMessage(issue)
  const isSentence = /^(?:must|is|are) /.test(problem)
  throw new PatchcordError(code, `${what}: ${path === null ? '' : `${cut(path, 200)}${isSentence ? ' ' : ': '}`}${problem}`)
}

/** JSON text as the schema's type. */
export function parseJson<Schema extends v.GenericSchema> (schema: Schema, text: string, what: string, code: ErrorCode): v.InferOutput<Schema> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    // The parser's own message quotes the text, which may hold a secret.
    throw new PatchcordError(code, `${what} is not JSON`)
  }
  return parseShape(schema, value, what, code)
}

/** valibot's own messages quote what was received; ours say what is expected alone. */
function plainMessage (issue: v.BaseIssue<unknown>): string {
  if (!issue.message.startsWith('Invalid ')) return issue.message
  if (issue.received === 'undefined') return 'is missing'
  return issue.expected === null ? 'is not of the right form' : `must be ${issue.expected.replace(/^Object$/, 'an object').replace(/^Array$/, 'a list').replace(/^string$/, 'a string')}`
}

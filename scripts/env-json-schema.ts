import { toJsonSchema, type ConversionConfig } from '@valibot/to-json-schema'
import { SPELLING } from '../src/core/base32.js'
import { DATABASE_NAME } from '../src/core/ids.js'
import { envSchema } from '../src/server/env.js'

// A JSON Schema of the server's env, from the valibot schema that parseEnv uses. Checks that are functions
// become patterns here, found by the message that the check gives; a message that is not known throws, so
// that a new check cannot get lost on its way into the document.

type JsonSchema = ReturnType<typeof toJsonSchema>

const ID = SPELLING.source
const NAME = DATABASE_NAME.source
const HEX = '[0-9a-fA-F]{1,4}'
const V4 = String.raw`(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`
/** RFC 4291 section 2.2: `left` groups, "::", and the rest, where `left` and what may follow it are at most seven. */
const IPV6 = [
  `(?:${HEX}:){7}${HEX}`,
  `(?:${HEX}:){6}${V4}`,
  ...Array.from({ length: 8 }, (_, left) => {
    const before = left === 0 ? ':' : `(?:${HEX}:){${left}}`
    const most = 7 - left
    const after = most === 0 ? '' : `(?:${HEX}(?::${HEX}){0,${most - 1}})?`
    const mapped = most >= 2 ? `|${before}:(?:${HEX}:){0,${most - 2}}${V4}` : ''
    return `${before}:${after}${mapped}`
  }),
].join('|')
const TIME = String.raw`(?:(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?|24:00(?::00(?:\.0+)?)?)`

const PATTERNS: Readonly<Record<string, JsonSchema>> = {
  'must be a device ID: 52 characters of a-z and 2-7': { type: 'string', pattern: ID },
  'must be a content ID: 52 characters of a-z and 2-7': { type: 'string', pattern: ID },
  'must be a database name: a-z first, then a-z, 0-9 and _$()+/-': { type: 'string', pattern: NAME },
  'not a database name': { pattern: NAME },
  'not a database name, nor a prefix that ends in one *': { pattern: String.raw`^\*$|^[a-z][a-z0-9_$()+/-]{0,237}\*?$` },
  'must be a literal IPv6 address, such as :: or ::1 or fe80::1%eth0': { pattern: String.raw`^(?:${IPV6})(?:%[\w.-]{1,15})?$` },
  'must name the interface of a link-local address, such as fe80::1%eth0': { allOf: [{ pattern: '^(?![fF][eE][89abAB][0-9a-fA-F]:[^%]*$)' }] },
  'must be an ISO 8601 time with a zone, such as 2026-01-31T12:00:00Z': {
    pattern: String.raw`^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T${TIME}(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$`,
  },
  'must be a PEM text with -----BEGIN PRIVATE KEY-----': { pattern: '-----BEGIN PRIVATE KEY-----' },
  'must be a PEM text with -----BEGIN CERTIFICATE-----': { pattern: '-----BEGIN CERTIFICATE-----' },
  'must name a device, a ca or both': { anyOf: [{ required: ['device'] }, { required: ['ca'] }] },
  'must be an absolute path': { pattern: '^/' },
}

function patternOf (message: unknown): JsonSchema {
  const pattern = typeof message === 'string' ? PATTERNS[message] : undefined
  if (pattern === undefined) throw new Error(`scripts/env-json-schema.ts knows no JSON Schema for the check "${String(message)}"`)
  return pattern
}

interface Custom { readonly type: string, readonly message?: unknown }
interface RecordOf { readonly key: Custom, readonly value: Parameters<typeof toJsonSchema>[0] }

const CONFIG: ConversionConfig = {
  target: 'draft-07',
  typeMode: 'input',
  overrideSchema: ({ valibotSchema }) => {
    const schema = valibotSchema as unknown as Custom
    if (schema.type === 'custom') return patternOf(schema.message)
    const { key, value } = valibotSchema as unknown as RecordOf
    if (schema.type === 'record' && key.type === 'custom') return { type: 'object', propertyNames: patternOf(key.message), additionalProperties: withoutDraft(toJsonSchema(value, CONFIG)) }
    return undefined
  },
  overrideAction: ({ valibotAction, jsonSchema }) => {
    const { type, message } = valibotAction as unknown as Custom
    if (type === 'check' || type === 'starts_with') return { ...jsonSchema, ...patternOf(message) }
    // JSON numbers beyond this are not what they say.
    if (type === 'safe_integer') return { ...jsonSchema, type: 'integer', maximum: Number.MAX_SAFE_INTEGER }
    return undefined
  },
}

function withoutDraft (schema: JsonSchema): JsonSchema {
  const inner = { ...schema }
  delete inner.$schema
  return inner
}

/** What each field is, by its path. A field without a line, or a line without a field, throws. */
const DESCRIPTIONS: Readonly<Record<string, string>> = {
  'version': 'The version of this form.',
  'listen': 'Where the one open port listens.',
  'listen[].host': 'A literal IPv6 address; a link-local one names its interface, as in fe80::1%eth0.',
  'listen[].port': '0 takes any that is free; the ready line tells which.',
  'identity': 'What the server proves itself with. Its key is the server key: whoever takes it over cannot act as the device.',
  'identity.device': 'The device ID: SHA-256 of the device key\'s SubjectPublicKeyInfo, in base32.',
  'identity.key': 'The server key, PKCS#8 in PEM.',
  'identity.certificates': 'The server certificate in PEM, with its CA.',
  'identity.userCa': 'The user CA in PEM. Device certificates that it signed are own devices.',
  'whitelist': 'The other identities that this user accepted. The most specific entry decides alone.',
  'whitelist[].name': 'What the person calls it. It decides nothing.',
  'whitelist[].device': 'One device. With `ca`, its certificate must also be signed by that CA.',
  'whitelist[].ca': 'A foreign user CA in PEM. Without `device`, all devices that it certifies are admitted.',
  'whitelist[].notAfter': 'When the entry ends.',
  'whitelist[].grant': 'The name of a grant in `grants`.',
  'revoked': 'Device IDs that are refused before anything else is asked.',
  'grants': 'What an identity may do, by the name that whitelist entries use. `own` is the grant of this user\'s own devices.',
  'grants.own': 'The grant of own devices.',
  'grants.own.databases': 'Access by database name. In this grant a name may end in one `*`, which stands for a prefix; an exact name decides before a prefix, and a longer prefix before a shorter one. No prefix covers a name that starts with `_`.',
  'grants.own.files': '`all`: every file. `referenced`: files recorded for a database that it may read.',
  'grants.*': 'The grant of other people\'s devices.',
  'grants.*.databases': 'Access by exact database name.',
  'grants.*.files': 'Other people\'s devices read files recorded for a database that they may read, whatever stands here.',
  'couch': 'The CouchDB behind /couch. Without it that answers nothing.',
  'couch.url': 'http:// and a literal loopback address, such as http://[::1]:5984.',
  'couch.databases': 'The names from which _all_dbs is answered.',
  'couch.credentials': 'The limited CouchDB user that requests of a grant are forwarded as, by the name of the grant.',
  'couch.credentials.*': 'One grant\'s user.',
  'couch.credentials.*.username': 'Without a colon.',
  'couch.credentials.*.password': 'Its password.',
  'files': 'The file store. Without it /files answers nothing.',
  'files.root': 'The absolute path of the folder `files`.',
  'mail': 'What this device has for others, by the device ID of the reader: at most 64 KiB of JSON each.',
  'mail.*': 'One reader\'s mail.',
  'lent': 'Files offered to one device for a time.',
  'lent[].device': 'Who may read them.',
  'lent[].files': 'Content IDs.',
  'lent[].until': 'Until when.',
  'allowRouted': 'Whether sources that are neither loopback, link-local nor in a prefix of an interface are let in.',
  'limits': 'Any of the limits in docs/limits.md; what is not given has its default.',
  'log': 'Log lines go to stderr.',
  'log.level': 'The least severity that is written.',
}

interface Node { properties?: Record<string, Node>, items?: Node, additionalProperties?: Node | boolean, description?: string }

function describe (node: Node, path: string, texts: ReadonlyMap<string, string>, left: Set<string>): void {
  const child = (next: Node, name: string, isItem = false): void => {
    const at = isItem ? `${path}[]` : path === '' ? name : `${path}.${name}`
    const text = texts.get(at)
    // Items of a list are described by their list, and what is in somebody's mail is theirs.
    if (text === undefined && !isItem && at !== 'mail.*.*' && !at.endsWith('.databases.*')) throw new Error(`scripts/env-json-schema.ts says nothing of ${at}`)
    left.delete(at)
    if (text !== undefined) next.description = text
    describe(next, at, texts, left)
  }
  for (const [name, next] of Object.entries(node.properties ?? {})) child(next, name)
  if (node.items !== undefined) child(node.items, '', true)
  if (typeof node.additionalProperties === 'object') child(node.additionalProperties, '*')
}

/** `limits` are the descriptions of the limits, by name. */
export function envJsonSchema (limits: ReadonlyMap<string, string>): JsonSchema {
  const schema = structuredClone(toJsonSchema(envSchema, CONFIG)) as JsonSchema & Node
  const texts = new Map([...Object.entries(DESCRIPTIONS), ...[...limits].map(([name, text]) => [`limits.${name}`, text] as const)])
  const left = new Set(texts.keys())
  describe(schema, '', texts, left)
  if (left.size > 0) throw new Error(`scripts/env-json-schema.ts describes what is not there: ${[...left].join(', ')}`)
  const { $schema, ...rest } = schema
  return {
    $schema: $schema!,
    title: 'patchcord-server: the env',
    description: 'The first line on the stdin of patchcord-server, and the argument of startServer. It says the form alone: that a whitelist entry\'s grant is in `grants`, that a PEM text holds what it should, and how large a reader\'s mail is, the server checks itself.',
    ...rest,
  } as JsonSchema
}

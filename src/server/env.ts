import { isIPv6 } from 'node:net'
import * as v from 'valibot'
import { isLinkLocal } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'
import { DEFAULT_LIMITS, type Limits } from '../core/limits.js'
import { LOG_LEVELS } from '../core/log.js'
import { contentId, databaseName, deviceId, instant, parseShape, pem, port, positiveInteger } from '../core/shape.js'
import { GrantsShape } from '../identity/shapes.js'

/**
 * All that the server may know, as one JSON object: the first line on the stdin of `patchcord-server` and
 * the argument of `startServer`. docs/env.schema.json is made from this declaration.
 */
export type ServerEnv = v.InferOutput<typeof envSchema>
/** What callers write: fields with defaults may be left out. */
export type ServerEnvInput = v.InferInput<typeof envSchema>

const listen = v.strictObject({
  host: v.pipe(v.string(), v.check(host => isIPv6(host.replace(/%[\w.-]{1,15}$/, '')), 'must be a literal IPv6 address, such as :: or ::1 or fe80::1%eth0'),
    v.check(host => !isLinkLocal(host) || host.includes('%'), 'must name the interface of a link-local address, such as fe80::1%eth0')),
  port,
})

const identity = v.strictObject({
  device: deviceId,
  key: pem('PRIVATE KEY'),
  certificates: pem('CERTIFICATE'),
  userCa: pem('CERTIFICATE'),
})

const whitelistEntry = v.pipe(v.strictObject({
  name: v.pipe(v.string(), v.maxLength(200, 'must have at most 200 characters')),
  device: v.exactOptional(deviceId),
  ca: v.exactOptional(pem('CERTIFICATE')),
  notAfter: v.exactOptional(instant),
  grant: v.string(),
}), v.check(entry => entry.device !== undefined || entry.ca !== undefined, 'must name a device, a ca or both'))

const couch = v.strictObject({
  url: v.string(),
  databases: v.array(databaseName),
  credentials: v.record(v.string(), v.strictObject({ username: v.pipe(v.string(), v.regex(/^[^:]+$/, 'must not be empty nor hold a colon')), password: v.string() })),
})

const lent = v.array(v.strictObject({ device: deviceId, files: v.array(contentId), until: instant }))

/** setTimeout fires at once for a longer delay than 2^31 - 1 ms: a limit that was meant never to strike always would. */
const milliseconds = v.pipe(positiveInteger, v.maxValue(0x7fffffff, 'must be at most 2147483647'))

const limitEntries = Object.fromEntries(Object.entries(DEFAULT_LIMITS).map(([name, value]) => [name, v.optional(name.endsWith('Ms') ? milliseconds : positiveInteger, value)]))

const mailbox = v.record(v.string(), v.unknown())

/** The parts that an update may replace, each whole. */
const parts = {
  identity,
  whitelist: v.array(whitelistEntry),
  revoked: v.array(deviceId),
  grants: GrantsShape,
  couch: v.optional(couch),
  mail: v.optional(v.record(deviceId, mailbox), {}),
  lent: v.optional(lent, []),
}

export const envSchema = v.strictObject({
  version: v.literal(1, 'must be 1'),
  listen: v.pipe(v.array(listen), v.minLength(1, 'must hold at least one address')),
  ...parts,
  files: v.optional(v.strictObject({ root: v.pipe(v.string(), v.startsWith('/', 'must be an absolute path')) })),
  allowRouted: v.optional(v.boolean(), false),
  limits: v.optional(v.strictObject(limitEntries), {}),
  log: v.optional(v.strictObject({ level: v.picklist(LOG_LEVELS) }), { level: 'info' }),
})

const updateSchema = v.partial(v.strictObject({ ...parts }))
export type ServerUpdate = v.InferInput<typeof updateSchema>

/** Checks an env and fills in defaults. Throws `bad-env`, naming the field and what would be right. */
export function parseEnv (value: unknown): ServerEnv {
  const env = parseShape(envSchema, value, 'env', 'bad-env')
  checkReferences(env)
  return env
}

/** `env` with the parts of `update` in place of its own. Throws `bad-env`; nothing has changed then. */
export function applyUpdate (env: ServerEnv, update: unknown): ServerEnv {
  const parsed = parseShape(updateSchema, update, 'update', 'bad-env')
  const given = Object.fromEntries(Object.entries(parsed).filter(([name]) => Object.hasOwn(update as object, name)))
  const next = { ...env, ...given }
  checkReferences(next)
  return next
}

const MOST_MAIL = 64 * 1024

function checkReferences ({ whitelist, grants, mail }: ServerEnv): void {
  whitelist.forEach(({ grant }, index) => {
    if (!Object.hasOwn(grants, grant)) throw new PatchcordError('bad-env', `env: whitelist.${index}.grant names a grant that is not in grants`)
  })
  for (const [device, box] of Object.entries(mail)) {
    if (Buffer.byteLength(JSON.stringify(box)) > MOST_MAIL) throw new PatchcordError('bad-env', `env: mail.${device} must be at most ${MOST_MAIL} bytes of JSON`)
  }
}

/** The limits of an env, complete. */
export function limitsOf (env: ServerEnv): Limits {
  return Object.freeze({ ...DEFAULT_LIMITS, ...env.limits as Partial<Limits> })
}

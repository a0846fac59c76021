import * as v from 'valibot'
import { isDatabaseName, isDeviceId, isUserId, type DeviceId, type UserId } from '../core/ids.js'
import type { Grant } from '../policy/principal.js'
import { readAuthority } from './authority.js'
import { OWN_GRANT, parseInstant, type WhitelistEntry } from './trust.js'

// Shapes of what is written down about trust. Objects are strict: a misspelt `notAfter` would be an entry
// that never ends.

export const DeviceIdShape = v.pipe(v.string(), v.custom<DeviceId>(text => isDeviceId(text as string), 'a device ID has 52 characters of a-z and 2-7'))
export const UserIdShape = v.pipe(v.string(), v.custom<UserId>(text => isUserId(text as string), 'a user ID has 52 characters of a-z and 2-7'))

const InstantShape = v.pipe(v.string(), v.check(text => holds(() => parseInstant(text, '')), 'not a date; write it as 2027-01-31T12:00:00Z'))
const AuthorityShape = v.pipe(v.string(), v.check(pem => holds(() => readAuthority(pem)), 'not the PEM of a user CA'))
const NameShape = v.pipe(v.string(), v.minLength(1), v.maxLength(100))

export const WhitelistEntryShape = v.pipe(
  v.strictObject({
    name: NameShape,
    device: v.exactOptional(DeviceIdShape),
    ca: v.exactOptional(AuthorityShape),
    notAfter: v.exactOptional(InstantShape),
    grant: v.string(),
  }),
  v.check(({ device, ca }) => device !== undefined || ca !== undefined, 'give it `device`, `ca` or both'),
) satisfies v.GenericSchema<unknown, WhitelistEntry>

const AccessShape = v.picklist(['read', 'write'])
const FilesShape = v.picklist(['all', 'referenced'])

export const GrantShape = v.strictObject({
  databases: v.record(v.pipe(v.string(), v.check(isDatabaseName, 'not a database name')), AccessShape),
  files: FilesShape,
}) satisfies v.GenericSchema<unknown, Grant>

/** In the grant of own devices alone a name may end in one `*`, which stands for a prefix. */
export const OwnGrantShape = v.strictObject({
  databases: v.record(v.pipe(v.string(), v.check(isDatabasePattern, 'not a database name, nor a prefix that ends in one *')), AccessShape),
  files: FilesShape,
}) satisfies v.GenericSchema<unknown, Grant>

export const GrantsShape = v.objectWithRest({ [OWN_GRANT]: v.exactOptional(OwnGrantShape) }, GrantShape)

function isDatabasePattern (text: string): boolean {
  return text === '*' || isDatabaseName(text.endsWith('*') ? text.slice(0, -1) : text)
}

function holds (test: () => unknown): boolean {
  try {
    test()
    return true
  } catch {
    return false
  }
}

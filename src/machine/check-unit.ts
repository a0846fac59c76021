import { userInfo } from 'node:os'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Check, Examined } from './doctor.js'
import { textOf } from './files.js'
import { execOf, unitPaths } from './unit.js'

/** Whether what the unit starts is still there, and whether it runs while nobody is logged in. */
export function checkUnit ({ root }: Examined): Check {
  const path = unitPaths(process.env).find(one => existsSync(one))
  if (path === undefined) return { name: 'unit', ok: true, detail: 'the service is not installed as a unit; it runs while `patchcord up` does', hint: '' }
  const gone = execOf(textOf(path) ?? '').find(word => word.startsWith('/') && !existsSync(word))
  if (gone !== undefined) return { name: 'unit', ok: false, detail: `${path} starts ${gone}, which is not there any more`, hint: 'write it anew: patchcord service install' }
  const { username } = userInfo()
  const lingers = existsSync(join(root, 'var/lib/systemd/linger', username))
  return { name: 'unit', ok: true, detail: `${path}; it runs ${lingers ? 'from boot on' : `while you are logged in (for always: loginctl enable-linger ${username})`}`, hint: '' }
}

import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { until } from './checks.js'
import { Device } from './device.js'
import type { Report } from './report.js'

/** Who plays: laptop and desktop belong to one person, the friend's device to another, and nobody trusts the
 * stranger. */
export interface Cast {
  readonly laptop: Device
  readonly desktop: Device
  readonly friend: Device
  readonly stranger: Device
  /** For files of the demo itself. */
  readonly folder: string
}

/** Databases of the laptop. Only the second is shared with the friend. */
export const PRIVATE = 'dmedia-0'
export const SHARED = 'dmedia-0-foo'
export const OTHER = 'novacut-0-bar'
export const NOTES = 'notes'

/** Starts four services and brings them together by the command line alone. */
export async function assemble (report: Report, folder: string, logs: string): Promise<Cast> {
  const at = (name: string): string => join(folder, name)
  await mkdir(at('devices'), { mode: 0o700 })
  let devices: Device[] = []
  await report.step('four services start, each with a home of its own', async () => {
    devices = await Promise.all(['laptop', 'desktop', 'friend', 'stranger'].map(name => Device.start(name, at('devices'), logs)))
    return devices.map(({ name, port }) => `${name} [::1]:${port}`).join(', ')
  })
  const [laptop, desktop, friend, stranger] = devices as [Device, Device, Device, Device]

  await report.step('the desktop becomes the person\'s own device', async () => {
    await desktop.run('device', 'request', '-o', at('request.pem'))
    await laptop.run('device', 'issue', at('request.pem'), '-o', at('issued.pem'), '--name', 'desktop')
    await desktop.run('device', 'install', at('issued.pem'))
    await Promise.all([laptop.run('connect', 'desktop', '--at', desktop.address), desktop.run('connect', laptop.id, '--at', laptop.address)])
    await Promise.all([laptop.sees(desktop), desktop.sees(laptop)])
    return 'request, issue, install, connect: both see each other'
  })

  await report.step('laptop and friend trust each other', async () => {
    await Promise.all([laptop.run('identity', '--export', at('laptop.pem')), friend.run('identity', '--export', at('friend.pem'))])
    await Promise.all([
      laptop.run('trust', at('friend.pem'), '--name', 'friend', '--at', friend.address),
      friend.run('trust', at('laptop.pem'), '--name', 'laptop', '--at', laptop.address),
    ])
    await Promise.all([laptop.sees(friend), friend.sees(laptop)])
    return 'by bundles; nothing is shared by that'
  })

  await report.step(`${SHARED} is shared read-only and accepted`, async () => {
    await Promise.all([PRIVATE, SHARED, OTHER, NOTES].map(name => laptop.run('db', 'create', name)))
    await laptop.run('share', SHARED, '--with', 'friend')
    const offers = await until('the friend is offered the database', 10_000, async () => {
      const lines = await friend.lines('shares')
      return lines.length > 0 && lines
    })
    await friend.run('accept', 'laptop', SHARED)
    return `the friend is offered ${offers.map(({ database, access }) => `${String(database)} (${String(access)})`).join(', ')} and nothing else`
  })
  return { laptop, desktop, friend, stranger, folder }
}

import { isDatabaseName, isDeviceId, type DatabaseName, type DeviceId } from '../core/ids.js'

/** Who gave bytes of a file, and on account of which of its databases (by its name there); without one, because of
 * whatever else it gives the file for. Written `<device>` or `<device> <database>`, so that it can be compared and kept. */
export type Giver = DeviceId | `${DeviceId} ${DatabaseName}`

export function giverOf (device: DeviceId, account: DatabaseName | undefined): Giver {
  return account === undefined ? device : `${device} ${account}`
}

export function isGiver (text: string): text is Giver {
  const [device = '', account, ...rest] = text.split(' ')
  return isDeviceId(device) && (account === undefined || isDatabaseName(account)) && rest.length === 0
}

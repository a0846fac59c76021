import type { DeviceInfo } from '../control/operations.js'
import type { Context } from './context.js'
import { readText, writeNew } from './files.js'

// Who this device is, and whom it trusts.

export async function identity ({ client, output }: Context, { export: path }: { export?: string }): Promise<void> {
  const { bundle, ...who } = await client.call('identity', {})
  if (path !== undefined) await writeNew(path, bundle)
  output.object({ ...who, ...path === undefined ? {} : { bundle: path } })
  output.table([
    ['device', who.device], ['user', who.user], ['name', who.name],
    ['user CA', who.hasCaKey ? 'its key is on this device' : 'its key is on another device'],
    ['certificate', `${who.notBefore.slice(0, 10)} to ${who.notAfter.slice(0, 10)}`],
    ...path === undefined ? [] : [['bundle', path]],
  ])
}

export async function deviceRequest ({ client, output }: Context, { output: path }: { output: string }): Promise<void> {
  const { request } = await client.call('device-request', {})
  await writeNew(path, request)
  output.object({ event: 'requested', path })
  output.line(`wrote ${path}; take it to the device that holds your user CA: patchcord device issue ${path} -o <pem>`)
}

export async function deviceIssue ({ client, output }: Context, csr: string, { output: path, name }: { output: string, name?: string }): Promise<void> {
  const { device, certificates } = await client.call('device-issue', { request: await readText(csr), ...name === undefined ? {} : { name } })
  await writeNew(path, certificates)
  output.object({ event: 'issued', device, path })
  output.line(`wrote ${path} for device ${device}; take it back there: patchcord device install ${path}`)
}

export async function deviceInstall ({ client, output }: Context, pem: string): Promise<void> {
  const installed = await client.call('device-install', { certificates: await readText(pem) })
  output.object({ event: 'installed', ...installed })
  output.line(`this device now belongs to user ${installed.user}`)
}

export async function trust ({ client, output }: Context, bundle: string, { name, at, share, newRecoveryKey = false }: { name: string, at?: string, share?: string[], newRecoveryKey?: boolean }): Promise<void> {
  const device = await client.call('trust', { bundle: await readText(bundle), name, ...at === undefined ? {} : { at }, ...share === undefined ? {} : { share }, ...newRecoveryKey ? { newRecoveryKey } : {} })
  output.object(device)
  output.line(`${name} is trusted: ${grantText(device)}`)
}

export async function devices ({ client, output }: Context): Promise<void> {
  const { devices: all } = await client.call('devices', {})
  for (const device of all) output.object(device)
  output.table([['name', 'relation', 'state', 'device', 'may'], ...all.map(device => [device.name, device.relation, device.state, device.device ?? 'every device of its user', grantText(device)])])
}

export async function rename ({ client, output }: Context, device: string, name: string): Promise<void> {
  const renamed = await client.call('rename', { device, name })
  output.object(renamed)
  output.line(`device ${renamed.device} is now called ${name}`)
}

export async function revoke ({ client, output }: Context, device: string): Promise<void> {
  const revoked = await client.call('revoke', { device })
  output.object({ event: 'revoked', ...revoked })
  output.line(`revoked: ${revoked.connectionsCut} connection${revoked.connectionsCut === 1 ? '' : 's'} cut`)
  if (revoked.spread === 'pending') output.line('this device does not hold your CA key, so it alone refuses it now: revoke it on the one that does')
}

export async function connect ({ client, output }: Context, device: string, { at }: { at: string }): Promise<void> {
  const known = await client.call('connect', { device, at })
  output.object(known)
  output.line(`${known.name} is looked for at ${at}`)
}

export async function explain ({ client, output }: Context, device: string, method: string, path: string): Promise<void> {
  const explanation = await client.call('explain', { device, method: method.toUpperCase(), path })
  output.object(explanation)
  output.line(`${explanation.allowed ? 'allowed' : `refused (${explanation.status})`} by "${explanation.rule}": ${explanation.reason}`)
}

function grantText ({ grant, revoked }: DeviceInfo): string {
  if (revoked) return 'nothing'
  const databases = Object.entries(grant.databases).map(([name, access]) => `${access} ${name}`)
  return databases.length === 0 ? 'nothing yet; share a database with it' : databases.join(', ')
}

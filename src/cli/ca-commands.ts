import { PatchcordError } from '../core/errors.js'
import { intoNew, readText } from './files.js'
import type { Context } from './context.js'
import { readPassphrase } from './passphrase.js'

// The user CA itself: its kit, its end, and what follows it; a fresh key; certificates for other programs.

interface Passphrase { readonly passphraseFile?: string }
interface Yes { readonly yes?: boolean }

export async function caExport ({ client, io, output }: Context, path: string, { passphraseFile, replace = false }: Passphrase & { replace?: boolean }): Promise<void> {
  const passphrase = await readPassphrase(io, 'a passphrase for the kit', { from: passphraseFile, isNew: true })
  const user = await intoNew(path, 0o600, async () => {
    const { kit, user } = await client.call('ca-export', { passphrase, replace })
    return { content: kit, result: user }
  })
  output.object({ event: 'exported', user, path })
  output.line(`wrote ${path}: your user CA and its recovery key, under the passphrase`)
  output.line('keep it away from your devices, twice. Who is paired or trusted from now on learns that this kit may')
  output.line('name a successor; devices that know you already have to be paired or trusted again for that')
}

export async function caImport ({ client, io, output }: Context, path: string, { passphraseFile }: Passphrase): Promise<void> {
  const kit = await readText(path)
  const passphrase = await readPassphrase(io, 'the passphrase of the kit', { from: passphraseFile })
  const imported = await client.call('ca-import', { kit, passphrase })
  output.object({ event: 'imported', ...imported })
  output.line(`this device now holds the key of user CA ${imported.user}`)
}

export async function caRetire ({ client, io, output }: Context, { kit: path, passphraseFile, yes = false }: Passphrase & Yes & { kit?: string }): Promise<void> {
  confirmed(yes, 'retiring your user CA ends the trust in all your devices, for everybody and for good')
  const kit = path === undefined ? undefined : { kit: await readText(path), passphrase: await readPassphrase(io, 'the passphrase of the kit', { from: passphraseFile }) }
  const { user } = await client.call('ca-retire', { ...kit })
  output.object({ event: 'retired', user })
  output.line(`user CA ${user} is retired; others learn it when they connect`)
  output.line('next: patchcord ca succeed <kit>, or without a kit: pair all devices again')
}

export async function caSucceed ({ client, io, output }: Context, path: string, { newKit, keep = [], passphraseFile, yes = false }: Passphrase & Yes & { newKit: string, keep?: string[] }): Promise<void> {
  confirmed(yes, 'a new user CA takes the place of yours; own devices that are not named with --keep are revoked')
  const kit = await readText(path)
  const passphrase = await readPassphrase(io, 'the passphrase of the kit', { from: passphraseFile })
  const done = await intoNew(newKit, 0o600, async () => {
    const { kit: content, ...result } = await client.call('ca-succeed', { kit, passphrase, keep })
    return { content, result }
  })
  output.object({ event: 'succeeded', ...done, path: newKit })
  output.line(`user CA ${done.user} takes the place of ${done.was}; its kit is ${newKit}, under the same passphrase`)
  output.line(`${done.kept.length} own device${done.kept.length === 1 ? '' : 's'} kept, ${done.revoked.length} revoked. The old kit is of no more use: destroy it`)
}

export async function renewKey ({ client, output }: Context, { yes = false }: Yes): Promise<void> {
  confirmed(yes, 'with a fresh key this is another device: others know it no longer, and have to pair or trust it again')
  const renewed = await client.call('renew-key', {})
  output.object({ event: 'key-renewed', ...renewed })
  output.line(`this device is now ${renewed.device}`)
  output.line(renewed.user === renewed.was.user
    ? `it still belongs to user ${renewed.user}; those who trusted it by name have to trust it again`
    : 'it does not hold your user CA\'s key, so it belongs to a user of its own now: make it yours again by pairing')
  output.line('end `patchcord up` and start it again; the old ID is still trusted where it was: revoke it there')
}

export async function exportClient ({ client, io, output }: Context, { p12: path, name, share = [], passphraseFile }: Passphrase & { p12: string, name: string, share?: string[] }): Promise<void> {
  const passphrase = await readPassphrase(io, `a passphrase for ${path}`, { from: passphraseFile, isNew: true })
  const made = await intoNew(path, 0o600, async () => {
    const { p12, ...result } = await client.call('export-client', { name, share, passphrase })
    return { content: Buffer.from(p12, 'base64'), result }
  })
  output.object({ event: 'exported', device: made.device, name, path, notAfter: made.notAfter })
  output.line(`wrote ${path}: ${name} may read ${share.length === 0 ? 'nothing yet (patchcord share)' : share.join(', ')} until ${made.notAfter.slice(0, 10)}`)
  output.line(`import it there with the passphrase; to end it: patchcord revoke ${name}`)
}

function confirmed (yes: boolean, what: string): void {
  if (!yes) throw new PatchcordError('refused', what, { hint: 'if that is what you want, say --yes' })
}

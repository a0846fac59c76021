import { resolve } from 'node:path'
import type { Args } from '../control/operations.js'
import type { Context } from './context.js'
import { readPassphrase } from './passphrase.js'
import { ask, isInteractive } from './prompt.js'

// The local database: the login to it, and a CouchDB of the person's in its place.

export async function couch ({ client, output }: Context): Promise<void> {
  const login = await client.call('couch', {})
  output.object(login)
  output.table([['url', login.url], ['username', login.username], ['password', login.password]])
}

interface SetupOptions {
  readonly url?: string
  readonly adminCredentialsFile?: string
  readonly closePublic?: boolean
  readonly allowExposed?: boolean
}

export async function couchSetup ({ client, io, output }: Context, { url, adminCredentialsFile, closePublic = false, allowExposed = false }: SetupOptions): Promise<void> {
  const login: Args<'couch-setup'>['login'] = adminCredentialsFile === undefined
    ? { username: await ask(io, 'user name of a CouchDB administrator: ', 'give --admin-credentials-file'), password: await readPassphrase(io, 'its password, which is used once and not kept', {}) }
    : { file: resolve(adminCredentialsFile) }
  const args = { login, closePublic, allowExposed, ...url === undefined ? {} : { url } }
  let done = await client.call('couch-setup', args)
  if (done.public.length > 0 && isInteractive(io)) {
    const answer = await ask(io, `everybody may use ${done.public.join(', ')}. let members alone use them from now on? [y/N] `, 'say --close-public')
    if (answer.toLowerCase() === 'y') done = { ...await client.call('couch-setup', { ...args, closePublic: true }), created: done.created }
  }
  output.object({ event: 'set-up', ...done })
  for (const what of done.created) output.line(`made the ${what}`)
  for (const name of done.closed) output.line(`${name} was public; members alone may use it now`)
  for (const name of done.public) output.line(`${name} is public in CouchDB and stays so; --close-public changes that`)
  for (const warning of done.warnings) output.line(`warning: ${warning}`)
  output.line(`patchcord uses CouchDB at ${done.url} as ${done.administrator}; \`patchcord couch undo\` takes everything out again`)
  if (done.restart) output.line('next: end the service and start it again: patchcord up')
}

export async function couchUndo ({ client, output }: Context): Promise<void> {
  const { url, removed } = await client.call('couch-undo', {})
  output.object({ event: 'undone', url, removed })
  for (const what of removed) output.line(`removed: ${what}`)
  output.line(`patchcord has nothing left in CouchDB at ${url}; databases and documents are as they were`)
}

import type { Context } from './context.js'

// Databases: this device's own, and what is shared with whom.

export async function bridge ({ client, output }: Context): Promise<void> {
  const login = await client.call('bridge', {})
  output.object(login)
  output.table([['url', login.url], ['username', login.username], ['token', login.token], ['a database', `${login.url}/peer/<device>/couch/<database>`]])
}

export async function dbCreate ({ client, output }: Context, name: string): Promise<void> {
  output.object({ event: 'created', ...await client.call('db-create', { name }) })
  output.line(`made the database ${name}`)
}

export async function dbLs ({ client, output }: Context): Promise<void> {
  const { databases } = await client.call('db-ls', {})
  for (const name of databases) output.object({ name })
  for (const name of databases) output.raw(`${name}\n`)
}

export async function share ({ client, output }: Context, database: string, { with: whom, write = false }: { with: string, write?: boolean }): Promise<void> {
  const result = await client.call('share', { database, with: whom, write })
  output.object(result)
  output.line(`${whom} may ${write ? 'read and write' : 'read'} ${database} and the files recorded for it`)
  if (write) output.line('write means: may add, replace and delete documents, and override their history')
}

export async function unshare ({ client, output }: Context, database: string, { with: whom }: { with: string }): Promise<void> {
  output.object(await client.call('unshare', { database, with: whom }))
  output.line(`${database} is no longer shared with ${whom}`)
}

export async function shares ({ client, output }: Context): Promise<void> {
  const { shares: offers } = await client.call('shares', {})
  for (const offer of offers) output.object(offer)
  if (offers.length === 0) output.line('nobody offers anything; devices must be connected to tell (`patchcord status`)')
  else output.table([['from', 'database', 'access', 'received as'], ...offers.map(({ name, database, access, accepted }) => [name, database, access, accepted ?? 'not accepted'])])
}

export async function accept ({ client, output }: Context, peer: string, database: string, { as, merge = false }: { as?: string, merge?: boolean }): Promise<void> {
  const accepted = await client.call('accept', { peer, database, merge, ...as === undefined ? {} : { as } })
  output.object({ event: 'accepted', ...accepted })
  output.line(`${database} is received as ${accepted.as}${accepted.access === 'write' ? ', and what you write there goes back' : ''}`)
}

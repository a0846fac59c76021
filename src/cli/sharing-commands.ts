import type { Context } from './context.js'
import { formatBytes, parseBytes } from './output.js'

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

export async function conflicts ({ client, output, signal }: Context, database: string): Promise<void> {
  const done = await client.call('conflicts', { database }, conflict => {
    output.object(conflict)
    // Others choose the IDs: what a terminal would obey is escaped.
    output.raw(`${JSON.stringify(conflict.id)}  ${conflict.winner}  also ${conflict.others.join(', ')}\n`)
  }, signal)
  output.object({ event: 'done', ...done })
  if (done.conflicts === 0) output.line(`no document of ${database} is in conflict`)
  else output.line(`${done.conflicts} document${done.conflicts === 1 ? '' : 's'} of ${database} in conflict: keep what you want in the winner, and delete the other revisions`)
}

export async function quota ({ client, output }: Context, device: string | undefined, size: string | undefined, { keepFree }: { keepFree?: string }): Promise<void> {
  const result = await client.call('quota', {
    ...device === undefined ? {} : { device },
    ...size === undefined ? {} : { bytes: size === 'none' ? null : parseBytes(size) },
    ...keepFree === undefined ? {} : { keepFree: parseBytes(keepFree) },
  })
  output.object(result)
  output.line(`${formatBytes(result.keepFree)} of the disk stay free`)
  if (result.used !== null) output.line(`what is received from ${device} fills ${formatBytes(result.used)}${result.quota === null ? '; it has no quota' : ` of ${formatBytes(result.quota)}`}`)
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

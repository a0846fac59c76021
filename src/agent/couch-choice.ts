import type { Home } from '../core/home.js'
import { readLogin, type CouchLogin } from './couch-client.js'
import { hostEmbedded, type CouchHost, type EmbeddedHostOptions } from './couch-host.js'
import { useCouch, type CouchOptions } from './couch-own.js'
import { readAdministrator } from './couch-setup.js'
import { patiently } from './ports.js'
import type { KeptSettings } from './settings.js'

/** A CouchDB to use in place of the embedded one, and the file with its login. */
export interface NamedCouch { readonly url: string, readonly credentialsFile: string }

export interface CouchChoiceOptions extends Omit<CouchOptions, 'url' | 'login'>, Pick<EmbeddedHostOptions, 'inProcess'> {
  readonly home: Home
  readonly named: NamedCouch | undefined
  /** How long to wait for a port that is in use (ms). */
  readonly patience: number
}

/** The CouchDB of this device: one that runs already, where one was named or set up, else the embedded one, on the port that it had before.
 * Throws what those say. */
export async function chooseCouch ({ home, named, patience, inProcess, ...options }: CouchChoiceOptions, settings: KeptSettings): Promise<CouchHost> {
  const own = await ownCouch(home, named)
  if (own !== undefined) return await useCouch({ ...own, ...options })
  const { accounts, owner, logger, onDatabases } = options
  const port = settings.now.couchPort ?? 0
  const couch = await patiently(patience, () => hostEmbedded({ dir: home.couch, port, accounts, owner, inProcess, logger, onDatabases }))
  // Checkpoints of the person's own programs depend on the URL.
  await settings.keep({ couchPort: Number(new URL(couch.url).port) })
  return couch
}

/** The one that was named, or the one that was set up, whose administrator goes before the login that was named with it. */
async function ownCouch (home: Home, named: NamedCouch | undefined): Promise<{ url: string, login: CouchLogin } | undefined> {
  const setUp = await readAdministrator(home.root)
  if (named === undefined) return setUp === undefined ? undefined : { url: setUp.url, login: setUp }
  const url = named.url.replace(/\/$/, '')
  return { url, login: setUp?.url === url ? setUp : await readLogin(named.credentialsFile) }
}

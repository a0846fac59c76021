import { hostOf, type Address } from '../core/address.js'
import type { Home } from '../core/home.js'
import type { DatabaseName, DeviceId } from '../core/ids.js'
import type { Limits } from '../core/limits.js'
import type { LogLevel } from '../core/log.js'
import type { Keystore } from '../identity/keystore.js'
import type { ServerEnvInput, ServerUpdate } from '../server/env.js'
import type { AccountBook } from './accounts.js'
import type { CouchHost } from './couch-host.js'
import { NO_MAIL, writeMail } from './mail.js'
import type { Offers } from './offers.js'
import type { TrustBook } from './trust-book.js'
import type { TrustLife } from './trust-life.js'

export interface ServerEnvOptions {
  readonly home: Home
  readonly listen?: Address
  readonly allowRouted?: boolean
  readonly limits?: Partial<Limits>
  readonly logLevel?: LogLevel
}

/** Where what the server is told comes from, as it is when it is told. */
export interface ServerEnvSources {
  readonly keystore: Keystore
  readonly book: TrustBook
  readonly accounts: AccountBook
  readonly life: TrustLife
  readonly revoked: () => ReadonlySet<DeviceId>
  readonly databases: () => readonly DatabaseName[]
  readonly couch: () => CouchHost
  /** Undefined before they are open. */
  readonly offers: () => Offers | undefined
}

/** All that the server is told, when it starts and when something changed: never a key of a device or of a user, nor an
 * administrator's password. */
export class ServerEnv {
  readonly #options: ServerEnvOptions
  readonly #sources: ServerEnvSources

  constructor (options: ServerEnvOptions, sources: ServerEnvSources) {
    this.#options = options
    this.#sources = sources
  }

  /** The whole env; `port` is where it listens. */
  async whole (port: number): Promise<ServerEnvInput> {
    const { home, listen, allowRouted = false, limits, logLevel = 'info' } = this.#options
    return {
      version: 1,
      listen: [{ host: listen === undefined ? '::' : hostOf(listen), port }],
      ...await this.parts(),
      files: { root: home.files },
      allowRouted,
      ...limits === undefined ? {} : { limits },
      log: { level: logLevel },
    }
  }

  /** Everything that an update may replace. */
  async parts (): Promise<Required<Pick<ServerEnvInput, 'identity' | 'whitelist' | 'revoked' | 'grants' | 'couch' | 'mail' | 'lent'>> & ServerUpdate> {
    const { keystore, book, revoked } = this.#sources
    const { device, serverCertificate, userCa } = keystore.identity
    return {
      identity: { device, key: await keystore.serverKey(), certificates: serverCertificate, userCa },
      whitelist: [...book.whitelist],
      revoked: [...revoked()],
      grants: book.grants,
      couch: this.couch(),
      mail: this.mail(),
      lent: this.lent(),
    }
  }

  mail (): Record<DeviceId, Record<string, unknown>> {
    const { book, databases, life, offers } = this.#sources
    const mail: Record<DeviceId, Record<string, unknown>> = {}
    const written = writeMail(book, databases(), device => offers()?.mailFor(device) ?? NO_MAIL)
    for (const known of book.known.values()) mail[known.device] = { ...written[known.device], ...life.mailFor(known) }
    return mail
  }

  lent (): NonNullable<ServerEnvInput['lent']> {
    return this.#sources.offers()?.lent() ?? []
  }

  couch (): NonNullable<ServerEnvInput['couch']> {
    const { accounts, book, databases } = this.#sources
    const couch = this.#sources.couch()
    const credentials = Object.fromEntries([...accounts.grants(book)].map(([name, account]) => {
      const { username, password } = couch.loginOf(account)
      return [name, { username, password }]
    }))
    return { url: couch.url, databases: [...databases()], credentials }
  }
}

import { messageOf } from '../core/errors.js'
import type { ContentId, DatabaseName, DeviceId } from '../core/ids.js'
import type { Logger } from '../core/log.js'
import type { Source } from '../sync/ask-file.js'
import type { CouchClient } from './couch-client.js'
import type { Peer, Peers } from './peers.js'

/** What was read of a database is read again after this long (ms). */
const FRESH_MS = 1_000

/**
 * Whom this device may ask for a file: own devices for any; others only for what came through a database that is
 * received from them, because a question tells that somebody here is interested. One predicate for every
 * download.
 */
export class FileSources {
  readonly #peers: Peers
  readonly #couch: () => CouchClient
  readonly #logger: Logger

  constructor (peers: Peers, couch: () => CouchClient, logger: Logger) {
    this.#peers = peers
    this.#couch = couch
    this.#logger = logger
  }

  /** The connected devices that may be asked for `id`, own devices first; to be called again as devices come and go.
   * Of other people's devices none is told until the databases were read, which `ready` does once. `named` are asked
   * because the person said so. */
  async of (id: ContentId, named: ReadonlySet<DeviceId> = new Set()): Promise<() => readonly Source[]> {
    let shared = await this.#sharedBy(id)
    let readAt = performance.now()
    const refresh = (): void => {
      if (performance.now() - readAt < FRESH_MS) return
      readAt = performance.now()
      this.#sharedBy(id).then(devices => { shared = devices }, (error: unknown) => { this.#logger.debug({ reason: messageOf(error) }, 'the databases were not read') })
    }
    return () => {
      refresh()
      const own = this.#connected().filter(({ relation }) => relation === 'own')
      const others = this.#connected().filter(({ relation, device }) => relation !== 'own' && (shared.has(device) || named.has(device)))
      // On the accounts that a record could come from first; then for whatever reason they have.
      return [...own.map(sourceOf), ...others.flatMap(peer => [...sourcesOn(peer, shared.get(peer.device) ?? []), sourceOf(peer)])]
    }
  }

  /** The same, before anything was read. */
  later (id: ContentId): () => readonly Source[] {
    let ready: (() => readonly Source[]) | undefined
    let asking = false
    return () => {
      if (ready === undefined && !asking) {
        asking = true
        this.of(id).then(sources => { ready = sources }, (error: unknown) => { this.#logger.debug({ reason: messageOf(error) }, 'the databases were not read') }).finally(() => { asking = false })
      }
      return ready?.() ?? []
    }
  }

  #connected (): Peer[] {
    return this.#peers.all().filter(({ link }) => link.connected)
  }

  /** The devices of others with a database, received from them, in which a document refers to the file; with the
   * local names of those. */
  async #sharedBy (id: ContentId): Promise<ReadonlyMap<DeviceId, readonly DatabaseName[]>> {
    const shared = new Map<DeviceId, DatabaseName[]>()
    const refers = new Map<DatabaseName, Promise<boolean>>()
    await Promise.all(this.#connected().filter(({ relation }) => relation === 'peer').flatMap(peer => peer.received().map(async database => {
      const known = refers.get(database) ?? this.#refers(database, id)
      refers.set(database, known)
      if (await known) shared.set(peer.device, [...shared.get(peer.device) ?? [], database])
    })))
    return shared
  }

  async #refers (database: DatabaseName, id: ContentId): Promise<boolean> {
    const { status, value } = await this.#couch().ask('GET', `/${encodeURIComponent(database)}/${id}`)
    return status === 200 && (value as { type?: unknown }).type === 'file'
  }
}

/** A device that is asked for whatever reason it has. */
export function sourceOf ({ device, link }: Peer): Source {
  return { device, bytes: link.transfers }
}

/** A device that is asked on account of local databases that are received from it, in the order of its own. */
export function sourcesOn (peer: Peer, databases: readonly DatabaseName[]): Source[] {
  return databases.flatMap(database => peer.accounts(database)).map(account => ({ ...sourceOf(peer), account }))
}

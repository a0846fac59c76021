/**
 * What the agent does for the command line and for other programs of this user, over a unix socket in a
 * folder that only the user can enter: `POST /v1/<operation>` with a JSON object; the answer is a JSON
 * object a line, events first, then `{"result":…}` or `{"error":{"code","message","hint"}}`.
 *
 *   curl --unix-socket $XDG_RUNTIME_DIR/patchcord/control.sock -d '{}' http://localhost/v1/status
 *
 * `GET /metrics` is answered in the form of Prometheus (docs/metrics.md).
 */
export interface Operations {
  status: { args: object, result: Status }
  identity: { args: object, result: IdentityInfo & { bundle: string } }
  couch: { args: object, result: { url: string, username: string, password: string } }
  'couch-setup': { args: { url?: string, login: { username: string, password: string } | { file: string }, closePublic?: boolean, allowExposed?: boolean }, result: CouchSetupResult }
  'couch-undo': { args: object, result: CouchUndoResult }
  bridge: { args: object, result: { url: string, username: string, token: string } }
  'db-create': { args: { name: string }, result: { name: string } }
  quota: { args: { device?: string, bytes?: number | null, keepFree?: number }, result: QuotaResult }
  conflicts: { args: { database: string }, event: ConflictEvent, result: { database: string, conflicts: number } }
  'db-ls': { args: object, result: { databases: string[] } }
  'device-request': { args: object, result: { request: string } }
  'device-issue': { args: { request: string, name?: string }, result: { device: string, certificates: string } }
  'device-install': { args: { certificates: string }, result: { device: string, user: string } }
  trust: { args: { bundle: string, name: string, at?: string, share?: string[], newRecoveryKey?: boolean }, result: DeviceInfo }
  devices: { args: object, result: { devices: DeviceInfo[] } }
  rename: { args: { device: string, name: string }, result: DeviceInfo }
  revoke: { args: { device: string }, result: { device: string, connectionsCut: number, spread: 'done' | 'pending' } }
  connect: { args: { device: string, at: string }, result: DeviceInfo }
  'pair-open': { args: PairOpenArgs, event: PairEvent, result: Paired }
  'pair-join': { args: PairJoinArgs, event: PairEvent, result: Paired }
  'pair-answer': { args: { request: string, relation: 'own' | 'peer' | null }, result: object }
  share: { args: { database: string, with: string, write?: boolean }, result: ShareResult }
  unshare: { args: { database: string, with: string }, result: ShareResult }
  shares: { args: object, result: { shares: OfferedShare[] } }
  accept: { args: { peer: string, database: string, as?: string, merge?: boolean }, result: AcceptedShare }
  explain: { args: { device: string, method: string, path: string }, result: Explanation }
  add: { args: { paths: string[], to?: string, move?: boolean }, event: AddEvent, result: { files: number, bytes: number, seconds: number } }
  ls: { args: object, event: StoredFile, result: { files: number, bytes: number } }
  'ca-export': { args: { passphrase: string, replace?: boolean }, result: { kit: string, user: string } }
  'ca-import': { args: { kit: string, passphrase: string }, result: { device: string, user: string } }
  'ca-retire': { args: { kit?: string, passphrase?: string }, result: { user: string } }
  'ca-succeed': { args: { kit: string, passphrase: string, newPassphrase?: string, keep?: string[] }, result: { user: string, was: string, kit: string, kept: string[], revoked: string[] } }
  'renew-key': { args: object, result: { device: string, user: string, was: { device: string, user: string } } }
  'export-client': { args: { name: string, share: string[], passphrase: string }, result: { device: string, p12: string, notAfter: string } }
  follow: { args: { database: string, policy?: FollowPolicy }, result: { database: string, policy: FollowPolicy, missing: number } }
  get: { args: { id: string, output: string, from?: string, force?: boolean }, event: TransferEvent, result: { id: string, size: number, seconds: number, sources: string[] } }
  verify: { args: object, event: VerifyEvent, result: { files: number, bytes: number, damaged: number, mended: number, unreadable: number } }
  gc: { args: { remove?: boolean }, event: { event: 'unreferenced', id: string, size: number } | LocalProgress, result: { files: number, bytes: number, removed: boolean } }
  send: { args: { device: string, paths: string[], wait?: boolean }, event: SendEvent, result: { offer: string, files: number, bytes: number, answer: 'none' | 'done' } }
  inbox: { args: object, event: InboxOffer, result: { offers: number } }
  outbox: { args: object, event: OutboxOffer, result: { offers: number } }
  'outbox-withdraw': { args: { offer: string }, result: { offer: string } }
  'inbox-accept': { args: { offer: string, to: string }, event: InboxAcceptEvent, result: { files: number, folders: number, bytes: number, landed: string[] } }
  'inbox-refuse': { args: { offer: string }, result: { offer: string } }
  'inbox-rule': { args: { device: string, rule: 'ask' | 'accept' | 'refuse', to?: string }, result: { device: string, rule: string } }
  events: { args: object, event: object, result: object }
  /** The newest lines of the service's log; with `follow`, those that come, until the caller goes. */
  logs: { args: { lines?: number, follow?: boolean }, event: { event: 'log', line: string }, result: object }
  metrics: { args: object, result: { type: string, text: string } }
}

export type OperationName = keyof Operations

export interface ListenInfo { host: string, port: number }

export interface IdentityInfo {
  device: string
  user: string
  name: string
  hasCaKey: boolean
  notBefore: string
  notAfter: string
}

export interface Status {
  device: string
  user: string
  name: string
  listen: ListenInfo[]
  /** Where others reach it, as `connect --at` takes it. */
  addresses: string[]
  bridge: string
  couch: { url: string, kind: 'embedded' | 'couchdb' }
  server: { pid: number | null, confined: string | null }
  /** Why this device does not serve, and what to do; null while it does. */
  stopped: { reason: string, hint: string } | null
  /** What the person should know and do. */
  notices: Notice[]
  peers: PeerStatus[]
}

export interface CouchSetupResult {
  url: string
  /** Of patchcord's own. */
  administrator: string
  /** What was not there before. */
  created: string[]
  /** Databases that everybody could use, and that only members can now. */
  closed: string[]
  /** Databases that everybody may still use who can log in, or not even that. */
  public: string[]
  warnings: string[]
  /** The service has to be started anew to use it. */
  restart: boolean
}

export interface CouchUndoResult { url: string, removed: string[] }

export interface Notice {
  about: string
  text: string
  hint: string
}

export interface PeerStatus {
  device: string
  user: string | null
  name: string
  relation: 'own' | 'peer'
  connected: boolean
  address: string | null
  since: string | null
  /** Why it is not connected, in words. */
  problem: string | null
  databases: DatabaseStatus[]
  files: { missing: number }
}

/** One database that is received from a peer. */
export interface DatabaseStatus {
  /** What it is called here, and there. */
  name: string
  remote: string
  direction: 'pull'
  /** Whether it is being received now; `state` says why not. */
  connected: boolean
  /** Changes still to come, where that is known. */
  lag: number | null
  /** Changes a second over the last seconds, and the seconds that the rest takes at that rate; null while nothing moves. */
  rate: number
  secondsLeft: number | null
  /** Documents in conflict here (`patchcord conflicts`). */
  conflicts: number
  /** `starting`, `active`, `in sync`, `not connected`, `not offered any more`, or `failed: …`, `paused: …` with the reason. */
  state: string
}

/** Bytes: what stays free on the disk, and, where a device was named, what its databases fill and may fill. */
export interface QuotaResult { keepFree: number, device: string | null, quota: number | null, used: number | null }

/** A document with revisions that nobody has chosen between. */
export interface ConflictEvent { event: 'conflict', id: string, winner: string, others: string[] }

export interface DeviceInfo {
  device: string | null
  user: string | null
  name: string
  relation: 'own' | 'peer' | 'client'
  grant: { databases: Record<string, 'read' | 'write'>, files: 'all' | 'referenced' }
  addresses: string[]
  certificate: { notBefore: string, notAfter: string } | null
  /** `unconfirmed`: written down here, and the other device has not said yet that it has the pair, too. */
  state: 'trusted' | 'unconfirmed' | 'revoked' | 'this device'
  revoked: boolean
}

export interface ShareResult {
  database: string
  with: string
  grant: { databases: Record<string, 'read' | 'write'>, files: 'all' | 'referenced' }
}

export interface PairOpenArgs {
  /** The relation that is confirmed without asking; with it no `pair-answer` is waited for. */
  as?: 'own' | 'peer'
  yes?: boolean
  /** What the other may have: `<database>`, `<database>:read` or `<database>:write`. */
  share?: string[]
  /** Only the link: no code, and no back-off to wait for. */
  linkOnly?: boolean
}

export interface PairJoinArgs {
  /** Six digits, or a link. */
  invitation: string
  as: 'own' | 'peer'
  yes?: boolean
  share?: string[]
  /** Where the window is, when the invitation is a code. */
  at?: string[]
  /** Become another user's device although this one has peers; they are lost. */
  replaceUser?: boolean
}

export type PairEvent =
  | { event: 'window', code: string | null, link: string, expiresAt: string, addresses: ListenInfo[] }
  /** Somebody who proved the secret; `pair-answer` with `request` is waited for unless `yes` was said. `becomes`: whose
   * device this one, or that one, will be (`own` alone). `loses`: whose trust this one loses by it. */
  | { event: 'request', request: string, name: string, device: string, user: string, wants: 'own' | 'peer', offers: Record<string, 'read' | 'write'>, becomes: 'theirs' | 'ours' | null, loses: string[] }
  | { event: 'failed', error: string, hint: string, attemptsLeft: number }

export interface Paired {
  device: string
  user: string
  name: string
  relation: 'own' | 'peer'
  /** Whether the other device is known to have the pair, too. */
  confirmed: boolean
}

export interface OfferedShare {
  peer: string
  name: string
  database: string
  access: 'read' | 'write'
  accepted: string | null
  reachable: boolean
}

export interface AcceptedShare {
  peer: string
  database: string
  as: string
  access: 'read' | 'write'
}

export interface Explanation {
  allowed: boolean
  status: number
  rule: string
  reason: string
}

/** How far work on this device's own disk has come. `done` and `total` are bytes; `total` and `ofFiles` are null while nobody
 * knows them. `rate` is bytes a second over the last seconds. */
export interface LocalProgress { event: 'progress', stage: 'reading' | 'copying' | 'searching', done: number, total: number | null, rate: number, files: number, ofFiles: number | null }

export type AddEvent =
  | { event: 'added', id: string, size: number, path: string, new: boolean }
  | { event: 'passed-over', path: string, reason: string }
  | LocalProgress
  | { event: 'failed', path: string, error: string, hint: string }

export interface StoredFile { event: 'file', id: string, size: number, databases: string[] }

export type VerifyEvent =
  | LocalProgress
  /** Its bytes are not what they were; where what is left of it is now. */
  | { event: 'damaged', id: string, quarantined: string }
  /** Its bytes are right; the list of its leaves was not, and is now. */
  | { event: 'mended', id: string }
  /** The disk, or the system, refuses to read it. It stays where it is. */
  | { event: 'unreadable', id: string, reason: string }

export type SendEvent =
  /** `folders`: those that are empty; `connected`: whether the receiver is there to hear of it now; `until`: ISO 8601, how long the offer stands. */
  | { event: 'offered', offer: string, files: number, folders: number, bytes: number, connected: boolean, until: string }
  | { event: 'accepted', offer: string }
  | { event: 'passed-over', path: string, reason: string }
  /** While it is read into the store, then as the receiver tells how much it has. */
  | LocalProgress
  | TransferProgress

/** What somebody hands to this device. `files`, and `folders` that are empty, are there while it waits for an answer and the list could be fetched. */
export interface InboxOffer {
  event: 'offer'
  offer: string
  device: string
  name: string
  state: 'offered' | 'accepted' | 'refused' | 'done'
  count: number
  bytes: number
  files?: Array<{ path: string, size: number, id: string }>
  folders?: string[]
}

/** What this device hands to somebody who has not fetched it yet. `until`: ISO 8601, how long it stands. */
export interface OutboxOffer {
  event: 'offer'
  offer: string
  device: string
  name: string
  state: 'offered' | 'accepted'
  count: number
  bytes: number
  until: string
}

/** Which files that documents refer to are fetched without being asked for. */
export type FollowPolicy = { fetch: 'all' } | { fetch: 'on-demand' } | { fetch: 'up-to', bytes: number }

/** `rate` is bytes a second over the last seconds. */
export interface TransferProgress { event: 'progress', id: string, done: number, total: number, rate: number, sources: number }

/** What happens while files are fetched, and copied out of the store then. */
export type TransferEvent =
  | TransferProgress
  | LocalProgress
  | { event: 'source-dropped', id: string, device: string, leaf: number | null, reason: string }
  | { event: 'overtaken', id: string, device: string }
  | { event: 'paused', id: string, reason: 'disk-full', needed: number }
  | { event: 'resumed', id: string }

/** What happens to an offer that this device accepts. */
export type InboxAcceptEvent = { event: 'accepted', offer: string } | TransferEvent

type Shape<Name extends OperationName> = Operations[Name]
export type Args<Name extends OperationName> = Shape<Name>['args']
export type Result<Name extends OperationName> = Shape<Name>['result']
export type EventOf<Name extends OperationName> = Shape<Name> extends { event: infer Event } ? Event : never

/** The agent's side of one operation: `args` is what came over the socket, unchecked. */
export type Operation<Name extends OperationName = OperationName> =
  (args: unknown, emit: (event: EventOf<Name>) => void, signal: AbortSignal) => Promise<Result<Name>>

export type OperationTable = { readonly [Name in OperationName]: Operation<Name> }

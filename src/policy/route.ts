import { isContentId, isDatabaseName, type ContentId, type DatabaseName } from '../core/ids.js'
import type { CanonicalRequest } from './canonical.js'
import { SURFACE, type PathForm, type SurfaceRow } from './surface.js'

/** What a canonical request asks for. There is no action for what this port does not do. */
export type Action =
  | { readonly kind: 'self' }
  | { readonly kind: 'mail' }
  | FileAction
  | CouchAction

export interface FileAction {
  readonly kind: 'file'
  readonly id: ContentId
  readonly part: 'content' | 'leaves' | 'records'
  /** The one database on whose account it is asked for: then nothing else counts. */
  readonly account?: DatabaseName
}

export interface CouchAction {
  readonly kind: 'couch'
  readonly row: SurfaceRow
  readonly target: CouchTarget
  readonly query: ReadonlyMap<string, string>
}

/** The parts of a path below `/couch/`, decoded. */
export interface CouchTarget {
  readonly database?: DatabaseName
  readonly endpoint?: string
  /** A document ID without `_design/` or `_local/`, which `form` says. */
  readonly document?: string
  readonly attachment?: readonly string[]
  readonly view?: string
}

/** Turns a canonical request into an action, or undefined (404) where there is none. Pure. */
export function route (request: CanonicalRequest): Action | undefined {
  const { segments, method, trailingSlash } = request
  const isRead = method === 'GET' || method === 'HEAD'
  switch (segments[0]) {
    case undefined:
      return isRead ? { kind: 'self' } : undefined
    case 'mail':
      return method === 'GET' && segments.length === 1 && !trailingSlash ? { kind: 'mail' } : undefined
    case 'files':
      return isRead && !trailingSlash ? routeFile(segments, request.query.get('database')) : undefined
    case 'couch':
      return routeCouch(method, segments.slice(1), trailingSlash, request.query)
    default:
      return undefined
  }
}

function routeFile (segments: readonly string[], account: string | undefined): FileAction | undefined {
  const [, id, part = 'content'] = segments
  if (id === undefined || !isContentId(id) || segments.length > 3) return undefined
  if (part === 'records') return account === undefined ? { kind: 'file', id, part } : undefined
  if (part !== 'content' && part !== 'leaves') return undefined
  if (account === undefined) return { kind: 'file', id, part }
  return isDatabaseName(account) ? { kind: 'file', id, part, account } : undefined
}

const ROWS = new Map<PathForm, SurfaceRow[]>()
for (const row of SURFACE) ROWS.set(row.path, [...ROWS.get(row.path) ?? [], row])

/** Also the embedded database's way in: `segments` are those below its root. */
export function routeCouch (method: string, segments: readonly string[], trailingSlash: boolean, query: ReadonlyMap<string, string>): CouchAction | undefined {
  const parsed = parseCouchPath(segments)
  if (parsed === undefined) return undefined
  const [form, target] = parsed
  // Clients write a database's own address with a slash at the end, and nothing else.
  if (trailingSlash && form !== 'welcome' && form !== 'database') return undefined
  const row = ROWS.get(form)?.find(row => row.endpoint === target.endpoint && row.methods.includes(method))
  return row && { kind: 'couch', row, target, query }
}

function parseCouchPath (segments: readonly string[]): [PathForm, CouchTarget] | undefined {
  const [database, ...rest] = joinSpecial(segments)
  if (database === undefined) return ['welcome', {}]
  if (database === '_all_dbs') return rest.length === 0 ? ['all-dbs', {}] : undefined
  if (!isDatabaseName(database)) return undefined
  const [first, second, third, fourth] = rest
  if (first === undefined) return ['database', { database }]
  if (first === '_local') return second && rest.length === 2 ? ['local', { database, document: second }] : undefined
  if (first === '_design') {
    if (!second) return undefined
    if (third === undefined) return ['design', { database, document: second }]
    if (third === '_view') return fourth && rest.length === 4 ? ['view', { database, document: second, view: fourth }] : undefined
    return third.startsWith('_') ? undefined : ['design-attachment', { database, document: second, attachment: rest.slice(2) }]
  }
  if (first.startsWith('_')) return rest.length === 1 ? ['endpoint', { database, endpoint: first }] : undefined
  if (second === undefined) return ['document', { database, document: first }]
  return second.startsWith('_') ? undefined : ['attachment', { database, document: first, attachment: rest.slice(1) }]
}

/** `_design%2Fx` names what `_design/x` names, and CouchDB treats it so. */
function joinSpecial (segments: readonly string[]): readonly string[] {
  const id = segments[1]
  const special = id === undefined ? null : /^(_design|_local)\/([^]*)$/.exec(id)
  return special === null ? segments : [segments[0]!, special[1]!, special[2]!, ...segments.slice(2)]
}

const FIXED: Partial<Record<PathForm, readonly string[]>> = { welcome: [], 'all-dbs': ['_all_dbs'] }

/** The path and query of a CouchDB request, written anew from the decoded parts: what an upstream gets.
 * `checkpoints` is put before the name of a `_local` document that does not carry it yet; a peer does that
 * itself, so that towards one it is undefined. */
export function couchPath ({ row, target }: CouchAction, query: ReadonlyMap<string, string>, checkpoints: string | undefined): string {
  const segments = [...FIXED[row.path] ?? [target.database!]]
  if (target.endpoint !== undefined) segments.push(target.endpoint)
  if (row.path === 'design' || row.path === 'design-attachment' || row.path === 'view') segments.push('_design')
  if (row.path === 'local') segments.push('_local', checkpoints === undefined ? target.document! : ownCheckpoint(target.document!, checkpoints))
  else if (target.document !== undefined) segments.push(target.document)
  if (target.attachment !== undefined) segments.push(...target.attachment)
  if (target.view !== undefined) segments.push('_view', target.view)
  let path = ''
  for (const segment of segments) path += `/${escaped(segment)}`
  if (path === '') path = '/'
  let separator = '?'
  for (const [name, value] of query) {
    path += `${separator}${encodeURIComponent(name)}=${encodeURIComponent(value)}`
    separator = '&'
  }
  return path
}

/** Most names need nothing, which is told sooner than done. */
const escaped = (text: string): string => /^[\w-]+$/.test(text) ? text : encodeURIComponent(text)

/** An ID that carries the caller's prefix already stays: clients write back the `_id` they were given. */
function ownCheckpoint (id: string, prefix: string): string {
  return id.startsWith(`${prefix}-`) ? id : `${prefix}-${id}`
}

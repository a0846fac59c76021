import type { DatabaseName } from '../core/ids.js'
import { databaseAccess, type Principal } from '../policy/principal.js'

/** The answer to `GET /couch/`. It names the protocol's version, not the upstream's: replicators read
 * nothing of it, and what CouchDB runs here (its version, its UUID) is nobody's business. */
export const COUCH_WELCOME = Object.freeze({ couchdb: 'Welcome', version: '3.3.0', features: [], vendor: Object.freeze({ name: 'patchcord' }) })

/** The answer to `GET /couch/_all_dbs`: those of `databases` that the caller may see, sorted. */
export function visibleDatabases (principal: Principal, databases: Iterable<DatabaseName>): DatabaseName[] {
  return [...new Set(databases)].filter(database => databaseAccess(principal, database) !== 'none').toSorted()
}

// What CouchDB 3 makes of a target, written down a second time and with none of our own code: chttpd splits
// the raw path at "/", drops empty parts, and decodes each part once (mochiweb_util:unquote: a "+" is a
// space, an escape that is none stays as it is). A part that decodes to `_design/x` or `_local/x` names what
// the two parts would.

export interface CouchReading {
  /** The part that chttpd dispatches on before it looks for a database, such as `_all_dbs`. */
  readonly server?: string
  readonly database?: string
  readonly endpoint?: string
  /** With `_design/` or `_local/` in front, where it is one of those. */
  readonly document?: string
  readonly view?: string
  readonly attachment?: string
}

/** What an HTTP target names in CouchDB. `plusIsSpace` is chttpd's `decode_plus_to_space`. */
export function readAsCouchDB (target: string, plusIsSpace = true): CouchReading {
  const parts = target.split(/[?#]/, 1)[0]!.split('/').filter(part => part !== '').map(part => unquote(part, plusIsSpace))
  const [database, first, ...rest] = parts
  if (database === undefined) return {}
  if (database.startsWith('_')) return { server: database }
  if (first === undefined) return { database }
  if (first === '_design' || first === '_local') {
    if (rest[0] === undefined) return { database, endpoint: first }
    return readDocument(database, `${first}/${rest[0]}`, rest.slice(1))
  }
  if (first.startsWith('_') && !/^_(design|local)\//.test(first)) return { database, endpoint: first }
  return readDocument(database, first, rest)
}

function readDocument (database: string, document: string, rest: readonly string[]): CouchReading {
  if (rest.length === 0) return { database, document }
  if (document.startsWith('_design/') && rest[0]!.startsWith('_')) return { database, document, endpoint: rest[0]!, view: rest.slice(1).join('/') }
  return { database, document, attachment: rest.join('/') }
}

function unquote (text: string, plusIsSpace: boolean): string {
  const bytes: number[] = []
  const raw = Buffer.from(text, 'latin1')
  for (let at = 0; at < raw.length; at++) {
    const hex = raw.toString('latin1', at + 1, at + 3)
    if (raw[at] === 0x25 && /^[0-9a-fA-F]{2}$/.test(hex)) {
      bytes.push(Number.parseInt(hex, 16))
      at += 2
    } else {
      bytes.push(plusIsSpace && raw[at] === 0x2b ? 0x20 : raw[at]!)
    }
  }
  return Buffer.from(bytes).toString('utf8')
}

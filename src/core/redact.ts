// The second net under the log: nothing secret is handed to it, and what is by mistake does not get through. It works on
// the finished line, so that it does not matter how deep a secret lies, or whether an error's message holds it.

const CENSORED = '[secret]'

/** Fields whose value is never told, whatever it is. `key` alone and as a last word; not `keyId`. */
const SECRET_FIELD = /pass(?:word|wd|phrase)|secret|token|credential|authorization|cookie|(?:^|private|server|device|ca|recovery|api|[-_])key$|^(?:kit|p12|pin|code|link|invitation)$/i

const SECRET_TEXT: ReadonlyArray<readonly [RegExp, string]> = [
  // A private key, also one that is cut off, however its line ends are written.
  [/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)/g, CENSORED],
  // The login in a URL (RFC 3986, userinfo): up to the last @ before a slash.
  [/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/?#"'<>]*@/gi, `$1${CENSORED}@`],
  // A header value (RFC 7617, RFC 6750).
  [/\b(Basic|Bearer)\s+[A-Za-z0-9+/._~-]{4,}=*/gi, `$1 ${CENSORED}`],
  // password=…, "token": "…", in the words of other programs.
  [/\b((?:pass(?:word|wd|phrase)|secret|token|cookie|authorization)["']?\s*[=:]\s*["']?)(?!\[secret\])[^\s"',;&}]+/gi, `$1${CENSORED}`],
]

/** `text` without what looks like a secret. */
export function redactText (text: string): string {
  return SECRET_TEXT.reduce((clean, [pattern, replacement]) => clean.replace(pattern, replacement), text)
}

/** A copy of a JSON value without what is or looks like a secret. */
export function redactValue (value: unknown): unknown {
  if (typeof value === 'string') return redactText(value)
  if (Array.isArray(value)) return value.map(redactValue)
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [redactText(name), SECRET_FIELD.test(name) && isTelling(inner) ? CENSORED : redactValue(inner)]))
}

/** What a number or a flag of such a name says is no secret: `"code": 1` of a process that ended. */
const isTelling = (value: unknown): boolean => typeof value === 'string' ? !/^[A-Z][A-Z0-9_]*$/.test(value) && !/^[a-z]+(?:-[a-z]+)*$/.test(value) || value.length > 24 : value !== null && typeof value === 'object'

/** A word or sign of each pattern above, or a character that is written as an escape: a line without any of them passes as it is, at a
 * tenth of the cost. */
const SUSPECT = /pass(?:word|wd|phrase)|secret|token|credential|authorization|cookie|key|kit|p12|pin|code|link|invitation|begin|:\/\/|basic|bearer|\\[u/]/i

/** A line of the log without what is or looks like a secret. */
export function redactLine (line: string): string {
  return SUSPECT.test(line) ? redactFully(line) : line
}

/** The same, whatever it holds. */
export function redactFully (line: string): string {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return redactText(line)
  }
  return `${JSON.stringify(redactValue(value))}\n`
}

/** Names that mean a device on Windows, with any extension, and spaces before that. */
const RESERVED = /^(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|$)/i
const MOST_BYTES = 200

/** A name that somebody else chose, as one that is safe to give a file here: one path part, no control or
 * bidirectional characters (UTS #39, CVE-2021-42574), nothing that a shell glob, a FAT disk or Windows reads
 * otherwise, not hidden, at most 200 bytes, never empty, `.` or `..`. A name that is safe stays as it is. */
export function safeName (name: string): string {
  // What is taken out may have stood between letters that now become one.
  let safe = name.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, '').normalize('NFC')
    .replace(/[/\\:*?"<>|]/g, '_')
    .replace(/^[\s.]+/u, dots => '_'.repeat(Math.min(2, dots.length)))
  safe = withoutEnd(safe)
  if (Buffer.byteLength(safe) > MOST_BYTES) {
    const extension = /\.[^.]{1,20}$/u.exec(safe)?.[0] ?? ''
    const stem = safe.slice(0, safe.length - extension.length)
    safe = withoutEnd(withinBytes(stem, MOST_BYTES - Buffer.byteLength(extension)) + extension)
  }
  if (RESERVED.test(safe)) safe = `_${safe}`
  return safe === '' ? '_' : safe
}

/** Without dots and spaces at the end. A regular expression would look at each run of them once for each of its characters. */
function withoutEnd (name: string): string {
  let end = name.length
  while (end > 0 && /[\s.]/u.test(name[end - 1]!)) end -= 1
  return name.slice(0, end)
}

/** As many of its characters as take so many bytes. */
function withinBytes (text: string, most: number): string {
  let end = 0
  let left = most
  for (const character of text) {
    left -= Buffer.byteLength(character)
    if (left < 0) break
    end += character.length
  }
  return text.slice(0, end)
}

/** `name` for the `attempt`th try (from 1): `a.txt`, `a (2).txt`, … */
export function numbered (name: string, attempt: number): string {
  if (attempt === 1) return name
  const at = name.lastIndexOf('.')
  return at <= 0 ? `${name} (${attempt})` : `${name.slice(0, at)} (${attempt})${name.slice(at)}`
}

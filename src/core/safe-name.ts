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
    .replace(/[\s.]+$/u, '')
  if (Buffer.byteLength(safe) > MOST_BYTES) {
    const extension = /\.[^.]{1,20}$/u.exec(safe)?.[0] ?? ''
    let stem = safe.slice(0, safe.length - extension.length)
    while (Buffer.byteLength(stem) + Buffer.byteLength(extension) > MOST_BYTES) stem = stem.replace(/.$/su, '')
    safe = (stem + extension).replace(/[\s.]+$/u, '')
  }
  if (RESERVED.test(safe)) safe = `_${safe}`
  return safe === '' ? '_' : safe
}

/** `name` for the `attempt`th try (from 1): `a.txt`, `a (2).txt`, … */
export function numbered (name: string, attempt: number): string {
  if (attempt === 1) return name
  const at = name.lastIndexOf('.')
  return at <= 0 ? `${name} (${attempt})` : `${name.slice(0, at)} (${attempt})${name.slice(at)}`
}

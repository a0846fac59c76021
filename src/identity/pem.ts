import { PatchcordError } from '../core/errors.js'

// RFC 7468 section 3, strict form, several blocks in one file. Text outside the blocks is refused, so that
// nothing rides along unseen; an empty line between blocks is not.

/** The longest PEM text that is read, in bytes. */
export const PEM_LIMIT = 65_536

export interface PemBlock { readonly label: string, readonly der: Buffer }

const BLOCK = /-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n((?:[A-Za-z0-9+/]{1,76}={0,2}\r?\n)+)-----END \1-----(?:\r?\n|$)(?:[ \t]*\r?\n)*/y

/** One block, 64 characters a line. */
export function encodePem (label: string, der: Uint8Array): string {
  const lines = Buffer.from(der).toString('base64').match(/.{1,64}/g) ?? []
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`
}

/** Every block of `text`, in order. Throws `bad-certificate` where `text` is anything but PEM blocks. */
export function decodePem (text: string): PemBlock[] {
  if (text.length > PEM_LIMIT) throw notPem(`${text.length} characters, more than ${PEM_LIMIT}`)
  const blocks: PemBlock[] = []
  BLOCK.lastIndex = /^\s*/.exec(text)![0].length
  while (BLOCK.lastIndex < text.length) {
    const match = BLOCK.exec(text)
    if (match === null) throw notPem(blocks.length === 0 ? 'no PEM block' : 'something follows the last whole block')
    const base64 = match[2]!.replace(/\s/g, '')
    const der = Buffer.from(base64, 'base64')
    if (der.toString('base64') !== base64) throw notPem('base64 that is not canonical')
    blocks.push({ label: match[1]!, der })
  }
  if (blocks.length === 0) throw notPem('no PEM block')
  return blocks
}

/** The content of the only block of `text`, which has this label. Throws `bad-certificate`. */
export function decodeOnePem (text: string, label: string): Buffer {
  const [block, ...more] = decodePem(text)
  if (block === undefined || more.length > 0 || block.label !== label) throw notPem(`not exactly one ${label} block`)
  return block.der
}

const notPem = (problem: string): PatchcordError => new PatchcordError('bad-certificate', `not PEM: ${problem}`)

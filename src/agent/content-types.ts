import { extname } from 'node:path'

/** Media types by the ends of names, as IANA has them registered: what a document says of its file to programs that show it. The open port never
 * says it (files/serve.ts): a name proves nothing about the bytes. */
const TYPES: Readonly<Record<string, string>> = {
  avif: 'image/avif', bmp: 'image/bmp', gif: 'image/gif', heic: 'image/heic', jpeg: 'image/jpeg', jpg: 'image/jpeg', png: 'image/png', svg: 'image/svg+xml', tif: 'image/tiff', tiff: 'image/tiff', webp: 'image/webp',
  aac: 'audio/aac', flac: 'audio/flac', m4a: 'audio/mp4', mp3: 'audio/mpeg', ogg: 'audio/ogg', opus: 'audio/ogg',
  mkv: 'video/matroska', mov: 'video/quicktime', mp4: 'video/mp4', mpeg: 'video/mpeg', mpg: 'video/mpeg', ogv: 'video/ogg', webm: 'video/webm',
  css: 'text/css', csv: 'text/csv', htm: 'text/html', html: 'text/html', ics: 'text/calendar', js: 'text/javascript', md: 'text/markdown', txt: 'text/plain', vcf: 'text/vcard',
  epub: 'application/epub+zip', gz: 'application/gzip', json: 'application/json', pdf: 'application/pdf', rtf: 'application/rtf', xml: 'application/xml', zip: 'application/zip',
  doc: 'application/msword', docx: 'application/vnd.openxmlformats-officedocument.wordprocessingml.document',
  ppt: 'application/vnd.ms-powerpoint', pptx: 'application/vnd.openxmlformats-officedocument.presentationml.presentation',
  xls: 'application/vnd.ms-excel', xlsx: 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet',
  odp: 'application/vnd.oasis.opendocument.presentation', ods: 'application/vnd.oasis.opendocument.spreadsheet', odt: 'application/vnd.oasis.opendocument.text',
}

/** The media type that a file of this name is taken for; `application/octet-stream` where nothing is known. */
export function contentTypeOf (name: string): string {
  const end = extname(name).slice(1).toLowerCase()
  return Object.hasOwn(TYPES, end) ? TYPES[end]! : 'application/octet-stream'
}

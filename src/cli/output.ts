import type { Writable } from 'node:stream'
import { messageOf, PatchcordError } from '../core/errors.js'
import { cut } from '../core/ids.js'
import { ProgressLine } from './progress.js'

/** Where a command writes. With `--json` stdout has one JSON object a line, and people's text goes to
 * stderr; without, people's text is on stdout. */
export class Output {
  readonly json: boolean
  readonly #stdout: Writable
  readonly #stderr: Writable
  readonly #progress: ProgressLine

  constructor (json: boolean, stdout: Writable, stderr: Writable) {
    this.json = json
    this.#stdout = stdout
    this.#stderr = stderr
    this.#progress = new ProgressLine(stderr)
  }

  /** An event, or the whole answer, for programs. */
  object (value: object): void {
    if (this.json) this.#stdout.write(`${JSON.stringify(value)}\n`)
  }

  /** A line for people. */
  line (text = ''): void {
    ;(this.json ? this.#stderr : this.#stdout).write(`${text}\n`)
  }

  /** Text that is the answer itself (a PEM, a listing), for people and pipes alike. */
  raw (text: string): void {
    if (!this.json) this.#stdout.write(text)
  }

  /** Rows in aligned columns, for people. */
  table (rows: ReadonlyArray<readonly string[]>): void {
    if (this.json) return
    const widths: number[] = []
    for (const row of rows) row.forEach((cell, column) => { widths[column] = Math.max(widths[column] ?? 0, cell.length) })
    for (const row of rows) this.line(row.map((cell, column) => column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)).join('  '))
  }

  /** How far something is, on a terminal alone. */
  progress (text: string): void {
    if (!this.json) this.#progress.show(text)
  }

  /** To be called when a command is through, however it ended. */
  endProgress (): void {
    this.#progress.end()
  }

  /** An error: the problem, then the hint. Returns the exit code. */
  fail (error: unknown): number {
    const known = error instanceof PatchcordError ? error : undefined
    const hint = known?.hint
    if (this.json) this.#stdout.write(`${JSON.stringify({ event: 'failed', error: messageOf(error), code: known?.code ?? 'internal', hint: hint ?? null })}\n`)
    this.#stderr.write(`patchcord: ${messageOf(error).split('\n').map(printable).join('\n')}\n`)
    if (hint !== undefined) this.#stderr.write(`  hint: ${hint}\n`)
    if (known === undefined && error instanceof Error && error.stack !== undefined) this.#stderr.write(`${error.stack}\n`)
    return known?.exit ?? 1
  }
}

/** Text that somebody else may have chosen, such as a path: what would move the cursor, break the line or turn the order of
 * letters around is shown as `\\u{202e}` (CWE-150, CVE-2021-42574). */
export function printable (text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, character => `\\u{${character.codePointAt(0)?.toString(16)}}`)
}

/** `1 file`, `2 files`. */
export function countOf (count: number, one: string): string {
  return `${count} ${one}${count === 1 ? '' : 's'}`
}

/** 1536 as `1.5 KiB`. */
export function formatBytes (bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`
}

/** `10MB`, `1.5 GiB` or a plain number as bytes; MB and MiB are both 2^20. Throws `usage`. */
export function parseBytes (text: string): number {
  const [, number = '', unit = ''] = /^\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?\s*$/i.exec(text) ?? []
  const bytes = Math.round(Number(number) * 1024 ** ' kmgt'.indexOf(unit === '' ? ' ' : unit.toLowerCase()))
  if (number === '' || !Number.isSafeInteger(bytes)) throw new PatchcordError('usage', `"${cut(text)}" is not a size`, { hint: 'write a number of bytes, or such as 500KiB, 10MB or 1.5GiB' })
  return bytes
}

/** 75 as `1m 15s`. */
export function formatSeconds (seconds: number): string {
  if (!Number.isFinite(seconds)) return '?'
  if (seconds < 10) return `${seconds.toFixed(1)}s`
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole}s`
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${whole % 60}s`
  return `${Math.floor(whole / 3600)}h ${Math.floor(whole % 3600 / 60)}m`
}

import { randomFillSync } from 'node:crypto'
import { join } from 'node:path'
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'

const CHUNK = 8 * 1_048_576

/** Bytes that no contestant has seen or can compress: one large file, or many small ones. */
export interface Material {
  readonly files: number
  readonly fileBytes: number
}

/** Writes it into a folder that is made. */
export function writeMaterial (folder: string, { files, fileBytes }: Material): void {
  mkdirSync(folder, { recursive: true })
  const buffer = Buffer.alloc(Math.min(CHUNK, fileBytes))
  for (let n = 0; n < files; n++) {
    const path = join(folder, `f${n}`)
    if (fileBytes <= CHUNK) {
      writeFileSync(path, randomFillSync(buffer))
      continue
    }
    const file = openSync(path, 'w')
    for (let at = 0; at < fileBytes; at += buffer.length) writeSync(file, randomFillSync(buffer), 0, Math.min(buffer.length, fileBytes - at))
    closeSync(file)
  }
}

export function median (values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export const mibPerSecond = (bytes: number, seconds: number): string => `${(bytes / 1_048_576 / seconds).toFixed(0)} MiB/s`

/** Resolves when `holds` does; rejects after `seconds`. */
export async function waitFor (what: string, holds: () => boolean | Promise<boolean>, seconds = 300): Promise<void> {
  const deadline = performance.now() + seconds * 1000
  while (!await holds()) {
    if (performance.now() > deadline) throw new Error(`waited ${seconds} s for ${what}`)
    await new Promise(resolve => { setTimeout(resolve, 10) })
  }
}

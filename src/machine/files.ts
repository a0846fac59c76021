import { readFileSync } from 'node:fs'
import { systemCode } from '../core/errors.js'

/** The text of a file of the system, or undefined where there is none. Throws where it may not be read. */
export function textOf (path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ESRCH' || code === 'EINVAL') return undefined
    throw error
  }
}

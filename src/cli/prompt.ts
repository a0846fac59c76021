import { createInterface } from 'node:readline/promises'
import { PatchcordError } from '../core/errors.js'
import type { CliIo } from './context.js'

/** Whether there is a person to ask. */
export const isInteractive = ({ stdin, stderr }: CliIo): boolean => isTerminal(stdin) && isTerminal(stderr)

/** Asks on stderr and gives the line that was typed, trimmed. Throws `usage` where there is nobody to ask, and
 * the signal's reason when it is interrupted. */
export async function ask ({ stdin, stderr, signal }: CliIo, question: string, instead: string): Promise<string> {
  if (!isTerminal(stdin)) throw new PatchcordError('usage', 'there is no terminal to ask on', { hint: instead })
  const lines = createInterface({ input: stdin, output: stderr })
  try {
    return (await lines.question(question, { signal })).trim()
  } finally {
    lines.close()
  }
}

/** The first line of stdin, for secrets that must not be in argv. */
export async function readLine ({ stdin }: CliIo): Promise<string> {
  for await (const line of createInterface({ input: stdin })) return line.trim()
  throw new PatchcordError('usage', 'stdin held no line', { hint: 'write the code or the link to it' })
}

const isTerminal = (stream: object): boolean => (stream as { isTTY?: boolean }).isTTY === true

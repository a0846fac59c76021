import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import type { ReadStream } from 'node:tty'
import { fileError, PatchcordError } from '../core/errors.js'
import type { CliIo } from './context.js'

// A passphrase comes from the terminal, from a file, or from stdin: never from an argument, which every
// process of the machine can read, and never from the environment.

const MOST_BYTES = 1024

/** Reads a passphrase. `from` is a file, or `-` for stdin; without it the terminal is asked, twice where a new
 * one is chosen. Throws `usage` where there is no terminal, and where the two differ. */
export async function readPassphrase (io: CliIo, question: string, { from, isNew = false }: { from?: string | undefined, isNew?: boolean }): Promise<string> {
  if (from === '-') return firstLine(await readAll(io))
  if (from !== undefined) return firstLine(await readFile(from, 'utf8').catch((error: unknown) => { throw fileError(error, from) }))
  const terminal = io.stdin as ReadStream
  if (terminal.isTTY !== true) throw new PatchcordError('usage', 'there is no terminal to ask for the passphrase on', { hint: 'give --passphrase-file <path>, or - to read it from stdin' })
  const passphrase = await ask(io, terminal, `${question}: `)
  if (isNew && await ask(io, terminal, 'once more: ') !== passphrase) throw new PatchcordError('usage', 'the two passphrases differ', { hint: 'run the command again' })
  return passphrase
}

/** Asks on the terminal without showing what is typed. */
async function ask ({ stderr, signal }: CliIo, terminal: ReadStream, question: string): Promise<string> {
  stderr.write(question)
  // In raw mode nothing is echoed, and editing is ours to do.
  terminal.setRawMode(true)
  let typed = ''
  try {
    for await (const chunk of on(terminal, signal)) {
      for (const character of chunk) {
        if (character === '\r' || character === '\n') return typed
        if (character === '\u0003' || character === '\u0004') throw new PatchcordError('refused', 'no passphrase was given')
        if (character === '\u007f' || character === '\b') typed = Array.from(typed).slice(0, -1).join('')
        else if (character >= ' ' && typed.length < MOST_BYTES) typed += character
      }
    }
    throw new PatchcordError('refused', 'no passphrase was given')
  } finally {
    terminal.setRawMode(false)
    terminal.pause()
    stderr.write('\n')
  }
}

async function * on (terminal: ReadStream, signal: AbortSignal): AsyncGenerator<string> {
  terminal.setEncoding('utf8')
  // Leaving a loop over a stream would destroy it; the second question reads on.
  for await (const chunk of terminal.iterator({ destroyOnReturn: false }) as AsyncIterable<string>) {
    signal.throwIfAborted()
    yield chunk
  }
}

async function readAll ({ stdin }: CliIo): Promise<string> {
  const lines: string[] = []
  for await (const line of createInterface({ input: stdin })) {
    lines.push(line)
    break
  }
  return lines.join('\n')
}

function firstLine (text: string): string {
  const line = /^[^\r\n]*/.exec(text)![0]
  if (line === '' || Buffer.byteLength(line) > MOST_BYTES) throw new PatchcordError('usage', 'the passphrase is empty or too long', { hint: `its first line counts, up to ${MOST_BYTES} bytes` })
  return line
}

import type { Readable, Writable } from 'node:stream'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { Logger } from '../core/log.js'
import type { ServerUpdate } from './env.js'
import type { PatchcordServer } from './server.js'

// What crosses between the agent and the confined server, a JSON object a line:
//   stdin   the env; then {"op":"update","seq":7,"revoked":[…]}…; its end stops the server
//   stdout  {"event":"ready",…}; then {"event":"updated","seq":7,"cut":1} or
//           {"event":"refused-update","seq":7,"reason":"…"}
// {"op":"counts","seq":8} is answered by {"event":"counts","seq":8,"counts":{…}} (counts.ts).

/** The longest line taken in. */
export const MOST_LINE_BYTES = 64 * 1024 * 1024

/** The lines of a stream, without their ends. Throws `bad-env` for a longer line, and for bytes after the
 * last line end: half a message is none. */
export async function * readLines (input: Readable, most = MOST_LINE_BYTES): AsyncGenerator<string, void> {
  let parts: Buffer[] = []
  let size = 0
  for await (const chunk of input as AsyncIterable<Buffer>) {
    let start = 0
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
      parts.push(chunk.subarray(start, end))
      size += end - start
      if (size > most) throw tooLong(most)
      yield Buffer.concat(parts).toString('utf8')
      parts = []
      size = 0
      start = end + 1
    }
    if (start < chunk.length) parts.push(chunk.subarray(start))
    size += chunk.length - start
    if (size > most) throw tooLong(most)
  }
  if (size > 0) throw new PatchcordError('bad-env', 'stdin ended in the middle of a line', { hint: 'end the JSON object with a line end' })
}

function tooLong (most: number): PatchcordError {
  return new PatchcordError('bad-env', `a line on stdin is longer than ${most} bytes`)
}

/** Applies one update line and answers it on `output` by its number. A refused update changes nothing. */
export async function applyLine (line: string, server: PatchcordServer, output: Writable, logger: Logger): Promise<void> {
  let seq: unknown = null
  try {
    let message: unknown
    try {
      message = JSON.parse(line)
    } catch {
      throw new PatchcordError('bad-env', 'update: is not JSON')
    }
    if (message === null || typeof message !== 'object') throw new PatchcordError('bad-env', 'update: must be an object')
    const { op, seq: number, ...part } = message as { op?: unknown, seq?: unknown }
    seq = typeof number === 'number' ? number : null
    if (op === 'counts' && seq !== null) {
      writeLine(output, { event: 'counts', seq, counts: server.counts() })
      return
    }
    if (op !== 'update' || seq === null) throw new PatchcordError('bad-env', 'update: op must be "update" and seq a number')
    const { cut } = await server.update(part as ServerUpdate)
    writeLine(output, { event: 'updated', seq, cut })
  } catch (error) {
    logger.error({ seq, reason: messageOf(error) }, 'update refused')
    writeLine(output, { event: 'refused-update', seq, reason: messageOf(error) })
  }
}

export function writeLine (output: Writable, message: object): void {
  output.write(`${JSON.stringify(message)}\n`)
}

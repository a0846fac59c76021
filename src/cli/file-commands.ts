import { resolve } from 'node:path'
import { PatchcordError } from '../core/errors.js'
import type { Context } from './context.js'
import type { LocalProgress, TransferEvent, TransferProgress } from '../control/operations.js'
import { countOf, formatBytes, formatSeconds, parseBytes, printable, type Output } from './output.js'

// The file store.

export async function add ({ client, output, signal }: Context, paths: string[], { to, move = false }: { to?: string, move?: boolean }): Promise<void> {
  let passed = 0
  const done = await client.call('add', { paths: paths.map(path => resolve(path)), move, ...to === undefined ? {} : { to } }, event => {
    output.object(event)
    switch (event.event) {
      case 'added':
        output.raw(`${event.id}  ${printable(event.path)}\n`)
        break
      case 'failed':
        // Most errors name their path already.
        output.line(`not added: ${event.error.includes(event.path) ? '' : `${printable(event.path)}: `}${printable(event.error)} (${event.hint})`)
        break
      case 'passed-over':
        passed += 1
        output.line(`passed over: ${printable(event.path)} is ${event.reason}`)
        break
      case 'progress':
        tellProgress(output, event)
        break
    }
  }, signal)
  output.object({ event: 'done', ...done })
  output.line(`${countOf(done.files, 'file')}, ${formatBytes(done.bytes)} in ${formatSeconds(done.seconds)}${passed === 0 ? '' : `; ${passed} passed over, since only files and folders with names in UTF-8 are taken`}`)
  if (move && to === undefined && done.files > 0) output.line('the store has them alone now, and nothing refers to them: `patchcord gc --remove` would remove them (add them to a database with --to)')
}

export async function ls ({ client, output, signal }: Context): Promise<void> {
  await client.call('ls', {}, file => {
    output.object(file)
    output.raw(`${file.id}  ${formatBytes(file.size).padStart(9)}  ${file.databases.join(', ') || '-'}\n`)
  }, signal)
}

export async function get ({ client, output, signal }: Context, id: string, { output: path, from, force = false }: { output: string, from?: string, force?: boolean }): Promise<void> {
  const done = await client.call('get', { id, output: resolve(path), force, ...from === undefined ? {} : { from } }, event => {
    output.object(event)
    tellTransfer(output, event)
  }, signal)
  output.object({ event: 'done', ...done })
  output.line(`wrote ${path}: ${formatBytes(done.size)} in ${formatSeconds(done.seconds)}${done.sources.length === 0 ? ', from this device\'s own store' : ''}`)
}

export async function verify ({ client, output, signal }: Context): Promise<void> {
  const done = await client.call('verify', {}, event => {
    output.object(event)
    if (event.event === 'progress') tellProgress(output, event)
    else if (event.event === 'mended') output.line(`mended: ${event.id}; its leaf list was damaged or missing, and was made anew of its bytes, which are right`)
    else if (event.event === 'unreadable') output.line(`cannot be read: ${event.id}; ${event.reason}`)
    else output.line(`damaged: ${event.id}; what is left of it is now ${event.quarantined}`)
  }, signal)
  output.object({ event: 'done', ...done })
  output.line(`${countOf(done.files, 'file')}, ${formatBytes(done.bytes)}: ${done.damaged + done.unreadable === 0 ? 'all as they were put there' : `${done.damaged} damaged${done.unreadable > 0 ? `, ${done.unreadable} cannot be read` : ''}`}${done.mended > 0 ? `; the leaf lists of ${done.mended} were made anew` : ''}`)
  if (done.damaged > 0) throw new PatchcordError('verification', `${done.damaged} of ${done.files} files were damaged on this device's disk`, { hint: 'get them again from another device, or add them again where you still have them' })
  if (done.unreadable > 0) throw new PatchcordError('unreadable', `${done.unreadable} of ${done.files} files could not be read`, { hint: 'look at the disk: `dmesg` may say what is wrong with it' })
}

export async function gc ({ client, output, signal }: Context, { remove = false }: { remove?: boolean }): Promise<void> {
  const done = await client.call('gc', { remove }, event => {
    output.object(event)
    if (event.event === 'progress') tellProgress(output, event)
    else output.raw(`${event.id}  ${formatBytes(event.size).padStart(9)}\n`)
  }, signal)
  output.object({ event: 'done', ...done })
  output.line(`${countOf(done.files, 'file')}, ${formatBytes(done.bytes)}, that nothing refers to${done.removed ? ': removed' : done.files > 0 ? '; remove them with --remove' : ''}`)
}

export async function follow ({ client, output }: Context, database: string, { all, onDemand, upTo }: { all?: boolean, onDemand?: boolean, upTo?: string }): Promise<void> {
  if ([all, onDemand, upTo].filter(given => given !== undefined).length > 1) throw new PatchcordError('usage', '--all, --on-demand and --up-to exclude each other', { hint: 'give one of them, or none to see what is in force' })
  const policy = all === true ? { fetch: 'all' as const } : onDemand === true ? { fetch: 'on-demand' as const } : upTo === undefined ? undefined : { fetch: 'up-to' as const, bytes: parseBytes(upTo) }
  const now = await client.call('follow', { database, ...policy === undefined ? {} : { policy } })
  output.object(now)
  const what = now.policy.fetch === 'all' ? 'all files that' : now.policy.fetch === 'on-demand' ? 'no file is fetched by itself of those that' : `files of at most ${formatBytes(now.policy.bytes)} that`
  output.line(`${what} ${database} refers to${now.policy.fetch === 'on-demand' ? '; get them one by one' : ' are fetched'}${now.missing === 0 ? '' : `; ${now.missing} are missing`}`)
}

const STAGES = { reading: 'reading', copying: 'writing', searching: 'looking' } as const

/** How far something is, for people: what is not known yet is left out. */
export function tellProgress (output: Output, progress: LocalProgress | TransferProgress, doing = 'stage' in progress ? STAGES[progress.stage] : 'fetching'): void {
  const { done, total, rate } = progress
  const parts: string[] = []
  if (total !== null && total > 0) parts.push(`${Math.floor(100 * done / total)}%`)
  if ('stage' in progress && (progress.stage === 'searching' || (progress.ofFiles ?? 0) > 1)) parts.push(`${progress.files}${progress.ofFiles === null ? '' : ` of ${progress.ofFiles}`} files`)
  if (done > 0) parts.push(total === null ? formatBytes(done) : `${formatBytes(done)} of ${formatBytes(total)}`)
  if (rate > 0) parts.push(`${formatBytes(rate)}/s`)
  if (rate > 0 && total !== null && total > done) parts.push(`${formatSeconds((total - done) / rate)} left`)
  if (!('stage' in progress) && progress.sources > 0) parts.push(`from ${countOf(progress.sources, 'device')}`)
  output.progress(`${doing} ${parts.join(', ')}`.trimEnd())
}

/** What happens to a download, for people. */
export function tellTransfer (output: Output, event: TransferEvent): void {
  switch (event.event) {
    case 'progress':
      tellProgress(output, event)
      break
    case 'source-dropped':
      output.line(`device ${event.device} sent wrong bytes and is not asked again: ${event.reason}`)
      break
    case 'overtaken':
      output.line(`device ${event.device} is silent; others are asked`)
      break
    case 'paused':
      output.line(`paused: the disk is full, ${formatBytes(event.needed)} are needed; it goes on when there is room`)
      break
    case 'resumed':
      output.line('there is room again; going on')
      break
  }
}

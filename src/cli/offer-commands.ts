import { resolve } from 'node:path'
import { PatchcordError } from '../core/errors.js'
import type { Context } from './context.js'
import { tellProgress, tellTransfer } from './file-commands.js'
import { countOf, formatBytes, printable } from './output.js'

// Files handed from device to device.

export async function send ({ client, output, signal }: Context, device: string, paths: string[], { wait = true }: { wait?: boolean }): Promise<void> {
  const done = await client.call('send', { device, paths: paths.map(path => resolve(path)), wait }, event => {
    output.object(event)
    switch (event.event) {
      case 'offered':
        output.endProgress()
        output.line(`offered ${contentOf(event)}, to ${device} (offer ${event.offer})${wait ? '; waiting for the answer' : ''}`)
        if (!event.connected) output.line(`${device} is not connected now: the offer stands until ${event.until.slice(0, 10)}${wait ? ', and nobody has to wait here for that (Ctrl-C)' : ''}`)
        break
      case 'accepted':
        output.line('accepted; it is being fetched')
        break
      case 'passed-over':
        output.line(`passed over: ${printable(event.path)} is ${event.reason}`)
        break
      case 'progress':
        tellProgress(output, event, 'stage' in event ? undefined : 'fetched')
        break
    }
  }, signal)
  if (done.answer !== 'done') return
  output.object({ event: 'done', offer: done.offer })
  output.line('done: it has arrived')
}

export async function outbox ({ client, output, signal }: Context): Promise<void> {
  const { offers } = await client.call('outbox', {}, offer => {
    output.object(offer)
    output.line(`${offer.offer}  ${countOf(offer.count, 'file')}, ${formatBytes(offer.bytes)}, to ${offer.name}, until ${offer.until.slice(0, 10)}: ${offer.state}`)
  }, signal)
  if (offers === 0) output.line('nothing is offered to anybody')
}

export async function outboxWithdraw ({ client, output }: Context, offer: string): Promise<void> {
  output.object({ event: 'withdrawn', ...await client.call('outbox-withdraw', { offer }) })
  output.line('withdrawn')
}

export async function inbox ({ client, output, signal }: Context): Promise<void> {
  const { offers } = await client.call('inbox', {}, offer => {
    output.object(offer)
    output.line(`${offer.offer}  ${countOf(offer.count, 'file')}, ${formatBytes(offer.bytes)}, from ${offer.name}: ${offer.state}`)
    for (const { path, size } of offer.files ?? []) output.line(`  ${formatBytes(size).padStart(9)}  ${path}`)
    for (const path of offer.folders ?? []) output.line(`  ${'empty'.padStart(9)}  ${path}/`)
  }, signal)
  if (offers === 0) output.line('nobody offers files')
}

export async function inboxAccept ({ client, output, signal }: Context, offer: string, { to }: { to: string }): Promise<void> {
  const done = await client.call('inbox-accept', { offer, to: resolve(to) }, event => {
    output.object(event)
    if (event.event !== 'accepted') tellTransfer(output, event)
  }, signal)
  output.object({ event: 'done', ...done })
  output.line(`${contentOf(done)}:`)
  for (const path of done.landed) output.line(`  ${path}`)
}

export async function inboxRefuse ({ client, output }: Context, offer: string): Promise<void> {
  output.object({ event: 'refused', ...await client.call('inbox-refuse', { offer }) })
  output.line('refused')
}

export async function inboxRule ({ client, output }: Context, device: string, rule: string, { to }: { to?: string }): Promise<void> {
  if (rule !== 'ask' && rule !== 'accept' && rule !== 'refuse') throw new PatchcordError('usage', `there is no rule "${rule}"`, { hint: 'write ask, accept or refuse' })
  const folder = to === undefined ? undefined : resolve(to)
  output.object(await client.call('inbox-rule', { device, rule, ...folder === undefined ? {} : { to: folder } }))
  output.line(rule === 'accept' ? `what ${device} sends lands in ${folder} by itself` : rule === 'ask' ? `you are asked about what ${device} sends` : `what ${device} sends is refused`)
}

function contentOf ({ files, folders, bytes }: { files: number, folders: number, bytes: number }): string {
  return `${countOf(files, 'file')}, ${folders === 0 ? '' : `${countOf(folders, 'empty folder')}, `}${formatBytes(bytes)}`
}

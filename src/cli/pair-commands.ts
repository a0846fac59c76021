import { renderUnicodeCompact } from 'uqr'
import { PatchcordError } from '../core/errors.js'
import type { PairEvent, Paired } from '../control/operations.js'
import type { Context } from './context.js'
import type { Output } from './output.js'
import { ask, isInteractive, readLine } from './prompt.js'

// Pairing, at both ends. Names are the other's own words: they come escaped and are shown in quotes.

export interface PairOptions {
  readonly as?: string
  readonly yes?: boolean
  readonly share?: string[]
  readonly at?: string[]
  readonly join?: boolean
  readonly replaceUser?: boolean
  readonly linkOnly?: boolean
}

export async function pair (context: Context, invitation: string | undefined, options: PairOptions): Promise<void> {
  const { client, output, io, signal } = context
  const as = relationOf(options.as)
  const shared = { yes: options.yes === true, ...options.share === undefined ? {} : { share: options.share } }
  let paired: Paired
  if (invitation === undefined && options.join !== true) {
    if (as === undefined && !isInteractive(io)) throw new PatchcordError('usage', 'without a terminal the relation has to be given', { hint: 'say --as own (one person\'s devices) or --as peer (two people\'s), and --yes' })
    paired = await client.call('pair-open', { ...shared, ...as === undefined ? {} : { as }, ...options.linkOnly === true ? { linkOnly: true } : {} }, listener(context, as, shared.yes), signal)
  } else {
    const code = invitation === '-' ? await readLine(io) : invitation ?? await ask(io, 'the code or link that the other device shows: ', 'give it as an argument, or - to read it from stdin')
    paired = await client.call('pair-join', {
      ...shared, invitation: code, as: as ?? await askRelation(context),
      ...options.at === undefined ? {} : { at: options.at }, ...options.replaceUser === true ? { replaceUser: true } : {},
    }, listener(context, as, shared.yes), signal)
  }
  output.object({ event: 'paired', ...paired })
  output.line(paired.relation === 'own' ? `paired: "${paired.name}" and this device belong to the same person` : `paired: "${paired.name}" is trusted as somebody else's device`)
  if (!paired.confirmed) output.line('it has not said yet that it has the pair, too: `patchcord devices` calls it unconfirmed until it does')
  if (paired.relation === 'peer') output.line(`next: patchcord share <database> --with "${paired.name}"`)
}

function listener (context: Context, as: 'own' | 'peer' | undefined, yes: boolean): (event: PairEvent) => void {
  const { output, client } = context
  return event => {
    output.object(event)
    switch (event.event) {
      case 'window':
        if (!output.json) showWindow(context, event)
        return
      case 'failed':
        output.line(`an attempt failed: ${event.error} (${event.attemptsLeft} left)`)
        return
      case 'request':
        describe(output, event)
        if (yes) return
        // Where the person cannot be asked, the other one is not kept waiting for an answer.
        confirm(context, event, as).catch((error: unknown) => {
          output.fail(error)
          return null
        }).then(async relation => { await client.call('pair-answer', { request: event.request, relation }) })
          .catch((error: unknown) => { output.fail(error) })
    }
  }
}

function showWindow ({ output }: Context, { code, link, addresses }: Extract<PairEvent, { event: 'window' }>): void {
  output.line('on the other device, within two minutes:')
  if (code !== null) output.line(`  patchcord pair ${code}${addresses[0] === undefined ? '' : `   (where it does not find this device: --at '[${addresses[0].host}]:${addresses[0].port}')`}`)
  output.line('or with the link, which nobody can guess:')
  output.line(`  patchcord pair '${link}'`)
  output.line()
  output.line(renderUnicodeCompact(link))
}

type Request = Extract<PairEvent, { event: 'request' }>

function describe (output: Output, { name, device, user, wants, offers, becomes, loses }: Request): void {
  output.line(`"${name}" proved the code and wants to be ${wants === 'own' ? 'a device of the same person' : 'trusted as somebody else\'s device'}`)
  output.line(`  device ${device}`)
  output.line(`  user   ${user}`)
  for (const [database, access] of Object.entries(offers)) output.line(`  offers ${database} (${access})`)
  if (becomes === 'theirs') output.line(`this device will belong to the person of "${name}": everything on it becomes theirs`)
  if (becomes === 'ours') output.line(`"${name}" will belong to you, as this device does: everything on it becomes yours`)
  if (loses.length > 0) output.line(`this device will no longer know, and not be trusted by: ${loses.join(', ')}`)
}

async function confirm ({ io, output }: Context, { wants }: Request, as: 'own' | 'peer' | undefined): Promise<'own' | 'peer' | null> {
  if (as !== undefined && as !== wants) {
    output.line(`you said --as ${as}: refused`)
    return null
  }
  const answer = await ask(io, `pair as ${wants}? [y/N] `, 'say --yes together with --as')
  return /^y(es)?$/i.test(answer) ? wants : null
}

async function askRelation ({ io }: Context): Promise<'own' | 'peer'> {
  const answer = await ask(io, 'is the other device your own, or somebody else\'s? [own/peer] ', 'say --as own or --as peer')
  return relationOf(answer) ?? 'peer'
}

function relationOf (text: string | undefined): 'own' | 'peer' | undefined {
  if (text === undefined || text === 'own' || text === 'peer') return text
  throw new PatchcordError('usage', 'the relation is neither own nor peer', { hint: 'say --as own (one person\'s devices) or --as peer (two people\'s)' })
}

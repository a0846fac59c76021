import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { OperationTable } from '../control/operations.js'
import { Rate } from '../sync/rate.js'
import type { Agent } from './agent.js'
import { absolutePath, readArguments, text } from './arguments.js'
import { gather } from './gather.js'
import type { ReceivedOffer, SentOffer } from './offer-book.js'
import type { OfferedFile, OfferedList, OfferedPath } from './offer-list.js'
import { ProgressMeter, sizesBelow } from './local-progress.js'

/** How long whoever looks into the inbox waits for the list of an offer (ms). */
const LIST_MS = 5_000

/** Files handed to one device, and what others hand to this one. */
export function offerOperations (agent: Agent): Pick<OperationTable, 'send' | 'outbox' | 'outbox-withdraw' | 'inbox' | 'inbox-accept' | 'inbox-refuse' | 'inbox-rule'> {
  const { book, store } = agent
  const nameOf = (device: string): string => [...book.known.values()].find(known => known.device === device)?.name ?? device
  return {
    send: async (args, emit, signal) => {
      const { device, paths, wait = true } = readArguments(v.strictObject({ device: text, paths: v.array(absolutePath), wait: v.exactOptional(v.boolean()) }), args)
      const known = book.find(device)
      const files: OfferedFile[] = []
      let folders: readonly OfferedPath[] = []
      agent.importing += 1
      let sent: SentOffer
      const meter = new ProgressMeter({ clock: agent.clock, stage: 'reading', tell: emit, sizes: () => sizesBelow(paths, agent.home.root), signal })
      try {
        const gathered = await gather(paths, { except: agent.home.root, signal, passedOver: (path, reason) => { emit({ event: 'passed-over', path, reason }) } })
        folders = gathered.folders
        agent.offers.checkRoom(gathered.files.length)
        for await (const added of store.addAll(gathered.files.map(({ from }) => from), { isLater: true, signal, onBytes: bytes => { meter.add(bytes) } })) {
          if ('error' in added) throw added.error
          meter.add(0, 1)
          // They come in order.
          files.push({ path: gathered.files[files.length]!.path, size: added.size, id: added.id })
        }
        if (files.length === 0 && folders.length === 0) throw new PatchcordError('usage', 'there is no file to send')
        sent = await agent.offers.offer(known.device, { files, folders })
      } finally {
        agent.importing -= 1
        agent.offers.flush()
      }
      const { offer, bytes, until } = sent
      emit({ event: 'offered', offer, files: files.length, folders: folders.length, bytes, connected: agent.peers.peer(known.device)?.link.connected ?? false, until })
      if (!wait) return { offer, files: files.length, bytes, answer: 'none' }
      const answer = await new Promise<string>((resolve, reject) => {
        const rate = new Rate(agent.clock)
        let had = 0
        const answered = (event: { event?: string, offer?: string, answer?: string, done?: number }): void => {
          if (event.offer !== offer) return
          if (event.event === 'offer-progress' && event.done !== undefined) {
            rate.add(Math.max(0, event.done - had))
            had = event.done
            emit({ event: 'progress', id: sent.list, done: Math.min(bytes, had), total: bytes, rate: rate.perSecond, sources: 1 })
          }
          if (event.event !== 'offer-answered') return
          if (event.answer === 'accepted') emit({ event: 'accepted', offer })
          else finish(() => { resolve(event.answer ?? '') })
        }
        const aborted = (): void => { finish(() => { reject(signal.reason as Error) }) }
        const finish = (settle: () => void): void => {
          agent.events.off('event', answered)
          signal.removeEventListener('abort', aborted)
          settle()
        }
        agent.events.on('event', answered)
        if (signal.aborted) aborted()
        else signal.addEventListener('abort', aborted)
      })
      if (answer === 'refused') throw new PatchcordError('refused', `${known.name} refused the offer`, { hint: 'ask the person there' })
      if (answer === 'withdrawn') throw new PatchcordError('conflict', 'the offer was withdrawn', { hint: 'send it again' })
      return { offer, files: files.length, bytes, answer: 'done' }
    },

    outbox: async (_args, emit) => {
      const open = agent.offers.open
      for (const { offer, device, answer, files, bytes, until } of open) emit({ event: 'offer', offer, device, name: nameOf(device), state: answer === 'accepted' ? 'accepted' : 'offered', count: files.length, bytes, until })
      return { offers: open.length }
    },

    'outbox-withdraw': async args => {
      const { offer } = readArguments(v.strictObject({ offer: text }), args)
      return { offer: await agent.offers.withdraw(offer) }
    },

    inbox: async (_args, emit, signal) => {
      // Who is slow to give one list is not asked for the others.
      const slow = new Set<string>()
      const listOf = async (one: ReceivedOffer): Promise<Required<OfferedList> | undefined> => {
        if (one.state !== 'offered' || slow.has(one.device)) return undefined
        const late = new AbortController()
        const timer = agent.clock.after(LIST_MS, () => {
          slow.add(one.device)
          late.abort()
        })
        try {
          return await agent.offers.list(one, AbortSignal.any([signal, late.signal]), false)
        } catch {
          // What there is of the offer is told all the same.
          return undefined
        } finally {
          timer.cancel()
        }
      }
      for (const one of agent.offers.received) {
        const list = await listOf(one)
        signal.throwIfAborted()
        emit({ event: 'offer', offer: one.offer, device: one.device, name: nameOf(one.device), state: one.state, count: one.files, bytes: one.bytes, ...list === undefined ? {} : { files: list.files.map(({ path, size, id }) => ({ path: path.join('/'), size, id })), folders: list.folders.map(path => path.join('/')) } })
      }
      return { offers: agent.offers.received.length }
    },

    'inbox-accept': async (args, emit, signal) => {
      const { offer, to } = readArguments(v.strictObject({ offer: text, to: absolutePath }), args)
      const found = agent.offers.find(offer)
      return await agent.offers.accept(found, to, emit, signal)
    },

    'inbox-refuse': async args => {
      const { offer } = readArguments(v.strictObject({ offer: text }), args)
      const found = agent.offers.find(offer)
      if (found.state === 'done' || found.state === 'refused') throw new PatchcordError('already-exists', `this offer was ${found.state === 'done' ? 'fetched' : found.state} already`)
      await agent.offers.refuse(found.offer)
      return { offer: found.offer }
    },

    'inbox-rule': async args => {
      const { device, rule, to } = readArguments(v.strictObject({ device: text, rule: v.picklist(['ask', 'accept', 'refuse']), to: v.exactOptional(absolutePath) }), args)
      if ((rule === 'accept') !== (to !== undefined)) throw new PatchcordError('usage', 'a rule that accepts names a folder, and no other does', { hint: 'patchcord inbox rule <device> accept --to <folder>' })
      const known = book.find(device)
      await agent.offers.rule(known.device, rule, to)
      return { device: known.device, rule }
    },
  }
}

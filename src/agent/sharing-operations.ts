import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import { parseDatabaseName, type DatabaseName } from '../core/ids.js'
import type { OperationTable, ShareResult } from '../control/operations.js'
import type { Agent } from './agent.js'
import { readArguments, text } from './arguments.js'

/** Databases: this device's own, and what is shared with whom. */
export function sharingOperations (agent: Agent): Pick<OperationTable, 'bridge' | 'db-create' | 'db-ls' | 'conflicts' | 'quota' | 'share' | 'unshare' | 'shares' | 'accept'> {
  const { book } = agent
  return {
    bridge: async () => agent.bridgeLogin,

    'db-create': async args => {
      const name = parseDatabaseName(readArguments(v.strictObject({ name: text }), args).name)
      if (agent.databases.includes(name)) throw new PatchcordError('already-exists', `there is a database ${name} already`)
      await agent.createDatabase(name)
      return { name }
    },

    'db-ls': async () => ({ databases: await agent.couch.databases() }),

    conflicts: async (args, emit, signal) => {
      const name = parseDatabaseName(readArguments(v.strictObject({ database: text }), args).database)
      if (!agent.databases.includes(name)) throw new PatchcordError('not-found', `there is no database ${name} here`, { hint: '`patchcord db ls` lists them' })
      let conflicts = 0
      for await (const conflict of agent.conflicts.list(agent.couch.client, name)) {
        signal.throwIfAborted()
        emit({ event: 'conflict', ...conflict, others: [...conflict.others] })
        conflicts += 1
      }
      return { database: name, conflicts }
    },

    quota: async args => {
      const amount = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
      const { device: named, bytes, keepFree } = readArguments(v.strictObject({ device: v.exactOptional(text), bytes: v.exactOptional(v.nullable(amount)), keepFree: v.exactOptional(amount) }), args)
      const known = named === undefined ? undefined : book.find(named)
      if (known === undefined && bytes !== undefined) throw new PatchcordError('usage', 'a quota is one device\'s', { hint: 'patchcord quota <device> <size>' })
      if (bytes !== undefined || keepFree !== undefined) {
        await agent.room.set({ keepFree, device: known?.device, quota: bytes })
        // What waits for room looks again.
        for (const peer of agent.peers.all()) peer.retryReceiving()
      }
      return {
        keepFree: agent.room.keepFree,
        device: known?.device ?? null,
        quota: known === undefined ? null : agent.room.quotaOf(known.device) ?? null,
        used: known === undefined ? null : await agent.room.used(known.device),
      }
    },

    share: async args => {
      const { database, with: whom, write = false } = readArguments(v.strictObject({ database: text, with: text, write: v.exactOptional(v.boolean()) }), args)
      const name = parseDatabaseName(database)
      return await agent.serially(async () => {
        if (!agent.databases.includes(name)) throw new PatchcordError('not-found', `there is no database ${name} here`, { hint: `make it: patchcord db create ${name}` })
        return await grantAll(agent, name, whom, write ? 'write' : 'read')
      })
    },

    unshare: async args => {
      const { database, with: whom } = readArguments(v.strictObject({ database: text, with: text }), args)
      const name = parseDatabaseName(database)
      return await agent.serially(() => grantAll(agent, name, whom, undefined))
    },

    shares: async () => ({
      shares: agent.peers.all().flatMap(peer => peer.mail.shares.map(({ database, access }) => ({
        peer: peer.device, name: book.known.get(peer.device)?.name ?? peer.device, database, access,
        accepted: book.accepted.find(one => one.peer === peer.device && one.database === database)?.as ?? null,
        reachable: peer.link.connected,
      }))),
    }),

    accept: async args => {
      const { peer, database, as, merge = false } = readArguments(v.strictObject({ peer: text, database: text, as: v.exactOptional(text), merge: v.exactOptional(v.boolean()) }), args)
      const name = parseDatabaseName(database)
      const local = parseDatabaseName(as ?? database)
      return await agent.serially(async () => {
        const known = book.find(peer)
        const offered = agent.peers.peer(known.device)?.mail.shares.find(share => share.database === name)
        if (offered === undefined) throw new PatchcordError('not-found', `${known.name} offers no database ${name}`, { hint: '`patchcord shares` lists what is offered; the other device must be connected' })
        const before = book.accepted.find(one => one.peer === known.device && one.database === name)
        if (agent.databases.includes(local) && before?.as !== local && !merge) {
          throw new PatchcordError('already-exists', `there is a database ${local} already, and it would be merged into`, { hint: 'take another name with --as, or say --merge' })
        }
        await agent.createDatabase(local)
        await book.accept({ peer: known.device, database: name, as: local, access: offered.access })
        // Shared with --write, accepting is the counter-grant: the other pulls what is written here.
        if (offered.access === 'write') await book.grant(known, local, book.grantOf(known).databases[local] ?? 'read')
        await agent.apply('giving')
        return { peer: known.device, database: name, as: local, access: offered.access }
      })
    },
  }
}

async function grantAll (agent: Agent, database: DatabaseName, whom: string, access: 'read' | 'write' | undefined): Promise<ShareResult> {
  const devices = agent.book.findAll(whom)
  let grant: ShareResult['grant'] = { databases: {}, files: 'referenced' }
  for (const known of devices) grant = await agent.book.grant(known, database, access)
  await agent.apply(access === undefined ? 'taking' : 'giving')
  return { database, with: devices.length === 1 ? devices[0]!.device : whom, grant }
}

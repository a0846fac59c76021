import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import type { DeviceId } from '../core/ids.js'
import type { OperationTable } from '../control/operations.js'
import { readAuthority } from '../identity/authority.js'
import { openKit, sealKit, type Kit } from '../identity/ca-kit.js'
import { signRetirement, signSuccession } from '../identity/ca-records.js'
import { createUserCa } from '../identity/certificates.js'
import { generateKey, spkiOf } from '../identity/keys.js'
import { REASON, signRevocation } from '../identity/revocation.js'
import type { Agent } from './agent.js'
import { pemText, readArguments, text } from './arguments.js'

const passphrase = v.pipe(v.string(), v.maxLength(1024, 'must have at most 1024 characters'))

/** The user CA itself: its kit, its end, the one that follows, and a fresh key for this device. */
export function caOperations (agent: Agent): Pick<OperationTable, 'ca-export' | 'ca-import' | 'ca-retire' | 'ca-succeed' | 'renew-key'> {
  const { book, cas, keystore } = agent
  return {
    'ca-export': async args => {
      const { passphrase: secret, replace = false } = readArguments(v.strictObject({ passphrase, replace: v.exactOptional(v.boolean()) }), args)
      return await agent.serially(async () => {
        const { user } = keystore.identity
        if (cas.isOver(user)) throw over()
        if (cas.recoveryKey(user) !== undefined && !replace) throw new PatchcordError('already-exists', 'there is a kit of this CA already, with the recovery key that others have pinned', { hint: 'copy that kit; if it is lost, say --replace: whoever pinned the old key must then pair or trust this device again' })
        const { privateKey: recoveryKey } = await generateKey()
        const kit = await keystore.withCaKey((caKey, ca) => sealKit({ ca, caKey, recoveryKey }, secret, agent.clock.now()))
        await cas.pin(keystore.identity.userCa, spkiOf(recoveryKey), true)
        return { kit, user }
      })
    },

    'ca-import': async args => {
      const { kit: file, passphrase: secret } = readArguments(v.strictObject({ kit: pemText, passphrase }), args)
      const { ca, caKey, recoveryKey } = await openKit(file, secret)
      return await agent.serially(async () => {
        const { user } = readAuthority(ca)
        if (cas.isOver(user)) throw over()
        if (user !== keystore.identity.user && book.known.size > 0) {
          throw new PatchcordError('refused', `this device already knows ${book.known.size} other${book.known.size === 1 ? '' : 's'}: as another user's device it would keep their trust`, { hint: 'import the kit on a device of the user it belongs to, or with a fresh --home' })
        }
        const identity = await keystore.adopt(caKey, ca)
        await cas.pin(ca, spkiOf(recoveryKey))
        await agent.life.follow()
        await agent.apply('taking')
        return { device: identity.device, user }
      })
    },

    'ca-retire': async args => {
      const { kit: file, passphrase: secret } = readArguments(v.strictObject({ kit: v.exactOptional(pemText), passphrase: v.exactOptional(passphrase) }), args)
      const kit = file === undefined ? undefined : await openKit(file, secret ?? '')
      return await agent.serially(async () => {
        const { user } = keystore.identity
        if (kit !== undefined && readAuthority(kit.ca).user !== user) throw new PatchcordError('refused', 'this kit is of another user CA than this device\'s')
        const issuedAt = agent.life.renewal.now()
        const record = kit === undefined ? await keystore.withCaKey(caKey => Promise.resolve(signRetirement(caKey, issuedAt))) : signRetirement(kit.caKey, issuedAt)
        await cas.add([record])
        await agent.life.follow()
        await agent.apply('taking')
        agent.emit({ event: 'ca-changed' })
        return { user }
      })
    },

    'ca-succeed': async args => {
      const { kit: file, passphrase: secret, newPassphrase, keep = [] } = readArguments(v.strictObject({ kit: pemText, passphrase, newPassphrase: v.exactOptional(passphrase), keep: v.exactOptional(v.array(text)) }), args)
      const old = await openKit(file, secret)
      return await agent.serially(() => succeed(agent, old, newPassphrase ?? secret, keep))
    },

    'renew-key': async () => await agent.serially(async () => {
      const was = { device: keystore.identity.device, user: keystore.identity.user }
      const { device, user } = await keystore.renewKeys()
      // Under a CA of its own it has no own devices any more: those it knew are another user's.
      if (user !== was.user) await book.forget(new Set([...book.known.values()].filter(({ relation }) => relation !== 'peer').map(known => known.device)))
      await agent.halt('this device has a fresh key', 'start it again: end `patchcord up` and run it anew')
      return { device, user, was }
    }),
  }
}

/** Puts a new CA in the place of the old one: here at once, with others as they learn of it. Devices that are
 * not kept are revoked; those that are fetch certificates of the new CA by themselves. */
async function succeed (agent: Agent, old: Kit, newPassphrase: string, keep: readonly string[]): Promise<{ user: string, was: string, kit: string, kept: string[], revoked: string[] }> {
  const { book, cas, keystore, clock } = agent
  const was = readAuthority(old.ca).user
  if (keystore.identity.user !== was) throw new PatchcordError('refused', 'this kit is of another user CA than this device\'s', { hint: 'import the kit on a fresh device first: patchcord ca import <kit>' })
  // Where an earlier try was interrupted a successor is named that nobody has the key of: a higher number takes
  // its place.
  if (cas.standing(was).state === 'frozen') throw over()
  const told = cas.recoveryKey(was)
  if (told !== undefined && !told.equals(spkiOf(old.recoveryKey))) throw new PatchcordError('refused', 'a newer kit of this CA was made, and others have pinned its recovery key', { hint: 'take the newest kit' })
  const own = [...book.known.values()].filter(({ relation, device }) => relation === 'own' && !agent.revoked.has(device))
  const kept = new Set<DeviceId>(keep.map(text => {
    const known = book.find(text)
    if (known.relation !== 'own' || agent.revoked.has(known.device)) throw new PatchcordError('usage', `${known.name} is no own device that could be kept`)
    return known.device
  }))
  const [{ privateKey: newCaKey }, { privateKey: nextKey }] = await Promise.all([generateKey(), generateKey()])
  const now = agent.life.renewal.now()
  const newCa = await createUserCa(newCaKey, now)
  // The kit is made before anything counts: without it the new CA could never be followed.
  const kit = await sealKit({ ca: newCa, caKey: newCaKey, recoveryKey: nextKey }, newPassphrase, clock.now())
  const record = signSuccession({ ca: was, recoveryKey: old.recoveryKey, newCa, newCaKey, nextRecoveryKey: spkiOf(nextKey), seq: cas.highestSeq(was) + 1, issuedAt: now })
  const gone = own.filter(({ device }) => !kept.has(device)).map(({ device }) => device)
  await book.addRevocations(gone.map(device => {
    const body = { ca: was, device, issuedAt: now, reason: REASON.superseded }
    return { ...body, decided: 'here' as const, signed: signRevocation(body, old.caKey) }
  }))
  await cas.pin(old.ca, spkiOf(old.recoveryKey))
  await cas.await(kept)
  await cas.add([signRetirement(old.caKey, now), record])
  await keystore.adopt(newCaKey, newCa)
  await agent.life.follow()
  await agent.apply('taking')
  agent.emit({ event: 'ca-changed' })
  return { user: readAuthority(newCa).user, was, kit, kept: [...kept], revoked: gone }
}

const over = (): PatchcordError => new PatchcordError('refused', 'this user CA is retired, frozen or was replaced', { hint: '`patchcord status` says what to do' })

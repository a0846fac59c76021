import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import { cut, parseDatabaseName, type DatabaseName } from '../core/ids.js'
import type { DeviceInfo, OperationTable } from '../control/operations.js'
import { expectPrincipal, isRefusal } from '../identity/admission.js'
import { formatRecoveryKey, parseBundle, parseIssue, parseRequest } from '../identity/bundle.js'
import { deviceIdOf } from '../identity/keys.js'
import { REASON, signRevocation, type SignedRecord } from '../identity/revocation.js'
import { canonicalise } from '../policy/canonical.js'
import { decide, needsFacts } from '../policy/decide.js'
import { route } from '../policy/route.js'
import type { Agent } from './agent.js'
import { label, pemText, readArguments, text } from './arguments.js'
import { bundleOf } from './renewal.js'
import { parseShare, type KnownDevice } from './trust-book.js'

/** Who this device is, and whom it trusts. Changes of trust run one after the other. */
export function trustOperations (agent: Agent): Pick<OperationTable, 'identity' | 'device-request' | 'device-issue' | 'device-install' | 'trust' | 'devices' | 'rename' | 'revoke' | 'connect' | 'explain'> {
  const { book, cas, keystore, store } = agent
  return {
    identity: async () => {
      const { device, user, hasCaKey, notBefore, notAfter } = keystore.identity
      return { device, user, name: agent.name, hasCaKey, notBefore: new Date(notBefore).toISOString(), notAfter: new Date(notAfter).toISOString(), bundle: keystore.bundle() + formatRecoveryKey(cas.recoveryKey(user)) }
    },

    'device-request': async () => ({ request: await keystore.request() }),

    'device-issue': async args => {
      const { request, name } = readArguments(v.strictObject({ request: pemText, name: v.exactOptional(label) }), args)
      const device = deviceIdOf(parseRequest(request).deviceSpki)
      return await agent.serially(async () => {
        if (agent.revoked.has(device)) throw new PatchcordError('refused', `device ${device} is revoked`, { hint: 'give it a fresh key: patchcord identity renew-key' })
        if (cas.isOver(keystore.identity.user)) throw new PatchcordError('refused', 'your user CA is over: what it certifies counts for nothing', { hint: '`patchcord status` says what to do' })
        if (device === keystore.identity.device) throw new PatchcordError('refused', 'this request is this device\'s own', { hint: 'take it to the device that holds the user CA' })
        const known = book.known.get(device)
        if (known !== undefined && known.relation !== 'own') throw new PatchcordError('refused', `${known.name} is somebody else's device`, { hint: 'revoke it first if it is to become yours' })
        const certificates = await keystore.issue(request)
        const issued = parseBundle(bundleOf(certificates))
        await book.remember({ device, user: issued.user, name: name ?? known?.name ?? `device ${device.slice(0, 8)}`, relation: 'own', ca: issued.userCa, addresses: known?.addresses ?? [], certificate: { notBefore: issued.notBefore, notAfter: issued.notAfter } })
        await agent.apply('giving')
        return { device, certificates: certificates + formatRecoveryKey(cas.recoveryKey(issued.user)) }
      })
    },

    'device-install': async args => {
      const { certificates } = readArguments(v.strictObject({ certificates: pemText }), args)
      return await agent.serially(async () => {
        if (book.known.size > 0 && parseBundle(bundleOf(certificates)).user !== keystore.identity.user) {
          throw new PatchcordError('refused', `this device already knows ${book.known.size} other${book.known.size === 1 ? '' : 's'}: as another user's device it would keep their trust`, { hint: 'start it with a fresh --home, or revoke those devices first' })
        }
        const { userCa, recoveryKey } = parseIssue(certificates)
        const { device, user } = await keystore.installIssued(certificates)
        await cas.pin(userCa, recoveryKey)
        await agent.life.follow()
        await agent.apply('taking')
        return { device, user }
      })
    },

    trust: async args => {
      const { bundle: pem, name, at, share = [], newRecoveryKey = false } = readArguments(v.strictObject({ bundle: pemText, name: label, at: v.exactOptional(text), share: v.exactOptional(v.array(text)), newRecoveryKey: v.exactOptional(v.boolean()) }), args)
      const shares = Object.fromEntries(share.map(one => parseShare(one, parseDatabaseName)))
      // As `share` and `pair --share` have it: a name that was mistyped must not wait for a database of that name.
      for (const database of Object.keys(shares)) if (!agent.databases.includes(database as DatabaseName)) throw new PatchcordError('not-found', `there is no database ${database} here`, { hint: `make it first: patchcord db create ${database}` })
      const { device, user, userCa, recoveryKey, notBefore, notAfter } = parseBundle(pem)
      return await agent.serially(async () => {
        if (agent.revoked.has(device)) throw new PatchcordError('refused', `device ${device} is revoked`, { hint: 'a revoked device needs a fresh key' })
        if (user === keystore.identity.user) throw new PatchcordError('refused', 'this bundle is of your own device: it is trusted already', { hint: 'tell where it is: patchcord connect <device> --at <host>:<port>' })
        const before = book.known.get(device)
        if (cas.isOver(user)) throw new PatchcordError('refused', 'the user CA of this bundle is retired, frozen or was replaced', { hint: 'ask its person for a fresh bundle: patchcord identity --export' })
        if (before !== undefined && before.user !== user && !cas.isOver(before.user)) throw new PatchcordError('refused', `${before.name} is known as the device of another user`, { hint: `if it changed hands, revoke it first: patchcord revoke ${device}` })
        let known: KnownDevice = { device, user, name, relation: 'peer', ca: userCa, addresses: before?.addresses ?? [], certificate: { notBefore, notAfter } }
        await cas.pin(userCa, recoveryKey, newRecoveryKey)
        await book.trustPeer(known, shares)
        await agent.life.follow()
        if (at !== undefined) known = await book.addAddress(known, at)
        await agent.apply('giving')
        return describe(agent, known)
      })
    },

    devices: async () => ({ devices: [describeSelf(agent), ...[...book.known.values()].map(known => describe(agent, known))] }),

    rename: async args => {
      const { device, name } = readArguments(v.strictObject({ device: text, name: label }), args)
      return await agent.serially(async () => {
        const known = { ...book.find(device), name }
        if (known.relation !== 'own') await book.trustPeer(known, {})
        else await book.remember(known)
        await agent.apply('giving')
        return describe(agent, known)
      })
    },

    revoke: async args => {
      const { device } = readArguments(v.strictObject({ device: text }), args)
      return await agent.serially(async () => {
        if (device === keystore.identity.device) throw new PatchcordError('refused', 'this is the device you sit at: revoking it here would only lock you out of your own', { hint: 'revoke it from another of your devices' })
        const known = book.find(device)
        const body = { ca: keystore.identity.user, device: known.device, issuedAt: agent.life.renewal.now(), reason: REASON.unspecified }
        let signed: SignedRecord | undefined
        if (keystore.identity.hasCaKey) signed = await keystore.withCaKey(caKey => Promise.resolve(signRevocation(body, caKey)))
        await book.revoke({ ...body, decided: 'here', ...signed === undefined ? {} : { signed } })
        await book.forgetAccepted(known.device)
        const connectionsCut = await agent.apply('taking')
        agent.emit({ event: 'revoked', device: known.device, connectionsCut })
        // Signed, it is in everybody's mail from now on; unsigned, a CA holder's person has to confirm it.
        return { device: known.device, connectionsCut, spread: signed === undefined ? 'pending' as const : 'done' as const }
      })
    },

    connect: async args => {
      const { device, at } = readArguments(v.strictObject({ device: text, at: text }), args)
      return await agent.serially(async () => {
        const known = await book.addAddress(findOrOwn(agent, device), at)
        await agent.apply('giving')
        return describe(agent, known)
      })
    },

    explain: async args => {
      const { device, method, path } = readArguments(v.strictObject({ device: text, method: text, path: text }), args)
      const { identity } = keystore
      const canonical = canonicalise({ method, target: path, httpVersion: '1.1', rawHeaders: ['Host', '[::1]'] }, identity.device)
      if ('refusal' in canonical) return { allowed: false, status: canonical.refusal.code === 'foreign-origin' ? 403 : 400, rule: canonical.refusal.rule, reason: canonical.refusal.reason }
      const who = device === identity.device || device === 'self' ? identity : findOrOwn(agent, device)
      const now = agent.clock.now()
      const principal = expectPrincipal(book.trust(identity.userCa, [...agent.revoked]), who, now)
      if (isRefusal(principal)) return { allowed: false, status: 403, rule: principal.refused, reason: principal.reason }
      const action = route(canonical.request)
      if (action === undefined) return { allowed: false, status: 404, rule: 'no action', reason: `${cut(method)} ${cut(path)} is nothing that this port answers` }
      const facts = needsFacts(principal, action) ? { records: await store.records(action.id), lentUntil: agent.offers.lentUntil(principal.device, action.id) } : undefined
      const { allowed, status, rule, reason } = decide(principal, action, now, facts)
      return { allowed, status, rule, reason }
    },
  }
}

/** A device that is known, or an own one by its full ID: what it shows must be signed by this user's CA. */
function findOrOwn (agent: Agent, text: string): KnownDevice {
  try {
    return agent.book.find(text)
  } catch (error) {
    if (!(error instanceof PatchcordError) || error.code !== 'not-found' || !/^[a-z2-7]{51}[aq]$/.test(text)) throw error
    const { user, userCa } = agent.keystore.identity
    return { device: text as KnownDevice['device'], user, name: `device ${text.slice(0, 8)}`, relation: 'own', ca: userCa, addresses: [], certificate: undefined }
  }
}

function describeSelf (agent: Agent): DeviceInfo {
  const { device, user, notBefore, notAfter } = agent.keystore.identity
  return {
    device, user, name: agent.name, relation: 'own', grant: agent.book.grants['own'] ?? { databases: {}, files: 'referenced' },
    addresses: agent.status().addresses, certificate: dates({ notBefore, notAfter }), state: 'this device', revoked: false,
  }
}

function describe (agent: Agent, known: KnownDevice): DeviceInfo {
  const revoked = agent.revoked.has(known.device)
  const { device, user, name, relation, addresses, certificate } = known
  return { device, user, name, relation, grant: agent.book.grantOf(known), addresses: [...addresses], certificate: certificate === undefined ? null : dates(certificate), state: revoked ? 'revoked' : agent.pairing.mending.isUnconfirmed(known.device) ? 'unconfirmed' : 'trusted', revoked }
}

const dates = ({ notBefore, notAfter }: { notBefore: number, notAfter: number }): { notBefore: string, notAfter: string } =>
  ({ notBefore: new Date(notBefore).toISOString(), notAfter: new Date(notAfter).toISOString() })

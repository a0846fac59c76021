import * as v from 'valibot'
import { PatchcordError } from '../core/errors.js'
import { parseDatabaseName } from '../core/ids.js'
import type { OperationTable } from '../control/operations.js'
import { issueClient } from '../identity/certificates.js'
import { deviceIdOf, generateClientKey, spkiOf } from '../identity/keys.js'
import { readLeaf } from '../identity/leaf.js'
import { decodeOnePem } from '../identity/pem.js'
import type { Agent } from './agent.js'
import { label, readArguments, text } from './arguments.js'

/** The fewest characters of the passphrase of an exported certificate. */
const LEAST_PASSPHRASE = 8

/** Certificates of their own for clients that cannot run patchcord: a browser, a phone, curl. */
export function exportOperations (agent: Agent): Pick<OperationTable, 'export-client'> {
  const { book, cas, keystore } = agent
  return {
    'export-client': async args => {
      const { name, share, passphrase } = readArguments(v.strictObject({ name: label, share: v.array(text), passphrase: v.pipe(v.string(), v.maxLength(1024)) }), args)
      if (passphrase.length < LEAST_PASSPHRASE) throw new PatchcordError('usage', `the passphrase is shorter than ${LEAST_PASSPHRASE} characters`, { hint: 'take a longer one: whoever finds the file can guess' })
      const databases = share.map(parseDatabaseName)
      return await agent.serially(async () => {
        if (cas.isOver(keystore.identity.user)) throw new PatchcordError('refused', 'your user CA is over', { hint: '`patchcord status` says what to do' })
        for (const database of databases) if (!agent.databases.includes(database)) throw new PatchcordError('not-found', `there is no database ${database} here`, { hint: `make it: patchcord db create ${database}` })
        const { privateKey } = await generateClientKey()
        const device = deviceIdOf(spkiOf(privateKey))
        const certificate = await keystore.withCaKey((caKey, ca) => issueClient({ ca, caKey, spki: spkiOf(privateKey), now: agent.life.renewal.now() }))
        const { user, userCa } = keystore.identity
        // node-forge takes some 10 MiB, for what is done once in a while.
        const { writeP12 } = await import('../identity/p12.js')
        const p12 = await writeP12({ key: privateKey, certificate, ca: userCa, name, passphrase })
        const { notBefore, notAfter } = readLeaf(decodeOnePem(certificate, 'CERTIFICATE'))
        await book.trustPeer({ device, user, name, relation: 'client', ca: userCa, addresses: [], certificate: { notBefore, notAfter } }, Object.fromEntries(databases.map(database => [database, 'read' as const])))
        await agent.apply('giving')
        return { device, p12: p12.toString('base64'), notAfter: new Date(notAfter).toISOString() }
      })
    },
  }
}

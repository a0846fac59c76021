import * as v from 'valibot'
import type { OperationTable } from '../control/operations.js'
import type { Agent } from './agent.js'
import { absolutePath, readArguments, text } from './arguments.js'
import { readLogin } from './couch-client.js'
import { readAdministrator, setUpCouch, undoCouch } from './couch-setup.js'

/** Where a CouchDB listens unless somebody moved it. */
const USUAL_URL = 'http://127.0.0.1:5984'

const SetupShape = v.strictObject({
  url: v.exactOptional(text),
  /** Of the person's administrator: as typed, or in a file as for `--couch-credentials-file`. */
  login: v.union([
    v.strictObject({ username: v.pipe(text, v.minLength(1), v.excludes(':', 'must hold no colon')), password: text }),
    v.strictObject({ file: absolutePath }),
  ]),
  closePublic: v.exactOptional(v.boolean()),
  allowExposed: v.exactOptional(v.boolean()),
})

/** The database of this device: the login to it, and a CouchDB in the place of the embedded one. */
export function couchOperations (agent: Agent): Pick<OperationTable, 'couch' | 'couch-setup' | 'couch-undo'> {
  const { root } = agent.home
  const { device } = agent.keystore.identity
  return {
    couch: async () => ({ url: agent.couch.url, ...agent.programLogin }),

    'couch-setup': async args => {
      const { url = agent.couch.kind === 'couchdb' ? agent.couch.url : USUAL_URL, login, closePublic = false, allowExposed = false } = readArguments(SetupShape, args)
      return await agent.serially(async () => {
        const before = await readAdministrator(root)
        const result = await setUpCouch({ root, device, url, login: 'file' in login ? await readLogin(login.file) : login, closePublic, allowExposed })
        return { ...result, restart: agent.couch.kind === 'embedded' || before?.username !== result.administrator || agent.couch.url !== result.url }
      })
    },

    'couch-undo': async () => await agent.serially(async () => {
      const administrator = await readAdministrator(root)
      const inUse = administrator?.url === agent.couch.url
      // Otherwise what is taken out would be put in again.
      if (inUse) await agent.couch.release()
      const result = await undoCouch(root, device)
      if (inUse) await agent.halt('the CouchDB that it used was undone', 'start it again: patchcord up')
      return result
    }),
  }
}

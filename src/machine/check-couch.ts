import { request } from 'node:http'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { systemCode } from '../core/errors.js'
import type { Check, Examined } from './doctor.js'
import { textOf } from './files.js'
import { listeners, type Listener } from './listeners.js'

const ASK_MS = 3_000

/** A CouchDB beside the open port must not be a second, open one: loopback alone, no admin party, and Erlang's distribution
 * (whoever reaches it and knows its cookie runs code) on loopback too. */
export async function checkCouch ({ root, service }: Examined): Promise<Check> {
  if (service === undefined) return { name: 'couchdb', ok: true, detail: 'the service is not running; nothing is known', hint: '' }
  const { url, kind } = service.couch
  if (kind === 'embedded') return { name: 'couchdb', ok: true, detail: `the embedded database at ${url}, which asks everybody for a password`, hint: '' }
  const port = Number(new URL(url).port || 80)
  const answer = await ask(url, '/_all_dbs')
  if (answer === undefined) return { name: 'couchdb', ok: false, detail: `CouchDB at ${url} does not answer`, hint: 'start it: sudo systemctl start couchdb' }
  const session = await ask(url, '/_session')
  if (answer.status === 200 && isAdmin(session?.text)) return { name: 'couchdb', ok: false, detail: `CouchDB at ${url} is an admin party: whoever reaches it may do everything`, hint: 'set an administrator in local.ini ([admins]), and restart it' }
  if (answer.status === 200) return { name: 'couchdb', ok: false, detail: `CouchDB at ${url} tells its databases without a password`, hint: 'set require_valid_user = true in local.ini ([chttpd]), and restart it' }
  if (openListeners(root).some(one => one.port === port)) return { name: 'couchdb', ok: false, detail: `CouchDB is open beyond this machine, at port ${port}: who reaches it needs no certificate`, hint: 'set bind_address = 127.0.0.1 in local.ini ([chttpd]), and restart it' }
  const distribution = openDistribution(root, [ROOT])
  if (distribution !== undefined) return { name: 'couchdb', ok: false, detail: `Erlang's distribution is open beyond this machine, at port ${distribution}: who knows its cookie runs programs here`, hint: 'in vm.args: -kernel inet_dist_use_interface {127,0,0,1}; and ERL_EPMD_ADDRESS=127.0.0.1 in its environment' }
  return { name: 'couchdb', ok: true, detail: `CouchDB at ${url}: on loopback alone, and it asks for a password`, hint: '' }
}

const EPMD_PORT = 4369
const ROOT = 0

const openListeners = (root: string): Listener[] => listeners(root).filter(({ isLoopback }) => !isLoopback)

/** A port beyond loopback at which Erlang's distribution or its port mapper listens, or undefined. Whose socket is whose is told by
 * the user alone: what users in `except` listen with may be any program's of theirs. */
export function openDistribution (root: string, except: readonly number[]): number | undefined {
  const erlang = erlangUsers(root)
  return openListeners(root).find(one => one.port === EPMD_PORT || (!except.includes(one.uid) && erlang.has(one.uid)))?.port
}

function isAdmin (text: string | undefined): boolean {
  try {
    const { userCtx } = JSON.parse(text ?? '{}') as { userCtx?: { roles?: unknown } }
    return Array.isArray(userCtx?.roles) && userCtx.roles.includes('_admin')
  } catch {
    return false
  }
}

/** The users whose processes are Erlang machines; none where no /proc says so. */
function erlangUsers (root: string): Set<number> {
  const users = new Set<number>()
  const proc = join(root, 'proc')
  for (const pid of existsSync(proc) ? readdirSync(proc).filter(name => /^\d+$/.test(name)) : []) {
    if (!/^(?:beam|beam\.smp|epmd)$/.test(textOf(join(root, 'proc', pid, 'comm'))?.trim() ?? '')) continue
    try {
      users.add(statSync(join(root, 'proc', pid)).uid)
    } catch (error) {
      // It ended in between.
      if (systemCode(error) !== 'ENOENT') throw error
    }
  }
  return users
}

async function ask (url: string, path: string): Promise<{ status: number, text: string } | undefined> {
  return await new Promise(resolve => {
    const sent = request(new URL(path, url), { timeout: ASK_MS, agent: false }, answer => {
      let text = ''
      answer.setEncoding('utf8')
      answer.on('data', (chunk: string) => { if (text.length < 65_536) text += chunk })
      answer.on('end', () => { resolve({ status: answer.statusCode ?? 0, text }) })
      answer.on('error', () => { resolve(undefined) })
    })
    sent.on('timeout', () => { sent.destroy() })
    sent.on('error', () => { resolve(undefined) })
    sent.end()
  })
}

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { waitFor } from './material.js'
import type { Contestant } from './patchcord-pair.js'

const FOLDER = 'bench'

/** One Syncthing over its REST interface. */
class Instance {
  readonly home: string
  readonly data: string
  readonly #port: number
  readonly #gui: number
  #child: ChildProcess | undefined
  #id = ''
  #key = ''

  constructor (home: string, port: number) {
    this.home = home
    this.data = join(home, 'data')
    this.#port = port
    this.#gui = port + 1
  }

  get id (): string { return this.#id }
  get address (): string { return `tcp://127.0.0.1:${this.#port}` }

  /** No discovery, no relays, no NAT, no reports: TCP on loopback alone. */
  async start (): Promise<void> {
    mkdirSync(this.data, { recursive: true })
    execFileSync('syncthing', ['generate', `--home=${this.home}`, '--no-default-folder'], { stdio: 'ignore' })
    const config = join(this.home, 'config.xml')
    let xml = readFileSync(config, 'utf8')
    const set = (name: string, value: string): void => { xml = xml.replace(new RegExp(`<${name}>[^<]*</${name}>`), `<${name}>${value}</${name}>`) }
    for (const name of ['globalAnnounceEnabled', 'localAnnounceEnabled', 'relaysEnabled', 'natEnabled', 'startBrowser', 'crashReportingEnabled']) set(name, 'false')
    set('listenAddress', this.address)
    set('urAccepted', '-1')
    xml = xml.replace(/(<gui[\s\S]*?<address>)[^<]*/, `$1127.0.0.1:${this.#gui}`)
    writeFileSync(config, xml)
    this.#key = /<apikey>([^<]+)/.exec(xml)?.[1] ?? ''
    this.#child = spawn('syncthing', ['serve', `--home=${this.home}`, '--no-browser', '--no-restart', '--no-upgrade'], { stdio: 'ignore' })
    await waitFor('Syncthing', async () => await this.ask('GET', 'system/ping').then(() => true, () => false), 60)
    this.#id = (await this.ask<{ myID: string }>('GET', 'system/status')).myID
  }

  async ask<Answer> (method: string, path: string, body?: unknown): Promise<Answer> {
    const answer = await fetch(`http://127.0.0.1:${this.#gui}/rest/${path}`, { method, headers: { 'X-API-Key': this.#key, 'Content-Type': 'application/json' }, ...body === undefined ? {} : { body: JSON.stringify(body) } })
    const text = await answer.text()
    if (!answer.ok) throw new Error(`Syncthing answered ${answer.status} for ${path}: ${text}`)
    return (text === '' ? undefined : JSON.parse(text)) as Answer
  }

  async stop (): Promise<void> {
    this.#child?.kill('SIGTERM')
    if (this.#child !== undefined && this.#child.exitCode === null) await once(this.#child, 'exit')
  }
}

/** Two Syncthings that share a folder. A transfer is a scan of the folder on one side, and the other side in sync. */
export async function syncthingPair (folder: string, port = 22_700): Promise<Contestant> {
  const [from, to] = [new Instance(join(folder, 'sa'), port), new Instance(join(folder, 'sb'), port + 10)]
  await from.start()
  await to.start()
  for (const [near, far] of [[from, to], [to, from]] as const) {
    await near.ask('PUT', `config/devices/${far.id}`, { deviceID: far.id, addresses: [far.address], compression: 'never' })
    await near.ask('PUT', `config/folders/${FOLDER}`, { id: FOLDER, path: near.data, devices: [{ deviceID: near.id }, { deviceID: far.id }], fsWatcherEnabled: false, rescanIntervalS: 0 })
  }
  await waitFor('Syncthing being connected', async () => (await to.ask<{ connections: Record<string, { connected: boolean }> }>('GET', 'system/connections')).connections[from.id]?.connected === true, 120)
  const status = (): Promise<{ globalFiles: number, needFiles: number, inSyncFiles: number, state: string }> => to.ask('GET', `db/status?folder=${FOLDER}`)
  let round = 0
  return {
    name: 'syncthing',
    async transfer (path, { files }) {
      const before = (await status()).inSyncFiles
      // Where it is to be found is no part of the work: a rename where that is possible.
      const at = join(from.data, `r${round++}`)
      try { renameSync(path, at) } catch { cpSync(path, at, { recursive: true }) }
      const started = performance.now()
      await from.ask('POST', `db/scan?folder=${FOLDER}`)
      await waitFor('Syncthing being in sync', async () => {
        const { needFiles, inSyncFiles, state } = await status()
        return state === 'idle' && needFiles === 0 && inSyncFiles - before >= files
      })
      return (performance.now() - started) / 1000
    },
    async stop () { await Promise.all([from.stop(), to.stop()]) },
  }
}

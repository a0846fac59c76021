import type { ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { formatAddress, splitZone, type Address } from '../core/address.js'
import type { Clock } from '../core/clock.js'
import { messageOf, PatchcordError } from '../core/errors.js'
import type { Logger } from '../core/log.js'
import { limitAnswer } from '../machine/answer-limit.js'
import { launchServer, type Launched } from '../machine/launch.js'
import type { ServerEnvInput, ServerUpdate } from '../server/env.js'
import type { ServerCounts } from '../server/counts.js'
import type { PatchcordServer } from '../server/server.js'

/** The server as the agent sees it: a child process, or the same code in this one (for `Lab`). */
export interface ServerHost {
  readonly pid: number | undefined
  readonly addresses: readonly Address[]
  /** Puts new parts in force. Resolves when they are, with how many connections that cut. */
  update (part: ServerUpdate): Promise<{ cut: number }>
  /** What it counted since it started; undefined where no server answers. */
  counts (): Promise<ServerCounts | undefined>
  /** It may end by itself from now on: it was told to, or whoever ends the service tells it. `stop` follows. */
  letEnd (): void
  stop (): Promise<void>
}

export interface ServerHostOptions {
  /** The store, which is all that the server reads besides its code; and a folder that only this user may enter. */
  readonly folders: { readonly data: string, readonly folder: string }
  /** The whole env as it is now: for the start, and for every start after a crash. */
  readonly env: () => Promise<ServerEnvInput>
  readonly logger: Logger
  readonly clock: Clock
  readonly onRestart: () => void
  /** A line of the server's log. */
  readonly onLogLine: (line: string) => void
}

const SCRIPT = fileURLToPath(new URL('../bin/patchcord-server.js', import.meta.url))
/** Longer than this of its own time (`limitAnswer`) without an answer, and the server is started anew with the full env. */
const ANSWER_MS = 500
/** Nothing is open until it is ready: a slow machine may take its time. */
const READY_MS = 60_000
const STOP_MS = 6_000
const FIRST_RESTART_MS = 100
const LONGEST_RESTART_MS = 30_000

export async function hostInProcess ({ env, logger, clock }: ServerHostOptions): Promise<ServerHost> {
  const { startServer } = await import('../server/server.js')
  const server: PatchcordServer = await startServer(await env(), { logger, clock })
  return { pid: undefined, addresses: server.addresses, update: part => server.update(part), counts: () => Promise.resolve(server.counts()), letEnd: () => undefined, stop: () => server.stop() }
}

/** No server: what the agent has in place of one while it does not serve. */
export const haltedHost: ServerHost = Object.freeze({ pid: undefined, addresses: [], update: () => Promise.resolve({ cut: 0 }), counts: () => Promise.resolve(undefined), letEnd: () => undefined, stop: () => Promise.resolve() })

/** Starts `patchcord-server` and keeps it running. Throws what the server itself said when it did not come
 * up the first time. */
export async function hostChild (options: ServerHostOptions): Promise<ServerHost> {
  const host = new ChildServer(options)
  await host.start()
  return host
}

interface Answer { event: string, seq?: number, counts?: ServerCounts, cut?: number, reason?: string, listen?: Array<{ host: string, port: number }> }

class ChildServer implements ServerHost {
  addresses: Address[] = []
  readonly #options: ServerHostOptions
  #launched: Launched | undefined
  #seq = 0
  readonly #waiting = new Map<number, (answer: Answer | undefined) => void>()
  #isStopping = false
  #restartMs = FIRST_RESTART_MS
  #starting: Promise<void> | undefined

  constructor (options: ServerHostOptions) {
    this.#options = options
  }

  get pid (): number | undefined { return this.#launched?.child.pid }

  async start (): Promise<void> {
    this.#starting = this.#launch()
    try {
      await this.#starting
    } finally {
      this.#starting = undefined
    }
  }

  async update (part: ServerUpdate): Promise<{ cut: number }> {
    // A server that is just starting was given its env before this change, perhaps: it gets this one too.
    await this.#starting?.catch(() => undefined)
    const launched = this.#launched
    if (launched === undefined) return { cut: 0 }
    const answer = await this.#ask(launched, { op: 'update', ...part })
    if (answer?.event === 'updated') return { cut: answer.cut ?? 0 }
    this.#options.logger.error({ reason: answer?.reason ?? `no answer within ${ANSWER_MS} ms` }, 'the server did not take the update; it is started anew')
    await this.#replace(launched.child)
    if (answer?.event === 'refused-update') throw new PatchcordError('internal', `the server refused an update: ${answer.reason ?? 'no reason'}`)
    return { cut: 0 }
  }

  async counts (): Promise<ServerCounts | undefined> {
    return this.#launched === undefined ? undefined : (await this.#ask(this.#launched, { op: 'counts' }))?.counts
  }

  letEnd (): void {
    this.#isStopping = true
  }

  async stop (): Promise<void> {
    this.#isStopping = true
    if (this.#launched === undefined) return
    const { child, stdin } = this.#launched
    const exited = exitOf(child)
    stdin.end()
    const timer = setTimeout(() => { child.kill('SIGKILL') }, STOP_MS)
    await exited
    clearTimeout(timer)
  }

  async #launch (): Promise<void> {
    const { env, logger } = this.#options
    const line = `${JSON.stringify(await env())}\n`
    // What it may know comes on stdin. It ignores a terminal's SIGINT and waits for the end of stdin.
    const launched = launchServer({ script: SCRIPT, ...this.#options.folders })
    const { child, stdin, stdout, stderr } = launched
    this.#launched = launched
    let said = ''
    createInterface({ input: stderr }).on('line', text => {
      if (text.startsWith('{')) this.#options.onLogLine(text)
      else {
        said = text
        logger.error({ from: 'patchcord-server' }, text)
      }
    })
    stdin.on('error', error => { logger.debug({ reason: messageOf(error) }, 'the server closed its stdin') })
    stdin.write(line)
    const ready = await new Promise<Answer | undefined>(resolve => {
      const endLimit = limitAnswer(child.pid, READY_MS, () => { child.kill('SIGKILL') })
      child.once('error', error => { said = messageOf(error) })
      child.once('exit', endLimit)
      child.once('close', () => { resolve(undefined) })
      createInterface({ input: stdout }).on('line', text => {
        const answer = JSON.parse(text) as Answer
        if (answer.event === 'ready') {
          endLimit()
          resolve(answer)
        } else if (answer.seq !== undefined) this.#settle(answer.seq, answer)
      })
    })
    if (ready === undefined) {
      this.#launched = undefined
      throw startError(said)
    }
    this.addresses = (ready.listen ?? []).map(({ host, port }) => ({ ...splitZone(host), port }))
    this.#restartMs = FIRST_RESTART_MS
    child.once('exit', (code, signal) => { this.#exited(child, code, signal) })
    if (child.exitCode !== null || child.signalCode !== null) this.#exited(child, child.exitCode, child.signalCode)
    logger.debug({ pid: child.pid, listen: this.addresses.map(formatAddress) }, 'the server is ready')
  }

  #ask ({ child, stdin }: Launched, message: { op: 'update' | 'counts' } & ServerUpdate): Promise<Answer | undefined> {
    const seq = ++this.#seq
    return new Promise(resolve => {
      const endLimit = limitAnswer(child.pid, ANSWER_MS, () => { this.#settle(seq, undefined) })
      this.#waiting.set(seq, answer => {
        endLimit()
        resolve(answer)
      })
      stdin.write(`${JSON.stringify({ seq, ...message })}\n`)
    })
  }

  #settle (seq: number, answer: Answer | undefined): void {
    this.#waiting.get(seq)?.(answer)
    this.#waiting.delete(seq)
  }

  async #replace (child: ChildProcess): Promise<void> {
    const exited = exitOf(child)
    child.kill('SIGKILL')
    await exited
    // `#exited` starts the next one; trust that was taken away is gone with the process.
    await this.#starting
  }

  #exited (child: ChildProcess, code: number | null, signal: NodeJS.Signals | null): void {
    if (this.#launched?.child !== child) return
    this.#launched = undefined
    for (const seq of [...this.#waiting.keys()]) this.#settle(seq, undefined)
    if (this.#isStopping) return
    this.#options.logger.error({ code, signal }, 'the server ended; it is started again')
    this.#starting = this.#restart().finally(() => { this.#starting = undefined })
  }

  async #restart (): Promise<void> {
    while (!this.#isStopping) {
      try {
        await this.#launch()
        this.#options.onRestart()
        return
      } catch (error) {
        this.#options.logger.error({ reason: messageOf(error), again: this.#restartMs }, 'the server did not start')
        await new Promise(resolve => { setTimeout(resolve, this.#restartMs).unref() })
        this.#restartMs = Math.min(this.#restartMs * 2, LONGEST_RESTART_MS)
      }
    }
  }
}

function exitOf (child: ChildProcess): Promise<void> {
  return new Promise(resolve => {
    if (child.exitCode !== null || child.signalCode !== null) resolve()
    else child.once('exit', () => { resolve() })
  })
}

/** The server's last words name the thing and the next step already. */
function startError (said: string): PatchcordError {
  const text = said.replace(/^patchcord-server: /, '')
  const parts = /^(.*) \((.*)\)$/.exec(text)
  const code = /port \d+ (is in use|needs root)/.test(text) ? 'port-in-use' : 'internal'
  return new PatchcordError(code, `the server did not start: ${parts?.[1] ?? (text || 'it said nothing')}`, parts?.[2] === undefined ? {} : { hint: parts[2] })
}

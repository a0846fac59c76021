import type { DatabaseStatus, Status } from '../control/operations.js'
import type { Context } from './context.js'
import { formatSeconds } from './output.js'

// The service itself: running it, and what it is doing.

export interface UpOptions {
  readonly listen?: string
  readonly couch?: string
  readonly couchCredentialsFile?: string
  readonly allowRouted?: boolean
  readonly discovery?: boolean
  readonly name?: string
  readonly logLevel?: string
}

/** The running service, as `up` needs it. */
export interface RunningService {
  status (): Status
  onEvent (listener: (event: object) => void): void
  stop (): Promise<void>
}

/** Starts the service; bin/ hands it in, so that this room needs nothing but the control socket. */
export type StartService = (context: Context, options: UpOptions) => Promise<RunningService>

/** Runs the service in the foreground until the signal aborts. */
export async function up (context: Context, options: UpOptions, start: StartService): Promise<void> {
  const { output, signal } = context
  const service = await start(context, options)
  const { device, user, name, listen, addresses, bridge, couch, peers } = service.status()
  service.onEvent(event => { output.object(event) })
  output.object({ event: 'ready', device, user, name, listen, bridge, couch })
  output.line('patchcord is running')
  output.table([['device', device], ['name', name], ['reached at', addresses.join(', ') || 'no address: is a network up?'], ['database', `${couch.url} (${couch.kind}); its login: patchcord couch`]])
  if (peers.length === 0) {
    output.line('next: patchcord pair, and on the other device patchcord pair <code>')
  }
  if (!signal.aborted) await new Promise<void>(resolve => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })
  output.line('stopping')
  await service.stop()
}

export async function status ({ client, output }: Context): Promise<void> {
  const now = await client.call('status', {})
  output.object(now)
  output.table([
    ['device', now.device], ['name', now.name],
    ['reached at', now.addresses.join(', ') || (now.stopped === null ? 'no address: is a network up?' : 'not reachable')],
    ['database', `${now.couch.url} (${now.couch.kind})`],
    ['server', now.server.pid === null ? now.stopped === null ? 'not running; it is being started again' : 'stopped' : `process ${now.server.pid}`],
  ])
  if (now.stopped !== null) {
    output.line(`this device does not serve: ${now.stopped.reason}`)
    output.line(`  hint: ${now.stopped.hint}`)
  }
  for (const { text, hint } of now.notices) {
    output.line(`note: ${text}`)
    output.line(`  hint: ${hint}`)
  }
  for (const peer of now.peers) {
    output.line()
    output.line(`${peer.name} (${peer.relation === 'own' ? 'your own device' : 'somebody else\'s'}): ${peer.connected ? `connected at ${peer.address} since ${peer.since}` : `not connected${peer.problem === null ? '' : `: ${peer.problem}`}`}`)
    for (const database of peer.databases) output.line(`  ${describeDatabase(database)}`)
    if (peer.files.missing > 0) output.line(`  ${peer.files.missing} file${peer.files.missing === 1 ? '' : 's'} still to be fetched`)
  }
  if (now.peers.length === 0) output.line('no other device is known yet')
}

function describeDatabase ({ name, remote, state, lag, rate, secondsLeft, conflicts }: DatabaseStatus): string {
  const parts = [`${name} <- ${remote}: ${state}`]
  if (lag !== null && lag > 0) parts.push(`${lag} changes behind`)
  if (rate > 0) parts.push(`${rate} a second`)
  if (secondsLeft !== null) parts.push(`${formatSeconds(secondsLeft)} left`)
  if (conflicts > 0) parts.push(`${conflicts} in conflict (patchcord conflicts ${name})`)
  return parts.join(', ')
}

/** Prints events as they happen until the signal aborts. */
export async function events ({ client, output, signal }: Context): Promise<void> {
  await client.call('events', {}, event => {
    output.object(event)
    if (!output.json) output.line(JSON.stringify(event))
  }, signal)
}

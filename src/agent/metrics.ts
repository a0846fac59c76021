import type { ServerCounts } from '../server/counts.js'
import type { PeerStatus } from '../control/operations.js'

/** What is counted, by name: its help is what docs/metrics.md says. Counters are of the process that runs now. */
export const METRICS = {
  patchcord_up: 'always 1: the service answers',
  patchcord_server_up: '1 while the server answers, 0 while it is being started again or the service does not serve',
  patchcord_server_connections: 'connections that are admitted and open now',
  patchcord_server_requests_total: 'requests that the server answered since it started, by the first digit of the status',
  patchcord_server_answered_bytes_total: 'bytes of the bodies that the server answered with since it started',
  patchcord_process_resident_bytes: 'memory of a process, by process: agent, server',
  patchcord_peers: 'devices that are known, by relation (own, peer) and whether they are connected',
  patchcord_database_lag_changes: 'changes that a received database is behind, by device and database',
  patchcord_files_missing: 'files that documents refer to and that are still to be fetched, by device',
  patchcord_certificate_end_seconds: 'when the certificate of this device ends, in seconds since 1970',
} as const satisfies Record<string, string>

type MetricName = keyof typeof METRICS

/** What of the agent it reads. */
export interface Measured {
  status (): { readonly peers: readonly PeerStatus[] }
  serverCounts (): Promise<ServerCounts | undefined>
  readonly keystore: { readonly identity: { readonly notAfter: number } }
}

/** The metrics as of now, in Prometheus's text format. Devices are named by their ID, never by a person's label. */
export async function renderMetrics (agent: Measured): Promise<{ type: string, text: string }> {
  // Most services are never asked.
  const { Gauge, Registry } = await import('prom-client')
  const registry = new Registry()
  const gauge = (name: MetricName, labels: readonly string[] = []): InstanceType<typeof Gauge> => new Gauge({ name, help: METRICS[name], labelNames: [...labels], registers: [registry] })
  const counts = await agent.serverCounts()
  const { peers } = agent.status()

  gauge('patchcord_up').set(1)
  gauge('patchcord_server_up').set(counts === undefined ? 0 : 1)
  gauge('patchcord_server_connections').set(counts?.connections ?? 0)
  const requests = gauge('patchcord_server_requests_total', ['status'])
  for (const [status, count] of Object.entries(counts?.requests ?? {})) requests.set({ status }, count)
  gauge('patchcord_server_answered_bytes_total').set(counts?.bytes ?? 0)
  const memory = gauge('patchcord_process_resident_bytes', ['process'])
  memory.set({ process: 'agent' }, process.memoryUsage.rss())
  if (counts !== undefined) memory.set({ process: 'server' }, counts.memory)
  const known = gauge('patchcord_peers', ['relation', 'connected'])
  for (const relation of ['own', 'peer'] as const) {
    for (const connected of [true, false]) known.set({ relation, connected: String(connected) }, peers.filter(peer => peer.relation === relation && peer.connected === connected).length)
  }
  const lag = gauge('patchcord_database_lag_changes', ['device', 'database'])
  const missing = gauge('patchcord_files_missing', ['device'])
  for (const { device, databases, files } of peers) {
    missing.set({ device }, files.missing)
    for (const { name, lag: behind } of databases) if (behind !== null) lag.set({ device, database: name }, behind)
  }
  gauge('patchcord_certificate_end_seconds').set(Math.floor(agent.keystore.identity.notAfter / 1000))
  return { type: registry.contentType, text: await registry.metrics() }
}

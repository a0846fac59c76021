import type { Prepared } from './work.js'
import { attachments, documents } from './works/couch.js'
import { decision } from './works/decision.js'
import { importing } from './works/import.js'
import { linkUp } from './works/link-up.js'
import { handshakes, manyClients, oneFile, reads } from './works/port.js'
import { resume } from './works/resume.js'
import { admission, busyConnections, idleConnections, idleDevice } from './works/standing.js'
import { manySmall, oneLarge } from './works/transfer.js'

/** Every work, those with goals first. */
export const WORKS: readonly Prepared[] = [
  oneFile, manyClients, handshakes('handshake'), oneLarge, manySmall, reads(16), documents, attachments, decision, admission,
  resume, linkUp, importing, handshakes('reconnect'), reads(1), reads(256), idleConnections, busyConnections, idleDevice,
]

/** The programs that are measured beside patchcord, or that measure. */
export const PEERS: ReadonlyArray<{ readonly program: string, readonly debian: string, readonly for: string }> = [
  { program: 'nginx', debian: 'nginx', for: 'port, proxy, and the upstream behind every proxy' },
  { program: 'haproxy', debian: 'haproxy', for: 'port and proxy' },
  { program: 'caddy', debian: 'caddy', for: 'port and proxy' },
  { program: 'syncthing', debian: 'syncthing', for: 'files from end to end' },
  { program: 'rsync', debian: 'rsync', for: 'files from end to end' },
  { program: 'sshd', debian: 'openssh-server', for: 'the far end of rsync' },
  { program: 'openssl', debian: 'openssl', for: 'import: what the machine can hash' },
  { program: 'cc', debian: 'gcc libssl-dev', for: 'compiles the client' },
  { program: 'nsenter', debian: 'util-linux', for: 'link-up: machines of their own, as root' },
  { program: 'ip', debian: 'iproute2', for: 'link-up' },
  { program: 'curl', debian: 'curl', for: 'the client of one file' },
  { program: 'taskset', debian: 'util-linux', for: 'keeps each on its cores' },
]

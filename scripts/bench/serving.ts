import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { waitFor } from './material.js'

const SERVER = fileURLToPath(new URL('../../src/bin/patchcord-server.js', import.meta.url))

/** A program that serves one file over mutual TLS, on one core. */
export interface FileServer {
  readonly name: string
  readonly url: string
  /** Resident memory of the process that serves (bytes). */
  memory (): number
  stop (): Promise<void>
}

/** What both serve with: the same key and certificate. Paths of PEM files. */
export interface ServingIdentity {
  readonly device: string
  readonly key: string
  readonly certificate: string
  readonly userCa: string
}

/** The confined server, as the agent starts it. `connections` are let in at once. */
export async function patchcordServer (identity: ServingIdentity, root: string, id: string, core: number, connections: number): Promise<FileServer> {
  const child = spawn('taskset', ['-c', String(core), process.execPath, SERVER], { stdio: ['pipe', 'pipe', 'ignore'] })
  const ready = once(createInterface({ input: child.stdout! }), 'line')
  child.stdin!.write(`${JSON.stringify({
    version: 1,
    listen: [{ host: '::1', port: 0 }],
    identity: { device: identity.device, key: readFileSync(identity.key, 'utf8'), certificates: readFileSync(identity.certificate, 'utf8'), userCa: readFileSync(identity.userCa, 'utf8') },
    whitelist: [], revoked: [], mail: {}, lent: [], allowRouted: false,
    grants: { own: { databases: { '*': 'write' }, files: 'all' } },
    files: { root },
    limits: { connectionsPerEntry: connections, requestsPerEntry: connections, acceptsPerSecond: 10_000, acceptBurst: 10_000, handshakes: connections, idleMs: 600_000 },
    log: { level: 'info' },
  })}\n`)
  const { listen } = JSON.parse((await ready as [string])[0]) as { listen: Array<{ port: number }> }
  return {
    name: 'patchcord', url: `https://[::1]:${listen[0]!.port}/files/${id}`,
    memory: () => residentOf(child.pid!),
    async stop () {
      child.stdin!.end()
      await ended(child)
    },
  }
}

/** nginx with one worker and sendfile, client certificates asked for as ours does. */
export async function nginxServer (identity: ServingIdentity, folder: string, path: string, core: number, port: number): Promise<FileServer> {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'nginx.conf'), `
daemon off; worker_processes 1; pid ${folder}/pid; error_log ${folder}/error.log; user root;
events { worker_connections 2048; }
http {
  access_log /dev/null; sendfile on; tcp_nopush on; keepalive_timeout 600s; client_body_temp_path ${folder}; proxy_temp_path ${folder}; fastcgi_temp_path ${folder}; uwsgi_temp_path ${folder}; scgi_temp_path ${folder};
  server {
    listen [::1]:${port} ssl; ssl_protocols TLSv1.3; ssl_certificate ${identity.certificate}; ssl_certificate_key ${identity.key};
    ssl_client_certificate ${identity.userCa}; ssl_verify_client on; ssl_session_tickets off;
    location = /file { alias ${path}; }
  }
}
`)
  const child = spawn('taskset', ['-c', String(core), 'nginx', '-c', join(folder, 'nginx.conf'), '-e', join(folder, 'error.log')], { stdio: 'ignore' })
  await waitFor('nginx', () => {
    if (child.exitCode !== null) throw new Error(readFileSync(join(folder, 'error.log'), 'utf8'))
    return worker() !== undefined
  }, 20)
  function worker (): number | undefined {
    const pids = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim()
    return pids === '' ? undefined : Number(pids.split(' ')[0])
  }
  return {
    name: 'nginx', url: `https://[::1]:${port}/file`,
    memory: () => residentOf(worker()!),
    async stop () {
      child.kill('SIGTERM')
      await ended(child)
    },
  }
}

function residentOf (pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024
}

async function ended (child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
}

import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { MIB, type Materials } from './materials.js'
import type { Port } from './ports.js'
import { cpuSeconds, end, output, start } from './processes.js'
import type { Sample } from './contest.js'

/** What bench/load.c prints. */
export interface Load { readonly done: number, readonly seconds: number, readonly bytes: number, readonly errors: number, readonly p50: number, readonly p99: number, readonly cpu: number }

export interface LoadPlan { readonly connections: number, readonly milliseconds: number, readonly path: string, readonly mode: 'requests' | 'reconnect' | 'handshake' }

/** Runs the client against a port, on the client's cores, and says what the contestant used up meanwhile. Throws
 * where a single answer was not what it should be. */
export async function load (program: string, { pki, cores }: Materials, port: Port, plan: LoadPlan): Promise<{ load: Load, cpu: number, busy: number }> {
  let before = cpuSeconds(port.pid)
  let from = performance.now()
  const child = start(cores.client, [program, '::1', String(port.port), pki.client.certificate, pki.client.key, String(plan.connections), String(plan.milliseconds), plan.path, plan.mode], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  for await (const line of createInterface({ input: child.stdout! })) {
    text = line
    if (!line.includes('"ready"')) continue
    before = cpuSeconds(port.pid)
    from = performance.now()
  }
  const cpu = cpuSeconds(port.pid) - before
  const result = JSON.parse(text) as Load
  if (result.errors > 0 || !(result.bytes > 0 || result.done > 0)) throw new Error(`${result.done} answers and ${result.errors} errors from port ${port.port}`)
  return { load: result, cpu, busy: cpu / ((performance.now() - from) / 1000) }
}

/** Connections that are held open until `release`. */
export interface Held { readonly count: number, readonly seconds: number, release (): Promise<void> }

/** `hold` reads its answer whole, `stall` none of it. */
export async function hold (program: string, { pki, cores }: Materials, port: Port, connections: number, path: string, mode: 'hold' | 'stall' = 'hold'): Promise<Held> {
  const child = start(cores.client, [program, '::1', String(port.port), pki.client.certificate, pki.client.key, String(connections), '0', path, mode], { stdio: ['pipe', 'pipe', 'inherit'] })
  const [line] = await Promise.race([once(createInterface({ input: child.stdout! }), 'line'), once(child, 'exit').then(() => [''])]) as [string]
  const { held, errors, seconds } = JSON.parse(line === '' ? '{"held":0,"errors":0,"seconds":0}' : line) as { held: number, errors: number, seconds: number }
  if (held !== connections) {
    await end(child)
    throw new Error(`${held} of ${connections} connections were opened, ${errors} failed`)
  }
  return {
    count: held, seconds,
    async release () {
      const exited = once(child, 'exit')
      child.stdin!.end()
      await exited
    },
  }
}

/** One whole file by curl, thrown away. Throws where it is not `size` bytes. */
export async function download ({ pki, cores }: Materials, port: Port, size: number): Promise<Sample> {
  const before = cpuSeconds(port.pid)
  const text = await output(cores.client, ['curl', '-sSk', '--fail', '--tls13-ciphers', 'TLS_AES_128_GCM_SHA256', '--curves', 'X25519', '--cert', pki.client.certificate, '--key', pki.client.key, '-o', '/dev/null', '-w', '%{size_download} %{time_total}', `https://[::1]:${port.port}${port.filePath}`])
  const [bytes, seconds] = text.split(' ').map(Number) as [number, number]
  if (bytes !== size) throw new Error(`${bytes} of ${size} bytes came from port ${port.port}`)
  const cpu = cpuSeconds(port.pid) - before
  return { value: size / MIB / seconds, perCpu: size / MIB / cpu, busy: cpu / seconds }
}

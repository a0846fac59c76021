import type { Address } from '../core/address.js'
import type { ServerEnvInput } from '../server/env.js'
import { isFree, isPortInUse, patiently } from './ports.js'
import { hostChild, hostInProcess, type ServerHost, type ServerHostOptions } from './server-host.js'
import type { KeptSettings } from './settings.js'

const DEFAULT_PORT = 4984

export interface OpenPortOptions extends Omit<ServerHostOptions, 'env'> {
  /** Where it was told to listen, if anywhere. */
  readonly listen: Address | undefined
  /** How long to wait for a port that is in use (ms). */
  readonly patience: number
  /** The server in this process instead of a child, for `Lab`. */
  readonly inProcess: boolean
  /** The whole env as it is now, with the port that the server had or is to have. */
  readonly env: (port: number) => Promise<ServerEnvInput>
}

/** Starts the server: where it was told to listen, else at the port that is kept, else at 4984 or, where somebody has that, at a free one, which
 * the caller keeps. Throws `port-in-use`, and what the server says. */
export async function openPort ({ listen, patience, inProcess, env, ...options }: OpenPortOptions, settings: KeptSettings): Promise<ServerHost> {
  let port = listen?.port ?? settings.now.port ?? (await isFree(DEFAULT_PORT) ? DEFAULT_PORT : 0)
  const hosted = { ...options, env: () => env(port) }
  const host = (): Promise<ServerHost> => inProcess ? hostInProcess(hosted) : hostChild(hosted)
  const server = await patiently(patience, host).catch(async (error: unknown) => {
    // Another device of this machine, started at the same time, may have been quicker.
    if (!isPortInUse(error) || listen !== undefined || settings.now.port !== undefined) throw error
    port = 0
    return await host()
  })
  // Where it is started anew, it is there again.
  port = server.addresses[0]?.port ?? port
  return server
}

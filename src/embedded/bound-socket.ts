import * as net from 'node:net'
import type { Address } from '../core/address.js'
import { PatchcordError } from '../core/errors.js'

/** A socket that is bound and not listening in this process: whoever gets it listens, and it stays one and
 * the same when that process dies. */
export interface BoundSocket {
  readonly port: number
  /** What `child_process` sends and `listen` takes. */
  readonly handle: net.Server
  close (): void
}

interface TcpHandle {
  getsockname (out: { port?: number }): number
  close (): void
}

/** The one thing of Node's `cluster` that is needed here. A `net.Server` that listens would take
 * connections itself, and there is no public way to bind and not to listen. */
const { _createServerHandle: createServerHandle } = net as unknown as {
  readonly _createServerHandle: (host: string, port: number, family: 4 | 6, fd: undefined, flags: number) => TcpHandle | number
}

/** Binds a loopback address; port 0 takes any that is free. Throws `port-in-use`. */
export function bindSocket ({ host, port }: Pick<Address, 'host' | 'port'>): BoundSocket {
  const handle = createServerHandle(host, port, net.isIPv6(host) ? 6 : 4, undefined, 0)
  if (typeof handle === 'number') throw inUse(port)
  // libuv keeps EADDRINUSE back until `listen`, which happens elsewhere: ask now (as net.js does).
  const name: { port?: number } = {}
  if (handle.getsockname(name) !== 0 || name.port === undefined || (port !== 0 && name.port !== port)) {
    handle.close()
    throw inUse(port)
  }
  return { port: name.port, handle: handle as unknown as net.Server, close: () => { handle.close() } }
}

const inUse = (port: number): PatchcordError => new PatchcordError('port-in-use', `port ${port} of the embedded database is taken`)

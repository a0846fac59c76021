import { PatchcordError } from '../core/errors.js'

/** sun_path of unix(7), with its closing NUL. */
const MOST_PATH_BYTES = 107

/** Whether a unix socket can have this path. Node 20 and 22 cut off what is too much (seen; 24 throws EINVAL): it would be
 * another socket, perhaps somebody else's. */
export function isSocketPath (path: string): boolean { return Buffer.byteLength(path) <= MOST_PATH_BYTES }

/** Throws `socket-path-too-long`, naming the path and its length. */
export function checkSocketPath (path: string): void {
  if (!isSocketPath(path)) throw new PatchcordError('socket-path-too-long', `the control socket's path has ${Buffer.byteLength(path)} bytes, and the system takes ${MOST_PATH_BYTES}: ${path}`)
}

import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, rmSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'

// Node connects a child by unix sockets, even where it says pipe. AppArmor of kernels up to 6.12 cannot tell one
// unix socket from another: a profile that lets a process talk to its parent lets it talk to D-Bus. A confined child
// therefore gets real pipes, which Node can only make by name.

/** The three standard streams of a child. */
export interface Channels {
  /** What `spawn` takes as `stdio`. */
  readonly stdio: [number, number, number]
  readonly stdin: Socket
  readonly stdout: Socket
  readonly stderr: Socket
  /** Closes this process's copies of the child's ends; to be called when the child was started. */
  started (): void
}

/** Makes three pipes in `folder`, which only this user may enter. Their names, and the folder made for them, are gone
 * when it returns: the profile that lets a child go on with an inherited pipe, by the name that it had, lets it open
 * nothing. */
export function openChannels (folder: string): Channels {
  const made = mkdtempSync(join(folder, '.pipes-'))
  const opened: number[] = []
  const ends: Array<[read: number, write: number]> = []
  try {
    const paths = ['in', 'out', 'err'].map(name => join(made, name))
    execFileSync('mkfifo', ['-m', '600', ...paths])
    for (const path of paths) {
      // The reading end first and without waiting for a writer; then there is one to write to.
      const read = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
      opened.push(read)
      const write = openSync(path, constants.O_WRONLY)
      opened.push(write)
      ends.push([read, write])
    }
  } catch (error) {
    opened.forEach(fd => { closeSync(fd) })
    throw error
  } finally {
    rmSync(made, { recursive: true })
  }
  const [[childIn, stdin], [stdout, childOut], [stderr, childErr]] = ends as [[number, number], [number, number], [number, number]]
  return {
    stdio: [childIn, childOut, childErr],
    stdin: new Socket({ fd: stdin, readable: false, writable: true }),
    stdout: new Socket({ fd: stdout, readable: true, writable: false }),
    stderr: new Socket({ fd: stderr, readable: true, writable: false }),
    started () { for (const fd of [childIn, childOut, childErr]) closeSync(fd) },
  }
}

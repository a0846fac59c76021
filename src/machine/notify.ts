import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { systemCode } from '../core/errors.js'
import type { Logger } from '../core/log.js'

// What systemd is told (sd_notify(3)): a datagram on a unix socket, which Node cannot send; systemd-notify can. (The
// package sd-notify was looked at: it is a native addon that needs a compiler and libsystemd's headers to install.)

const run = promisify(execFile)
const TELL_MS = 5_000

export interface Notifier {
  ready (): Promise<void>
  /** To be called before what was started is stopped. Never throws. */
  stopping (): Promise<void>
}

/** Tells systemd of this process where it was started by it as `Type=notify`; otherwise nothing. With a watchdog, it is
 * told so at half of its time for as long as this thread's events go round. Without systemd-notify a warning is logged:
 * systemd then ends the unit, for it was never told that it is ready. */
export function createNotifier (env: Readonly<Record<string, string | undefined>>, logger: Pick<Logger, 'warn'>): Notifier {
  const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: micros, WATCHDOG_PID: pid } = env
  if (socket === undefined || socket === '') return { ready: () => Promise.resolve(), stopping: () => Promise.resolve() }
  let timer: NodeJS.Timeout | undefined
  const tell = async (...words: string[]): Promise<void> => {
    try {
      await run('systemd-notify', [`--pid=${process.pid}`, ...words], { env: { NOTIFY_SOCKET: socket, PATH: env['PATH'] ?? '/usr/bin:/bin' }, timeout: TELL_MS })
    } catch (error) {
      logger.warn({ reason: systemCode(error) ?? 'it failed' }, 'systemd-notify did not tell systemd how the service is')
    }
  }
  const every = pid === undefined || Number(pid) === process.pid ? Number(micros) / 2000 : Number.NaN
  return {
    ready: async () => {
      await tell('--ready')
      if (every > 0) timer = setInterval(() => { void tell('WATCHDOG=1') }, every)
      timer?.unref()
    },
    stopping: async () => {
      clearInterval(timer)
      await tell('STOPPING=1')
    },
  }
}

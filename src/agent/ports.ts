import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { PatchcordError, systemCode } from '../core/errors.js'

// Ports that are taken for a moment, and ports that are taken.

/** The longest wait for what a killed `up` left behind. */
export const PATIENCE_MS = 10_000

export const isPortInUse = (error: unknown): boolean => error instanceof PatchcordError && error.code === 'port-in-use'

/** Tries again while a port is still in use: the children of a killed agent end by themselves, in a moment. */
export async function patiently<Result> (patience: number, start: () => Promise<Result>): Promise<Result> {
  const deadline = performance.now() + patience
  for (;;) {
    try {
      return await start()
    } catch (error) {
      if (!isPortInUse(error) || performance.now() >= deadline) throw error
      await sleep(250)
    }
  }
}

/** Whether this port can be had for all IPv6 addresses. Throws what the system says other than that it is taken. */
export async function isFree (port: number): Promise<boolean> {
  const server = createServer()
  return await new Promise<boolean>((resolve, reject) => {
    server.once('error', error => {
      if (systemCode(error) === 'EADDRINUSE') resolve(false)
      else reject(error)
    })
    server.listen({ host: '::', port, ipv6Only: true }, () => { server.close(() => { resolve(true) }) })
  })
}

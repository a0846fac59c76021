import { join } from 'node:path'
import { NOTES, PRIVATE, type Cast } from './cast.js'
import { must, secondsSince, until } from './checks.js'
import { isRunning, type Device } from './device.js'
import { add, hashOf, writeRandom } from './files.js'
import { agentFor, open, proofOf } from './port.js'
import { localDatabase } from './pouch.js'
import type { Report } from './report.js'

const MEND_MS = 15_000
const END_MS = 5_000

/** What is killed comes back, and what is stopped leaves nothing behind. */
export async function endure (report: Report, cast: Cast): Promise<void> {
  await report.step('kill -9 of the laptop\'s server', async () => {
    const { pid } = (await cast.laptop.status()).server
    must(pid !== null, 'the laptop has no server')
    return await mendedAfterKill(cast, pid, async () => {
      const now = (await cast.laptop.status()).server.pid
      return now !== null && now !== pid
    }, 'server')
  })
  await report.step('kill -9 of the laptop\'s database', async () => {
    const find = async (): Promise<number | undefined> => (await cast.laptop.children()).find(({ command }) => command.includes('embedded'))?.pid
    const pid = await find()
    must(pid !== undefined, 'the laptop has no database process')
    return await mendedAfterKill(cast, pid, async () => {
      const now = await find()
      return now !== undefined && now !== pid
    }, 'database')
  })
  await report.step('revocation outlives the killed server', async () => {
    const statusFor = async (device: Device): Promise<number | undefined> => {
      const agent = agentFor(await proofOf(device), await proofOf(cast.laptop))
      const status = await open(agent, cast.laptop, '/').then(({ statusCode }) => statusCode, () => undefined)
      agent.destroy()
      return status
    }
    const [forDesktop, forFriend] = [await statusFor(cast.desktop), await statusFor(cast.friend)]
    must(forDesktop === 200, `the desktop got ${forDesktop} from the new server`)
    must(forFriend === undefined, `the revoked friend got ${forFriend} from the new server`)
    return 'the new process knows the friend as revoked'
  })
}

/** Kills a process and resolves, with how long it took, when a document and a file that are new since then
 * have gone from laptop to desktop. */
async function mendedAfterKill ({ laptop, desktop, folder }: Cast, pid: number, isBack: () => Promise<boolean>, name: string): Promise<string> {
  const [from, to] = [await localDatabase(laptop, NOTES), await localDatabase(desktop, NOTES)]
  const path = join(folder, `after-${name}.bin`)
  const sha256 = await writeRandom(path, 2)
  const started = performance.now()
  process.kill(pid, 'SIGKILL')
  await until(`another ${name} runs`, MEND_MS, isBack)
  const back = secondsSince(started)
  await until('the laptop\'s database takes a document', MEND_MS, async () => (await from.put({ _id: `after-${name}` })).rev !== '')
  await until('it arrives on the desktop', MEND_MS, async () => (await to.get(`after-${name}`))._id !== '')
  const id = (await add(laptop, path, PRIVATE)).added.get(path)!
  const copy = join(folder, `after-${name}-on-desktop.bin`)
  await until('the desktop gets a file', MEND_MS, async () => (await desktop.command('get', id, '-o', copy)).code === 0)
  must(await hashOf(copy) === sha256, 'the copy is not the file')
  await Promise.all([from.close(), to.close()])
  return `runs again after ${Math.round(back * 1000)} ms; a new document and a new file went through after ${secondsSince(started).toFixed(1)} s`
}

/** Ctrl-C to each service. */
export async function interruptAll (report: Report, { laptop, desktop, friend, stranger }: Cast): Promise<void> {
  await report.step('Ctrl-C ends each service with its children', async () => {
    const ends = await Promise.all([laptop, desktop, friend, stranger].map(async device => {
      const children = await device.children()
      must(children.length === 2, `the ${device.name} has ${children.length} children: ${children.map(({ command }) => command).join(', ')}`)
      const started = performance.now()
      const { code, signal } = await device.interrupt()
      const seconds = secondsSince(started)
      must(code === 130, `the ${device.name} ended with ${signal ?? code}`)
      must(seconds * 1000 <= END_MS, `the ${device.name} took ${seconds.toFixed(1)} s to end`)
      const left = children.filter(({ pid }) => isRunning(pid))
      must(left.length === 0, `the ${device.name} left ${left.map(({ pid, command }) => `${pid} (${command})`).join(', ')}`)
      return `${device.name} ${seconds.toFixed(2)} s`
    }))
    return `${ends.join(', ')}; exit code 130, no process left`
  })
}

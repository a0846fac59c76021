import { join } from 'node:path'
import { writeFile } from 'node:fs/promises'
import { fill, freePort, type Materials } from './materials.js'
import { accepting, end, find, start } from './processes.js'

/** The constant-response upstream of bench/peers/constant.conf, on the client's cores. Throws where nginx is not
 * installed: what a proxy does cannot be told without something behind it. */
export async function startConstant ({ folder, cores }: Materials): Promise<{ port: number, stop (): Promise<void> }> {
  const nginx = find('nginx')
  if (nginx === undefined) throw new Error('the upstream of the proxies is nginx, which is not installed; Debian package nginx')
  const port = await freePort()
  const path = join(folder, 'constant.conf')
  await writeFile(path, await fill('constant.conf', { FOLDER: folder, PORT: port }))
  const child = start(cores.client, [nginx, '-c', path, '-p', folder])
  await accepting(port)
  return { port, stop: () => end(child) }
}

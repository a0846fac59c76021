import { join } from 'node:path'
import { Node } from '../../test/fixtures/fault-world.js'
import { patchcord } from '../../test/fixtures/processes.js'
import { waitFor, type Material } from './material.js'

/** Two programs that keep a folder's content on both sides. */
export interface Contestant {
  readonly name: string
  /** Seconds from being told of the folder to the other side having it all, durably or as the program has it. */
  transfer (folder: string, material: Material): Promise<number>
  stop (): Promise<void>
}

/** Two real services of one person, over mutual TLS on [::1]. A transfer is `add --to`, replication, following. */
export async function patchcordPair (folder: string): Promise<Contestant> {
  const [from, to] = [new Node(join(folder, 'pa')), new Node(join(folder, 'pb'))]
  await from.start()
  await to.start()
  const [request, issued] = [join(folder, 'request.pem'), join(folder, 'issued.pem')]
  for (const run of [await to.run('device', 'request', '-o', request), await from.run('device', 'issue', request, '-o', issued, '--name', 'to'), await to.run('device', 'install', issued)]) {
    if (run.code !== 0) throw new Error(run.stderr)
  }
  await from.run('connect', 'to', '--at', `[::1]:${to.port}`)
  await to.run('connect', from.service!.ready.device, '--at', `[::1]:${from.port}`)
  await from.connected(1)
  await to.connected(1)
  await from.json('db', 'create', 'bench')
  let fetched = 0
  let rest = ''
  to.service!.child.stdout!.on('data', (chunk: Buffer) => {
    const lines = (rest + chunk.toString('latin1')).split('\n')
    rest = lines.pop() ?? ''
    fetched += lines.filter(line => line.startsWith('{"event":"fetched"')).length
  })
  return {
    name: 'patchcord',
    async transfer (path, { files }) {
      const before = fetched
      const started = performance.now()
      const added = await patchcord(['add', path, '--to', 'bench', '--json', '--home', from.home], {}, 600_000)
      if (added.code !== 0) throw new Error(added.stderr)
      process.stderr.write(`  import ${((performance.now() - started) / 1000).toFixed(2)} s\n`)
      await waitFor('the files at the other side', () => fetched - before >= files)
      return (performance.now() - started) / 1000
    },
    async stop () { await Promise.all([from.stop(), to.stop()]) },
  }
}

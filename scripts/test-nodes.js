// The tests on other versions of Node, from npm's registry: `node scripts/test-nodes.js [--only 22,24] [test files]`. Without
// files, the whole of `npm test`. A version that the registry does not have for this machine is said and fails.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const top = fileURLToPath(new URL('..', import.meta.url))
const args = process.argv.slice(2)
const only = args[0] === '--only' ? args.splice(0, 2)[1].split(',') : ['20', '22', '24', '26']
let failed = 0
for (const version of only) {
  const folder = mkdtempSync(join(tmpdir(), `patchcord-node${version}-`))
  try {
    const name = `node-${process.platform}-${process.arch}`
    const [{ filename }] = JSON.parse(execFileSync('npm', ['pack', '--json', '--pack-destination', folder, `${name}@${version}`], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 64 << 20 }))
    execFileSync('tar', ['-xzf', join(folder, filename), '-C', folder, '--strip-components=1', 'package/bin'])
    const bin = join(folder, 'bin')
    const node = join(bin, 'node')
    process.stdout.write(`\n# Node ${execFileSync(node, ['--version'], { encoding: 'utf8' })}`)
    const { status } = spawnSync(node, [join(top, 'scripts/test.js'), ...args], { cwd: top, stdio: 'inherit', env: { ...process.env, PATH: `${bin}:${process.env.PATH}` } })
    if (status !== 0) failed += 1
  } catch (error) {
    failed += 1
    process.stdout.write(`\n# Node ${version}: ${error.message.split('\n')[0]}\n`)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
process.exit(failed === 0 ? 0 : 1)

// The package as somebody gets it: `npm run test:package`. Packs, installs globally into an empty prefix and runs a service
// from there; shows the unit and what systemd says of it; builds the .deb, installs it into a scratch root, runs it there
// and removes it. Needs npm's registry, dpkg and root (for dpkg --root). Exits 1 if anything was not as it should be.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const top = fileURLToPath(new URL('..', import.meta.url))
const work = mkdtempSync(join(tmpdir(), 'patchcord-package-'))
let failed = 0
const say = (ok, what) => {
  if (!ok) failed += 1
  process.stdout.write(`${ok ? 'ok' : 'NOT OK'}  ${what}\n`)
}
const run = (command, args, options = {}) => execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 64 << 20, ...options })

try {
  const [{ filename, size, entryCount }] = JSON.parse(run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', work], { cwd: top }))
  say(true, `npm pack: ${entryCount} files, ${(size / 1024).toFixed(0)} KiB`)
  const prefix = join(work, 'prefix')
  mkdirSync(prefix)
  run('npm', ['install', '--global', '--prefix', prefix, '--no-audit', '--no-fund', '--loglevel', 'error', join(work, filename)])
  const bin = join(prefix, 'bin', 'patchcord')
  const env = { PATH: `${join(prefix, 'bin')}:${process.env.PATH}`, HOME: work }
  say(/^\d+\.\d+/.test(run(bin, ['--version'], { env })), 'installed globally, it says its version')
  const home = join(work, 'h')
  const service = spawn(bin, ['up', '--json', '--home', home, '--listen', '[::1]:0', '--no-discovery'], { env, stdio: ['ignore', 'pipe', 'inherit'] })
  await once(service.stdout, 'data')
  run(bin, ['db', 'create', 'notes', '--home', home], { env })
  say(run(bin, ['db', 'ls', '--home', home], { env }) === 'notes\n', 'a database is made and listed')
  say(/permission model|AppArmor holds/.test(run('sh', ['-c', `"${bin}" doctor --home "${home}" || true`], { env })), 'its server is held to something')
  service.kill()
  const [code] = await once(service, 'exit')
  say(code === 0, `it ends with ${code}`)
  const unit = spawnSync(bin, ['service', 'install', '--dry-run', '--json'], { env, encoding: 'utf8' })
  const { verified, security } = JSON.parse(unit.stdout.trim().split('\n').at(-1))
  say(unit.status === 0 && verified !== false, `service install --dry-run: ${verified === null ? 'systemd-analyze is not installed' : 'systemd takes the unit'}; security score ${security}`)

  // In a network of its own: not even a check sees the rules of this machine.
  const rules = run(bin, ['service', 'firewall'], { env })
  if (spawnSync('nft', ['--version']).error === undefined) {
    const loaded = spawnSync('unshare', ['--net', 'nft', '-f', '-'], { input: rules.slice(rules.indexOf('table inet')), encoding: 'utf8' })
    say(loaded.status === 0, `service firewall: ${loaded.status === 0 ? 'the kernel takes the nftables rules' : loaded.stderr}`)
  } else process.stdout.write('NOT TESTED  service firewall: needs nft (apt-get install nftables)\n')

  const deb = run(process.execPath, [join(top, 'scripts/build-deb.js'), work]).trim()
  const root = join(work, 'root')
  mkdirSync(join(root, 'var/lib/dpkg/updates'), { recursive: true })
  for (const name of ['info', 'triggers']) mkdirSync(join(root, 'var/lib/dpkg', name))
  mkdirSync(join(root, 'var/log'))
  writeFileSync(join(root, 'var/lib/dpkg/status'), '')
  const dpkg = (...args) => run('dpkg', [`--root=${root}`, '--force-depends', '--force-script-chrootless', ...args], { stdio: ['ignore', 'pipe', 'ignore'] })
  dpkg('--install', deb)
  for (const path of ['etc/apparmor.d/patchcord-server', 'etc/apparmor.d/patchcord-agent', 'etc/apparmor.d/patchcord-database', 'etc/apparmor.d/tunables/patchcord', 'usr/lib/systemd/user/patchcord.service']) say(existsSync(join(root, path)), `.deb: /${path}`)
  say(/^\d+\.\d+/.test(run(process.execPath, [join(root, 'usr/lib/patchcord/build/src/bin/patchcord.js'), '--version'])), '.deb: it says its version')
  dpkg('--purge', 'patchcord')
  const left = readdirSync(root, { recursive: true }).filter(path => !path.startsWith('var') && /patchcord/.test(path))
  say(left.length === 0, `.deb: removed, nothing is left${left.length === 0 ? '' : `: ${left.join(', ')}`}`)
} finally {
  rmSync(work, { recursive: true, force: true })
}
process.exit(failed === 0 ? 0 : 1)

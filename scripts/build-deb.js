// Builds patchcord_<version>_<architecture>.deb from a built checkout: `npm run build && node scripts/build-deb.js [folder]`.
// The package has the code with its dependencies in /usr/lib/patchcord, the commands, the profiles and the unit. It
// needs dpkg-deb and, for nothing but the lines of `npm pack`, npm. Prints the path.
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const top = fileURLToPath(new URL('..', import.meta.url))
const into = resolve(process.argv[2] ?? join(top, 'build'))
const { version, description } = JSON.parse(readFileSync(join(top, 'package.json'), 'utf8'))
const { unitText } = await import('../build/src/machine/unit.js')
const run = (command, args, cwd = top) => execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 64 << 20 })
// LevelDB's binding is compiled for one architecture; dpkg names it another way than Node.
const architecture = run('dpkg', ['--print-architecture']).trim()

const work = mkdtempSync(join(tmpdir(), 'patchcord-deb-'))
try {
  const root = join(work, 'root')
  const code = join(root, 'usr/lib/patchcord')
  mkdirSync(code, { recursive: true })
  // What npm would publish, and nothing else.
  const [{ files }] = JSON.parse(run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts']))
  for (const { path } of files) cpSync(join(top, path), join(code, path))
  const needed = run('npm', ['ls', '--omit=dev', '--all', '--parseable']).trim().split('\n').slice(1)
  for (const path of needed) {
    const below = path.slice(top.length)
    if (below.lastIndexOf('node_modules') === 0) cpSync(path, join(code, below), { recursive: true, filter: from => !from.includes('/prebuilds/') || new RegExp(`/prebuilds/?$|/prebuilds/linux-${process.arch}`).test(from) })
  }
  // Debian's Node is found without a search of PATH.
  for (const name of ['patchcord', 'patchcord-agent', 'patchcord-server']) {
    const path = join(code, 'build/src/bin', `${name}.js`)
    writeFileSync(path, readFileSync(path, 'utf8').replace(/^#!.*\n/, '#!/usr/bin/node\n'))
    chmodSync(path, 0o755)
    mkdirSync(join(root, 'usr/bin'), { recursive: true })
    symlinkSync(`../lib/patchcord/build/src/bin/${name}.js`, join(root, 'usr/bin', name))
  }
  cpSync(join(top, 'apparmor'), join(root, 'etc/apparmor.d'), { recursive: true })
  rmSync(join(code, 'apparmor'), { recursive: true })
  cpSync(join(top, 'apparmor'), join(code, 'apparmor'), { recursive: true })
  const units = join(root, 'usr/lib/systemd/user')
  mkdirSync(units, { recursive: true })
  writeFileSync(join(units, 'patchcord.service'), unitText({ node: '/usr/bin/node', script: '/usr/lib/patchcord/build/src/bin/patchcord-agent.js', home: undefined, args: [] }))
  const documents = join(root, 'usr/share/doc/patchcord')
  mkdirSync(documents, { recursive: true })
  cpSync(join(top, 'LICENSE'), join(documents, 'copyright'))
  tidy(root)

  const control = join(root, 'DEBIAN')
  mkdirSync(control)
  const conffiles = filesBelow(join(root, 'etc')).map(path => path.slice(root.length))
  writeFileSync(join(control, 'conffiles'), `${conffiles.join('\n')}\n`)
  writeFileSync(join(control, 'control'), `Package: patchcord
Version: ${version}
Architecture: ${architecture}
Maintainer: Patchcord <patchcord@localhost>
Installed-Size: ${Math.ceil(filesBelow(root).reduce((sum, path) => sum + statSync(path).size, 0) / 1024)}
Depends: nodejs (>= 20.19)
Recommends: apparmor, util-linux
Section: net
Priority: optional
Description: files and databases between your devices, directly
 ${description.match(/.{1,76}(?: |$)/g).map(line => line.trim()).join('\n ')}
`)
  // Neither may fail the installation: AppArmor can be absent, and units are the users' to start.
  script(join(control, 'postinst'), `if [ "$1" = configure ] && [ -z "$DPKG_ROOT" ] && command -v apparmor_parser >/dev/null && [ -d /sys/kernel/security/apparmor ]; then
  for profile in /etc/apparmor.d/patchcord-*; do
    apparmor_parser --replace "$profile" || echo "patchcord: $profile did not load; \\\`patchcord doctor\\\` tells whether the service is confined" >&2
  done
fi`)
  script(join(control, 'prerm'), `if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && command -v apparmor_parser >/dev/null && [ -d /sys/kernel/security/apparmor ]; then
  for profile in /etc/apparmor.d/patchcord-*; do apparmor_parser --remove "$profile" || true; done
fi`)
  const path = join(into, `patchcord_${version}_${architecture}.deb`)
  mkdirSync(into, { recursive: true })
  run('dpkg-deb', ['--root-owner-group', '--build', root, path])
  process.stdout.write(`${path}\n`)
} finally {
  rmSync(work, { recursive: true, force: true })
}

function script (path, body) {
  writeFileSync(path, `#!/bin/sh\nset -e\n${body}\nexit 0\n`, { mode: 0o755 })
}

function filesBelow (folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true }).filter(entry => entry.isFile()).map(entry => join(entry.parentPath ?? entry.path, entry.name))
}

/** Modes as a package has them, whatever this user's umask made of them. */
function tidy (folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) tidy(path)
    else if (entry.isFile()) chmodSync(path, (statSync(path).mode & 0o111) === 0 ? 0o644 : 0o755)
  }
  chmodSync(folder, 0o755)
}

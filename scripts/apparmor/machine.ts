// The virtual machine: Debian's kernel, a root folder of Debian's packages in memory, and this checkout in it.
import { execFileSync, spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, openSync, closeSync, readdirSync, renameSync, rmSync, writeFileSync, chmodSync, realpathSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const TOP = fileURLToPath(new URL('../../..', import.meta.url))
const CACHE = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'patchcord-apparmor')
const COMMON = [
  'busybox-static', 'coreutils', 'apparmor', 'libapparmor1', 'libc6', 'libgcc-s1', 'libstdc++6', 'libacl1', 'libattr1', 'libgmp10',
  'dbus-daemon', 'dbus-system-bus-common', 'libdbus-1-3', 'libexpat1', 'libaudit1', 'libcap-ng0', 'libselinux1', 'libsystemd0', 'libpcre2-8-0', 'liblz4-1', 'libzstd1', 'liblzma5', 'libgcrypt20', 'libgpg-error0', 'libcap2',
]
/** systemd as the first process, with a manager for a user. */
const SYSTEMD = [
  'systemd', 'systemd-sysv', 'libsystemd-shared', 'libmount1', 'libblkid1', 'libuuid1', 'libcryptsetup12', 'libfdisk1', 'libip4tc2', 'libkmod2', 'libseccomp2', 'libargon2-1', 'libjson-c5', 'libdevmapper1.02.1',
  'libudev1', 'libssl3', 'libpam0g', 'libpam-modules', 'libpam-systemd', 'libcrypt1', 'libp11-kit0', 'libffi8', 'zlib1g', 'libtinfo6', 'mount', 'util-linux', 'dash', 'dbus', 'dbus-bin', 'dbus-user-session', 'dbus-session-bus-common',
]
/** What is booted: a shell script as the first process, or systemd. */
export type Root = 'plain' | 'systemd'
/** What is needed and not fetched by itself. */
const TOOLS = ['qemu-system-x86_64', 'apt-get', 'apt-cache', 'dpkg-deb']

const run = (command: string, args: readonly string[], cwd?: string): string => execFileSync(command, args, { encoding: 'utf8', maxBuffer: 64 << 20, stdio: ['ignore', 'pipe', 'pipe'], ...cwd === undefined ? {} : { cwd } })

/** What is missing on this machine, as the command that installs it; undefined where nothing is. */
export function missingTools (): string | undefined {
  const missing = TOOLS.filter(tool => !(process.env['PATH'] ?? '').split(':').some(folder => existsSync(join(folder, tool))))
  return missing.length === 0 ? undefined : `${missing.join(', ')}: on Debian, apt-get install qemu-system-x86`
}

/** The kernel and the archive of Debian's packages, made once for each version of the kernel. */
export function buildBase (say: (text: string) => void, kind: Root = 'plain'): { kernel: string, base: string } {
  const packages = kind === 'plain' ? COMMON : [...COMMON, ...SYSTEMD]
  const kernelPackage = /Depends: (linux-image-\S+)/.exec(run('apt-cache', ['depends', 'linux-image-cloud-amd64']))?.[1]
  if (kernelPackage === undefined) throw new Error('apt knows no linux-image-cloud-amd64: is this Debian, and did apt-get update run?')
  const folder = join(CACHE, `${kernelPackage}-${packages.length}`)
  const [kernel, base] = [join(folder, 'vmlinuz'), join(folder, 'base.cpio')]
  if (existsSync(base)) return { kernel, base }
  say(`fetching ${kernelPackage} and ${packages.length} packages into ${folder}`)
  const work = `${folder}.${process.pid}`
  const root = join(work, 'root')
  mkdirSync(root, { recursive: true })
  try {
    // apt drops to a user of its own, who may not be able to write here.
    run('apt-get', ['download', '-o', 'APT::Sandbox::User=', kernelPackage, ...packages], work)
    for (const name of readdirSync(work).filter(name => name.endsWith('.deb'))) {
      const isKernel = name.startsWith('linux-image')
      const into = isKernel ? join(work, 'kernel') : root
      run('dpkg-deb', ['-x', join(work, name), into])
      rmSync(join(work, name))
    }
    for (const spare of ['usr/share/doc', 'usr/share/man', 'usr/share/locale', 'usr/share/info', 'usr/lib/x86_64-linux-gnu/gconv', 'usr/lib/locale']) rmSync(join(root, spare), { recursive: true, force: true })
    archive(root, join(work, 'base.cpio'), root)
    const boot = join(work, 'kernel', 'boot')
    renameSync(join(boot, readdirSync(boot).find(name => name.startsWith('vmlinuz'))!), join(work, 'vmlinuz'))
    rmSync(join(work, 'kernel'), { recursive: true })
    renameSync(root, join(work, 'root-kept'))
    renameSync(work, folder)
  } catch (error) {
    rmSync(work, { recursive: true, force: true })
    throw error
  }
  return { kernel, base }
}

/** Packs `root` as the kernel's initial file system; busybox is that of `packages`. */
function archive (root: string, path: string, packages: string): void {
  const output = openSync(path, 'w')
  try {
    execFileSync(join(packages, 'bin', 'busybox'), ['sh', '-c', 'busybox=$0; "$busybox" find . | "$busybox" cpio -o -H newc -R 0:0', join(packages, 'bin', 'busybox')], { cwd: root, stdio: ['ignore', output, 'ignore'], maxBuffer: 1 << 20 })
  } finally {
    closeSync(output)
  }
}

const MOUNTS = `#!/bin/busybox sh
b=/bin/busybox
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
$b mkdir -p /proc /sys /dev /tmp /run /etc; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
$b mount -t securityfs securityfs /sys/kernel/security
$b mkdir -p /dev/shm; $b mount -t tmpfs -o mode=1777 shm /dev/shm; $b mount -t tmpfs -o mode=1777 tmp /tmp
$b ip link set lo up
# Every denial is to be seen.
echo 0 > /proc/sys/kernel/printk_ratelimit
$b dmesg -n 1
`
const INIT = `${MOUNTS}echo 'root:x:0:0::/root:/bin/sh' > /etc/passwd; echo 'u:x:1000:1000::/home/u:/bin/sh' >> /etc/passwd
echo 'messagebus:x:100:100::/:/bin/sh' >> /etc/passwd; echo 'messagebus:x:100:' > /etc/group
# A disk with room: a device receives nothing where less than 512 MiB would stay free. It takes memory as it is filled.
$b mkdir -p /home; $b mount -t tmpfs -o mode=0755,size=2g home /home
$b mkdir -p /run/dbus /home/u/.ssh /home/u/pipes /home/u/.local/share /home/v /etc/apparmor.d/local
echo secret > /home/u/.ssh/id_ed25519; echo dear > /home/u/letter.txt; echo dear > /home/v/letter.txt
$b dd if=/dev/urandom of=/home/u/big.bin bs=1M count=20 2>/dev/null
$b mkdir -p -m 0700 /home/u/.local/share/patchcord/couch
$b chmod 0600 /home/u/.ssh/*; echo '{}' > /home/u/.local/share/patchcord/couch/secret.json
$b chown -R 1000:1000 /home/u
/sbin/apparmor_parser -K -a /etc/apparmor.d/patchcord-* || echo 'PATCHCORD {"ok":false,"what":"the profiles did not load"}'
node /usr/lib/patchcord/build/scripts/apparmor/guest.js
$b poweroff -f
`
/** systemd takes the kernel's first root for an initrd, and cannot give a unit a root of its own in it: a mount of it is
 * moved over it. */
const INIT_SYSTEMD = `${MOUNTS}
$b mkdir -p /run/dbus /var/log/journal /etc/pam.d /etc/dbus-1 /etc/systemd/system /home /root /mnt /etc/apparmor.d/local
echo 'root:x:0:0::/root:/bin/sh' > /etc/passwd; echo 'u:x:1000:1000::/home/u:/bin/sh' >> /etc/passwd
echo 'messagebus:x:100:100::/:/bin/sh' >> /etc/passwd
printf 'root:x:0:\\nu:x:1000:\\nmessagebus:x:100:\\nsystemd-journal:x:101:\\n' > /etc/group
echo 'passwd: files' > /etc/nsswitch.conf
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
for service in systemd-user login other; do printf 'auth required pam_permit.so\\naccount required pam_permit.so\\nsession optional pam_systemd.so\\nsession required pam_permit.so\\n' > /etc/pam.d/$service; done
$b mount -t tmpfs -o mode=0755,size=2g home /home; $b mkdir -p /home/u/.ssh /home/v
echo secret > /home/u/.ssh/id_ed25519; echo dear > /home/u/letter.txt; echo dear > /home/v/letter.txt
$b chown -R 1000:1000 /home/u
printf '[Unit]\\nAfter=basic.target dbus.service systemd-logind.service\\nWants=dbus.service systemd-logind.service\\n[Service]\\nType=oneshot\\nExecStart=/usr/bin/node /usr/lib/patchcord/build/scripts/apparmor/service-guest.js\\nStandardOutput=file:/dev/ttyS0\\nStandardError=file:/dev/ttyS0\\n[Unit]\\nSuccessAction=poweroff-force\\nFailureAction=poweroff-force\\n' > /etc/systemd/system/patchcord-test.service
$b umount /tmp /dev/shm
$b mount --bind / /mnt
for mount in proc sys dev home; do $b mount --rbind /$mount /mnt/$mount; done
cd /mnt
$b mount --move . /
exec $b chroot . /lib/systemd/systemd --unit=patchcord-test.service
`

/** This checkout as it would be installed, with the profiles and what runs them. */
export function buildOverlay (folder: string, packages: string, kind: Root = 'plain'): string {
  const root = join(folder, 'root')
  const code = join(root, 'usr/lib/patchcord')
  mkdirSync(code, { recursive: true })
  for (const part of ['package.json', 'build/src', 'build/scripts']) cpSync(join(TOP, part), join(code, part), { recursive: true })
  for (const name of ['patchcord.js', 'patchcord-agent.js', 'patchcord-server.js']) chmodSync(join(code, 'build/src/bin', name), 0o755)
  for (const path of run('npm', ['ls', '--omit=dev', '--all', '--parseable'], TOP).trim().split('\n').slice(1)) {
    const below = path.slice(TOP.length)
    // What lies inside another package is copied with it.
    if (below.lastIndexOf('node_modules') === 0) cpSync(path, join(code, below), { recursive: true, filter: from => !/prebuilds\/(?!linux-x64)/.test(from) })
  }
  const node = realpathSync(process.execPath)
  mkdirSync(join(root, 'usr/bin'), { recursive: true })
  cpSync(node, join(root, 'usr/bin/node'))
  // Debian's own Node is linked to more than the packages have.
  for (const [, library] of run('ldd', [node]).matchAll(/=> (\/\S+)/g)) {
    const at = join(root, 'usr/lib/x86_64-linux-gnu', basename(library!))
    if (existsSync(join(packages, 'lib/x86_64-linux-gnu', basename(library!))) || existsSync(join(packages, 'usr/lib/x86_64-linux-gnu', basename(library!)))) continue
    mkdirSync(dirname(at), { recursive: true })
    cpSync(realpathSync(library!), at)
  }
  mkdirSync(join(root, 'etc/ssl'), { recursive: true })
  writeFileSync(join(root, 'etc/ssl/openssl.cnf'), '# what Node reads where it is there\n')
  mkdirSync(join(root, 'etc/apparmor.d/tunables'), { recursive: true })
  cpSync(join(TOP, 'apparmor'), join(root, 'etc/apparmor.d'), { recursive: true })
  writeFileSync(join(root, 'etc/apparmor.d/tunables/patchcord'), [
    '@{PATCHCORD_NODE}=/usr/bin/node', '@{PATCHCORD_CODE}=/usr/lib/patchcord', '@{PATCHCORD_MODULES}=/usr/lib/patchcord/node_modules',
    '@{PATCHCORD_HOME}=@{HOME}/.local/share/patchcord /home/u/desktop', '',
  ].join('\n'))
  writeFileSync(join(root, 'init'), kind === 'plain' ? INIT : INIT_SYSTEMD, { mode: 0o755 })
  const path = join(folder, 'overlay.cpio')
  archive(root, path, packages)
  return path
}

/** Boots it and hands over each line of its console. Resolves when it is off; it is ended after `limitMs`. */
export async function boot (kernel: string, initrd: string, isFast: boolean, onLine: (line: string) => void, limitMs: number, megabytes = 1536): Promise<void> {
  const child = spawn('qemu-system-x86_64', [
    ...isFast ? ['-enable-kvm', '-cpu', 'host'] : ['-accel', 'tcg,thread=multi', '-cpu', 'max'],
    '-m', String(megabytes), '-smp', '2', '-nographic', '-no-reboot', '-net', 'none', '-kernel', kernel, '-initrd', initrd,
    '-append', 'console=ttyS0 quiet panic=-1 apparmor=1 security=apparmor log_buf_len=4M',
  ], { stdio: ['ignore', 'pipe', 'inherit'] })
  const guard = setTimeout(() => { child.kill('SIGKILL') }, limitMs)
  const ended = new Promise<void>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', () => { resolve() })
  })
  createInterface({ input: child.stdout }).on('line', onLine)
  await ended
  clearTimeout(guard)
}

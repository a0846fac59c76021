import { homedir } from 'node:os'
import { join } from 'node:path'

// The unit of systemd --user. What it is allowed is what user units can be denied without root (systemd.exec(5)): a user
// namespace of its own first, for the mounts. IPAddressAllow= and DynamicUser= are for system units alone, and
// MemoryDenyWriteExecute= would end Node's JIT.

export const UNIT_NAME = 'patchcord.service'

export interface UnitOptions {
  /** Node and the script, absolute. */
  readonly node: string
  readonly script: string
  /** The home folder where one was chosen; undefined for the XDG data folder. */
  readonly home: string | undefined
  /** Further arguments of `up`. */
  readonly args: readonly string[]
}

/** Where units of this user are looked for, the person's own first (systemd.unit(5)). */
export function unitPaths (env: Readonly<Record<string, string | undefined>>): [own: string, ...installed: string[]] {
  return [join(env['XDG_CONFIG_HOME'] || join(env['HOME'] || homedir(), '.config'), 'systemd/user', UNIT_NAME), `/etc/systemd/user/${UNIT_NAME}`, `/usr/lib/systemd/user/${UNIT_NAME}`]
}

/** The unit. The script is started by its path, so that its AppArmor profile takes hold; its first line finds Node in
 * PATH, where this Node comes first. */
export function unitText ({ node, script, home, args }: UnitOptions): string {
  const command = [script, ...home === undefined ? [] : ['--home', home], ...args].map(quoted).join(' ')
  const state = home === undefined ? '%h' : quoted(home)
  return `[Unit]
Description=Patchcord: files and databases between your devices
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=all
ExecStart=${command}
Environment=${quoted(`PATH=${node.slice(0, node.lastIndexOf('/'))}:/usr/local/bin:/usr/bin:/bin`)}
# 2 is a command line or setting that another start does not mend, 130 an interrupt.
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2 130
WatchdogSec=120
# Ends the agent, which ends its children; what is left after 15 s is killed.
KillMode=mixed
TimeoutStopSec=15
# The first start makes keys.
TimeoutStartSec=180
UMask=0077
${home === undefined ? `# Where the control socket is; nothing else of the folders of a session can be written.
RuntimeDirectory=patchcord
RuntimeDirectoryMode=0700
` : ''}
# What the service cannot do, whatever happens in it.
NoNewPrivileges=yes
PrivateUsers=yes
ProtectSystem=strict
ReadWritePaths=${state}
ReadWritePaths=-%h -/media -/mnt -/srv -/run/media
InaccessiblePaths=-%h/.ssh -%h/.gnupg -%h/.aws -%h/.kube -%h/.mozilla -%h/.password-store -%h/.local/share/keyrings
PrivateTmp=yes
PrivateDevices=yes
PrivateIPC=yes
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET6 AF_INET AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
CapabilityBoundingSet=
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @mount @debug @cpu-emulation @obsolete @raw-io @reboot @swap @module @clock
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
`
}

/** The words of ExecStart of a unit. */
export function execOf (text: string): string[] {
  const line = /^ExecStart=(.*)$/m.exec(text)?.[1] ?? ''
  return [...line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(([, inQuotes, plain]) => (inQuotes?.replace(/\\(.)/g, '$1') ?? plain!).replaceAll('%%', '%').replaceAll('$$', '$'))
}

/** One word as systemd reads it: `%` begins a specifier, `$` a variable, and blanks end a word. */
function quoted (text: string): string {
  const escaped = text.replaceAll('%', '%%').replaceAll('$', '$$$$')
  return /^[\w@%+=:,./\-$]+$/.test(escaped) ? escaped : `"${escaped.replace(/["\\]/g, '\\$&')}"`
}

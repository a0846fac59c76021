import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { join } from 'node:path'
import { systemCode } from '../core/errors.js'
import type { Check, Examined } from './doctor.js'
import { textOf } from './files.js'

const run = promisify(execFile)
const DEFAULT_PORT = 4984

/** The commands and rules that let the port and mDNS in, for whichever firewall there is. */
export function firewallRules (port: number): string {
  return `# ufw
sudo ufw allow proto tcp to any port ${port} comment patchcord
sudo ufw allow proto udp to ff02::fb port 5353 comment 'patchcord mDNS'

# firewalld
sudo firewall-cmd --permanent --add-port=${port}/tcp --add-service=mdns && sudo firewall-cmd --reload

# nftables: the port for neighbours on the link and this machine alone, and mDNS
table inet patchcord {
  chain input {
    type filter hook input priority -5; policy accept;
    tcp dport ${port} ip6 saddr { ::1, fe80::/10 } accept
    tcp dport ${port} ip6 saddr fc00::/7 accept
    tcp dport ${port} drop
    udp dport 5353 ip6 daddr ff02::fb accept
  }
}
`
}

/** ufw and firewalld refuse what they were not told to let in. Where their rules cannot be read, that is said. */
export async function checkFirewall ({ root, service }: Examined): Promise<Check> {
  const port = service?.listen[0]?.port ?? DEFAULT_PORT
  const found = ufw(root, port) ?? await firewalld(root, port)
  return found === undefined
    ? { name: 'firewall', ok: true, detail: 'neither ufw nor firewalld is at work', hint: '' }
    : { name: 'firewall', ...found }
}

type Finding = Omit<Check, 'name'>

function ufw (root: string, port: number): Finding | undefined {
  if (!/^ENABLED=yes/m.test(textOf(join(root, 'etc/ufw/ufw.conf')) ?? '')) return undefined
  const hint = `sudo ufw allow proto tcp to any port ${port} comment patchcord`
  if (/^DEFAULT_INPUT_POLICY="?ACCEPT/m.test(textOf(join(root, 'etc/default/ufw')) ?? '')) return { ok: true, detail: 'ufw is on and lets everything in', hint: '' }
  let rules: string | undefined
  try {
    rules = textOf(join(root, 'etc/ufw/user6.rules'))
  } catch (error) {
    if (systemCode(error) !== 'EACCES') throw error
    return { ok: false, detail: `ufw is on, and only root can read whether it lets port ${port} in`, hint: `${hint} (which changes nothing if it is let in already)` }
  }
  const isIn = (rules ?? '').split('\n').some(line => line.startsWith('-A ') && / -j ACCEPT/.test(line) && !/ -s /.test(line) && (portsOf(line).some(([from, to]) => port >= from && port <= to) || !/ --dports? /.test(line)) && (!/ -p /.test(line) || / -p tcp /.test(line)))
  return isIn ? { ok: true, detail: `ufw is on and lets port ${port} in`, hint: '' } : { ok: false, detail: `ufw is on and does not let port ${port} in: others cannot reach this device`, hint }
}

function portsOf (line: string): Array<[number, number]> {
  return (/ --dports? (\S+)/.exec(line)?.[1] ?? '').split(',').filter(text => text !== '').map(text => {
    const [from, to = from] = text.split(':').map(Number)
    return [from!, to!]
  })
}

async function firewalld (root: string, port: number): Promise<Finding | undefined> {
  if (textOf(join(root, 'run/firewalld.pid')) === undefined && textOf(join(root, 'var/run/firewalld.pid')) === undefined) return undefined
  const hint = `sudo firewall-cmd --permanent --add-port=${port}/tcp --add-service=mdns && sudo firewall-cmd --reload`
  try {
    await run('firewall-cmd', [`--query-port=${port}/tcp`], { timeout: 5_000 })
    return { ok: true, detail: `firewalld is on and lets port ${port} in`, hint: '' }
  } catch (error) {
    // It answers no with exit code 1; everything else is that it could not be asked.
    if ((error as { code?: unknown }).code === 1) return { ok: false, detail: `firewalld is on and does not let port ${port} in: others cannot reach this device`, hint }
    return { ok: false, detail: `firewalld is on, and cannot be asked whether it lets port ${port} in`, hint: `${hint} (which changes nothing if it is let in already)` }
  }
}

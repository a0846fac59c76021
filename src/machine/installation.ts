import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const PACKAGE = fileURLToPath(new URL('../../..', import.meta.url))

/** Where this installation is, links resolved. */
export interface Installation {
  readonly node: string
  /** The folder of the package, without a slash at its end. */
  readonly code: string
  /** Every node_modules that its packages may be in: inside it, or the outermost that it lies in (pnpm has one in
   * another). Where one is a link, what it leads to as well. */
  readonly modules: readonly string[]
  readonly agentScript: string
}

export function findInstallation (): Installation {
  const code = realpathSync(PACKAGE)
  const beside = code.indexOf('/node_modules/')
  const modules = [join(code, 'node_modules'), ...beside === -1 ? [] : [code.slice(0, beside + '/node_modules'.length)]]
    .filter(path => existsSync(path)).flatMap(path => [...new Set([path, realpathSync(path)])])
  return { node: realpathSync(process.execPath), code, modules, agentScript: join(code, 'build/src/bin/patchcord-agent.js') }
}

/** The AppArmor profiles of apparmor/ by their path below /etc/apparmor.d, with this installation's paths. */
export function profilesFor ({ node, code, modules }: Installation, homes: readonly string[]): ReadonlyMap<string, string> {
  const tunables = [['NODE', [node]], ['CODE', [code]], ['MODULES', modules.length === 0 ? [join(code, 'node_modules')] : modules], ['HOME', ['@{HOME}/.local/share/patchcord', ...homes]]] as const
  const folder = join(code, 'apparmor')
  return new Map([
    ['tunables/patchcord', `# Made by \`patchcord service apparmor\`.\n${tunables.map(([name, paths]) => `@{PATCHCORD_${name}}=${paths.map(quoted).join(' ')}\n`).join('')}`],
    ...readdirSync(folder).filter(name => name.startsWith('patchcord-')).map((name): [string, string] => [name, readFileSync(join(folder, name), 'utf8')]),
  ])
}

/** A path as AppArmor reads it: what would be a pattern is itself. The variable HOME stays one. */
function quoted (path: string): string {
  const literal = path.startsWith('@{HOME}') ? path : path.replace(/[\\*?[\]{}^@]/g, '\\$&')
  return /[\s"]/.test(literal) ? `"${literal.replaceAll('"', '\\"')}"` : literal
}

// Compiles src/, test/, scripts/ and certs/ into build/. The folder is deleted first, so that a test
// whose source is gone cannot run on (and pass) from an old build.
import { chmodSync, readdirSync, rmSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const top = fileURLToPath(new URL('..', import.meta.url))
rmSync(`${top}build`, { recursive: true, force: true })
const { status } = spawnSync(process.execPath, [`${top}node_modules/typescript/bin/tsc`], { cwd: top, stdio: 'inherit' })
// As npm makes them when it installs: a unit and an AppArmor profile start them by their path.
const bin = `${top}build/src/bin/`
for (const name of readdirSync(bin)) if (/^patchcord.*\.js$/.test(name)) chmodSync(`${bin}${name}`, 0o755)
process.exit(status ?? 1)

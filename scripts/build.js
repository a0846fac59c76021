// Compiles src/, test/, scripts/ and certs/ into build/. The folder is deleted first, so that a test
// whose source is gone cannot run on (and pass) from an old build.
import { rmSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const top = fileURLToPath(new URL('..', import.meta.url))
rmSync(`${top}build`, { recursive: true, force: true })
const { status } = spawnSync(process.execPath, [`${top}node_modules/typescript/bin/tsc`], { cwd: top, stdio: 'inherit' })
process.exit(status ?? 1)

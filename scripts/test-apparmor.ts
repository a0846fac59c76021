// Confinement, tried: `npm run test:apparmor [-- --kvm]`. Boots a Debian kernel with AppArmor in a virtual machine (qemu,
// emulated unless --kvm), runs the real service under the profiles of apparmor/, then the same attempts by code inside
// the server, unconfined and confined, then with three rules loosened. `npm run test:service` (`… test-apparmor.js service`) boots
// systemd in it and lives with the unit under a real `systemd --user`. Exits 1 if anything was not as it should be.
import { createWriteStream, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { finished } from 'node:stream/promises'
import { boot, buildBase, buildOverlay, missingTools } from './apparmor/machine.js'

const kind = process.argv.includes('service') ? 'systemd' : 'plain'
const LIMIT_MS = (kind === 'plain' ? 10 : 30) * 60_000
const MEGABYTES = kind === 'plain' ? 1536 : 3072
const say = (text: string): void => { process.stdout.write(`${text}\n`) }
const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(0)} s`

const missing = missingTools()
if (missing !== undefined) {
  say(`NOT TESTED: this needs ${missing}`)
  process.exit(1)
}
const begin = performance.now()
const folder = mkdtempSync(join(tmpdir(), 'patchcord-apparmor-'))
let failed = 0
let passed = 0
let isWhole = false
try {
  const { kernel, base } = buildBase(say, kind)
  const initrd = join(folder, 'initrd')
  const out = createWriteStream(initrd)
  for (const part of [base, buildOverlay(folder, join(dirname(base), 'root-kept'), kind)]) out.write(readFileSync(part))
  out.end()
  await finished(out)
  say(`built in ${seconds(begin)}; booting`)
  const since = performance.now()
  await boot(kernel, initrd, process.argv.includes('--kvm'), line => {
    if (process.env['PATCHCORD_CONSOLE']) say(line)
    if (line.includes('PATCHCORD-END')) isWhole = true
    const found = /PATCHCORD (\{.*\})/.exec(line)?.[1]
    if (found === undefined) return
    const { ok, what } = JSON.parse(found) as { ok: boolean, what: string }
    if (ok) passed += 1
    else failed += 1
    say(`${ok ? 'ok' : 'NOT OK'}  ${what}`)
  }, LIMIT_MS, MEGABYTES)
  say(`the virtual machine ran for ${seconds(since)}`)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
if (!isWhole) say('NOT OK  the virtual machine did not come to the end')
say(`${passed} passed, ${failed} failed, in ${seconds(begin)}`)
process.exit(failed === 0 && isWhole ? 0 : 1)

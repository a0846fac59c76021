// Idle memory of each process above a bare Node of the same version: `npm run build && node scripts/measure-memory.js
// [rest in seconds] [runs]`. Starts the service in a fresh home, lets it rest (60 s), and reads the resident memory (VmRSS) of
// agent, server and database, and of a bare Node that rests as long; the median of 5 runs. Exits 1 where one has more than
// it may.
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const MOST = { server: 25, agent: 45, database: 45 }
const rest = Number(process.argv[2] ?? 60)
const runs = Number(process.argv[3] ?? 5)
const BIN = fileURLToPath(new URL('../build/src/bin/patchcord.js', import.meta.url))

const mebibytes = pid => Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024
const median = values => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
const childrenOf = pid => execFileSync('ps', ['-o', 'pid=,args=', '--ppid', String(pid)], { encoding: 'utf8' }).trim().split('\n').map(line => line.trim().split(/ (.*)/))

async function measure () {
  const home = mkdtempSync(join(tmpdir(), 'pcm-'))
  const agent = spawn(process.execPath, [BIN, 'up', '--json', '--home', home, '--listen', '[::1]:0'], { stdio: ['ignore', 'pipe', 'ignore'] })
  const bare = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1 << 30)'], { stdio: 'ignore' })
  try {
    await once(agent.stdout, 'data')
    await sleep(rest * 1000)
    const children = childrenOf(agent.pid)
    const pidOf = script => Number(children.find(([, args]) => args.includes(script))[0])
    return { bare: mebibytes(bare.pid), agent: mebibytes(agent.pid), server: mebibytes(pidOf('patchcord-server.js')), database: mebibytes(pidOf('child.js')) }
  } finally {
    bare.kill()
    const ended = once(agent, 'exit')
    agent.kill()
    await ended
    rmSync(home, { recursive: true })
  }
}

const results = []
for (let run = 0; run < runs; run++) results.push(await measure())
const bare = median(results.map(result => result.bare))
process.stdout.write(`Node ${process.versions.node}, ${runs} runs of ${rest} s: a bare Node has ${bare.toFixed(1)} MiB\n`)
for (const [name, most] of Object.entries(MOST)) {
  const above = median(results.map(result => result[name])) - bare
  if (above > most) process.exitCode = 1
  process.stdout.write(`${above > most ? 'NOT OK' : 'ok'}  ${name}: ${above.toFixed(1)} MiB above it (at most ${most})\n`)
}

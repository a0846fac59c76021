import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { countTap } from './count-tap.js'

/**
 * Runs test files, `jobs` at once, each in a process of its own, and hands on what they say as one TAP: each file a subtest, whole
 * and in a row. tap's own runner does the same, but starts each file, and every process that a file starts, with loaders for
 * mocks and for coverage, which nothing here has: 1.3 s of CPU for a file, and as much again for what it starts.
 *
 * @param {readonly string[]} files
 * @param {{ cwd: string, jobs: number, timeout: number, write: (tap: string) => void, grace?: number }} options `timeout` in seconds:
 * a file that takes longer says so itself, or is killed `grace` seconds later
 */
export async function runTests (files, { cwd, jobs, timeout, write, grace = 10 }) {
  const left = [...files]
  let count = 0
  const runNext = async () => {
    for (let file = left.shift(); file !== undefined; file = left.shift()) {
      const from = performance.now()
      const { text, code, signal } = await run(file, { cwd, timeout, grace })
      // A plan that was not kept does not always show in the exit code, nor that nothing was said.
      const isOk = code === 0 && countTap(text).failed.length === 0
      write(`# Subtest: ${file}\n${text.replace(/^TAP version \d+\n/, '').replaceAll(/^(?=.)/gm, '    ')}\n`)
      write(`${isOk ? 'ok' : 'not ok'} ${++count} - ${file} # time=${(performance.now() - from).toFixed(3)}ms\n`)
      if (!isOk) write(`  ---\n  exitCode: ${code}\n  signal: ${signal}\n  ...\n`)
    }
  }
  write('TAP version 14\n')
  await Promise.all(Array.from({ length: jobs }, runNext))
  write(`1..${count}\n`)
}

async function run (file, { cwd, timeout, grace }) {
  const child = spawn(process.execPath, ['--enable-source-maps', file], { cwd, stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, TAP: '1', TAP_TIMEOUT: String(timeout) } })
  const guard = setTimeout(() => { child.kill('SIGKILL') }, (timeout + grace) * 1000)
  let text = ''
  child.stdout.setEncoding('utf8').on('data', part => { text += part })
  const [code, signal] = await once(child, 'close')
  clearTimeout(guard)
  return { text, code, signal }
}

// Counts what a run of tap says, from its TAP: every assertion once, and none of the points that only close a
// subtest. A skip or todo is neither passed nor failed; it is named.
import { Parser } from 'tap-parser'

/**
 * @param {string} text TAP, as `tap --reporter=tap` writes it
 * @returns {Counts}
 */
export function countTap (text) {
  const reader = readTap()
  reader.end(text)
  return reader.counts
}

/**
 * @typedef {{ passed: number, failed: string[], skipped: string[], todo: string[], files: string[] }} Counts names
 * are full; `files` are the test files that ran
 *
 * @param {{ onFile?: (name: string, ok: boolean, ms: number | undefined) => void, onFailure?: (name: string, diag: object) => void }} listeners
 * @returns {{ counts: Counts, write: (text: string) => void, end: (text?: string) => void }}
 */
export function readTap ({ onFile = () => undefined, onFailure = () => undefined } = {}) {
  const counts = { passed: 0, failed: [], skipped: [], todo: [], files: [] }
  const parser = new Parser()
  const fail = (name, diag) => {
    counts.failed.push(name)
    onFailure(name, diag ?? {})
  }
  parser.on('child', child => { counts.files.push(child.name) })
  parser.on('assert', ({ name, ok, time }) => { onFile(name, ok, time) })
  walk(parser, counts, fail)
  parser.on('complete', ({ ok, count, bailout }) => {
    // A plan that was not kept, a bail-out, or nothing at all: no assertion says so.
    if (bailout) fail(`bail out${typeof bailout === 'string' ? `: ${bailout}` : ''}`)
    else if (!ok && counts.failed.length === 0) fail('the TAP is not complete')
    else if (count === 0) fail('no test ran')
  })
  return { counts, write: text => { parser.write(text) }, end: text => { parser.end(text) } }
}

function walk (parser, counts, fail) {
  let closing
  parser.on('child', child => {
    closing = { from: total(counts), failures: counts.failed.length }
    walk(child, counts, fail)
  })
  parser.on('assert', point => {
    const subtest = closing
    closing = undefined
    const name = point.fullname || point.name
    if (point.skip) counts.skipped.push(because(name, point.skip))
    else if (point.todo) counts.todo.push(because(name, point.todo))
    else if (subtest === undefined) {
      if (point.ok) counts.passed++
      else fail(name, point.diag)
    } else if (!point.ok && counts.failed.length === subtest.failures) {
      // It failed without an assertion of its own that did: a plan, an exit code, a signal, a time-out.
      fail(`${name} (as a whole)`, point.diag)
    } else if (point.ok && total(counts) === subtest.from) {
      counts.skipped.push(because(name, 'it asserts nothing'))
    }
  })
}

const total = ({ passed, failed, skipped, todo }) => passed + failed.length + skipped.length + todo.length
const because = (name, reason) => typeof reason === 'string' && reason !== '' ? `${name}: ${reason}` : name

import type { Writable } from 'node:stream'

/** One thing that the demo did. */
export interface Step {
  readonly name: string
  readonly result: string
  readonly seconds: number
}

const NAME_WIDTH = 48

/** What a person or a program gets to read: a row as each step ends and, on a terminal, what runs now; with
 * `--json` one line at the end instead. */
export class Report {
  readonly #steps: Step[] = []
  readonly #isJson: boolean
  readonly #out: Writable
  readonly #progress: Writable & { isTTY?: boolean }
  readonly #started = performance.now()
  #now = ''

  constructor (isJson: boolean, out: Writable, progress: Writable & { isTTY?: boolean }) {
    this.#isJson = isJson
    this.#out = out
    this.#progress = progress
  }

  /** The step that runs, or ran last. */
  get now (): string { return this.#now }

  /** Runs a step; what it returns is its result in words. A step that throws is no row. */
  async step (name: string, run: (tell: (progress: string) => void) => Promise<string>): Promise<void> {
    this.#now = name
    const started = performance.now()
    const tell = (progress: string): void => { this.#over(`  ${name.padEnd(NAME_WIDTH)}  ${progress}`) }
    tell('…')
    const result = await run(tell)
    const seconds = Math.round(performance.now() - started) / 1000
    this.#steps.push({ name, result, seconds })
    this.#over('')
    this.#row(name, result, `${seconds.toFixed(2)} s`)
  }

  heading (): void {
    this.#row('step', 'result', 'time')
    this.#row('-'.repeat(NAME_WIDTH), '-'.repeat(60), '--------')
  }

  passed (): void {
    const seconds = Math.round(performance.now() - this.#started) / 1000
    if (this.#isJson) this.#out.write(`${JSON.stringify({ ok: true, seconds, steps: this.#steps })}\n`)
    else this.#out.write(`\n${this.#steps.length} steps, everything as promised, in ${seconds.toFixed(1)} s\n`)
  }

  failed (reason: string, logs: string): void {
    this.#over('')
    if (this.#isJson) this.#out.write(`${JSON.stringify({ ok: false, step: this.#now, reason, logs, steps: this.#steps })}\n`)
    else this.#out.write(`\nfailed at "${this.#now}": ${reason}\n  the logs of the devices: ${logs}\n`)
  }

  #row (name: string, result: string, time: string): void {
    if (!this.#isJson) this.#out.write(`${name.padEnd(NAME_WIDTH)}  ${time.padStart(8)}  ${result}\n`)
  }

  #over (text: string): void {
    if (this.#progress.isTTY === true) this.#progress.write(`\r\u001b[K${text}`)
  }
}

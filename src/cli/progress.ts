import type { Writable } from 'node:stream'
import type { Ora } from 'ora'

// One line on a terminal that says how far something is. ora draws it: it keeps what is printed meanwhile above it,
// knows how wide the terminal is, and gives the cursor back when the process is killed. Where stderr is no
// terminal nothing is written at all.

type Terminal = Writable & { isTTY?: boolean, columns?: number }

/** How wide a terminal is that does not say so. */
const COLUMNS = 80

/** The line, from when it is first told something until `end`. */
export class ProgressLine {
  readonly #stderr: Terminal
  #isLoading = false
  #spinner: Ora | undefined
  #text: string | undefined

  constructor (stderr: Terminal) {
    this.#stderr = stderr
  }

  /** Shows this from now on. */
  show (text: string): void {
    if (this.#stderr.isTTY !== true) return
    this.#text = text
    if (this.#spinner !== undefined) {
      this.#spinner.text = text
      if (!this.#spinner.isSpinning) this.#spinner.start()
      return
    }
    // Loaded when something takes long enough: most commands do not.
    if (!this.#isLoading) void this.#load()
  }

  /** Takes the line away. */
  end (): void {
    this.#text = undefined
    this.#spinner?.stop()
  }

  async #load (): Promise<void> {
    this.#isLoading = true
    const { default: ora } = await import('ora')
    // A terminal that nobody gave a size (script(1), docker run -t) has 0 columns, and ora 9.4.1 then clears lines without end.
    if (this.#stderr.columns === 0) this.#stderr.columns = COLUMNS
    // The keyboard is left alone: Ctrl-C is the service's to count.
    const spinner = ora({ stream: this.#stderr, discardStdin: false })
    // A terminal that takes no cursor movements (TERM=dumb) would get a line each time.
    if (!spinner.isEnabled) spinner.isSilent = true
    this.#spinner = spinner
    if (this.#text !== undefined) this.show(this.#text)
  }
}

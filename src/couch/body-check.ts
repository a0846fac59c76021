import { messageOf, PatchcordError } from '../core/errors.js'
import type { Limits } from '../core/limits.js'
import type { Principal } from '../policy/principal.js'
import type { BodyForm } from '../policy/surface.js'
import { ANYTHING, shapeOf, type Shape } from './body-shapes.js'
import { JsonScanner, NotJson, type JsonListener } from './json-scanner.js'

/** Judges a request's body while it streams. Every method throws PatchcordError: `refused` (403) for a
 * document that may not be named there, `not-canonical` (400) for what is not one plain JSON text of the
 * form, `too-large` (413). Once it threw, it throws the same again. It keeps at most one ID. */
export interface BodyCheck {
  write (chunk: Buffer): void
  /** Must pass before the last byte goes on. */
  end (): void
}

/** How deep the containers of a body may lie in one another. */
export const DEEPEST_BODY = 64

/** The check for a body of this form. Whoever names no relation is judged as a peer. */
export function createBodyCheck (form: BodyForm, limits: Pick<Limits, 'bodyBytes' | 'checkpointBytes'>, relation: Principal['relation'] = 'peer'): BodyCheck {
  const shape = shapeOf(form, relation)
  const most = form === 'none' ? 0 : form === 'checkpoint' ? limits.checkpointBytes : limits.bodyBytes
  return new BoundedCheck(most, shape && new JsonScanner(new Walk(shape), DEEPEST_BODY), form === 'empty')
}

class BoundedCheck implements BodyCheck {
  readonly #most: number
  readonly #scanner: JsonScanner | undefined
  readonly #mayBeEmpty: boolean
  #total = 0
  #failure: PatchcordError | undefined

  constructor (most: number, scanner: JsonScanner | undefined, mayBeEmpty: boolean) {
    this.#most = most
    this.#scanner = scanner
    this.#mayBeEmpty = mayBeEmpty
  }

  write (chunk: Buffer): void {
    this.#judge(() => {
      const left = this.#most - this.#total
      this.#total += chunk.length
      if (chunk.length <= left) return this.#scanner?.write(chunk)
      this.#scanner?.write(chunk.subarray(0, left))
      throw new PatchcordError('too-large', `the body is larger than ${this.#most} bytes`)
    })
  }

  end (): void {
    this.#judge(() => {
      if (this.#total > 0 || !this.#mayBeEmpty) this.#scanner?.end()
    })
  }

  #judge (step: () => void): void {
    if (this.#failure !== undefined) throw this.#failure
    try {
      step()
    } catch (error) {
      this.#failure = error instanceof PatchcordError ? error
        : error instanceof NotJson ? malformed(messageOf(error))
          : new PatchcordError('internal', 'the body check failed', { cause: error })
      throw this.#failure
    }
  }
}

function malformed (problem: string): PatchcordError {
  return new PatchcordError('not-canonical', `the body is not taken: ${problem}`)
}

/** Follows the scanner through the body, with the shape that stands at each place. */
class Walk implements JsonListener {
  readonly #shapes: Shape[] = []
  readonly #isArray: boolean[] = []
  /** Per depth, the members with a meaning seen so far. */
  readonly #seen: Array<Set<string>> = []
  /** The shape of the value that comes next. */
  #next: Shape

  constructor (root: Shape) {
    this.#next = root
  }

  wants (kind: 'name' | 'value'): boolean {
    if (kind === 'value') return this.#next.text !== undefined
    const shape = this.#shapes.at(-1)!
    return shape !== ANYTHING && (shape.members !== undefined || shape.name !== undefined || shape.others === undefined)
  }

  open (kind: 'object' | 'array'): void {
    const shape = this.#next
    if (shape.takes !== 'anything' && shape.takes !== kind) {
      if (shape.takes === 'no-container') throw new PatchcordError('refused', 'selectors of other people may not be nested so deep')
      throw new NotJson(`${kind === 'object' ? 'an object' : 'a list'} stands where it may not`)
    }
    const depth = this.#shapes.push(shape)
    this.#isArray.push(kind === 'array')
    if (kind === 'array') this.#next = shape.items ?? ANYTHING
    else if (shape.members !== undefined) (this.#seen[depth] ??= new Set()).clear()
  }

  close (): void {
    this.#shapes.pop()
    this.#isArray.pop()
    if (this.#isArray.at(-1) === true) this.#next = this.#shapes.at(-1)!.items ?? ANYTHING
  }

  name (text: string | undefined): void {
    const shape = this.#shapes.at(-1)!
    if (shape === ANYTHING) {
      this.#next = ANYTHING
      return
    }
    if (text === undefined && shape.name !== undefined) throw new NotJson('a name is too long')
    if (text !== undefined) shape.name?.(text)
    const member = text === undefined ? undefined : shape.members?.get(text)
    if (member !== undefined) {
      const seen = this.#seen[this.#shapes.length]!
      if (seen.has(text!)) throw new NotJson(`${text} is given twice`)
      seen.add(text!)
    }
    const next = member ?? shape.others
    if (next === undefined) throw new NotJson('it has a member that is not known here')
    this.#next = next
  }

  string (text: string | undefined): void {
    const { takes } = this.#next
    if (takes === 'object' || takes === 'array') throw new NotJson('a string stands where it may not')
    if (text !== undefined) this.#next.text?.(text)
  }

  scalar (): void {
    const { takes } = this.#next
    if (takes !== 'anything' && takes !== 'no-container') throw new NotJson('a number or word stands where it may not')
  }
}

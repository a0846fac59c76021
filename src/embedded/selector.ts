import { isObject } from './json.js'
import { Problem } from './problem.js'

/** Says whether a document matches. */
export type Selector = (document: unknown) => boolean
type Match = (value: unknown) => boolean

// A Mango selector, compiled to functions. PouchDB's own matcher throws on operands of the wrong type
// (from inside a LevelDB callback, in `_changes`), follows `__proto__` in field names, and has `$regex`,
// which no time-out can stop in JavaScript: one pattern ends a process as surely as an exception.

const DEEPEST = 8
/** What one document may cost, in comparisons: some tens of milliseconds, in which the process does nothing else. A list of half a
 * million choices, asked of a list as long, would be hours. */
const MOST_STEPS = 1_000_000

/** Compiles a selector. Throws 400 for an unknown operator, a wrong operand, or one nested deeper than 8; so does what it gives, for
 * a document that costs too much. */
export function parseSelector (value: unknown): Selector {
  if (!isObject(value)) throw invalid('a selector must be a JSON object')
  const work = new Work()
  const matches = compile(value, 0, work)
  return document => {
    work.begin()
    return matches(document)
  }
}

/** Counts what a document costs. */
class Work {
  #left = 0

  begin (): void { this.#left = MOST_STEPS }

  spend (steps: number): void {
    this.#left -= steps
    if (this.#left < 0) throw invalid('the selector takes too long: fewer choices and shorter lists')
  }
}

const invalid = (reason: string): Problem => new Problem(400, 'invalid_selector', reason)

function compile (selector: Record<string, unknown>, depth: number, work: Work): Match {
  if (depth > DEEPEST) throw invalid(`a selector may nest ${DEEPEST} deep`)
  const parts = Object.entries(selector).map(([name, operand]): Match => {
    if (name.startsWith('$')) return operator(name, operand, depth, work)
    const path = fieldPath(name)
    const matches = condition(operand, depth + 1, work)
    return value => matches(member(value, path))
  })
  return value => parts.every(matches => {
    work.spend(1)
    return matches(value)
  })
}

/** An object is a selector of what it is applied to; anything else stands for equality. */
function condition (operand: unknown, depth: number, work: Work): Match {
  if (!isObject(operand) || Object.keys(operand).length === 0) return value => order(value, operand, work) === 0
  return compile(operand, depth, work)
}

function operator (name: string, operand: unknown, depth: number, work: Work): Match {
  switch (name) {
    case '$eq': return value => order(value, operand, work) === 0
    case '$ne': return value => value !== undefined && order(value, operand, work) !== 0
    case '$lt': return value => value !== undefined && order(value, operand, work) < 0
    case '$lte': return value => value !== undefined && order(value, operand, work) <= 0
    case '$gt': return value => value !== undefined && order(value, operand, work) > 0
    case '$gte': return value => value !== undefined && order(value, operand, work) >= 0
    case '$exists': return exists(operand)
    case '$type': return value => value !== undefined && typeName(value) === operand
    case '$in': return oneOf(list(name, operand), work)
    case '$nin': return not(oneOf(list(name, operand), work))
    case '$all': return allOf(list(name, operand), work)
    case '$size': return value => Array.isArray(value) && value.length === operand
    case '$mod': return modulo(operand)
    case '$not': return not(condition(operand, depth + 1, work))
    case '$and': return every(selectors(name, operand, depth, work))
    case '$or': return some(selectors(name, operand, depth, work))
    case '$nor': return not(some(selectors(name, operand, depth, work)))
    case '$elemMatch': return elements(condition(operand, depth + 1, work), 'some')
    case '$allMatch': return elements(condition(operand, depth + 1, work), 'every')
    case '$keyMapMatch': return keys(condition(operand, depth + 1, work))
    case '$beginsWith': return beginsWith(operand)
    case '$regex': throw invalid('$regex is not taken here: nothing could end a pattern that runs for ever')
    default: throw invalid(`unknown operator ${name.slice(0, 40)}`)
  }
}

const not = (matches: Match): Match => value => !matches(value)
const every = (all: readonly Match[]): Match => value => all.every(matches => matches(value))
const some = (all: readonly Match[]): Match => value => all.some(matches => matches(value))

function list (name: string, operand: unknown): readonly unknown[] {
  if (!Array.isArray(operand)) throw invalid(`${name} takes a list`)
  return operand
}

function selectors (name: string, operand: unknown, depth: number, work: Work): Match[] {
  return list(name, operand).map(one => condition(one, depth + 1, work))
}

function exists (operand: unknown): Match {
  if (typeof operand !== 'boolean') throw invalid('$exists takes true or false')
  return value => (value !== undefined) === operand
}

/** Long lists of choices are IDs and words, which are looked up and not compared. */
function oneOf (choices: readonly unknown[], work: Work): Match {
  const plain = new Set(choices.filter(isPlain))
  const others = choices.filter(choice => !isPlain(choice))
  const isChoice: Match = value => {
    work.spend(1)
    return isPlain(value) ? plain.has(value) : others.some(choice => order(value, choice, work) === 0)
  }
  return value => value !== undefined && (isChoice(value) || (Array.isArray(value) && value.some(isChoice)))
}

function allOf (needed: readonly unknown[], work: Work): Match {
  return value => Array.isArray(value) && needed.every(one => value.some(item => order(item, one, work) === 0))
}

const isPlain = (value: unknown): boolean => value === null || typeof value !== 'object'

function modulo (operand: unknown): Match {
  const [divisor, remainder] = Array.isArray(operand) && operand.length === 2 ? operand as [unknown, unknown] : []
  if (!Number.isInteger(divisor) || !Number.isInteger(remainder) || divisor === 0) throw invalid('$mod takes a divisor other than 0 and a remainder')
  return value => Number.isInteger(value) && (value as number) % (divisor as number) === remainder
}

function elements (matches: Match, how: 'some' | 'every'): Match {
  return value => Array.isArray(value) && value.length > 0 && value[how](matches)
}

function keys (matches: Match): Match {
  return value => isObject(value) && Object.keys(value).some(matches)
}

function beginsWith (operand: unknown): Match {
  if (typeof operand !== 'string') throw invalid('$beginsWith takes a string')
  return value => typeof value === 'string' && value.startsWith(operand)
}

/** `a.b` is a member of a member; `a\.b` is one name. */
export function fieldPath (name: string): string[] {
  return name.split(/(?<!\\)\./).map(part => part.replaceAll('\\.', '.').replace(/^\\\$/, '$'))
}

/** A member by its path, own members alone; undefined where there is none. */
export function member (value: unknown, path: readonly string[]): unknown {
  let at = value
  for (const name of path) {
    if (at === null || typeof at !== 'object' || !Object.hasOwn(at, name)) return undefined
    at = (at as Record<string, unknown>)[name]
  }
  return at
}

const TYPES = ['null', 'boolean', 'number', 'string', 'array', 'object']

function typeName (value: unknown): string {
  if (value === null) return 'null'
  return Array.isArray(value) ? 'array' : typeof value
}

/** CouchDB's order of JSON: null, booleans, numbers, strings, lists, objects. What is absent is before all.
 * Strings are in the order of their code units; CouchDB asks ICU. */
function order (a: unknown, b: unknown, work: Work): number {
  work.spend(1)
  const kinds = TYPES.indexOf(typeName(a)) - TYPES.indexOf(typeName(b))
  if (kinds !== 0) return kinds
  if (Array.isArray(a)) return orderLists(a, b as unknown[], work)
  if (isObject(a)) return orderLists(membersOf(a, work), membersOf(b as object, work), work)
  if (typeof a === 'string') work.spend(Math.min(a.length, (b as string).length) >> 6)
  if (a === b || a === undefined) return 0
  return (a as string) < (b as string) ? -1 : 1
}

function membersOf (value: object, work: Work): Array<[string, unknown]> {
  const members = Object.entries(value)
  work.spend(members.length)
  return members.sort(byName)
}

const byName = ([a]: [string, unknown], [b]: [string, unknown]): number => a < b ? -1 : a > b ? 1 : 0

function orderLists (a: readonly unknown[], b: readonly unknown[], work: Work): number {
  for (let at = 0; at < a.length && at < b.length; at++) {
    const found = order(a[at], b[at], work)
    if (found !== 0) return found
  }
  return a.length - b.length
}

import { join } from 'node:path'
import * as v from 'valibot'
import type { DatabaseName } from '../core/ids.js'
import { databaseName } from '../core/shape.js'
import { readState, writeState } from '../core/state-file.js'

/** A policy as the command line and `follow.json` write it. */
export const PolicyShape = v.variant('fetch', [
  v.strictObject({ fetch: v.literal('all') }),
  v.strictObject({ fetch: v.literal('on-demand') }),
  v.strictObject({ fetch: v.literal('up-to'), bytes: v.pipe(v.number(), v.safeInteger(), v.minValue(0)) }),
])
const Shape = v.strictObject({ version: v.literal(1), policies: v.array(v.strictObject({ database: databaseName, policy: PolicyShape })) })

/** Which of the files that a database's documents refer to are fetched without being asked for. */
export type FollowPolicy = v.InferOutput<typeof PolicyShape>

/** Whether the policy fetches a file of this size (bytes). */
export function fetches (policy: FollowPolicy, size: number): boolean {
  return policy.fetch === 'all' || (policy.fetch === 'up-to' && size <= policy.bytes)
}

/** `follow.json`: the policies that the person chose; databases without one have the default. */
export class FollowPolicies {
  readonly #path: string
  #chosen: ReadonlyMap<DatabaseName, FollowPolicy>

  private constructor (path: string, chosen: ReadonlyMap<DatabaseName, FollowPolicy>) {
    this.#path = path
    this.#chosen = chosen
  }

  /** Throws `bad-state`, naming the file and the field. */
  static async open (root: string): Promise<FollowPolicies> {
    const path = join(root, 'follow.json')
    const found = await readState(path, Shape)
    return new FollowPolicies(path, new Map(found?.policies.map(({ database, policy }) => [database, policy])))
  }

  of (database: DatabaseName): FollowPolicy | undefined { return this.#chosen.get(database) }

  /** On disk when it resolves. */
  async choose (database: DatabaseName, policy: FollowPolicy): Promise<void> {
    const chosen = new Map(this.#chosen).set(database, policy)
    await writeState(this.#path, Shape, { version: 1, policies: [...chosen].map(([name, one]) => ({ database: name, policy: one })) })
    this.#chosen = chosen
  }
}

import { setTimeout as sleep } from 'node:timers/promises'

/** What a step found to be otherwise than promised; its message is all that a person needs. */
export class Broken extends Error {
  override readonly name = 'Broken'
}

/** Throws `Broken` unless `holds`. */
export function must (holds: boolean, otherwise: string): asserts holds {
  if (!holds) throw new Broken(otherwise)
}

/** What `look` finds once it finds something; looked for again every 50 ms. Throws `Broken` naming `what`
 * after `ms`, with what went wrong last. */
export async function until<Found> (what: string, ms: number, look: () => Promise<Found | undefined | false> | Found | undefined | false): Promise<Found> {
  const deadline = performance.now() + ms
  let problem = ''
  for (;;) {
    try {
      const found = await look()
      if (found !== undefined && found !== false) return found
    } catch (error) {
      problem = `: ${error instanceof Error ? error.message : String(error)}`
    }
    if (performance.now() > deadline) throw new Broken(`${what}: not within ${ms / 1000} s${problem}`)
    await sleep(50)
  }
}

/** Runs `work` on every item, `atOnce` at a time. The first failure ends it. */
export async function forAll<Item> (items: readonly Item[], atOnce: number, work: (item: Item) => Promise<void>): Promise<void> {
  const left = items.values()
  await Promise.all(Array.from({ length: atOnce }, async () => {
    for (const item of left) await work(item)
  }))
}

/** Seconds since `since` (performance.now()). */
export const secondsSince = (since: number): number => (performance.now() - since) / 1000

/** Does `work` for each item in order, as many at once as together weigh at most `most` (one that weighs more goes alone). Rejects with what the first
 * that failed threw, at once, and begins no more; what is under way then goes on. */
export function eachWithin<Item> (items: Iterable<Item>, most: number, weigh: (item: Item) => number, work: (item: Item) => Promise<void>): Promise<void> {
  return new Promise((resolve, reject) => {
    const left = items[Symbol.iterator]()
    let next = left.next()
    let running = 0
    let weight = 0
    const begin = (): void => {
      for (; next.done !== true; next = left.next()) {
        const item = next.value
        const own = weigh(item)
        if (running > 0 && weight + own > most) return
        running += 1
        weight += own
        work(item).then(() => {
          running -= 1
          weight -= own
          begin()
        }, (error: unknown) => {
          next = { done: true, value: undefined }
          reject(error)
        })
      }
      if (running === 0) resolve()
    }
    begin()
  })
}

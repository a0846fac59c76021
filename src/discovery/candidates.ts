import type { Address } from '../core/address.js'
import type { DeviceId } from '../core/ids.js'
import { DISCOVERY_LIMITS } from './limits.js'

interface Source {
  readonly host: string
  readonly zone: string
  /** Newest first. */
  ports: number[]
  heardAt: number
}

/** Of the places for a device's sources, so many stay with those that came first and are still heard; the
 * others go round among the newest. So neither who comes early nor who comes often gets all of them. */
const HELD = DISCOVERY_LIMITS.candidates / 2

/**
 * Where known devices may be, as the link says: hints, never trust. Anybody on the link can repeat a hint of
 * somebody else's, so the places are given to *sources*: one that floods has one of them. There is no way
 * to take a candidate away (a goodbye could be anybody's); it expires when it is not heard of any more.
 */
export class Candidates {
  /** By device, then by source, in the order in which the sources came. */
  readonly #devices = new Map<DeviceId, Map<string, Source>>()

  /** Takes what was heard. Answers whether the list of that device is another one now. `now` is monotonic. */
  hear (device: DeviceId, host: string, zone: string, port: number, now: number): boolean {
    const sources = this.#devices.get(device) ?? new Map<string, Source>()
    this.#devices.set(device, sources)
    const key = `${host}%${zone}`
    const source = sources.get(key)
    if (source !== undefined) {
      source.heardAt = now
      if (source.ports[0] === port) return false
      source.ports = [port, ...source.ports.filter(other => other !== port)].slice(0, DISCOVERY_LIMITS.ports)
      return true
    }
    if (sources.size >= DISCOVERY_LIMITS.candidates) sources.delete([...sources.keys()][HELD]!)
    sources.set(key, { host, zone, ports: [port], heardAt: now })
    return true
  }

  /** The newest source, then the one that came first, and so on inwards: an honest device is one of both. */
  of (device: DeviceId): Address[] {
    const sources = [...this.#devices.get(device)?.values() ?? []]
    const ordered: Source[] = []
    for (let fromEnd = true; sources.length > 0; fromEnd = !fromEnd) ordered.push((fromEnd ? sources.pop() : sources.shift())!)
    return ordered.flatMap(({ host, zone, ports }) => ports.map(port => ({ host, zone, port })))
  }

  /** Forgets what was not heard of lately. Answers the devices whose lists are other ones now. */
  expire (now: number): DeviceId[] {
    return this.#drop(({ heardAt }) => now - heardAt >= DISCOVERY_LIMITS.candidateMs)
  }

  /** Forgets what was heard on an interface that is gone. */
  dropZone (gone: string): DeviceId[] {
    return this.#drop(({ zone }) => zone === gone)
  }

  /** Forgets devices that are no longer known. */
  retain (known: ReadonlySet<DeviceId>): void {
    for (const device of [...this.#devices.keys()]) if (!known.has(device)) this.#devices.delete(device)
  }

  #drop (isGone: (source: Source) => boolean): DeviceId[] {
    const changed: DeviceId[] = []
    for (const [device, sources] of this.#devices) {
      const before = sources.size
      for (const [key, source] of sources) if (isGone(source)) sources.delete(key)
      if (sources.size < before) changed.push(device)
      if (sources.size === 0) this.#devices.delete(device)
    }
    return changed
  }
}

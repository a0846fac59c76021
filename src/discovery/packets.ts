import { DISCOVERY_LIMITS } from './limits.js'

// Decoded packets, as dns-packet gives them: what is read here came over the link, and any field may be
// anything.

export interface Packet {
  readonly questions: readonly Question[]
  readonly answers: readonly DnsRecord[]
  readonly additionals: readonly DnsRecord[]
}

export interface Question {
  readonly name: string
  readonly type: string
}

export interface DnsRecord {
  readonly name: string
  readonly type: string
  readonly ttl: number
  /** The cache-flush bit (RFC 6762 section 10.2). */
  readonly flush?: boolean
  readonly data: unknown
}

/** One service that an answer tells of whole. */
export interface Service {
  readonly port: number
  readonly txt: readonly Uint8Array[]
  /** The first label of its name. */
  readonly instance: string
}

/** The services of `type` (`_patchcord._tcp.local`) that a response tells of with their SRV and TXT. Those
 * told of in parts, and goodbyes, are left out. Pure; at most a few of one packet. */
export function readServices ({ answers, additionals }: Packet, type: string): Service[] {
  const records = [...answers, ...additionals]
  const services: Service[] = []
  for (const { name, type: kind, ttl, data } of records) {
    if (services.length === DISCOVERY_LIMITS.packetServices) break
    if (kind !== 'PTR' || typeof data !== 'string' || !(ttl > 0) || !isSame(name, type)) continue
    const srv = records.find(record => record.type === 'SRV' && record.ttl > 0 && isSame(record.name, data))
    const txt = records.find(record => record.type === 'TXT' && isSame(record.name, data))
    const port = (srv?.data as { port?: unknown } | undefined)?.port
    if (typeof port !== 'number' || port < 1 || port > 65535 || !Array.isArray(txt?.data)) continue
    services.push({ port, txt: txt.data.filter(item => item instanceof Uint8Array), instance: data.slice(0, data.indexOf('.')) })
  }
  return services
}

/** The questions of a query worth an answer: each once, and not many. */
export function readQuestions ({ questions }: Packet): Question[] {
  const once = new Map(questions.slice(0, DISCOVERY_LIMITS.questions).map(question => [`${question.type} ${question.name}`, question]))
  return [...once.values()]
}

/** Names are compared without regard to the case of ASCII letters (RFC 6762 section 16). */
function isSame (one: string, other: string): boolean {
  return one.length === other.length && one.toLowerCase() === other.toLowerCase()
}

import { readFileSync } from 'node:fs'
import { isIPv4 } from 'node:net'
import type { IncomingFields, OutgoingFields } from '../policy/couch-headers.js'

// What a transfer knows of a request on its way to CouchDB, whoever carries it: a connection of our own where no
// body goes up (kept-connections.ts), http-proxy where one does (quiet-http-proxy.ts).

/** What a field value may hold, as latin1 (RFC 9110 section 5.5), besides nothing at all. */
export const FIELD_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/

export interface UpstreamTarget {
  readonly host: string
  readonly port: number
}

/** What is sent, all of it written anew. */
export interface UpstreamHead {
  readonly method: string
  readonly path: string
  readonly headers: OutgoingFields
}

/** The head of an answer. Names are in lower case. */
export interface UpstreamAnswer {
  readonly status: number
  readonly headers: IncomingFields
}

/** Told in this order: `answered`, `data` as often as there is some, `ended`; or `failed`, at any time, once. Nothing
 * more is told after `ended`, `failed` or an abort. */
export interface UpstreamListener {
  answered (answer: UpstreamAnswer): void
  /** Bytes of the body, without their framing: those of `bytes` from `from` to `to`. They are overwritten once this returns. */
  data (bytes: Buffer, from: number, to: number): void
  /** Nothing more is at hand now: what was kept to be written together is written now or waits for the network. */
  caughtUp (): void
  /** The whole answer came. */
  ended (): void
  /** A PatchcordError says what to answer; every other one is of the connection. */
  failed (error: Error): void
}

export interface UpstreamCall {
  /** Whether what was written waits for CouchDB to read it. */
  readonly isBacklogged: boolean
  /** Ends the request, also while it waits for a connection. */
  abort (): void
  /** Reads the rest of a short answer to keep the connection; its listener hears no more. */
  discard (): void
  /** No `data` until `resume`, but for what was read already. */
  pause (): void
  resume (): void
}

/** Where to connect to for an address. On Linux an IPv4 address is reached by an IPv6 socket (RFC 4291, 2.5.5.2): the
 * AppArmor profile of the server allows no other, since one that it may connect with it may listen with as well. Where
 * this machine's IPv6 sockets take no such address (`net.ipv6.bindv6only`), it is reached as it is. */
export function socketAddress (host: string, platform = process.platform, isMapped = takesMapped): string {
  return platform === 'linux' && isIPv4(host) && isMapped() ? `::ffff:${host}` : host
}

/** What a new IPv6 socket's IPV6_V6ONLY is (ipv6(7)), asked once: it is set when a machine is set up. */
function takesMapped (): boolean {
  mapped ??= (() => {
    try {
      return readFileSync('/proc/sys/net/ipv6/bindv6only', 'latin1').trim() !== '1'
    } catch {
      return true
    }
  })()
  return mapped
}

let mapped: boolean | undefined

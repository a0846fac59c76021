import { readFile } from 'node:fs/promises'
import { request, Agent, type RequestOptions } from 'node:https'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import type { LookupFunction } from 'node:net'
import { join } from 'node:path'
import { SERVER_NAME } from '../../src/policy/canonical.js'
import type { Device } from './device.js'

// The open port of a device, as any HTTPS client sees it: nothing of patchcord's own client is used here.

/** What a device proves itself with, as PEM, read from its home. */
export interface Proof {
  readonly key: string
  readonly cert: string
  readonly ca: string
}

export async function proofOf ({ home }: Device): Promise<Proof> {
  const pem = (...path: string[]): Promise<string> => readFile(join(home, 'identity', ...path), 'utf8')
  return { key: await pem('device.key'), cert: await pem('current', 'device.pem'), ca: await pem('current', 'ca.pem') }
}

/** Every name is this machine: the devices have names that no resolver knows, and `localhost` may be 127.0.0.1
 * alone where the databases listen on ::1. */
export const lookupHere: LookupFunction = (_name, { all }, done) => {
  if (all === true) done(null, [{ address: '::1', family: 6 }])
  else done(null, '::1', 6)
}

/** The name in a device's server certificate. */
export const hostOf = ({ id }: Device): string => `${id}.${SERVER_NAME}`

/** The port lets 32 connections of one identity in, its own service's among them; PouchDB by itself opens one
 * per attachment. */
const MOST_SOCKETS = 8

/** A pool of connections that prove themselves with `key` and `cert`. The server's certificate is checked by
 * Node's own rules: its CA, and the name that it is asked for. */
export function agentFor ({ key, cert }: Pick<Proof, 'key' | 'cert'>, { ca }: Pick<Proof, 'ca'>): Agent {
  return new Agent({ key, cert, ca, keepAlive: true, maxSockets: MOST_SOCKETS, lookup: lookupHere, minVersion: 'TLSv1.3' })
}

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
}

export interface Ask {
  readonly method?: string
  readonly body?: string | Buffer
  readonly headers?: Readonly<Record<string, string>>
}

/** One request with the whole of its answer. */
export async function ask (agent: Agent, to: Device, path: string, options: Ask = {}): Promise<Answer> {
  const answer = await open(agent, to, path, options)
  const chunks: Buffer[] = []
  for await (const chunk of answer as AsyncIterable<Buffer>) chunks.push(chunk)
  return { status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(chunks) }
}

/** One request with the head of its answer; the caller reads on. `port` may be another that leads there. */
export async function open (agent: Agent, to: Device, path: string, { method = 'GET', body, headers = {} }: Ask = {}, port = to.port): Promise<IncomingMessage> {
  const options: RequestOptions = {
    agent, method, path, host: hostOf(to), port,
    headers: { ...headers, ...body === undefined ? {} : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) } },
  }
  return await new Promise((resolve, reject) => {
    request(options, resolve).on('error', reject).end(body)
  })
}

import { Agent, type AgentOptions } from '../agent/agent.js'
import { ControlClient } from '../control/client.js'
import type { Args, EventOf, OperationName, Result } from '../control/operations.js'
import type { Address } from '../core/address.js'
import { findHome, type Home } from '../core/home.js'
import type { Logger } from '../core/log.js'
import type { LabClock } from './clock.js'
import { Relay } from './relay.js'

export interface LabDeviceOptions {
  /** Whose device it is: devices of one user share a CA. */
  readonly user: string
  readonly name: string
  /** Whether its CouchDB pulls by itself. */
  readonly replication?: AgentOptions['replication']
  /** Limits of its open port that differ from the defaults. */
  readonly limits?: AgentOptions['limits']
  /** A CouchDB in the place of the embedded database. */
  readonly couch?: AgentOptions['couch']
}

/** One whole device: agent, server and database in this process, with a folder of its own. */
export class LabDevice {
  readonly name: string
  readonly user: string
  readonly home: Home
  readonly #options: LabDeviceOptions
  readonly #clock: LabClock
  readonly #logger: Logger
  /** The cables to this device, by the device at the other end. */
  readonly #relays = new Map<string, Relay>()
  #agent: Agent | undefined
  #port = 0

  constructor (options: LabDeviceOptions, folder: string, clock: LabClock, logger: Logger) {
    this.name = options.name
    this.user = options.user
    this.home = findHome(folder, {})
    this.#options = options
    this.#clock = clock
    this.#logger = logger
  }

  get agent (): Agent {
    if (this.#agent === undefined) throw new Error(`${this.name} is not running`)
    return this.#agent
  }

  get device (): string { return this.agent.keystore.identity.device }
  /** Where its open port listens. */
  get address (): Address { return { host: '::1', port: this.#port } }
  /** The local database and the login of the person's own programs. */
  get couch (): { url: string, username: string, password: string } { return { url: this.agent.couch.url, ...this.agent.programLogin } }

  async start (): Promise<void> {
    const { limits, couch, replication } = this.#options
    this.#agent = await Agent.start({
      home: this.home, name: this.name, inProcess: true,
      // Links are the test's: devices of one lab, or of two, must not find each other by themselves.
      discovery: false,
      listen: { host: '::1', port: this.#port },
      ...limits === undefined ? {} : { limits },
      ...couch === undefined ? {} : { couch },
      ...replication === undefined ? {} : { replication },
    }, { logger: this.#logger, clock: this.#clock })
    this.#port = this.#agent.addresses[0]?.port ?? 0
  }

  /** Ends it as Ctrl-C does; `start` begins again with the same folder and port. */
  async stop (): Promise<void> {
    const agent = this.#agent
    this.#agent = undefined
    await agent?.stop()
  }

  /** Runs one operation of the control socket, as the command line does. */
  call<Name extends OperationName> (name: Name, args: Args<Name>, onEvent?: (event: EventOf<Name>) => void): Promise<Result<Name>> {
    return new ControlClient(this.home.socket).call(name, args, onEvent)
  }

  /** One request to the local database, as the owner; parsed JSON. */
  async db (method: string, path: string, body?: unknown): Promise<{ status: number, value: unknown }> {
    return await this.agent.couch.client.ask(method, path, body)
  }

  /** The cable by which `other` reaches this device. */
  async relayFrom (other: LabDevice): Promise<Relay> {
    let relay = this.#relays.get(other.name)
    if (relay === undefined) {
      relay = new Relay(() => this.address)
      this.#relays.set(other.name, relay)
      await relay.listen()
    }
    return relay
  }

  async close (): Promise<void> {
    await this.stop()
    await Promise.all([...this.#relays.values()].map(relay => relay.close()))
  }
}

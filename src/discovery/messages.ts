import type { Address } from '../core/address.js'
import type { DeviceId } from '../core/ids.js'

// What crosses between the agent's thread and the worker's.

/** Handed over when the worker starts, and the parts of it again whenever they change. */
export interface WorkerSettings {
  readonly device: DeviceId
  /** The open port; 0 announces nothing. */
  readonly port: number
  readonly known: readonly DeviceId[]
  readonly pairing: readonly PairingAnnouncement[]
}

export interface PairingAnnouncement {
  readonly name: string
  readonly port: number
}

export type ToWorker =
  | { readonly kind: 'settings', readonly settings: WorkerSettings }
  | { readonly kind: 'browse-pairing', readonly on: boolean }
  | { readonly kind: 'stop' }

export type FromWorker =
  | { readonly kind: 'ready' }
  | { readonly kind: 'candidates', readonly device: DeviceId, readonly addresses: readonly Address[] }
  | { readonly kind: 'links', readonly links: readonly LinkState[] }
  | { readonly kind: 'windows', readonly windows: readonly PairingWindow[] }
  | { readonly kind: 'stopped' }

/** An interface as discovery sees it. */
export interface LinkState {
  readonly name: string
  /** Link-local addresses that can be used. */
  readonly addresses: readonly string[]
  /** `waiting`: its addresses are still checked for duplicates (RFC 4862). */
  readonly state: 'waiting' | 'ready' | 'failed'
  /** Why it failed, or why the last packet was not sent. */
  readonly problem?: string
  /** Packets that came too often and were dropped unread. */
  readonly dropped: number
}

/** A device that is open for pairing, as it says itself. */
export interface PairingWindow {
  readonly name: string
  readonly address: Address
}

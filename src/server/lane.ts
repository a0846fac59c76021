import type { Limits } from '../core/limits.js'
import type { Connection } from './connections.js'
import type { Asked } from './dispatch.js'
import { LaneAnswer } from './lane-answer.js'
import { LaneOutput } from './lane-output.js'
import { PlainHeads } from './plain-head.js'
import type { RawHead } from '../policy/canonical.js'

// The plain lane: a shorter way in for reads, which are most requests there are. Node's HTTP server (its parser, two
// streams, their ends) was half of what each cost.
//
// An admitted connection is read here first. As long as each piece that comes is nothing but heads of the plainest form (plain-head.ts)
// below /couch/ or /files/, they are asked here: of the same Dispatch, with the same stations and limits.
// At the first piece that is anything else (half a head, a body, a byte too many) the connection is handed over with
// that piece to Node's HTTP server, which alone reads it from then on. The lane waits for the rest of nothing and frames
// nothing: it has no state in which it and Node, or it and CouchDB, could see different requests in the same bytes. An answer of the lane may
// still run when Node takes over; Dispatch answers in the order of asking, whoever has read it.

export interface LaneOptions {
  readonly limits: Limits
  readonly ask: (connection: Connection, asked: Asked) => void
  /** Node's HTTP server takes the connection, and finds what is unread in it. */
  readonly handOver: (connection: Connection) => void
  /** Nothing came in time for a first request. */
  readonly late: (connection: Connection) => void
}

const isOfLane = ({ target }: RawHead): boolean => target.startsWith('/couch/') || target.startsWith('/files/')

/** Reads an admitted connection until it is handed over. Nothing came of it to anybody before: its first byte is read here. */
export function openLane (connection: Connection, { limits, ask, handOver, late }: LaneOptions): void {
  const { socket } = connection
  const plain = new PlainHeads(limits)
  const output = new LaneOutput(connection)
  let hasAsked = false
  const read = (piece: Buffer): void => {
    // Nothing is looked at behind what ends the connection.
    if (connection.refused) return
    const heads = plain.recognise(piece)
    if (heads?.every(isOfLane) === true) {
      if (!hasAsked) socket.setTimeout(limits.idleMs)
      hasAsked = true
      for (const { method, target, httpVersion, rawHeaders, known } of heads) {
        if (connection.refused) return
        ask(connection, { method, target, httpVersion, rawHeaders, known, message: undefined, response: new LaneAnswer(output, method, limits.idleMs), askForBody: undefined })
      }
      return
    }
    // For good: nothing here reads or times it any more.
    socket.off('data', read)
    socket.off('timeout', rested)
    socket.setTimeout(0)
    // What Node answers comes behind what was answered here.
    output.hurry()
    // Paused, or the piece would be told to nobody.
    socket.pause()
    socket.unshift(piece)
    handOver(connection)
    socket.resume()
  }
  const rested = (): void => {
    if (connection.waiting > 0) return
    if (hasAsked) socket.destroy()
    else late(connection)
  }
  socket.on('data', read)
  socket.on('timeout', rested)
  socket.setTimeout(limits.headMs)
}

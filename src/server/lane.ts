import type { Limits } from '../core/limits.js'
import type { Connection } from './connections.js'
import type { Asked } from './dispatch.js'
import { LaneAnswer } from './lane-answer.js'
import { PlainHeads } from './plain-head.js'

// The plain lane: a shorter way in for reads of CouchDB, which are most requests there are. Node's HTTP server (its parser, two
// streams, their ends) was half of what each cost.
//
// An admitted connection is read here first. As long as each piece that comes is exactly one head of the plainest form (plain-head.ts)
// below /couch/, and comes when the answer before it was written, it is asked here: of the same Dispatch, with the same stations and limits.
// At the first piece that is anything else (half a head, two, a body, a file, a byte too many) the connection is handed over with
// that piece to Node's HTTP server, which alone reads it from then on. The lane waits for the rest of nothing, joins nothing and frames
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

/** Reads an admitted connection until it is handed over. Nothing came of it to anybody before: its first byte is read here. */
export function openLane (connection: Connection, { limits, ask, handOver, late }: LaneOptions): void {
  const { socket } = connection
  const heads = new PlainHeads(limits)
  /** The newest answer, and the one before it. */
  let answer: LaneAnswer | undefined
  let before: LaneAnswer | undefined
  let hasAsked = false
  const read = (piece: Buffer): void => {
    const isFree = connection.waiting === 0 || (connection.waiting === 1 && answer?.isEnded === true)
    const head = isFree && !connection.refused ? heads.recognise(piece) : undefined
    if (head?.target.startsWith('/couch/') === true) {
      if (!hasAsked) socket.setTimeout(limits.idleMs)
      hasAsked = true
      before = answer
      answer = new LaneAnswer(socket, head.method, limits.idleMs)
      const { method, target, httpVersion, rawHeaders, known } = head
      ask(connection, { method, target, httpVersion, rawHeaders, known, message: undefined, response: answer, askForBody: undefined })
      return
    }
    // For good: nothing here reads or times it any more.
    socket.off('data', read)
    socket.off('timeout', rested)
    socket.setTimeout(0)
    // What Node answers comes behind what was answered here.
    before?.flush()
    answer?.flush()
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
  // These stay: an answer of the lane may still run when Node reads on.
  socket.on('drain', () => {
    before?.tell('drain')
    answer?.tell('drain')
  })
  socket.once('close', () => {
    before?.tell('close')
    answer?.tell('close')
  })
}

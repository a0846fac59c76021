/** The connection is gone; the system took the whole answer; it takes more again. */
export type AnswerEvent = 'close' | 'finish' | 'drain'

/**
 * What an answer is written to: Node's ServerResponse, or the answer of the plain lane (server/lane-answer.ts). What is here means
 * what Node's documentation says of it.
 */
export interface Answering {
  statusCode: number
  /** False: the connection ends with this answer. */
  shouldKeepAlive: boolean
  readonly req: { readonly method?: string | undefined }
  /** Null where it still waits behind another answer, or that one has ended the connection. */
  readonly socket: object | null
  readonly headersSent: boolean
  readonly destroyed: boolean
  readonly writableFinished: boolean
  /** Names in lower case or as they are to be written. Throws for what no header may hold. */
  writeHead (status: number, headers: Record<string, string | number>): unknown
  flushHeaders (): void
  write (chunk: Uint8Array): boolean
  write (chunk: string, encoding: 'latin1'): boolean
  end (chunk?: Uint8Array): unknown
  end (chunk: string, encoding: 'latin1'): unknown
  /** The next answer may be written: this one has ended, and little of it waits for the system. Where it is left out, only once the system took it whole. */
  readonly mayBeFollowed?: boolean
  /** Ends the connection, whatever is on its way. */
  destroy (): unknown
  once (event: AnswerEvent, listener: () => void): unknown
  on (event: AnswerEvent, listener: () => void): unknown
  off (event: AnswerEvent, listener: () => void): unknown
}

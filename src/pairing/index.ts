// The pairing room: how two devices that have never met come to trust each other, by six digits that one
// person reads out and another types, or by a link.
//
// It promises that nobody is trusted without two equal confirmations by two persons (or by what they told
// their devices beforehand); that somebody between the two ends gets one guess at the code for each session,
// three for each code over all addresses, and is found out by both sides; that the joiner, too, gives away
// three guesses at most; and that no name, certificate or CA crosses before both have proved the secret.
//
// It must never send a share before its charge is on disk, write a secret down, believe a record whose
// certificate is over another key than the connection, run two sessions at once, or touch the open port.
//
//   I, who joins                                   R, who opened the window (2 minutes)
//   ── TLS 1.3, each with a self-signed certificate over its device key; sid = exporter ──
//   M1  {v, kind, Ya}                   ──────►    the charge goes to disk, then
//                                       ◄──────    M2  {Yb}
//   M3  Ta                              ──────►    wrong: refused, told, one attempt gone
//                                       ◄──────    M4  Tb            10 s after accept at the latest
//   M5  record of I                     ──────►    "Bob's laptop wants to be a peer": the person says yes
//                                       ◄──────    M6  record of R
//   the person says yes; pending on disk
//   M7  accept                          ──────►    the pair goes to disk, for own with certificates
//                                       ◄──────    M8  commit
//   the pair goes to disk
//   M9  done                            ──────►
//
// lv_cat(a, b, …) is the CPace draft's: each part after its length in LEB128. Device IDs are 32 raw bytes.
//
//   PRS = lv_cat(kind, secret)          kind is "code" (six ASCII digits) or "link" (16 bytes)
//   CI  = lv_cat("patchcord-pair/1", kind, idI, idR)
//   T   = HMAC-SHA-512(SHA-512("CPaceMac" ‖ sid ‖ ISK), lv_cat(Y, "I" or "R"))
//   K   = HKDF-SHA-512(ISK, salt sid, info "patchcord-pair/1 records", 64 bytes)
//   H   = SHA-512 over the frames as they crossed, in order
//   record = lv_cat(role, relation, name, deviceCert, userCa, recoveryKey or "", csr or "", grants)
//            csr = lv_cat(device's request, server's request)   grants = lv_cat(port or "", db, access, db, …)
//   M5, M6 = lv_cat(record, HMAC(K, lv_cat(role, H(M1…M4), record)))
//   M7, M9 = lv_cat(HMAC(K, lv_cat("accept" or "done", H(all before))))
//   M8     = lv_cat(certs, HMAC(K, lv_cat("commit", H(all before ‖ certs))))   certs = lv_cat(device's, server's) or ""
//
// A message on the wire is a frame: number, length of the body (two bytes), body; `refuse` (15) with one
// word may come in place of any. M1 of a code, and M2, as they cross:
//
//   01 0028  01 01  04 636f6465  20 d6bac480f2c386c394efc7c47adb9925dcd2630b64f240c50f8d0eec482b9157
//   02 0021  20 3ea7e0b19560d7c0b0f5734f63b955286dfa8232b5ebe63324e2d9e7433f7258
//
// initiator.ts and responder.ts are the two machines, pure functions of (state, event, now). joiner.ts and
// listener.ts drive them over sockets.

export { Charges, SpentShares } from './charges.js'
export { failureError, type Failure, type FailureReason } from './failures.js'
export { dialable, formatLink, newCode, ownAddresses, parseInvitation, type Link } from './invitation.js'
export { join, type InitiatorHost, type JoinOptions, type JoinOutcome } from './joiner.js'
export { PairingWindow, type Invitation, type ResponderHost, type WindowOptions, type WindowOutcome } from './listener.js'
export type { Access, PartyRecord, Relation, Role, SecretKind } from './messages.js'
export type { Certificates, Other, OwnRecord, Pair, Self } from './party.js'
export { PENDING_MS, PendingPairs, type Pending } from './pending.js'
export { MOST_CHARGES, WINDOW_MS } from './responder-state.js'
export { channelOf, tlsOptions, type PairingHost } from './wire.js'

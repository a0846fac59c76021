// The identity room: whose key it is, who vouches for it, and what this user decided about it.
//
// It promises that one predicate (admission.ts) decides on both ends of every connection, that what it
// decides by is one reading of one canonical certificate (der.ts, x509.ts, leaf.ts), that trust is built
// whole or not at all (trust.ts), and that what is on disk is whole or refused by name (keystore.ts,
// whitelist.ts, grants.ts, revocations.ts).
//
// It must never let a name decide, add two whitelist entries up, read a missing revoked.json as empty, keep
// the CA's key, or take anything out of a signing request but its public key.
//
//   readLeaf(der) ─► Leaf ─┐
//   buildTrust(parts) ─► Trust ─┴─► admitClient(trust, leaf, now) ─► Principal | Refusal

export { admitClient, admitServer, buildTrust, isRefusal, serverUri, type AdmittedServer, type ExpectedServer, type Refusal, type RefusalRule, type Trust, type TrustParts, type WhitelistEntry } from './admission.js'
export { readAuthority, type Authority } from './authority.js'
export { formatBundle, formatIssue, formatRequest, parseBundle, parseIssue, parseRequest, type Bundle, type Issue } from './bundle.js'
export { createUserCa, issueClient, issueDevice, issueServer, type Issuing } from './certificates.js'
export { createCsr, readCsr } from './csr.js'
export { DEFAULT_GRANTS, readGrants, writeGrants } from './grants.js'
export { deviceIdOf, generateClientKey, generateKey, privateKeyFromPem, privateKeyToPem, spkiOf, userIdOf, type KeyPair } from './keys.js'
export { Keystore, type CreateOptions, type Identity } from './keystore.js'
export { isSignedBy, readLeaf, type Leaf } from './leaf.js'
export { decodeOnePem, decodePem, encodePem, type PemBlock } from './pem.js'
export { REASON, signRevocation, verifyRevocation, type RevocationBody, type SignedRecord } from './revocation.js'
export { effectiveRevocations, mergeRevocations, Revocations, type Revocation } from './revocations.js'
export { GrantShape, OwnGrantShape, WhitelistEntryShape } from './shapes.js'
export { readWhitelist, writeWhitelist } from './whitelist.js'

import { randomBytes } from 'node:crypto'
import t from 'tap'
import { deriveIsk, encodedGenerator, generatorString, makeShare, multiplyVerified } from '../src/pairing/cpace.js'

// The vectors are those of draft-irtf-cfrg-cpace-21, appendix "Test vector for CPace using group ristretto255
// and hash SHA-512", as published in github.com/cfrg/draft-irtf-cfrg-cpace, draft-irtf-cfrg-cpace.md, tag
// draft-irtf-cfrg-cpace-21 (commit 8fb4056e1b92).

const hex = (text: string): Buffer => Buffer.from(text.replace(/\s/g, ''), 'hex')

const VECTOR = {
  prs: Buffer.from('Password'),
  ci: hex('0b415f696e69746961746f720b425f726573706f6e646572'),
  sid: hex('7e4b4791d6a8ef019b936c79fb7f2c57'),
  generatorString: hex(`11435061636552697374726574746f3235350850617373776f726464
    00000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000180b415f696e69746961746f
    720b425f726573706f6e646572107e4b4791d6a8ef019b936c79fb7f
    2c57`),
  g: hex('222b6b195fe84b1652badb6f6a3ae3d24341e7306967f0b8115b40d5698c7e56'),
  ya: hex('da3d23700a9e5699258aef94dc060dfda5ebb61f02a5ea77fad53f4ff0976d08'),
  Ya: hex('d6bac480f2c386c394efc7c47adb9925dcd2630b64f240c50f8d0eec482b9157'),
  yb: hex('d2316b454718c35362d83d69df6320f38578ed5984651435e2949762d900b80d'),
  Yb: hex('3ea7e0b19560d7c0b0f5734f63b955286dfa8232b5ebe63324e2d9e7433f7258'),
  K: hex('80b69a8a76457ab6a4d7f887a4bf6b55a2f80ac19c333f917a05fc9887c8b40f'),
  ISK: hex(`b69effbf61b51d56401c0f65601abe428de8206feaaf0e32198896dc
    ae7b35cd2b38950a39dfd5d4a79164614c2984f7daa460b588c1e80c
    3fa2068af7900447`),
}

/** "Test case for scalar_mult with valid inputs" and "Invalid inputs for scalar_mult_vfy". */
const POINTS = {
  s: hex('7cd0e075fa7955ba52c02759a6c90dbbfc10e6d40aea8d283e407d88cf538a05'),
  X: hex('2c3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c'),
  product: hex('7c13645fe790a468f62c39beb7388e541d8405d1ade69d1778c5fe3e7f6b600e'),
  invalid: hex('2b3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c'),
  identity: Buffer.alloc(32),
}

await t.test('the published vectors', t => {
  t.ok(generatorString(VECTOR).equals(VECTOR.generatorString))
  t.ok(encodedGenerator(VECTOR).equals(VECTOR.g))
  // Both scalars of the draft have their 252 bits only, so sampling leaves them as they are.
  const a = makeShare(VECTOR, VECTOR.ya)
  const b = { scalar: VECTOR.yb, share: VECTOR.Yb }
  t.ok(a.scalar.equals(VECTOR.ya))
  t.ok(a.share.equals(VECTOR.Ya))
  const masked = VECTOR.yb[31]! > 0x0f
  t.equal(masked, false, 'the draft has sampled yb as it says')
  t.ok(makeShare(VECTOR, VECTOR.yb).share.equals(VECTOR.Yb))
  t.ok(multiplyVerified(VECTOR.ya, VECTOR.Yb)?.equals(VECTOR.K))
  t.ok(multiplyVerified(VECTOR.yb, VECTOR.Ya)?.equals(VECTOR.K))
  const sent = { initiator: { share: VECTOR.Ya, ad: Buffer.from('ADa') }, responder: { share: VECTOR.Yb, ad: Buffer.from('ADb') } }
  t.ok(deriveIsk(VECTOR, a, VECTOR.Yb, sent)?.equals(VECTOR.ISK))
  t.ok(deriveIsk(VECTOR, b, VECTOR.Ya, sent)?.equals(VECTOR.ISK))
  t.notOk(deriveIsk(VECTOR, b, VECTOR.Ya, { initiator: sent.responder, responder: sent.initiator })?.equals(VECTOR.ISK), 'the order is part of it')
  t.ok(multiplyVerified(POINTS.s, POINTS.X)?.equals(POINTS.product))
  t.end()
})

await t.test('shares that are refused', t => {
  const own = makeShare(VECTOR, VECTOR.ya)
  const refused = (share: Buffer): boolean => deriveIsk(VECTOR, own, share, { initiator: { share: own.share, ad: Buffer.of(1) }, responder: { share, ad: Buffer.of(2) } }) === undefined
  t.equal(refused(VECTOR.Yb), false)
  t.equal(refused(own.share), true, 'our own, reflected')
  t.equal(multiplyVerified(POINTS.s, POINTS.invalid), undefined)
  t.equal(multiplyVerified(POINTS.s, POINTS.identity), undefined)
  t.equal(refused(POINTS.identity), true, 'the identity')
  t.equal(refused(POINTS.invalid), true, 'the encoding of nothing')
  t.equal(refused(Buffer.concat([VECTOR.Yb, Buffer.of(0)])), true, 'one byte more')
  t.equal(refused(VECTOR.Yb.subarray(0, 31)), true, 'one byte less')
  t.equal(refused(Buffer.alloc(0)), true, 'nothing')
  // RFC 9496 section 4.3.1: s must be below p, and even.
  t.equal(refused(Buffer.concat([Buffer.alloc(31, 0xff), Buffer.of(0x7f)])), true, 'not below p')
  const odd = Buffer.from(VECTOR.Yb)
  odd[31]! |= 0x80
  t.equal(refused(odd), true, 'another spelling of the same element')
  t.throws(() => makeShare(VECTOR, Buffer.alloc(31)), RangeError)
  t.throws(() => makeShare(VECTOR, Buffer.alloc(32)), 'a scalar of zero')
  t.throws(() => makeShare(VECTOR, Buffer.concat([Buffer.alloc(31), Buffer.of(0xf0)])), 'a scalar whose 252 bits are zero')
  t.end()
})

await t.test('the password, the identifier and the parties all count', t => {
  const random = randomBytes(32)
  const share = (terms: { prs: Buffer, ci: Buffer, sid: Buffer }): string => makeShare(terms, random).share.toString('hex')
  const terms = { prs: VECTOR.prs, ci: VECTOR.ci, sid: VECTOR.sid }
  const all = [terms, { ...terms, prs: Buffer.from('Passwore') }, { ...terms, ci: Buffer.from('x') }, { ...terms, sid: randomBytes(32) }].map(share)
  t.equal(new Set(all).size, all.length)
  t.end()
})

import fc from 'fast-check'
import t from 'tap'
import { formatAddress, hostOf, isLinkLocal, isLoopback, parseAddress, reachableAddresses, splitZone } from '../src/core/address.js'

await t.test('addresses, refusals first', async t => {
  for (const text of ['', 'localhost:1', '[::1]', '::1:80', '[::1]:', '[::1]:65536', '[::1]:-1', '[fe80::1]:4984', '[fe80::1%]:4984', '[fe80::1%a b]:1', '[fe80::1%averyveryverylong]:1', '[1.2.3.4]:1x', '1.2.3:80', 'http://[::1]:80', '[::1]:80/', '[::g]:80', '[::1%eth0%x]:1']) {
    t.throws(() => parseAddress(text), { code: 'usage' }, JSON.stringify(text))
  }
  t.throws(() => parseAddress('[fe80::1]:4984'), { message: /names no interface/, hint: /%eth0/ })
  for (const [text, address] of [
    ['[::1]:4984', { host: '::1', port: 4984 }],
    ['[::]:0', { host: '::', port: 0 }],
    ['127.0.0.1:80', { host: '127.0.0.1', port: 80 }],
    ['[fe80::1%eth0]:4984', { host: 'fe80::1', zone: 'eth0', port: 4984 }],
    ['[fe80::1%25eth0]:4984', { host: 'fe80::1', zone: 'eth0', port: 4984 }],
    ['[fe80::fc:ff:fe00:1%eth0.5]:1', { host: 'fe80::fc:ff:fe00:1', zone: 'eth0.5', port: 1 }],
    ['[fe80::1%2]:1', { host: 'fe80::1', zone: '2', port: 1 }],
  ] as const) {
    t.strictSame(parseAddress(text), address, text)
    t.strictSame(parseAddress(formatAddress(address)), address)
  }
  t.equal(hostOf({ host: 'fe80::1', zone: 'eth0' }), 'fe80::1%eth0')
  t.strictSame(splitZone('fe80::1%eth0'), { host: 'fe80::1', zone: 'eth0' })
  for (const host of ['fe80::1', 'FEBF::', 'fe9a::2']) t.ok(isLinkLocal(host), host)
  for (const host of ['fec0::1', '::1', 'fd00::1', '2001:db8::1', 'fe8::1']) t.notOk(isLinkLocal(host), host)
  for (const host of ['::1', '127.0.0.1', '127.9.8.7', '::ffff:127.0.0.1']) t.ok(isLoopback(host), host)
  for (const host of ['::', '128.0.0.1', '::ffff:10.0.0.1', '1270.0.0.1']) t.notOk(isLoopback(host), host)
  for (const address of reachableAddresses({ host: '::', port: 7 })) t.strictSame(parseAddress(formatAddress(address)), address, 'what we show can be typed')
  t.strictSame(reachableAddresses({ host: '::1', port: 7 }), [{ host: '::1', port: 7 }])
})

await t.test('any text is an address with one spelling more, or refused as usage', async t => {
  fc.assert(fc.property(fc.oneof(fc.string(), fc.tuple(fc.ipV6(), fc.option(fc.stringMatching(/^[a-z0-9]{1,8}$/)), fc.nat(70_000)).map(([host, zone, port]) => `[${host}${zone === null ? '' : `%${zone}`}]:${port}`)), text => {
    try {
      const address = parseAddress(text)
      return JSON.stringify(parseAddress(formatAddress(address))) === JSON.stringify(address)
    } catch (error) {
      return (error as { code?: string }).code === 'usage'
    }
  }), { seed: 1, numRuns: 2000 })
  t.pass('2000 texts')
})

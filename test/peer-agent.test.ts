import t, { type Test } from 'tap'
import { once } from 'node:events'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { systemClock } from '../src/core/clock.js'
import { Keystore } from '../src/identity/keystore.js'
import { askPeer, PeerAgent, readBody } from '../src/sync/peer-agent.js'

const IDLE_MS = 200

async function connected (t: Test): Promise<{ ask: (path: string) => Promise<string>, handshakes: () => number }> {
  const folder = t.testdir({})
  const [client, server] = [await Keystore.create(join(folder, 'client')), await Keystore.create(join(folder, 'server'))]
  let handshakes = 0
  // It waits as long as the path says.
  const https = createServer({ key: await server.serverKey(), cert: server.identity.serverCertificate, minVersion: 'TLSv1.3', ALPNProtocols: ['http/1.1'] }, (request, response) => {
    void sleep(Number(request.url!.slice(1))).then(() => response.end('done'))
  })
  https.on('secureConnection', () => { handshakes += 1 })
  https.listen({ host: '::1', port: 0 })
  await once(https, 'listening')
  const { device, userCa } = server.identity
  const agent = new PeerAgent({
    device, clock: systemClock,
    credentials: async () => ({ key: await client.deviceKey(), certificate: client.identity.deviceCertificate, ca: userCa, revoked: new Set() }),
    address: () => ({ host: '::1', port: (https.address() as AddressInfo).port }),
  }, { timeout: IDLE_MS })
  t.teardown(() => {
    agent.destroy()
    https.close()
  })
  return { ask: async path => (await readBody(await askPeer(agent, device, path), 100)).toString(), handshakes: () => handshakes }
}

// A listener that the handshake left behind ended the long-poll on /mail after 60 s, and with it the link.
await t.test('what waits longer than a connection may be idle is not ended', async t => {
  const { ask, handshakes } = await connected(t)
  await ask('/0')
  t.equal(await ask(`/${3 * IDLE_MS}`), 'done')
  t.equal(handshakes(), 1, 'on a connection that was used before')
})

await t.test('as many connections are kept as there may be', async t => {
  const { ask, handshakes } = await connected(t)
  const eight = async (): Promise<void> => { await Promise.all(Array.from({ length: 8 }, () => ask('/20'))) }
  await eight()
  await eight()
  t.equal(handshakes(), 8)
})

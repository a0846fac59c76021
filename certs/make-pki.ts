import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { EKU, basicConstraints, extendedKeyUsage, keyUsage, mintLeaf, toPem, uris, type MintedCa } from './mint.js'
import { makePki } from './pki.js'

// node build/certs/make-pki.js --out <dir>: writes the PKI of pki.ts, for trying by hand with openssl and
// curl, with an env for patchcord-server that trusts it. Keys are 0600; nothing of it is ever committed.

const { values: { out } } = parseArgs({ options: { out: { type: 'string' } } })
if (out === undefined) {
  process.stderr.write('say where to: node build/certs/make-pki.js --out <dir>\n')
  process.exitCode = 2
} else {
  await write(out)
}

async function write (dir: string): Promise<void> {
  const now = Date.now()
  const pki = makePki(now)
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const put = async (name: string, content: string): Promise<void> => { await writeFile(join(dir, name), content, { mode: 0o600 }) }
  const keyPem = (key: MintedCa['key']): string => key.export({ type: 'pkcs8', format: 'pem' }).toString()
  for (const [name, ca] of Object.entries({ user: pki.user, friend: pki.friend, stranger: pki.stranger })) {
    await put(`${name}-ca.pem`, ca.pem)
    await put(`${name}-ca.key`, keyPem(ca.key))
  }
  const lines: string[] = []
  for (const { name, end, der, chain, key, refusedBy, why } of pki.cases) {
    await put(`${name}.pem`, [der, ...chain].map(bytes => toPem(bytes)).join(''))
    await put(`${name}.key`, keyPem(key))
    lines.push([name, end, refusedBy === undefined ? 'admitted' : `refused: ${refusedBy}`, why].join('\t'))
  }
  const certificate = mintLeaf(pki.user, pki.server.spki, now, { extensions: [basicConstraints(false), keyUsage(0), extendedKeyUsage(EKU.serverAuth), uris(`urn:patchcord:${pki.deviceId}`)] })
  await put('expected.tsv', `${lines.join('\n')}\n`)
  await put('server-env.json', `${JSON.stringify({
    version: 1,
    listen: [{ host: '::1', port: 0 }],
    identity: { device: pki.deviceId, key: keyPem(pki.server.privateKey), certificates: toPem(certificate), userCa: pki.user.pem },
    whitelist: [{ name: 'friend', ca: pki.friend.pem, grant: 'friend' }, { name: 'browser', device: pki.listedRsa, ca: pki.user.pem, grant: 'friend' }],
    revoked: [pki.revokedId],
    grants: { own: { databases: { '*': 'write' }, files: 'all' }, friend: { databases: {}, files: 'referenced' } },
  })}\n`)
  process.stdout.write(`${pki.cases.length} certificates in ${dir}; expected.tsv says what each should meet\n`)
}

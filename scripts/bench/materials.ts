import { execFileSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { mkdir, open, readFile, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { basicConstraints, EKU, extendedKeyUsage, keyUsage, mintCa, mintLeaf, p256Key, toPem, uris } from '../../certs/mint.js'
import { idOf } from '../../certs/pki.js'
import { FileStore } from '../../src/files/store.js'
import type { Cores } from './processes.js'

// What every contestant is given: one folder, one CA, one key, one client, the same files.

/** The top of the project. */
export const TOP = fileURLToPath(new URL('../../..', import.meta.url))
export const MIB = 1024 * 1024

export interface Materials {
  readonly folder: string
  readonly cores: Cores
  readonly pki: Pki
}

/** Paths of PEM files, and the IDs that patchcord knows them by. */
export interface Pki {
  readonly ca: string
  readonly server: { readonly certificate: string, readonly key: string }
  readonly client: { readonly certificate: string, readonly key: string }
  readonly device: string
}

/** P-256 throughout, signed with ECDSA and SHA-256: what patchcord's own devices have. */
export async function makePki (folder: string): Promise<Pki> {
  const now = Date.now()
  const ca = mintCa('bench', now)
  const [device, server] = [p256Key(), p256Key()]
  const id = idOf(device.spki)
  const put = async (name: string, text: string): Promise<string> => {
    const path = join(folder, name)
    await writeFile(path, text, { mode: 0o600 })
    return path
  }
  const pem = (key: typeof device): string => key.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
  const extensions = [basicConstraints(false), keyUsage(0)]
  return {
    ca: await put('ca.pem', ca.pem),
    server: {
      certificate: await put('server.pem', toPem(mintLeaf(ca, server.spki, now, { extensions: [...extensions, extendedKeyUsage(EKU.serverAuth), uris(`urn:patchcord:${id}`)] }))),
      key: await put('server.key', pem(server)),
    },
    client: {
      certificate: await put('client.pem', toPem(mintLeaf(ca, device.spki, now, { extensions: [...extensions, extendedKeyUsage(EKU.clientAuth)] }))),
      key: await put('client.key', pem(device)),
    },
    device: id,
  }
}

/** The client: bench/load.c, compiled here. Throws what the compiler says. */
export function buildLoad (folder: string): string {
  const path = join(folder, 'load')
  execFileSync('cc', ['-O2', '-o', path, join(TOP, 'bench/load.c'), '-lssl', '-lcrypto'])
  return path
}

/** Writes a file of random bytes, which no layer below can compress. */
export async function writeRandom (path: string, size: number): Promise<void> {
  const handle = await open(path, 'w')
  try {
    const block = Buffer.allocUnsafe(Math.min(size, 4 * MIB))
    for (let left = size; left > 0; left -= block.length) await handle.write(randomFillSync(block), 0, Math.min(left, block.length))
  } finally {
    await handle.close()
  }
}

/** A store in `folder` that holds one random file of `size` bytes. */
export async function storeWith (folder: string, size: number): Promise<{ root: string, id: string, path: string }> {
  const root = join(folder, 'files')
  await mkdir(root, { recursive: true })
  const store = await FileStore.open(root)
  try {
    const source = join(folder, 'random')
    await writeRandom(source, size)
    const { id } = await store.add(source)
    return { root, id, path: store.path(id) }
  } finally {
    await store.close()
  }
}

/** A port of [::1] that was free just now. */
export async function freePort (): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => { server.listen(0, '::1', resolve) })
  const { port } = server.address() as AddressInfo
  await new Promise(resolve => { server.close(resolve) })
  return port
}

/** A configuration of bench/peers/ with `@NAME@` replaced. Throws where it asks for a name that is not given. */
export async function fill (name: string, values: Readonly<Record<string, string | number>>): Promise<string> {
  const text = (await readFile(join(TOP, 'bench/peers', name), 'utf8')).replace(/@([A-Z_]+)@/g, (_, key: string) => {
    const value = values[key]
    if (value === undefined) throw new Error(`bench/peers/${name} asks for ${key}`)
    return String(value)
  })
  return text
}

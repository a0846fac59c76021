import { execFile, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { answer, patchcord, patchcordHere, up } from './fixtures/processes.js'

// A certificate for what cannot run patchcord, tried with the programs that people import it into.

const run = promisify(execFile)
const PASSPHRASE = 'seven swans a-swimming'

await t.test('export: openssl, curl, NSS and Chromium use the certificate, and revocation ends it', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'p12-'))
  t.teardown(() => { rmSync(folder, { recursive: true, force: true }) })
  const at = (name: string): string => join(folder, name)
  const home = at('home')
  const service = await up(home)
  t.teardown(async () => {
    service.child.kill('SIGTERM')
    await service.ended
  })
  const cli = (...args: string[]): ReturnType<typeof patchcord> => patchcordHere([...args, '--json', '--home', home])
  for (const name of ['photos', 'diary']) t.equal((await cli('db', 'create', name)).code, 0)
  writeFileSync(at('pass'), `${PASSPHRASE}\n`, { mode: 0o600 })

  t.match(await cli('export', '--p12', at('none.p12'), '--name', 'Phone', '--share', 'photos'), { code: 2, stderr: /no terminal.*\n.*--passphrase-file/ }, 'without a terminal the passphrase must come from somewhere')
  t.notOk(existsSync(at('none.p12')))
  writeFileSync(at('short'), 'short\n')
  t.equal((await cli('export', '--p12', at('none.p12'), '--name', 'Phone', '--passphrase-file', at('short'))).code, 2)
  t.notOk(existsSync(at('none.p12')), 'what failed leaves no file')
  t.equal((await cli('export', '--p12', at('none.p12'), '--name', 'Phone', '--share', 'nowhere', '--passphrase-file', at('pass'))).code, 1)

  const started = performance.now()
  const made = await patchcord(['export', '--p12', at('phone.p12'), '--name', 'Phone', '--share', 'photos', '--passphrase-file', at('pass'), '--json', '--home', home])
  t.equal(made.code, 0, made.stderr)
  t.comment(`export took ${Math.round(performance.now() - started)} ms`)
  const { device } = answer<{ device: string }>(made)
  t.equal(statSync(at('phone.p12')).mode & 0o777, 0o600)
  t.notOk((made.stdout + made.stderr + service.log()).includes(PASSPHRASE))
  t.equal((await cli('export', '--p12', at('phone.p12'), '--name', 'Other', '--passphrase-file', at('pass'))).code, 1, 'a file that is there stays')
  const listed = (await cli('devices')).stdout.trim().split('\n').map(line => JSON.parse(line) as Record<string, unknown>).find(one => one['device'] === device)
  t.match(listed, { name: 'Phone', relation: 'client', grant: { databases: { photos: 'read' } }, state: 'trusted' })
  t.notMatch((await cli('status')).stdout, device, 'there is no link to it')
  t.equal((await cli('share', 'photos', '--with', 'Phone', '--write')).code, 2, 'a client only reads')

  // OpenSSL: the parameters, then key and certificate.
  const info = await run('openssl', ['pkcs12', '-in', at('phone.p12'), '-passin', `file:${at('pass')}`, '-info', '-noout'])
  t.match(info.stderr, /MAC: sha256, Iteration 600000/)
  t.match(info.stderr, /PBES2, PBKDF2, AES-256-CBC, Iteration 600000, PRF hmacWithSHA256/)
  await t.rejects(run('openssl', ['pkcs12', '-in', at('phone.p12'), '-passin', 'pass:wrong', '-noout']))
  await run('openssl', ['pkcs12', '-in', at('phone.p12'), '-passin', `file:${at('pass')}`, '-nodes', '-out', at('phone.pem')])
  await run('openssl', ['pkcs12', '-in', at('phone.p12'), '-passin', `file:${at('pass')}`, '-nokeys', '-cacerts', '-out', at('ca.pem')])
  await run('openssl', ['pkcs12', '-in', at('phone.p12'), '-passin', `file:${at('pass')}`, '-nokeys', '-clcerts', '-out', at('leaf.pem')])
  t.match((await run('openssl', ['verify', '-CAfile', at('ca.pem'), '-purpose', 'sslclient', at('leaf.pem')])).stdout, /OK/, 'the CA\'s signature came through unharmed')
  const text = (await run('openssl', ['x509', '-in', at('leaf.pem'), '-noout', '-text'])).stdout
  t.match(text, /Public-Key: \(3072 bit\)/)
  t.match(text, /TLS Web Client Authentication\n/)
  t.notMatch(text, /Server Authentication/)

  // curl against the running server.
  const port = service.ready.listen[0]!.port
  const ask = async (path: string, ...more: string[]): Promise<string> => (await run('curl', ['-sk', '--max-time', '20', '-w', '%{http_code}', '-o', at('body'), '--cert', at('phone.pem'), ...more, `https://[::1]:${port}${path}`]).catch((error: { stdout?: string }) => ({ stdout: error.stdout ?? '' }))).stdout
  t.equal(await ask('/'), '200')
  t.match(JSON.parse(readFileSync(at('body'), 'utf8')), { you: { device, relation: 'peer' } })
  t.equal(await ask('/couch/photos/_all_docs'), '200')
  t.equal(await ask('/couch/diary/_all_docs'), '404', 'what was not shared does not exist')
  t.equal(await ask('/couch/photos/x', '-X', 'PUT', '-H', 'Content-Type: application/json', '-d', '{}'), '403', 'it reads')
  t.equal(await run('curl', ['-sk', '--max-time', '20', '-w', '%{http_code}', '-o', '/dev/null', `https://[::1]:${port}/`]).then(({ stdout }) => stdout, () => 'cut'), 'cut', 'without it nobody is let in')

  // With PATCHCORD_TEST_BROWSER they are there (Debian: libnss3-tools, chromium), and this is root: the policy that picks the
  // certificate is the system's. Without, test/left-out.json says what is not run.
  if (process.env['PATCHCORD_TEST_BROWSER'] !== undefined) await t.test('NSS imports it', async t => {
    const nss = at('.pki/nssdb')
    await run('mkdir', ['-p', nss])
    await run('certutil', ['-N', '-d', `sql:${nss}`, '--empty-password'])
    await run('pk12util', ['-i', at('phone.p12'), '-d', `sql:${nss}`, '-w', at('pass')])
    t.match((await run('certutil', ['-K', '-d', `sql:${nss}`])).stdout, /rsa .*Phone/, 'key and certificate belong together')
    t.match((await run('certutil', ['-L', '-d', `sql:${nss}`])).stdout, /Phone +u,u,u/)
  })

  if (process.env['PATCHCORD_TEST_BROWSER'] !== undefined) await t.test('Chromium uses it', { timeout: 120_000 }, async t => {
    // A browser asks which certificate to show; a policy answers for this origin alone.
    const policies = '/etc/chromium/policies/managed'
    const policy = join(policies, 'patchcord-test.json')
    await run('mkdir', ['-p', policies])
    writeFileSync(policy, JSON.stringify({ AutoSelectCertificateForUrls: [JSON.stringify({ pattern: `https://[::1]:${port}`, filter: {} })] }))
    t.teardown(() => { rmSync(policy, { force: true }) })
    const browse = async (most: number): Promise<string> => {
      const browser = spawn('/usr/bin/chromium', ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--ignore-certificate-errors', `--user-data-dir=${at('profile')}`, '--virtual-time-budget=5000', '--dump-dom', `https://[::1]:${port}/`], { env: { ...process.env, HOME: folder }, stdio: ['ignore', 'pipe', 'ignore'] })
      const guard = setTimeout(() => { browser.kill('SIGKILL') }, most)
      let dom = ''
      browser.stdout.on('data', (chunk: Buffer) => { dom += chunk.toString() })
      await new Promise(resolve => { browser.once('close', resolve) })
      clearTimeout(guard)
      return dom
    }
    t.match(await browse(60_000), new RegExp(`"device":"${device}"`), 'the page says who the browser is')
    rmSync(policy)
    t.notMatch(await browse(8_000), device, 'without a certificate it does not get in')
  })

  t.match(answer(await cli('revoke', 'Phone')), { event: 'revoked', spread: 'done' })
  t.not(await ask('/'), '200', 'revoked like any device')
})

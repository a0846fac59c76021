import { Command, CommanderError } from 'commander'
import { fileError, systemCode } from '../core/errors.js'
import { contextOf, type CliIo, type CommonOptions, type Context } from './context.js'
import * as ca from './ca-commands.js'
import * as couch from './couch-commands.js'
import * as device from './device-commands.js'
import * as file from './file-commands.js'
import * as machine from './machine-commands.js'
import { Output } from './output.js'
import * as pairing from './pair-commands.js'
import * as offer from './offer-commands.js'
import * as service from './service-commands.js'
import * as sharing from './sharing-commands.js'

// The cli room: the commands, and all that a person reads of them.
//
// It promises that every command has --json, a help with an example, and an exit code of the error table; with
// --json, stdout holds one JSON object a line and nothing else. It must never do work of its own but for reading
// and writing the files that a command names: the running service does it, asked over the control socket, so
// that two of them cannot disagree.

export interface Cli {
  readonly io: CliIo
  readonly version: string
  readonly startService: service.StartService
}

/** Exit codes that are no error's (docs/contracts). */
const EXIT = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const

/** Runs one command line (without node and script) and resolves with the exit code. It never exits. */
export async function runCli (args: readonly string[], cli: Cli): Promise<number> {
  const { io } = cli
  const program = describeProgram(cli)
  const isJson = args.includes('--json')
  try {
    await program.parseAsync([...args], { from: 'user' })
    return EXIT.done
  } catch (error) {
    // commander has printed its own message already: help, the version, or what was wrong.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage
    if (error instanceof machine.CheckFailed) return EXIT.failed
    if (io.signal.aborted) return EXIT.interrupted
    // Not even the program itself could be read.
    const known = systemCode(error) === 'EMFILE' || systemCode(error) === 'ENFILE' ? fileError(error, 'a file of patchcord') : error
    return new Output(isJson, io.stdout, io.stderr).fail(known)
  }
}

function describeProgram ({ io, version, startService }: Cli): Command {
  const program = new Command('patchcord')
    .description('Your devices, and people you trust, exchange files and replicate CouchDB databases directly.')
    .version(version, '--version')
    .configureOutput({ writeOut: text => io.stdout.write(text), writeErr: text => io.stderr.write(text.replace(/^error: /, 'patchcord: ')) })
    .exitOverride()
    .showHelpAfterError('  hint: see `patchcord --help`')
    .helpCommand('help [command]', 'shows the help of a command')
  shared(program)

  type Action = (context: Context, ...args: never[]) => Promise<void>
  const command = (parent: Command, usage: string, description: string, example: string, action?: Action): Command => {
    const made = parent.command(usage).description(description)
    made.showHelpAfterError(`  hint: see \`${pathOf(made)} --help\``)
    shared(made).addHelpText('after', `\nexample:\n  ${example.replaceAll('\n', '\n  ')}`)
    if (action !== undefined) {
      made.action(async (...given: unknown[]) => {
        // commander hands over the arguments, then the options, then the command.
        const options = made.optsWithGlobals<CommonOptions & Record<string, unknown>>()
        const context = contextOf(io, options)
        try {
          await (action as (context: Context, ...args: unknown[]) => Promise<void>)(context, ...given.slice(0, -2), options)
        } finally {
          context.output.endProgress()
        }
      })
    }
    return made
  }

  command(program, 'up', 'run the service in the foreground: server, database, sync, control socket', 'patchcord up --name laptop',
    (context: Context, options: service.UpOptions) => service.up(context, options, startService))
    .option('--listen <host:port>', 'where the open port listens (default: [::]:4984, or a free port that is then kept)')
    .option('--couch <url>', 'use this CouchDB on loopback instead of the embedded database')
    .option('--couch-credentials-file <path>', 'its login: {"username","password"}, readable by you alone')
    .option('--replication <engine>', 'who pulls: agent (this service), or couchdb (the scheduler of the one given with --couch)', 'agent')
    .option('--no-discovery', 'do not look for devices on the network')
    .option('--allow-routed', 'let clients in that are not on a link of this machine')
    .option('--name <label>', 'what this device is called')
    .option('--log-level <level>', 'trace, debug, info, warn or error', 'info')
  command(program, 'status', 'this device, its peers, what is syncing and how far each lags', 'patchcord status --json', service.status)
  command(program, 'doctor', 'find out what is wrong on this machine, and what to do', 'patchcord doctor', machine.doctor)
  const logLines = (made: Command): Command => made.option('-f, --follow', 'go on as lines come').option('-n, --lines <count>', 'how many of the newest', '100')
  logLines(command(program, 'logs', 'the log of the service', 'patchcord logs --follow', machine.logs))
  command(program, 'metrics', 'what the service counts, in the form of Prometheus', 'patchcord metrics', machine.metrics)
  const unit = command(program, 'service', 'run as a unit of systemd, with your login or from boot on', 'patchcord service install')
  const dryRun = (made: Command): Command => made.option('--dry-run', 'show what would be done, and check it')
  dryRun(command(unit, 'install', 'write the unit, start it, and have it started at login', 'patchcord service install --dry-run', machine.serviceInstall))
  dryRun(command(unit, 'uninstall', 'stop it and remove the unit; state stays', 'patchcord service uninstall', machine.serviceUninstall))
  logLines(command(unit, 'logs', 'what systemd kept of its log', 'patchcord service logs --lines 20', machine.serviceLogs))
  command(unit, 'firewall', 'the rules that let the port in, for ufw, firewalld and nftables', 'patchcord service firewall', machine.serviceFirewall)
  command(unit, 'apparmor', 'a script that installs the AppArmor profiles for this installation', 'patchcord service apparmor | sudo sh', machine.serviceApparmor)
  command(program, 'events', 'print what happens, as it happens', 'patchcord events --json', service.events)

  command(program, 'pair [code]', 'pair with another device: show a code, or join with the one it shows (a code, a link, - for stdin)', 'patchcord pair                   # shows a code\npatchcord pair 123456 --as peer  # on the other device', pairing.pair)
    .option('--as <relation>', 'own: one person\'s devices; peer: two people\'s')
    .option('--yes', 'confirm without asking; with --as')
    .option('--share <database...>', 'what the other may have: <database>, <database>:read or <database>:write')
    .option('--at <host:port...>', 'where the window is, when the invitation is a code')
    .option('--join', 'ask for the code')
    .option('--link-only', 'show no code: only the link works')
    .option('--replace-user', 'become another user\'s device although this one knows others, whose trust is lost')
  const identity = command(program, 'identity', 'who this device is', 'patchcord identity --export laptop.pem', device.identity)
    .option('--export <bundle.pem>', 'write the device certificate and its CA, for others to trust')
  command(identity, 'renew-key', 'make a fresh device key: another device ID, which others have to trust anew', 'patchcord identity renew-key --yes', ca.renewKey)
    .option('--yes', 'do it without asking')
  const passphrase = (made: Command): Command => made.option('--passphrase-file <path>', 'its first line is the passphrase; - is stdin. Without it the terminal is asked')
  const authority = command(program, 'ca', 'your user CA: its kit, its end, and what follows it', 'patchcord ca export kit.json')
  passphrase(command(authority, 'export <kit>', 'write the CA key and a recovery key to a kit under a passphrase', 'patchcord ca export /media/stick/kit.json', ca.caExport))
    .option('--replace', 'make another recovery key though there is a kit: those who pinned the old one must pair again')
  passphrase(command(authority, 'import <kit>', 'take the CA key out of a kit, on another device of yours or a fresh one', 'patchcord ca import kit.json', ca.caImport))
  passphrase(command(authority, 'retire', 'end the trust in everything that your CA certified, for good', 'patchcord ca retire --yes', ca.caRetire))
    .option('--kit <kit>', 'sign with the key in this kit, where the device does not hold it')
    .option('--yes', 'do it without asking')
  passphrase(command(authority, 'succeed <kit>', 'put a new CA in the place of yours, which others follow by themselves', 'patchcord ca succeed kit.json --new-kit kit-2.json --keep desktop --yes', ca.caSucceed))
    .requiredOption('--new-kit <path>', 'where to write the kit of the new CA')
    .option('--keep <device...>', 'own devices to certify anew; the others are revoked')
    .option('--yes', 'do it without asking')
  passphrase(command(program, 'export', 'make a certificate for a browser, a phone or curl: it may read the databases named', 'patchcord export --p12 phone.p12 --name Phone --share photos', ca.exportClient))
    .requiredOption('--p12 <file>', 'where to write it')
    .requiredOption('--name <label>', 'what it is called in `patchcord devices`')
    .option('--share <database...>', 'what it may read')
  const devices = command(program, 'device', 'make another device your own, by files', 'patchcord device request -o request.pem')
  command(devices, 'request', 'write a request that your CA holder can answer', 'patchcord device request -o request.pem', device.deviceRequest)
    .requiredOption('-o, --output <csr>', 'where to write it')
  command(devices, 'issue <csr>', 'answer the request of a device that becomes yours', 'patchcord device issue request.pem -o issued.pem --name desktop', device.deviceIssue)
    .requiredOption('-o, --output <pem>', 'where to write the certificates')
    .option('--name <label>', 'what the device is called here')
  command(devices, 'install <pem>', 'become a device of the user who issued this', 'patchcord device install issued.pem', device.deviceInstall)
  command(program, 'trust <bundle.pem>', 'trust a device of somebody else', 'patchcord trust friend.pem --name friend --at [fe80::1%eth0]:4984 --share notes:read', device.trust)
    .requiredOption('--name <label>', 'what the device is called here')
    .option('--at <host:port>', 'where it is')
    .option('--share <database...>', 'what it may have: <database>, <database>:read or <database>:write')
    .option('--new-recovery-key', 'pin the recovery key of this bundle in the place of the one known before')
  command(program, 'devices', 'the devices that are trusted, and with what', 'patchcord devices', device.devices)
  command(program, 'rename <device> <name>', 'call a device something else', 'patchcord rename "device abcd2345" desktop', device.rename)
  command(program, 'revoke <device>', 'end the trust in a device, at once and for good', 'patchcord revoke friend', device.revoke)
  command(program, 'connect <device>', 'remember where a device is', 'patchcord connect desktop --at [fe80::1%eth0]:4984', device.connect)
    .requiredOption('--at <host:port>', 'a literal address; link-local ones with their interface')
  command(program, 'explain <device> <method> <path>', 'whether a request is allowed, and which rule decides ("self" is this device)', 'patchcord explain friend GET /couch/notes/_changes', device.explain)

  const localCouch = command(program, 'couch', 'the login of your own programs to the local database', 'patchcord couch --json', couch.couch)
  command(localCouch, 'setup', 'use your own CouchDB, with a limited user in it for each grant', 'patchcord couch setup --url http://127.0.0.1:5984 --admin-credentials-file admin.json', couch.couchSetup)
    .option('--url <url>', 'where it is: a literal loopback address (default: the one in use, or http://127.0.0.1:5984)')
    .option('--admin-credentials-file <path>', '{"username","password"} of an administrator, readable by you alone; used once. Without it the terminal is asked')
    .option('--close-public', 'let members alone use databases that everybody may use')
    .option('--allow-exposed', 'go on although others than programs of this machine reach the CouchDB')
  command(localCouch, 'undo', 'take patchcord\'s users, memberships and administrator out of your CouchDB', 'patchcord couch undo', couch.couchUndo)
  command(program, 'bridge', 'where any CouchDB client reaches the databases of a connected device', 'patchcord bridge --json', sharing.bridge)
  const db = command(program, 'db', 'the databases of this device', 'patchcord db create notes')
  command(db, 'create <name>', 'make a database', 'patchcord db create notes', sharing.dbCreate)
  command(db, 'ls', 'list them', 'patchcord db ls', sharing.dbLs)
  command(program, 'conflicts <database>', 'the documents that two devices changed while they were apart', 'patchcord conflicts notes', sharing.conflicts)

  command(program, 'quota [device] [size]', 'what the databases received from a device may fill of this disk, and what stays free', 'patchcord quota friend 2GiB\npatchcord quota --keep-free 5GiB', sharing.quota)
    .option('--keep-free <size>', 'what stays free on the disk, whoever sends (default: 512 MiB)')

  command(program, 'share <database>', 'offer a database, and the files recorded for it, to a device', 'patchcord share notes --with friend\npatchcord share notes --with friend --write', sharing.share)
    .requiredOption('--with <device>', 'a device by name or ID, or all listed devices of a user ID')
    .option('--write', 'it may also add, replace and delete, and override history')
  command(program, 'unshare <database>', 'take a share back; what runs is cut', 'patchcord unshare notes --with friend', sharing.unshare)
    .requiredOption('--with <device>', 'a device by name or ID, or all listed devices of a user ID')
  command(program, 'shares', 'what others offer', 'patchcord shares', sharing.shares)
  command(program, 'accept <peer> <database>', 'receive what a peer offers', 'patchcord accept friend notes --as notes-of-friend', sharing.accept)
    .option('--as <local>', 'the local database; by default it has the same name')
    .option('--merge', 'merge into a local database that is there already')

  command(program, 'add <path...>', 'take files and folders into the store', 'patchcord add holiday/ --to photos', file.add)
    .option('--to <database>', 'record them for a database, so that its readers may have them')
    .option('--move', 'remove each file from where it was, once it is safe in the store')
  command(program, 'ls', 'list the store', 'patchcord ls', file.ls)
  command(program, 'follow <database>', 'which of the files that a database refers to are fetched by themselves', 'patchcord follow photos --up-to 100MiB', file.follow)
    .option('--all', 'all of them (what your own devices share, unless told otherwise)')
    .option('--on-demand', 'none: only what you get (what others share, unless told otherwise)')
    .option('--up-to <size>', 'those of at most this size')
  command(program, 'get <id>', 'write a file (its ID, or its name in a database) of the store, or of a connected device, to a path', 'patchcord get mcpw4nwsibkykgenlt6xmh2apr6mi2t5h4yuzcbharu53yyv7tiq -o abc.txt', file.get)
    .requiredOption('-o, --output <path>', 'where to write it')
    .option('--from <device>', 'ask this device alone')
    .option('--force', 'replace what is there')
  command(program, 'verify', 'read the whole store and put aside what is damaged', 'patchcord verify', file.verify)
  command(program, 'gc', 'the files that no database, record or offer refers to', 'patchcord gc', file.gc)
    .option('--remove', 'remove them')
  command(program, 'send <device> <path...>', 'hand files and folders to one device: it sees the list, then accepts', 'patchcord send desktop holiday/', offer.send)
    .option('--no-wait', 'do not wait for the answer')
  const outbox = command(program, 'outbox', 'what this device hands to others, and they have not fetched yet', 'patchcord outbox', offer.outbox)
  command(outbox, 'withdraw <offer>', 'take it back; what has landed stays there', 'patchcord outbox withdraw 9f3a', offer.outboxWithdraw)
  const inbox = command(program, 'inbox', 'what others hand to this device', 'patchcord inbox', offer.inbox)
  command(inbox, 'accept <offer>', 'fetch it into a folder; nothing there is replaced', 'patchcord inbox accept 9f3a --to ~/Downloads', offer.inboxAccept)
    .requiredOption('--to <folder>', 'where it lands')
  command(inbox, 'refuse <offer>', 'say no', 'patchcord inbox refuse 9f3a', offer.inboxRefuse)
  command(inbox, 'rule <device> <rule>', 'what becomes of offers of a device: ask, accept or refuse', 'patchcord inbox rule desktop accept --to ~/Downloads', offer.inboxRule)
    .option('--to <folder>', 'where what is accepted lands')
  return program
}

function shared (command: Command): Command {
  return command
    .option('--json', 'one JSON object per line on stdout')
    .option('--home <dir>', 'the folder with all state of this device (default: PATCHCORD_HOME, or the XDG data folder)')
}

/** As it is typed: `patchcord inbox accept`. */
function pathOf (command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`
}

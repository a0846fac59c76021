#!/usr/bin/env node
import './small-heap.js'
import { main } from './main.js'

// `patchcord up` under a path of its own, for AppArmor to hold it to apparmor/patchcord-agent: a profile on
// `patchcord` itself would hold the person's command line to it as well.
process.exit(await main(['up', ...process.argv.slice(2)], code => process.exit(code)))

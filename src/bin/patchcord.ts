#!/usr/bin/env node
import './small-heap.js'
import { main } from './main.js'

process.exit(await main(process.argv.slice(2), code => process.exit(code)))

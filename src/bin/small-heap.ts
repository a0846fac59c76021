import { setFlagsFromString } from 'node:v8'

// V8's space for young objects doubles while a program loads and is not given back: some 10 MiB of the resting agent
// (measured with scripts/measure-memory.js). The agent handles few and small objects; file bytes are not in that space.
// Imported first, for what is loaded after it.
setFlagsFromString('--semi-space-growth-factor=1')

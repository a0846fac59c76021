/**
 * The very server that `patchcord-server` runs, in this process:
 *
 *     const server = await startServer(env, { logger })
 *     server.addresses            // where it listens
 *     await server.update({ revoked: [device] })
 *     await server.stop()         // leaves no handle behind
 */
export { startServer, type PatchcordServer, type ServerCollaborators } from './server/server.js'
export { type ServerEnvInput as ServerEnv, type ServerUpdate } from './server/env.js'
export { DEFAULT_LIMITS, type LimitName, type Limits } from './core/limits.js'
export { PatchcordError, ERRORS, type ErrorCode } from './core/errors.js'
export { systemClock, type Clock, type Timer } from './core/clock.js'

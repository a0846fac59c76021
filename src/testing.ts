/**
 * Whole devices in one process, for tests: real TLS on real sockets, real files and databases, a clock that
 * tests move, and links that tests cut.
 *
 *     const lab = await Lab.start()
 *     const laptop = await lab.device({ user: 'u1', name: 'laptop' })
 *     const desktop = await lab.device({ user: 'u1', name: 'desktop' })
 *     await lab.pair(laptop, desktop)
 *     await lab.cut(laptop, desktop)
 *     lab.clock.advance(60_000)
 *     await lab.stop()            // leaves no handle, no file and no listener behind
 */
export { Lab, type LabOptions } from './testing/lab.js'
export { type LabDevice, type LabDeviceOptions } from './testing/device.js'
export { LabClock } from './testing/clock.js'

import type { Outcome } from './contest.js'

// The picture of the README: for each work, patchcord against the others as bars on a scale of ratios, and
// a mark at its goal. It has its own ground, so that it looks the same on a dark page and on a light one.

const WIDTH = 860
const LABEL = 330
const ROW = 22
const FONT = 'font-family="system-ui, sans-serif"'
const COLOURS = { ground: '#fbfaf7', ink: '#22262b', faint: '#8b9198', line: '#d9d6ce', ahead: '#2f7d5b', behind: '#b4552d', goal: '#22262b' }
/** Ratios from a quarter to sixteen, by powers of two. */
const LEAST = -2
const MOST = 4

const escape = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

/** An SVG of the ratios. One row for each work and each other contestant. */
export function chart (outcomes: readonly Outcome[], foot: string): string {
  const rows = outcomes.flatMap(({ name, ratios, goal }) => Object.entries(ratios).map(([who, ratio], at) => ({
    label: at === 0 ? name : '', who, ratio: ratio.median, low: ratio.low, high: ratio.high, goal: goal !== undefined && 'of' in goal && goal.of === who && goal.perCpu !== true ? goal.ratio : undefined,
  })))
  const top = 58
  const height = top + rows.length * ROW + 52
  const x = (ratio: number): number => LABEL + (Math.min(MOST, Math.max(LEAST, Math.log2(ratio))) - LEAST) / (MOST - LEAST) * (WIDTH - LABEL - 70)
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="patchcord beside other programs, as ratios">`,
    `<rect width="${WIDTH}" height="${height}" rx="8" fill="${COLOURS.ground}"/>`,
    text(20, 26, 'patchcord ÷ the other: right of the line, patchcord is ahead', COLOURS.ink, 15, 'start'),
  ]
  for (let power = LEAST; power <= MOST; power++) {
    const at = x(2 ** power).toFixed(1)
    parts.push(`<line x1="${at}" y1="${top - 8}" x2="${at}" y2="${height - 44}" stroke="${power === 0 ? COLOURS.ink : COLOURS.line}"/>`, text(Number(at), top - 14, power < 0 ? `1/${2 ** -power}` : `${2 ** power} ×`, COLOURS.faint, 11, 'middle'))
  }
  for (const [at, { label, who, ratio, low, high, goal }] of rows.entries()) {
    const y = top + at * ROW
    const [from, to] = [x(1), x(ratio)]
    const colour = ratio >= (goal ?? 1) ? COLOURS.ahead : COLOURS.behind
    parts.push(
      text(20, y + 14, label, COLOURS.ink, 12, 'start'), text(LABEL - 12, y + 14, who, COLOURS.faint, 12, 'end'),
      `<rect x="${Math.min(from, to).toFixed(1)}" y="${y + 4}" width="${Math.max(1, Math.abs(to - from)).toFixed(1)}" height="${ROW - 9}" fill="${colour}"/>`,
      `<line x1="${x(low).toFixed(1)}" y1="${y + ROW / 2}" x2="${x(high).toFixed(1)}" y2="${y + ROW / 2}" stroke="${COLOURS.ink}" stroke-opacity="0.5"/>`,
      text(Math.max(from, to, x(high)) + 6, y + 14, `${ratio.toFixed(2)} ×`, COLOURS.ink, 12, 'start'))
    if (goal !== undefined) parts.push(`<path d="M ${x(goal).toFixed(1)} ${y + 1} l 4 -5 l -8 0 z" fill="${COLOURS.goal}"/>`)
  }
  parts.push(text(20, height - 24, '▼ goal · thin line: lowest and highest ratio of a round · green: at the goal, or ahead where there is none', COLOURS.faint, 11, 'start'), text(20, height - 10, foot, COLOURS.faint, 11, 'start'), '</svg>')
  return `${parts.join('\n')}\n`
}

function text (x: number, y: number, words: string, colour: string, size: number, anchor: 'start' | 'middle' | 'end'): string {
  return `<text x="${x}" y="${y}" fill="${colour}" font-size="${size}" text-anchor="${anchor}" ${FONT}>${escape(words)}</text>`
}

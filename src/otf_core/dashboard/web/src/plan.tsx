/** The plan of a value: so far, as it would go on, and what a change would make of it. */

import type { JSX } from "preact";
import { curveFor, type Coming } from "./plans";
import { brief, count, tick } from "./format";
import type { Lines } from "./lines";
import "./plan.css";
import { paramName } from "./words";

const WIDTH = 384;
const HEIGHT = 96;
const LEFT = 40;
const FOOT = 16;
const TOP = 6;

type Curve = readonly [readonly number[], readonly number[]];

/** The rate so far, a point for every second pixel or so: what the server has thinned, then what is here. */
function pastOf(lines: Lines): Curve {
  const { columns } = lines;
  const values = columns.values("lr");
  const x: number[] = [];
  const y: number[] = [];
  const take = (step: number, value: number): void => {
    if (Number.isNaN(value)) return;
    x.push(step);
    y.push(value);
  };
  const seam = columns.step.values[0] ?? Infinity;
  const early = lines.whole?.series.get("lr");
  const thinned = Math.max(1, Math.ceil((early?.step.length ?? 0) / WIDTH));
  for (let i = 0; early !== undefined && i < early.step.length; i += thinned) {
    if ((early.step[i] as number) < seam || columns.length === 0) take(early.step[i] as number, early.value[i] as number);
  }
  if (values === undefined) return [x, y];
  const stride = Math.max(1, Math.ceil(columns.length / WIDTH));
  for (let row = 0; row < columns.length - 1; row += stride) take(columns.step.values[row] as number, values[row] as number);
  if (columns.length > 0) take(columns.step.values[columns.length - 1] as number, values[columns.length - 1] as number);
  return [x, y];
}

export function Plan({ path, coming, lines }: { path: string; coming: Coming; lines: Lines }): JSX.Element | null {
  const now = curveFor(coming.now, path);
  const then = curveFor(coming.then, path) ?? now;
  if (now === undefined || then === undefined || now.length === 0) return null;
  const past: Curve = path === "lr" ? pastOf(lines) : [[], []];
  const { step } = coming;
  const all = [...past[1], ...now, ...then];
  const low = Math.min(0, ...all);
  const high = Math.max(...all) + (Math.max(...all) - low) * 0.05 || 1;
  const first = past[0][0] ?? (step[0] as number);
  const end = step.at(-1) as number;
  const x = (at: number): number => LEFT + ((at - first) / Math.max(1, end - first)) * (WIDTH - LEFT - 8);
  const y = (value: number): number => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - FOOT);
  const line = ([steps, values]: Curve): string =>
    values.map((value, i) => `${i === 0 ? "M" : "L"}${x(steps[i] as number).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const back = then.map((value, i) => `L${x(step[i] as number).toFixed(1)} ${y(value).toFixed(1)}`).reverse().join("");
  const here = x(step[0] as number).toFixed(1);
  const other = then.some((value, i) => value !== now[i]);
  const said = sentence(coming, now, then);
  return (
    <figure class="plan" aria-label={`Plan of ${paramName(path).toLowerCase()}`} data-asked={other ? "" : undefined}>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={said}>
        {[low, Math.max(...all)].map((value) => (
          <g key={value}>
            <path class="grid" d={`M${LEFT} ${y(value).toFixed(1)}H${WIDTH - 8}`} />
            <text x={LEFT - 5} y={y(value) + 4} text-anchor="end">{tick(Number(value.toPrecision(2)))}</text>
          </g>
        ))}
        {other && <path class="between" d={`${line([step, now])}${back}Z`} />}
        <path class="past" d={line(past)} />
        <path class="past" d={line([step, now])} />
        <path class="now" d={`M${here} ${TOP}V${HEIGHT - FOOT}`} />
        {other && <path class="asked" d={`M${here} ${y(now[0] as number).toFixed(1)}${line([step, then]).replace("M", "L")}`} />}
        {x(step[0] as number) - LEFT > 44 && <text x={LEFT} y={HEIGHT - 3}>{tick(first)}</text>}
        <text x={here} y={HEIGHT - 3} text-anchor={x(step[0] as number) - LEFT > 12 ? "middle" : "start"}>now</text>
        <text x={WIDTH - 8} y={HEIGHT - 3} text-anchor="end">{tick(end)}</text>
      </svg>
      <figcaption>
        <span class="keys1"><i class="k-past" /> {past[0].length > 0 && "so far and "}current plan{other && <><i class="k-asked" /> proposed</>}</span>
        <span>{said}</span>
      </figcaption>
    </figure>
  );
}

function sentence({ step, ends, assumes, cut }: Coming, now: readonly number[], then: readonly number[]): string {
  const [first, last] = [step[0] as number, step[then.length - 1] as number];
  const at = (values: readonly number[], i: number): string => brief(values.at(i));
  const level = (values: readonly number[]): boolean => values.every((value) => value === values[0]);
  const begins = then.findIndex((value, i) => value !== now[i]);
  const parts: string[] = [];
  if (begins < 0) {
    parts.push(level(now) ? `It stays ${at(now, 0)} to step ${count(last)}.` : `It goes from ${at(now, 0)} to ${at(now, -1)} at step ${count(last)}.`);
  } else {
    const from = step[begins] as number;
    const when = begins === 0 ? "At the next step" : `${first < from ? "About" : "At"} step ${count(from)}`;
    parts.push(`${when} it goes from ${at(now, begins)} to ${at(then, begins)}; at step ${count(last)} it is ${at(then, -1)}, ${now.at(-1) === then.at(-1) ? "as without the change" : `without the change ${at(now, -1)}`}.`);
  }
  if (ends !== null) parts.push(`Its own schedule fails at step ${count(ends.step)}: ${ends.why}.`);
  if (cut) parts.push("The plan goes on after that.");
  return [...parts, ...assumes.map((one) => `${one}.`)].join(" ");
}

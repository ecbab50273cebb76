/** The learning rate's plan, as far as it is known: so far, the value now, and what a change would make of it.
 *
 * Where a schedule writes the rate, the page is not told of the rest of it, and draws none.
 */

import type { JSX } from "preact";
import { count, setting, tick } from "./format";
import type { Lines } from "./lines";
import "./plan.css";
import { stepOf, totalSteps, type View } from "./state";
import { store } from "./store";
import type { Param, Session } from "./types";

const WIDTH = 384;
const HEIGHT = 96;
const LEFT = 40;
const FOOT = 16;
const TOP = 6;

interface Plan {
  /** Steps and rates so far. */
  past: [number[], number[]];
  now: number;
  value: number;
  proposed: number | null;
  /** The last step of the plan, and whether the value holds until then. */
  end: number;
  holds: boolean;
}

function planOf(view: View, session: Session, param: Param, proposed: number | null): Plan | null {
  const now = stepOf(session, view.data);
  if (now === null || view.data === null || typeof param.value !== "number") return null;
  const total = totalSteps(session, view.data)?.steps ?? null;
  const holds = param.owner !== "scheduler" && param.script === undefined;
  return {
    past: pastOf(store.linesOf(session)), now, value: param.value, proposed, holds,
    end: Math.max(now + 1, holds && total !== null ? total : Math.round(now * 1.12) + 1),
  };
}

/** The rate so far, a point for every second pixel or so: what the server has thinned, then what is here. */
function pastOf(lines: Lines): [number[], number[]] {
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

export function LrPlan({ view, session, param, proposed }: {
  view: View; session: Session; param: Param; proposed: number | null;
}): JSX.Element | null {
  const plan = planOf(view, session, param, proposed);
  if (plan === null || plan.past[0].length < 2) return null;
  const { past: [steps, rates], now, value, end, holds } = plan;
  const high = Math.max(...rates, value, proposed ?? 0) * 1.05 || 1;
  const first = steps[0] as number;
  const x = (step: number): number => LEFT + ((step - first) / Math.max(1, end - first)) * (WIDTH - LEFT - 8);
  const y = (rate: number): number => TOP + (1 - rate / high) * (HEIGHT - TOP - FOOT);
  const line = steps.map((step, i) => `${i === 0 ? "M" : "L"}${x(step).toFixed(1)} ${y(rates[i] as number).toFixed(1)}`).join("");
  const asked = proposed !== null && proposed !== value;
  return (
    <figure class="plan" aria-label="Plan of the learning rate">
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={sentence(plan)}>
        {[0, high / 1.05].map((rate) => (
          <g key={rate}>
            <path class="grid" d={`M${LEFT} ${y(rate).toFixed(1)}H${WIDTH - 8}`} />
            <text x={LEFT - 5} y={y(rate) + 4} text-anchor="end">{tick(Number(rate.toPrecision(2)))}</text>
          </g>
        ))}
        {asked && holds && <path class="between" d={`M${x(now)} ${y(value)}H${x(end)}V${y(proposed)}H${x(now)}Z`} />}
        <path class="past" d={line} />
        {holds && <path class="past" d={`M${x(now).toFixed(1)} ${y(value).toFixed(1)}H${x(end).toFixed(1)}`} />}
        <path class="now" d={`M${x(now).toFixed(1)} ${TOP}V${HEIGHT - FOOT}`} />
        {asked && <path class="asked" d={`M${x(now).toFixed(1)} ${y(value).toFixed(1)}V${y(proposed).toFixed(1)}${holds ? `H${x(end).toFixed(1)}` : "h14"}`} />}
        <text x={LEFT} y={HEIGHT - 3}>{tick(first)}</text>
        <text x={x(now)} y={HEIGHT - 3} text-anchor="middle">now</text>
        {holds && <text x={WIDTH - 8} y={HEIGHT - 3} text-anchor="end">{tick(end)}</text>}
      </svg>
      <figcaption>
        <span class="keys1"><i class="k-past" /> so far{holds && " and current plan"}{asked && <><i class="k-asked" /> proposed</>}</span>
        <span>{sentence(plan)}</span>
      </figcaption>
    </figure>
  );
}

function sentence({ value, proposed, holds, end }: Plan): string {
  const asked = proposed !== null && proposed !== value;
  if (holds) {
    return asked
      ? `At the next step the rate goes from ${setting(value)} to ${setting(proposed)} and stays there until step ${count(end)}.`
      : `Nothing schedules the rate: it stays ${setting(value)}.`;
  }
  const rest = "What comes after is the schedule's, and the page is not told of it.";
  if (!asked) return `A schedule writes the rate: ${setting(value)} now. ${rest}`;
  const factor = value === 0 ? null : proposed / value;
  return factor === null
    ? `At the next step the rate goes from 0 to ${setting(proposed)} and holds.`
    : `At the next step the rate goes from ${setting(value)} to ${setting(proposed)}, and what remains of the schedule is multiplied by ${Number(factor.toPrecision(3))}.`;
}

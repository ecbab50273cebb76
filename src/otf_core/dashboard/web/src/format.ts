/** Numbers, times and sizes in words. Pure functions. */

import type { Session } from "./types";

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** 12,400. "–" where there is none. */
export function count(value: number | null | undefined): string {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : whole.format(value);
}

/** "1 step", "3 steps". */
export function plural(n: number, word: string): string {
  return `${count(n)} ${word}${n === 1 ? "" : "s"}`;
}

/** A measured value, three to four figures. */
export function sig(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e9) {
    return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  if (size >= 1000) return whole.format(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size < 0.1) return value.toPrecision(3);
  return value.toFixed(3);
}

/** A value of a setting where a line is short: four digits, where `setting` gives them all. */
export function brief(value: unknown): string {
  return setting(
    typeof value === "number" ? Number(value.toPrecision(4))
      : Array.isArray(value) ? value.map((one) => (typeof one === "number" ? Number(one.toPrecision(4)) : one))
        : value,
  );
}

/** A setting: shown with all its figures, for it must read as it is. */
export function setting(value: unknown): string {
  if (typeof value === "number") {
    const size = Math.abs(value);
    if (size !== 0 && size < 1e-3) return value.toExponential().replace("e+", "e");
    if (Number.isInteger(value) && size >= 10000) return whole.format(value);
    return String(value);
  }
  if (Array.isArray(value)) {
    const texts = value.map(setting);
    return texts.every((text) => text === texts[0]) && texts[0] !== undefined
      ? texts[0]
      : texts.join(", ");
  }
  if (value === null || value === undefined) return "none";
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

/** An axis label. */
export function tick(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return trim(value / 1e6, 2) + "M";
  if (size >= 1000) return trim(value / 1000, 2) + "k";
  if (size < 1e-3) return value.toExponential(1).replace(/\.0e/, "e");
  return trim(value, 4);
}

function trim(value: number, digits: number): string {
  return String(Number(value.toFixed(digits)));
}

/** A length of time, two units at most: "2 h 14 min", "41 min", "12 s", "0.6 s". */
export function span(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 1) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) {
    const min = Math.floor(s / 60);
    const rest = Math.floor(s % 60);
    return min < 5 && rest > 0 ? `${min} min ${rest} s` : `${min} min`;
  }
  const hours = Math.floor(s / 3600);
  if (hours < 48) {
    const min = Math.floor((s % 3600) / 60);
    return min > 0 ? `${hours} h ${min} min` : `${hours} h`;
  }
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** One unit, for the age of a receipt. */
export function age(seconds: number): string {
  const s = Math.max(0, seconds);
  if (s < 1) return "now";
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

const hm = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const hms = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

export function clock(ts_s: number): string {
  return hm.format(ts_s * 1000);
}

export function clockSeconds(ts_s: number): string {
  return hms.format(ts_s * 1000);
}

export function bytes(n: number | null | undefined): string {
  if (n === null || n === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = n;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? size.toFixed(0) : size.toFixed(1)} ${units[unit]}`;
}

/** How a run stands; of one that nobody trains any more, how it ended, where its journal says so. */
export function standing(session: Session): string {
  const { state, finished, connected } = session;
  if (connected || !["journal", "lost", "running"].includes(state)) return state;
  const status = finished?.status ?? null;
  if (status === null) return state === "running" ? "lost" : state;
  return status === "completed" ? "finished" : status;
}

/** How far the command is that the run stands for. Pure functions. */

import { count, span } from "./format";
import type { Told } from "./told";

export interface Progress {
  request_id: string | null;
  cmd: string;
  done: number;
  total: number;
  /** When it will be done, on the trainer's clock. */
  ends_ts: number | null;
}

/** Of what is under way: none before it has told anything, and none of what is over. */
export function progressOf(data: Told | null): Progress | null {
  const events = data?.events ?? [];
  for (let i = events.length - 1; i >= 0; i -= 1) {
    const event = events[i];
    if (event === undefined || event.type === "state") return null;
    if (event.type !== "progress") continue;
    const { done, total, eta_s, cmd, request_id } = event as Record<string, unknown>;
    if (typeof done !== "number" || typeof total !== "number" || total <= 0) return null;
    return {
      request_id: typeof request_id === "string" ? request_id : null, cmd: String(cmd), done: Math.min(done, total), total,
      ends_ts: typeof eta_s === "number" && typeof event.ts === "number" ? event.ts + eta_s : null,
    };
  }
  return null;
}

/** "41 of 79". */
export function share(progress: Progress): string {
  return `${count(progress.done)} of ${count(progress.total)}`;
}

/** "3 s"; null where nobody can tell. */
export function remaining(progress: Progress, now_s: number): string | null {
  if (progress.ends_ts === null) return null;
  return span(Math.max(0, progress.ends_ts - now_s));
}

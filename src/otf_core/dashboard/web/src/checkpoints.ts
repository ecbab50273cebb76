/** The kept checkpoints of a run. Pure functions. */

import { shell } from "./words";
import type { Checkpoint, OtfEvent, Run } from "./types";

export const KINDS: Record<string, string> = {
  ring: "kept in turn", pause: "pause", manual: "asked for", auto: "automatic", final: "end of training",
};

/** What the dashboard has listed and what the stream has told since; the highest step first. */
export function checkpointsOf(run: Run | undefined, events: OtfEvent[]): Checkpoint[] {
  const found = new Map<string, Checkpoint>();
  for (const one of run?.checkpoints ?? []) found.set(one.id, one);
  for (const event of events) {
    if (event.type === "checkpoint_saved" && typeof event["id"] === "string" && !found.has(event["id"])) {
      found.set(event["id"], {
        id: event["id"], path: text(event["path"]), step: event.step ?? null, kind: text(event["kind"]),
        bytes: typeof event["bytes"] === "number" ? event["bytes"] : null, ts: event.ts ?? null,
        exact: event["exact"] === true,
      });
    } else if (event.type === "checkpoint_removed" && typeof event["id"] === "string") {
      found.delete(event["id"]);
    }
  }
  return [...found.values()].sort((a, b) => (b.step ?? 0) - (a.step ?? 0) || (b.ts ?? 0) - (a.ts ?? 0));
}

/** "kept in turn, exact". */
export function checkpointLine(one: Checkpoint): string {
  return [KINDS[one.kind ?? ""] ?? one.kind, one.exact === true ? "exact" : "approximate"].filter(Boolean).join(", ");
}

/** What makes the command that started the run go on from a checkpoint. */
export function resumeLine(path: string): string {
  return `OTF_RESUME=${shell(path)}`;
}

function text(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

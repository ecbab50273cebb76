/** The drawer Log. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { bytes, clockSeconds, count, setting, sig } from "./format";
import type { View } from "./state";
import type { OtfEvent } from "./types";
import { paramName } from "./words";

const LINES = 400;

export type Level = "all" | "warn" | "bad";

/** One line for an event, and how serious it is. */
export function lineOf(event: OtfEvent): { level: Level; text: string } {
  const level = String(event["level"] ?? "").toLowerCase();
  switch (event.type) {
    case "log":
      return { level: level.startsWith("err") || level === "critical" ? "bad" : level.startsWith("warn") ? "warn" : "all", text: String(event["text"] ?? "") };
    case "error":
      return { level: "bad", text: String(event["text"] ?? event["code"] ?? "error") };
    case "param_changed":
      return { level: "all", text: `${paramName(String(event["path"]))} ${setting(event["old"])} → ${setting(event["new"])} by ${String(event["by"] ?? "user")}` };
    case "state":
      return { level: event["state"] === "failed" ? "bad" : "all", text: `state ${String(event["previous"] ?? "–")} → ${String(event["state"])}${event["reason"] ? ` (${String(event["reason"])})` : ""}` };
    case "checkpoint_saved":
      return { level: "all", text: `checkpoint ${String(event["kind"] ?? "")} ${typeof event["bytes"] === "number" ? bytes(event["bytes"]) : ""} ${String(event["path"] ?? "")}`.replace(/ +/g, " ") };
    case "checkpoint_loaded":
      return { level: "all", text: `step ${setting(event.step)}${typeof event["from_step"] === "number" ? `, rolled back from ${count(event["from_step"])}` : ""} ${String(event["path"] ?? "")}`.trim() };
    case "exactness":
      return { level: event["exact"] === true ? "all" : "warn", text: [event["text"], ...(Array.isArray(event["reasons"]) ? event["reasons"] : [])].map(String).join("; ") };
    case "stall":
      return { level: event["over"] === true ? "all" : "bad", text: event["over"] === true ? "goes on again" : `no batch has ended for ${setting(event["seconds"])} s${event["where"] ? `, in ${String(event["where"])}` : ""}` };
    case "gap":
      return { level: "warn", text: `${String(event["count"])} events left out of the stream (${String(event["reason"])})` };
    case "trainingFinished":
      return { level: event["status"] === "failed" ? "bad" : "all", text: `${String(event["status"])}${event["error"] ? `: ${String(event["error"])}` : ""}` };
    case "note":
      return { level: "all", text: event["removed"] === true ? "note taken back" : String(event["text"] ?? "") };
    case "epoch_end":
      return { level: "all", text: `epoch ${count(Number(event["epoch"]))} ended${typeof event["val_loss"] === "number" ? `, val loss ${sig(event["val_loss"])}` : ""}` };
    default:
      return { level: "all", text: rest(event) };
  }
}

const STAMPS = new Set(["type", "run_id", "run_gen", "ts", "session_id", "event_seq", "step", "replay"]);

function rest(event: OtfEvent): string {
  return Object.entries(event)
    .filter(([key, value]) => !STAMPS.has(key) && value !== null && value !== undefined && value !== "")
    .map(([key, value]) => `${key} ${setting(value)}`)
    .join(", ");
}

export function Log({ view }: { view: View }): JSX.Element {
  const [filter, setFilter] = useState("");
  const [level, setLevel] = useState<Level>("all");
  const wanted = filter.toLowerCase();
  const lines: JSX.Element[] = [];
  const events = view.data?.events ?? [];
  for (let i = events.length - 1; i >= 0 && lines.length < LINES; i -= 1) {
    const event = events[i] as OtfEvent;
    const line = lineOf(event);
    if (level === "bad" ? line.level !== "bad" : level === "warn" && line.level === "all") continue;
    if (wanted !== "" && !`${event.type} ${line.text}`.toLowerCase().includes(wanted)) continue;
    const step = typeof event["applied_step"] === "number" ? event["applied_step"] : event.step;
    lines.push(
      <li key={`${String(event["session_id"] ?? "")} ${event.event_seq ?? `x${i}`}`} data-level={line.level} data-seq={event.event_seq} data-type={event.type}>
        <span class="t">{typeof event.ts === "number" ? clockSeconds(event.ts) : ""}</span>
        <span class="t num">{typeof step === "number" ? count(step) : ""}</span>
        <span class="x"><b>{event.type}</b> {line.text}</span>
      </li>,
    );
  }
  return (
    <>
      <div class="dr-t">
        <input
          class="inp grow" type="search" placeholder="Filter" aria-label="Filter the log" value={filter}
          onInput={(event) => setFilter(event.currentTarget.value)}
        />
        <select class="inp" aria-label="Level" value={level} onChange={(event) => setLevel(event.currentTarget.value as Level)}>
          <option value="all">all</option>
          <option value="warn">warnings and errors</option>
          <option value="bad">errors</option>
        </select>
      </div>
      <div class="dr-b">
        {lines.length === 0 ? (
          <p class="lead">{events.length === 0 ? "No event yet." : "No line matches."}</p>
        ) : (
          <ol class="log">{lines}</ol>
        )}
      </div>
    </>
  );
}

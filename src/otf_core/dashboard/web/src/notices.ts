/** What somebody who looks away has to be told of: runs that paused, stalled or ended, and refusals of others.
 *
 * They are found in the messages, not while drawing: a tab that is not looked at draws nothing.
 */

import { count, setting } from "./format";
import { nameOf } from "./state";
import { kept, runKey, store } from "./store";
import type { FromServer, Session } from "./types";
import { guardText, what, why } from "./words";

export type NoticeKind = "paused" | "finished" | "failed" | "stalled" | "refused" | "guard";

export interface Notice {
  id: string;
  kind: NoticeKind;
  run: string;
  text: string;
  detail: string;
  at_ms: number;
}

const KEPT = 50;
const ENDS: Record<string, NoticeKind> = { paused: "paused", finished: "finished", failed: "failed", interrupted: "finished" };

class Notices {
  /** Newest first. */
  list: Notice[] = [];
  unread = 0;
  private readonly states = new Map<string, string>();
  private readonly told = new Set<string>();

  /** A message, as it is about to be taken in. */
  hear(message: FromServer): void {
    switch (message.kind) {
      case "welcome":
        for (const session of message.sessions) this.see(session);
        break;
      case "session":
        this.see(message.session);
        break;
      case "events":
        if (message.history === true) return;
        for (const event of message.events) {
          const gone = event.type === "rank_state" && event["state"] !== "back";
          const guard = event.type === "guard";
          if ((!gone && !guard && (event.type !== "stall" || event["over"] === true)) || event.replay === true) continue;
          const session = store.sessions.get(message.session_id);
          const ts = event.ts ?? 0;
          if (session?.connected !== true || (event.event_seq ?? 0) < (session.last_seq ?? 0) - 50 || ts * 1000 < store.opened_ms - 60_000) continue;
          if (gone) {
            const [rank, failed] = [setting(event["rank"]), event["state"] === "failed"];
            this.add(failed ? "failed" : "stalled", session, `rank ${message.session_id} ${event.event_seq ?? ts}`,
                     `${nameOf(session)}: rank ${rank} ${failed ? "failed" : "is silent"}`, String(event["why"] ?? ""));
            continue;
          }
          if (guard) {
            this.add("guard", session, `guard ${message.session_id} ${event.event_seq ?? ts}`, `${nameOf(session)}: guard ${String(event["rule"])}`, `step ${count(event.step)}, ${guardText(event)}`);
            continue;
          }
          this.add("stalled", session, `stall ${message.session_id} ${event.event_seq ?? ts}`,
                   `${nameOf(session)} stalls`, `step ${count(event.step)}${event["where"] ? `, in ${String(event["where"])}` : ""}`);
        }
        break;
      case "receipt": {
        const { receipt, session_id } = message;
        const session = store.sessions.get(session_id);
        if (receipt.state !== "refused" || store.mine.has(receipt.id) || session === undefined) return;
        if (receipt.answered_ts !== null && (receipt.answered_ts - store.skew_s) * 1000 < store.opened_ms) return;
        const held = { ...receipt, first_ms: 0, settled_ms: 0, mine: false };
        this.add("refused", session, `refused ${receipt.id}`, `${what(held, session.params)} refused`,
                 `${nameOf(session)}: ${why(held)} Asked from ${receipt.client ?? receipt.by}.`);
        break;
      }
      default:
    }
  }

  /** A state that was other when the page last heard of it. What is as it was when the page came is no news. */
  private see(session: Session): void {
    const before = this.states.get(session.session_id);
    this.states.set(session.session_id, session.state);
    const kind = ENDS[session.state];
    if (before === undefined || before === session.state || kind === undefined) return;
    if (kind === "paused" && (before === "validating" || before === "testing")) return; // it was held before
    const step = session.finished?.step ?? session.step;
    const at = step === null ? "" : `at step ${count(step)}`;
    const reason = session.finished?.error ?? (session.state === "paused" && session.reason === "user" ? null : session.reason);
    this.add(kind, session, `${session.session_id} ${session.state} ${session.last_seq ?? ""}`,
             `${nameOf(session)} ${session.state === "paused" ? "is paused" : session.state === "interrupted" ? "was interrupted" : session.state === "failed" ? "failed" : "has finished"}`,
             [at, reason].filter(Boolean).join(", "));
  }

  private add(kind: NoticeKind, session: Session, id: string, text: string, detail: string): void {
    if (this.told.has(id)) return;
    this.told.add(id);
    this.list = [{ id, kind, run: runKey(session), text, detail, at_ms: Date.now() }, ...this.list].slice(0, KEPT);
    this.unread += 1;
    show(text, detail, id);
    store.changed();
  }

  read(): void {
    this.unread = 0;
  }
}

export const notices = new Notices();

export type Asked = "unsupported" | "default" | "granted" | "denied" | "off";

/** Whether this browser shows notifications: it must be allowed to, and wanted. */
export function browserTells(): Asked {
  if (typeof Notification === "undefined" || !window.isSecureContext) return "unsupported";
  if (Notification.permission === "granted") return kept.get("notify") === "on" ? "granted" : "off";
  return Notification.permission;
}

/** Ask the browser, because somebody pressed; or stop. */
export async function tellBrowser(on: boolean): Promise<void> {
  if (on && Notification.permission === "default") await Notification.requestPermission();
  kept.set("notify", on && Notification.permission === "granted" ? "on" : "off");
  store.changed();
}

function show(text: string, detail: string, tag: string): void {
  if (browserTells() !== "granted" || !document.hidden) return;
  try {
    const shown = new Notification(text, { body: detail, tag });
    shown.onclick = () => {
      window.focus();
      shown.close();
    };
  } catch {
    // Some browsers allow them to service workers only.
  }
}

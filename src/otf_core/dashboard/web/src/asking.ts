/** Questions that change nothing: no receipt is shown of them, the answer comes to who asked. */

import { isDict } from "./columns";
import { command } from "./live";
import { store } from "./store";
import type { Dict, Reply } from "./types";

const WAIT_MS = 30_000;

/** The trainer's reply; null where there was none (no connection, or no answer in time). */
export function ask(session_id: string, cmd: string, payload: Dict): Promise<Reply | null> {
  const id = command(session_id, cmd, payload);
  if (id === null) return Promise.resolve(null);
  return new Promise((resolve) => {
    const timer = setTimeout(() => answer(null), WAIT_MS);
    const answer = (reply: Reply | null): void => {
      clearTimeout(timer);
      store.asked.delete(id);
      resolve(reply);
    };
    store.asked.set(id, answer);
  });
}

/** What a person sees of a sample. */
export interface Shown {
  id: number;
  kind: string;
  /** A blob of this page: the content policy takes no data: address. */
  url?: string;
  text?: string;
  values?: unknown[];
  label?: unknown;
  reason?: string;
}

const MOST_SHOWN = 500;
const AT_ONCE = 64;
const shown = new Map<string, Shown>();
const wanted = new Set<string>();

function keyOf(run: string, on: string, id: number): string {
  return `${run}\n${on}\n${id}`;
}

/** A sample as it was shown before; undefined until it is here. Samples are those of a run's data set. */
export function shownSample(run: string, on: string, id: number): Shown | undefined {
  return shown.get(keyOf(run, on, id));
}

/** Fetch what is not here yet. The run stands for as long as that takes. */
export async function fetchSamples(session_id: string, run: string, on: string, ids: number[]): Promise<void> {
  const missing = ids.filter((id) => !shown.has(keyOf(run, on, id)) && !wanted.has(keyOf(run, on, id))).slice(0, AT_ONCE);
  if (missing.length === 0) return;
  for (const id of missing) wanted.add(keyOf(run, on, id));
  const reply = await ask(session_id, "show_samples", { ids: missing, on });
  for (const id of missing) wanted.delete(keyOf(run, on, id));
  const samples = isDict(reply?.data) && Array.isArray(reply.data["samples"]) ? reply.data["samples"] : [];
  for (const one of samples) {
    if (!isDict(one) || typeof one["id"] !== "number") continue;
    const found = { ...one, kind: String(one["kind"]) } as unknown as Shown;
    const picture = typeof one["url"] === "string" ? blobOf(one["url"]) : null;
    if (picture === null) delete found.url;
    else found.url = URL.createObjectURL(picture);
    shown.set(keyOf(run, on, found.id), found);
  }
  for (const [key, one] of shown) {
    if (shown.size <= MOST_SHOWN) break;
    if (one.url !== undefined) URL.revokeObjectURL(one.url);
    shown.delete(key);
  }
  store.changed();
}

/** The picture of a data: address; null where it is none. */
export function blobOf(address: string): Blob | null {
  const found = /^data:(image\/(?:png|jpeg|gif|webp));base64,([A-Za-z0-9+/=\s]+)$/.exec(address);
  if (found === null) return null;
  const text = atob(found[2] as string);
  return new Blob([Uint8Array.from(text, (c) => c.charCodeAt(0))], { type: found[1] as string });
}

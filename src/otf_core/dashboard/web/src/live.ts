/** The connection with the dashboard's server: one WebSocket, and REST for what is asked once. */

import { clientName } from "./client";
import { isDict } from "./columns";
import { socketToUse } from "./dial";
import { notices } from "./notices";
import { isSettled, store } from "./store";
import { token } from "./token";
import type { Dict, FromServer, OtfEvent, Receipt, Reply, Session } from "./types";

const PING_EVERY_MS = 5_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;
/** A server that says nothing for this long, pings included, is as good as gone. */
const SILENCE_MS = 15_000;
/** So long a connection that is being made is not begun anew by a press. */
const PATIENCE_MS = 3_000;
const UNAUTHORIZED = 4401;

let socket: WebSocket | null = null;
let wait_ms = FIRST_WAIT_MS;
let retry: ReturnType<typeof setTimeout> | undefined;
let heard_ms = 0;
let delay_ms: number | null = null;
let arrivals: number[] = [];
const subscribed = new Set<string>();
/** Sessions that were subscribed to until another run came into focus. */
const left = new Set<string>();
/** Sessions whose events without steps were asked for. */
const asked = new Set<string>();
/** Of so many events a session is told in full when it is subscribed to; of more the steps are thinned. */
const WHOLE_HISTORY = 6_000;
const EVENTS_AT_ONCE = 10_000;

export function url(path: string): string {
  return new URL(path, document.baseURI).href;
}

/** Connect, and stay connected for as long as the page is open. */
export function connect(): void {
  if (socket?.readyState === WebSocket.CONNECTING && Date.now() - heard_ms < PATIENCE_MS) return; // it is on its way
  clearTimeout(retry);
  const old = socket;
  socket = null;
  old?.close();
  const opening = socketToUse();
  socket = opening;
  heard_ms = Date.now();
  opening.onopen = () => {
    opening.send(JSON.stringify({ token, client: clientName() }));
  };
  opening.onmessage = (message) => {
    if (socket === opening && typeof message.data === "string") receive(message.data);
  };
  opening.onclose = (closing) => {
    if (socket === opening) lost(closing.code);
  };
}

function lost(code: number): void {
  socket = null;
  for (const answer of [...store.asked.values()]) answer(null);
  subscribed.clear();
  asked.clear();
  delay_ms = null;
  if (code === UNAUTHORIZED) {
    store.link = { state: "refused" };
    store.changed();
    return;
  }
  const since_ms = store.link.state === "lost" ? store.link.since_ms : Date.now();
  const jittered = wait_ms * (0.8 + 0.4 * Math.random());
  store.link = { state: "lost", since_ms, retry_at_ms: Date.now() + jittered };
  retry = setTimeout(connect, jittered);
  wait_ms = Math.min(LONGEST_WAIT_MS, wait_ms * 1.8);
  store.changed();
}

function receive(text: string): void {
  heard_ms = Date.now();
  const message = JSON.parse(text) as FromServer;
  notices.hear(message);
  switch (message.kind) {
    case "welcome":
      wait_ms = FIRST_WAIT_MS;
      store.link = { state: "up", delay_ms: null, rate_hz: 0 };
      store.take(message);
      ping();
      settle();
      break;
    case "pong":
      delay_ms = performance.now() - message.t;
      store.changed();
      break;
    case "events":
      arrivals.push(heard_ms);
      store.take(message);
      break;
    case "receipt": {
      const { receipt, session_id } = message;
      store.take(message);
      // What a check has found is read by everybody who looks, however large.
      if (receipt.left_out_bytes !== undefined && receipt.cmd.endsWith("_health")) void settleOne(session_id, receipt);
      break;
    }
    default:
      store.take(message);
  }
  follow();
}

/** Ask for the events of the run that is shown, of all its sessions, and once for those of its kin. */
export function follow(): void {
  const session = store.current();
  if (session === null || store.link.state !== "up") return;
  const followed = store.sessionsOf(session);
  for (const id of subscribed) {
    if (followed.some((one) => one.session_id === id)) continue;
    subscribed.delete(id);
    left.add(id);
    store.partly.add(id);
    send({ kind: "unsubscribe", session_id: id });
  }
  for (const one of followed) subscribe(one);
  for (const kin of store.family(session)) {
    for (const one of store.sessionsOf(kin)) if (!subscribed.has(one.session_id)) void read(one);
  }
}

function subscribe(session: Session): void {
  const { session_id } = session;
  if (subscribed.has(session_id)) return;
  subscribed.add(session_id);
  if (left.delete(session_id)) store.rejoin(session);
  const here = store.lastSeqOf(session_id);
  const last = session.last_seq ?? 0;
  if (last - here <= WHOLE_HISTORY) {
    send({ kind: "subscribe", session_id, after_seq: here });
    return;
  }
  // A long run: what was before comes as curves, and here are the events without its steps.
  store.partly.add(session_id);
  send({ kind: "subscribe", session_id, after_seq: last });
  void read(session);
}

/** The events of a session, but its steps; new ones come by the socket, for whatever session. */
async function read(session: Session): Promise<void> {
  const { session_id } = session;
  if (asked.has(session_id)) return;
  asked.add(session_id);
  if (!subscribed.has(session_id)) store.partly.add(session_id);
  let after = 0;
  for (let page = 0; page < 20; page += 1) {
    const answer = await getJson(`api/sessions/${encodeURIComponent(session_id)}/events?after=${after}&limit=${EVENTS_AT_ONCE}`);
    if (!isDict(answer) || !Array.isArray(answer["events"])) return;
    const events = answer["events"] as OtfEvent[];
    store.take({ kind: "events", session_id, events });
    if (events.length < EVENTS_AT_ONCE) return;
    after = events.at(-1)?.event_seq ?? after;
  }
}

function send(message: object): boolean {
  if (socket === null || socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

function ping(): void {
  send({ kind: "ping", t: performance.now() });
}

/** Every second: the rate, the age of the connection, the ages on the page. */
export function beat(): void {
  const now = Date.now();
  if (store.link.state === "up") {
    arrivals = arrivals.filter((at) => now - at < 5_000);
    store.link = { state: "up", delay_ms, rate_hz: arrivals.length / 5 };
    if (now - heard_ms > SILENCE_MS) {
      const silent = socket;
      lost(0);
      silent?.close();
    } else if (Math.floor(now / 1000) % (PING_EVERY_MS / 1000) === 0) {
      ping();
    }
  }
  store.changed();
}

/** Works on pages without a secure context as well, which have no randomUUID. */
function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] as number) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Give a command. Nothing is queued: without a connection it is not sent, and null comes back. */
export function command(session_id: string, cmd: string, payload: Dict): string | null {
  if (store.link.state !== "up" || store.watching) return null;
  const id = newId();
  store.mine.add(id);
  if (!send({ kind: "command", session_id, id, cmd, payload })) return null;
  store.takeReceipt(session_id, {
    id, cmd, payload, by: "page", client: null, sent_ts: null, accepted_ts: null, waits_for: null,
    answered_ts: null, reply: null, state: "sent",
  });
  return id;
}

/** After a new connection: ask what became of every command that had no answer. */
function settle(): void {
  for (const [session_id, receipts] of store.receipts) {
    for (const receipt of receipts.values()) {
      if (!isSettled(receipt.state)) void settleOne(session_id, receipt);
    }
  }
}

async function settleOne(session_id: string, receipt: Receipt): Promise<void> {
  const path = `api/sessions/${encodeURIComponent(session_id)}/commands/${encodeURIComponent(receipt.id)}`;
  const answer = await getJson(path);
  if (!isDict(answer)) return;
  if (answer["state"] === "answered" && isDict(answer["reply"])) {
    const reply = answer["reply"] as unknown as Reply;
    store.takeReceipt(session_id, { ...receipt, reply, state: reply.ok ? "applied" : "refused" });
  } else if (answer["state"] === "unknown") {
    store.takeReceipt(session_id, { ...receipt, state: "unknown" });
  }
}

/** JSON of a GET, null if there is none. */
export async function getJson(path: string): Promise<unknown> {
  try {
    const answer = await fetch(url(path), { headers: authorization() });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the socket tells of a lost connection
  }
}

function authorization(): Record<string, string> {
  return token === "" ? {} : { Authorization: `Bearer ${token}` };
}

/** Fetch a file with the token and hand it to the browser's downloads; what went wrong, or null. */
export async function download(path: string, name: string): Promise<string | null> {
  try {
    const answer = await fetch(url(path), { headers: authorization() });
    if (!answer.ok) return `not downloaded: the server answered ${answer.status}`;
    const address = URL.createObjectURL(await answer.blob());
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    return null;
  } catch {
    return "not downloaded: no connection";
  }
}

export type { OtfEvent };

/** What the dashboard's server sends, as far as the page reads it. */

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type Dict = { [key: string]: Json };

export interface Pending {
  request_id: string;
  cmd: string;
  since_ts: number | null;
  waits_for: string | null;
}

export interface Param {
  path: string;
  kind: string;
  value: Json;
  /** What script and schedule by themselves would use, where it was set. */
  script?: Json;
  pending?: { value: Json; at_step: number | null } | null;
  min?: number | null;
  max?: number | null;
  choices?: Json[] | null;
  unit?: string | null;
  owner?: string | null;
  /** "next step", "next batch" or "next epoch". */
  takes_effect?: string | null;
  /** What is used until then. */
  in_use?: Json;
}

export interface Session {
  session_id: string;
  run_id: string | null;
  project: string | null;
  run_name: string | null;
  state: string;
  reason: string | null;
  step: number | null;
  epoch: number | null;
  max_steps: number | null;
  max_epochs: number | null;
  connected: boolean;
  protocol: string;
  pid: number | null;
  host: string | null;
  device: string | null;
  version: string | null;
  started_ts: number | null;
  last_ts: number | null;
  last_seq: number | null;
  capabilities: string[];
  pending: Pending[];
  params: Param[];
  last_checkpoint: Dict | null;
  exactness: string | null;
  status: Dict | null;
  status_ts: number | null;
  cadence: Record<string, { every: number; unit: string }> | null;
  finished: { status: string | null; step: number | null; error?: string | null } | null;
  journal_complete: boolean;
}

export interface Checkpoint {
  id: string;
  path: string | null;
  step: number | null;
  kind: string | null;
  bytes: number | null;
  ts: number | null;
  exact?: boolean | null;
  session_id?: string | null;
}

export interface Run {
  run_id: string;
  project: string | null;
  run_name: string | null;
  session_ids: string[];
  parents: string[];
  /** Of a fork or a merge: from what it was made, as `newRun` has it. */
  made?: { kind?: string; from?: string; at_step?: number; init_from?: string; sources?: string[]; [more: string]: Json | undefined } | null;
  created_ts: number | null;
  summary: {
    step?: number | null;
    val_loss?: number | null;
    best_val_loss?: number | null;
    best_val_step?: number | null;
    loss?: number | null;
  } | null;
  checkpoints: Checkpoint[];
}

export interface Reply {
  id?: string;
  ok: boolean;
  data?: Dict | null;
  error?: string;
  code?: string;
  detail?: string | null;
  field?: string | null;
  allowed?: Json;
  retry_after_s?: number;
}

export type ReceiptState = "sent" | "accepted" | "applied" | "refused" | "unknown";

export interface Receipt {
  id: string;
  cmd: string;
  payload: Dict | null;
  by: string;
  /** What its sender calls itself: a page's name, user@host of the command line. */
  client?: string | null;
  sent_ts: number | null;
  accepted_ts: number | null;
  waits_for: string | null;
  answered_ts: number | null;
  reply: Reply | null;
  state: ReceiptState;
  /** It was too large for those who did not ask; it can be asked for. */
  left_out_bytes?: number;
}

/** An event as on the wire. */
export interface OtfEvent {
  type: string;
  event_seq?: number;
  ts?: number;
  step?: number;
  run_id?: string;
  replay?: boolean;
  [key: string]: unknown;
}

export type FromServer =
  | {
      kind: "welcome";
      server_ts: number;
      version: string;
      /** What the page that is served now was built from; null if it was not built. */
      build?: string | null;
      /** The link only watches: every command would be refused. */
      read_only?: boolean;
      client?: string;
      /** Whether this dashboard writes the database of its folder, reads another's, or has only its memory. */
      store?: { mode: string; text?: string | null } | null;
      sessions: Session[];
      runs: Run[];
    }
  | { kind: "session"; session: Session }
  | { kind: "run"; run: Run }
  | { kind: "events"; session_id: string; events: OtfEvent[]; history?: boolean; left_out?: number }
  | { kind: "receipt"; session_id: string; receipt: Receipt }
  | { kind: "error"; code: string; detail: string }
  | { kind: "pong"; t: number };

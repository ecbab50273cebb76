/** A list of the trainer that is asked for again when something may have changed it. */

import { useEffect, useState } from "preact/hooks";
import { ask } from "./asking";
import { isDict } from "./columns";
import { store } from "./store";
import type { Told } from "./told";
import type { Dict, Session } from "./types";

/** The reply's data; null until there is one. `news` are events after which it may be another one. */
export function useAsked(session: Session, cmd: string, able: boolean, news: readonly string[], told: Told | null): Dict | null {
  const [found, put] = useState<Dict | null>(null);
  const last = told?.events.findLast((event) => news.includes(event.type))?.event_seq;
  const applied = store.receiptsOf(session.session_id).filter((one) => one.state === "applied").length;
  useEffect(() => {
    if (!able) return undefined;
    let here = true;
    void ask(session.session_id, cmd, {}).then((reply) => {
      if (here && reply?.ok === true && isDict(reply.data)) put(reply.data);
    });
    return () => {
      here = false;
    };
  }, [session.session_id, cmd, able, last, applied]);
  return found;
}

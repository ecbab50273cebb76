/** What the coming steps will use, as the trainer itself works it out on a copy of its schedules. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ask } from "./asking";
import { readComing, type Coming } from "./plans";
import type { Dict, Session } from "./types";

/** The trainer stands for as long as it looks, so it is asked when somebody has stopped typing. */
const QUIET_MS = 400;
const POINTS = 192;

/** Asked anew when the changes, or what is set and waits, are other; null until there is an answer. */
export function useComing(session: Session, changes: Dict[], at_step: number | undefined, shut: boolean): Coming | null {
  const [found, put] = useState<Coming | null>(null);
  const asked = useRef(0);
  const able = !shut && session.capabilities.includes("preview_params");
  const standing = session.params.map((one) => [one.path, one.owner, one.script !== undefined, one.pending ?? null]);
  const key = JSON.stringify([session.session_id, able, changes, at_step, standing]);
  useEffect(() => {
    if (!able) {
      put(null);
      return undefined;
    }
    const timer = setTimeout(() => {
      const turn = (asked.current += 1);
      const coming = changes.map((one) => (at_step === undefined ? one : { ...one, at_step }));
      void ask(session.session_id, "preview_params", { changes: coming, points: POINTS }).then((reply) => {
        if (turn === asked.current) put(readComing(reply));
      });
    }, QUIET_MS);
    return () => clearTimeout(timer);
  }, [key]);
  return found;
}

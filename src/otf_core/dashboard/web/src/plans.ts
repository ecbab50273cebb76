/** What the coming steps will use, read of a trainer's answer. Pure functions. */

import { isDict } from "./columns";
import { why } from "./words";
import type { Reply } from "./types";

export interface Coming {
  step: number[];
  now: ReadonlyMap<string, number[]>;
  then: ReadonlyMap<string, number[]>;
  assumes: string[];
  ends: { step: number; why: string } | null;
  /** It goes on beyond what was looked at. */
  cut: boolean;
  /** The trainer would refuse what is typed, or cannot tell: a sentence that says so. */
  refused: string | null;
}

const NOTHING: Coming = { step: [], now: new Map(), then: new Map(), assumes: [], ends: null, cut: false, refused: null };

export function readComing(reply: Reply | null): Coming | null {
  if (reply === null) return null;
  if (!reply.ok) return { ...NOTHING, refused: `${reply.detail?.startsWith("A preview") === true ? "No preview" : "The trainer would refuse this"}: ${why({ reply } as never)}` };
  const data = isDict(reply.data) ? reply.data : {};
  const curves = (name: string): Map<string, number[]> =>
    new Map(isDict(data[name]) ? Object.entries(data[name]).map(([path, values]) => [path, Array.isArray(values) ? values.map(Number) : []]) : []);
  const ends = isDict(data["ends"]) ? data["ends"] : null;
  return {
    step: Array.isArray(data["step"]) ? data["step"].map(Number) : [], now: curves("now"), then: curves("then"),
    assumes: Array.isArray(data["assumes"]) ? data["assumes"].map(String) : [],
    ends: ends === null ? null : { step: Number(ends["step"]), why: String(ends["why"]) },
    cut: data["cut"] === true, refused: null,
  };
}

/** The curve of a row: its own, or of the first group where the row stands for all. */
export function curveFor(curves: ReadonlyMap<string, number[]>, path: string): number[] | undefined {
  return curves.get(path) ?? [...curves].find(([one]) => one.endsWith(`.${path}`))?.[1];
}

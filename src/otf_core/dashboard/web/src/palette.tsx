/** The palette: everything that can be done or gone to, by what it is called. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { entries, find, stepEntry, stepIn, type Entry } from "./found";
import { Icon } from "./icons";
import "./palette.css";
import { page } from "./page";
import type { View } from "./state";

const SHOWN = 60;

export function Palette({ view }: { view: View }): JSX.Element {
  const box = useRef<HTMLDialogElement>(null);
  const [query, setQuery] = useState("");
  const [at, setAt] = useState(0);
  const step = stepIn(query);
  const found: Entry[] = [
    ...(step !== null && view.session !== null ? [stepEntry(view, step)] : []), ...find(entries(view), query),
  ].slice(0, SHOWN);
  const chosen = found[Math.min(at, found.length - 1)];
  useEffect(() => {
    const opener = document.activeElement;
    box.current?.showModal();
    box.current?.querySelector("input")?.focus();
    return () => {
      if (opener instanceof HTMLElement) opener.focus();
    };
  }, []);
  useEffect(() => {
    box.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  }, [at, query]);
  const take = (entry: Entry | undefined): void => {
    if (entry === undefined || entry.off !== undefined) return;
    page.ask(null);
    entry.act();
  };
  const onKey = (event: KeyboardEvent): void => {
    const move = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (move !== 0 && found.length > 0) setAt((Math.min(at, found.length - 1) + move + found.length) % found.length);
    else if (event.key === "Enter") take(chosen);
    else return;
    event.preventDefault();
  };
  let group = "";
  return (
    <dialog class="pal" ref={box} aria-label="Commands" onClose={() => page.ask(null)} onClick={(event) => {
      if (event.target === box.current) page.ask(null);
    }}>
      <input
        type="text" role="combobox" aria-expanded="true" aria-controls="pal-list" aria-label="Command, run or step" aria-autocomplete="list"
        aria-activedescendant={chosen === undefined ? undefined : `pal-${found.indexOf(chosen)}`}
        placeholder="A command, a run, a step, a setting, a chart" autocomplete="off" spellcheck={false} value={query}
        onInput={(event) => {
          setQuery(event.currentTarget.value);
          setAt(0);
        }}
        onKeyDown={onKey}
      />
      <ul id="pal-list" role="listbox" aria-label="What was found">
        {found.map((entry, i) => {
          const head = entry.group === group ? null : (group = entry.group);
          return [
            head !== null && <li class="g" role="presentation" key={`${head} ${i}`}>{head}</li>,
            <li
              class="o" role="option" key={i} id={`pal-${i}`} aria-selected={entry === chosen}
              aria-disabled={entry.off === undefined ? undefined : "true"} onClick={() => take(entry)}
            >
              <Icon name={entry.icon} />
              <span class="clip">{entry.label}</span>
              <span class="h clip">{entry.off === undefined ? entry.hint : `not possible: ${entry.off}`}</span>
              {entry.key === undefined ? <span /> : <kbd aria-hidden="true">{entry.key}</kbd>}
            </li>,
          ];
        })}
      </ul>
      {found.length === 0 && <p class="none" role="status">Nothing matches.</p>}
      <div class="eq">
        {chosen?.cli === undefined ? <span>↑ ↓ to choose, ↵ to do it, Esc to close</span> : <><span>same as</span><code class="clip">{chosen.cli}</code></>}
      </div>
    </dialog>
  );
}

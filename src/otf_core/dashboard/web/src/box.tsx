/** The frame of a dialog. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { count } from "./format";
import { Icon } from "./icons";
import { page } from "./page";
import type { Checkpoint } from "./types";

/** A modal dialog; the browser gives the focus back to where it was. */
export function Box({ title, children, foot, wide }: { title: string; children: ComponentChildren; foot: ComponentChildren; wide?: boolean }): JSX.Element {
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const opener = document.activeElement;
    box.current?.showModal();
    box.current?.querySelector<HTMLElement>("[data-first]")?.focus();
    return () => {
      if (opener instanceof HTMLElement) opener.focus();
    };
  }, []);
  return (
    <dialog ref={box} class={wide === true ? "wide" : undefined} aria-labelledby="dialog-title" onClose={() => page.ask(null)}>
      <div class="dg-h">
        <h2 id="dialog-title">{title}</h2>
        <button type="button" class="icb" aria-label="Close" onClick={() => page.ask(null)}><Icon name="close" /></button>
      </div>
      <div class="dg-b">{children}</div>
      <div class="dg-f">{foot}</div>
    </dialog>
  );
}

export function Cli({ line }: { line: string }): JSX.Element {
  return <code class="cli grow clip" title={line}>{line}</code>;
}

/** A checkpoint to be chosen among others, and whether the run goes on exactly from it. */
export function CheckpointOption({ one, name, said, checked, pick }: {
  one: Checkpoint; name: string; said: (string | null | undefined)[]; checked: boolean; pick: () => void;
}): JSX.Element {
  return (
    <label class="opt" data-id={one.id}>
      <input type="radio" name={name} checked={checked} onChange={pick} />
      <span class="grow"><b>Step {count(one.step)}</b><span class="hint">{said.filter(Boolean).join(" · ")}</span></span>
      <span class="pill" data-tone={one.exact === true ? "ok" : "warn"}>
        <Icon name={one.exact === true ? "exact" : "inexact"} />
        {one.exact === true ? "exact" : "approximate"}
      </span>
    </label>
  );
}

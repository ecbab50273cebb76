/** The top bar: run switcher, connection, theme, keys. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Bell } from "./bell";
import { plural, sig, standing } from "./format";
import { Icon, Tag } from "./icons";
import { connect } from "./live";
import { page, toggleTheme } from "./page";
import { nameOf, type View } from "./state";
import { runKey, store, type Link } from "./store";
import type { Session } from "./types";

export function TopBar({ view }: { view: View }): JSX.Element {
  const sessions = store.sorted();
  const trainers = sessions.filter((one) => one.connected).length;
  const runs = new Set([...store.runs.keys(), ...sessions.map(runKey)]).size;
  return (
    <header class="top">
      <div class="logo">
        <svg viewBox="0 0 20 20" aria-hidden="true">
          <path d="M2 14h5c4 0 4-8 8-8h3" />
          <path d="M7 14h11" class="base" />
        </svg>
        <h1>otf</h1>
      </div>
      {view.session !== null && (
        <>
          <span class="sep" aria-hidden="true">/</span>
          <Switcher current={view.session} sessions={sessions} />
          <span class="counts hide-s">{plural(runs, "run")}, {plural(trainers, "trainer")}</span>
        </>
      )}
      <span class="grow" />
      <Connection link={view.link} />
      <button
        type="button" class="cmdk" aria-haspopup="dialog" aria-keyshortcuts="Control+K"
        onClick={() => page.ask({ kind: "palette" })}
      >
        <Icon name="search" />
        <span class="grow clip">Commands, runs, steps…</span>
        <kbd aria-hidden="true">Ctrl K</kbd>
      </button>
      <Bell />
      <button type="button" class="icb" aria-label={page.theme === "dark" ? "Light theme" : "Dark theme"} onClick={toggleTheme}>
        <Icon name="theme" />
      </button>
      <button type="button" class="icb" aria-label="Keyboard list" onClick={() => page.ask({ kind: "keys" })}>
        <Icon name="help" />
      </button>
    </header>
  );
}

function Connection({ link }: { link: Link }): JSX.Element {
  switch (link.state) {
    case "up":
      return (
        <span class="conn" data-link="up">
          <i class="dot" aria-hidden="true" />
          <span class="long">connected</span>
          <span class="longer">
            {link.rate_hz > 0 && ` · ${link.rate_hz < 1 ? link.rate_hz.toFixed(1) : link.rate_hz.toFixed(0)} Hz`}
            {link.delay_ms !== null && ` · ${Math.max(1, Math.round(link.delay_ms))} ms`}
          </span>
        </span>
      );
    case "lost": {
      const wait = link.retry_at_ms === null ? 0 : Math.max(0, link.retry_at_ms - Date.now());
      return (
        <span class="conn" data-link="lost">
          <i class="dot" aria-hidden="true" />
          <span class="long">{wait > 0 ? `reconnecting in ${Math.ceil(wait / 1000)} s` : "reconnecting"}</span>
          <button type="button" class="btn sm" onClick={connect}>Retry now</button>
        </span>
      );
    }
    case "refused":
      return (
        <span class="conn" data-link="lost">
          <i class="dot" aria-hidden="true" />
          <span class="long">no valid token</span>
          <button type="button" class="btn sm" onClick={connect}>Retry now</button>
        </span>
      );
    default:
      return (
        <span class="conn" data-link="off">
          <i class="dot" aria-hidden="true" />
          <span class="long">connecting</span>
        </span>
      );
  }
}

function Switcher({ current, sessions }: { current: Session; sessions: Session[] }): JSX.Element {
  const open = page.menu === "runs";
  return (
    <div class="menu-at">
      <button
        type="button" class="switch" data-menu="runs" aria-haspopup="true" aria-expanded={open}
        onClick={() => page.showMenu("runs")}
      >
        <Tag letter={store.letterOf(current)} />
        <span class="clip">{nameOf(current)}</span>
        <span class="sr">choose another run</span>
        <Icon name="down" />
      </button>
      {open && (
        <Menu label="Runs">
          {sessions.map((session) => {
            const best = store.runOf(session)?.summary?.best_val_loss ?? null;
            return (
              <button
                type="button" class="item run" key={runKey(session)}
                aria-current={runKey(session) === runKey(current) ? "true" : undefined}
                onClick={() => {
                  store.focus(runKey(session));
                  page.showMenu(null);
                }}
              >
                <Tag letter={store.letterOf(session)} />
                <span class="clip"><b>{nameOf(session)}</b></span>
                <span class="hint">{standing(session)}</span>
                <span class="hint num">{best === null ? "no val loss" : sig(best)}</span>
              </button>
            );
          })}
        </Menu>
      )}
    </div>
  );
}

/** A list of buttons that floats; closes when something else is pressed. */
export function Menu({ label, children, up = false }: {
  label: string; children: preact.ComponentChildren; up?: boolean;
}): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    box.current?.querySelector<HTMLElement>("[aria-current=true], button, input")?.focus();
    const outside = (event: PointerEvent): void => {
      const target = event.target instanceof Element ? event.target : null;
      if (target !== null && !box.current?.parentElement?.contains(target)) page.showMenu(null);
    };
    addEventListener("pointerdown", outside);
    return () => removeEventListener("pointerdown", outside);
  }, []);
  const move = (event: KeyboardEvent): void => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (step === 0) return;
    const items = [...(box.current?.querySelectorAll<HTMLElement>("button, input") ?? [])];
    const at = items.indexOf(document.activeElement as HTMLElement);
    items[(at + step + items.length) % items.length]?.focus();
    event.preventDefault();
  };
  return (
    <div class={`menu${up ? " up" : ""}`} role="group" aria-label={label} ref={box} onKeyDown={move}>
      {children}
    </div>
  );
}

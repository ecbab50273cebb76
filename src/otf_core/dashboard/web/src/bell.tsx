/** The bell: what has happened since the page was opened. Never over the charts by itself. */

import type { JSX } from "preact";
import "./bell.css";
import { age, count } from "./format";
import { Icon, Tag } from "./icons";
import { browserTells, notices, tellBrowser, type NoticeKind } from "./notices";
import { page } from "./page";
import { store } from "./store";
import { Menu } from "./top";

const ICON: Record<NoticeKind, string> = { paused: "pause", finished: "ok", failed: "no", stalled: "warn", refused: "no", guard: "warn" };

export function Bell(): JSX.Element {
  const open = page.menu === "notices";
  const { list, unread } = notices;
  return (
    <div class="menu-at bell">
      <button
        type="button" class="icb" data-menu="notices" aria-haspopup="true" aria-expanded={open}
        aria-label={unread === 0 ? "Notifications" : `Notifications, ${count(unread)} new`}
        onClick={() => {
          notices.read();
          page.showMenu("notices");
        }}
      >
        <Icon name="bell" />
        {unread > 0 && <span class="badge" aria-hidden="true">{unread > 99 ? "99+" : unread}</span>}
      </button>
      {open && (
        <Menu label="Notifications">
          {list.length === 0 && <p class="item none">Nothing yet: a run that pauses, stalls or ends is told here, and what guards do and others are refused.</p>}
          {list.map((one) => {
            const session = store.byKey(one.run);
            return (
              <button
                type="button" class="item note" key={one.id} data-kind={one.kind}
                onClick={() => {
                  store.focus(one.run);
                  page.showMenu(null);
                }}
              >
                <Icon name={ICON[one.kind]} />
                {session !== null && <Tag letter={store.letterOf(session)} />}
                <span class="grow"><b>{one.text}</b><span class="hint">{one.detail}</span></span>
                <span class="hint">{age((Date.now() - one.at_ms) / 1000)}</span>
              </button>
            );
          })}
          <Browser />
        </Menu>
      )}
    </div>
  );
}

function Browser(): JSX.Element {
  const state = browserTells();
  if (state === "unsupported") return <p class="item none">This browser shows notifications of pages on https or this machine only.</p>;
  if (state === "denied") return <p class="item none">Notifications are blocked for this page in the browser's settings.</p>;
  return (
    <label class="item tell">
      <input type="checkbox" checked={state === "granted"} onChange={(event) => void tellBrowser(event.currentTarget.checked)} />
      <span>Tell this browser while the page is not looked at</span>
    </label>
  );
}

/** What holds for the whole page, under the top bar: an old build, a link that only watches, a copy of the store. */

import type { JSX } from "preact";
import "./banner.css";
import { build } from "./client";
import { Icon } from "./icons";
import { store } from "./store";

export function Banner(): JSX.Element | null {
  const { served, watching, kept: kind } = store;
  const old = build !== "" && served !== null && served !== build;
  if (!old && !watching && kind === null) return null;
  return (
    <div class="banners">
      {old && (
        <p class="banner" role="status" data-banner="old">
          <Icon name="warn" />
          <span class="grow">The dashboard has been updated since this page was loaded. Until it is loaded again, what it shows may be wrong.</span>
          <button type="button" class="btn sm" onClick={() => location.reload()}>Reload</button>
        </p>
      )}
      {watching && (
        <p class="banner" data-banner="watching">
          <Icon name="exact" />
          <span class="grow"><b>Watching only.</b> This link shows everything and can give no command.</span>
        </p>
      )}
      {kind !== null && <p class="banner" data-banner="store"><Icon name="warn" /><span class="grow">{kind}</span></p>}
    </div>
  );
}
